"""Look into a run with widgets and ask its model: of clips that it names wrongly, of any clip, of a video of one's own.

Nothing of the project is written.
"""

from __future__ import annotations

import html
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import ipywidgets as widgets

from tcar.data.ssv2 import SPLITS
from tcar.explain.methods import CELLS, LABELS, METHODS
from tcar.explain.study import Study, study
from tcar.ground.errors import TcarError
from tcar.ground.project import find_root
from tcar.lab import params, results
from tcar.lab.browsing import LISTED, WIDE, ClipPicker, Stage, groups_of, offer
from tcar.lab.params import Params
from tcar.lab.steps.clips import class_names, ground_truth, healthy_clips
from tcar.lab.steps.model import model_folder
from tcar.lab.steps.studies import study_clip
from tcar.viewer import Contents
from tcar.viewer.contents import SWAPS

PAIRS, TOLD = 200, 10  # of classes that are taken for each other: in the list, in the table
ON_TOKENS = (CELLS, "rollout", "gradient_rollout")
OF_DATASET, OWN = "a clip of the dataset", "a video of one's own"
TWIN, ANOTHER = "its twin, where it has one", "another clip"
BY_ITSELF = ""  # the choice of a list by which `tcar.study` chooses


class ExploringError(TcarError, ValueError):
    """What was chosen cannot be looked at; the message says what is missing."""


def quick(run: Params) -> tuple[str, ...]:
    """Give the methods that take a few passes of the fusion; cells are exchanged where twins are known."""
    return ON_TOKENS if ground_truth(run) else ON_TOKENS[1:]


class WrongClips(widgets.VBox):
    """Clips that are named wrongly, to open by the cell of the confusion matrix that they are in.

    `found` are their ids by (class, class that it was taken for), most clips first, as
    `tcar.lab.steps.studies.wrong_clips` gives them. A clip is opened by the model of the run when it is asked for, and
    explained as what it was taken for, against what it is.
    """

    def __init__(self, run: Params, found: Mapping[tuple[str, str], Sequence[str]]):
        self._run, self._found = run, found
        self.table = widgets.HTML(_table(found))
        pairs = [(f"{true}, taken for {said} ({len(ids)})", (true, said)) for (true, said), ids in found.items()]
        self.pair = widgets.Dropdown(options=pairs[:PAIRS], description="Taken for", layout=WIDE)
        self.clip = widgets.Dropdown(description="Clip")
        self.button = widgets.Button(description="Open", disabled=not found)
        self.stage = Stage()
        super().__init__([self.table, self.pair, widgets.HBox([self.clip, self.button]), self.stage])
        self.pair.observe(self._offer, "value")
        self.button.on_click(self._open)
        self._offer()

    def _offer(self, _change: object = None) -> None:
        self.stage.clear()
        offer(self.clip, [(clip, clip) for clip in self._found.get(self.pair.value, ())[:LISTED]])

    def _open(self, _button: object = None) -> None:
        (true, said), clip = self.pair.value, self.clip.value
        asked = {"target": said, "against": true, "methods": quick(self._run), "progress": False}
        self.stage.show(lambda: study_clip(self._run, clip, **asked).contents(), f"Opening {clip} …")

    def _repr_mimebundle_(self, **asked) -> dict:
        """The widget, and the table for whoever shows no widgets."""
        return super()._repr_mimebundle_(**asked) | {"text/html": self.table.value}


def _table(found: Mapping[tuple[str, str], Sequence[str]]) -> str:
    """The largest confusions as HTML."""
    if not found:
        return "<p>No clip is named wrongly.</p>"
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in (true, said, len(ids))) + "</tr>"
        for (true, said), ids in list(found.items())[:TOLD]
    )
    return f"<table><tr><th>class</th><th>taken for</th><th>clips</th></tr>{rows}</table>"


def runs_with_model(root: Path) -> list[str]:
    """Name the folders of `runs/` that have a model, the latest first."""
    found = [path.parent for path in (root / "runs").glob("*/model") if path.is_dir()]
    return [folder.name for folder in sorted(found, key=lambda one: (one / "model").stat().st_mtime, reverse=True)]


def run_of(root: Path, name: str) -> Params:
    """Give the parameters of a run as its results have them, whatever their name was there.

    Raises ExploringError where it has no results, ParameterError where they are of other code.
    """
    folder = root / "runs" / name / "results"
    made = next((path for stage in ("training", "audit") if (path := folder / f"{stage}.meta.json").is_file()), None)
    if made is None:
        raise ExploringError(f"{folder}: neither training.meta.json nor audit.meta.json is there to tell the run by")
    values = results.load(made)["parameters"]
    told = {key: value for key, value in values.items() if key not in params.SECRETS}
    return replace(params.from_values(told | {"name": name, "runs": "runs"}, source=str(made)), root=root)


class Explorer(widgets.VBox):
    """A run, one of its clips or a video of one's own, methods, classes, and another clip to take streams from.

    `root` is the project's folder. The model is asked when the button is pressed, and no sooner.
    """

    def __init__(self, root: Path | None = None):
        self._root, self.params, self.study = root or find_root(Path.cwd()), None, None
        self.run = widgets.Dropdown(options=runs_with_model(self._root), description="Run")
        self.source = widgets.ToggleButtons(options=[OF_DATASET, OWN], style={"button_width": "14em"})
        self.picker, self.upload = None, widgets.FileUpload(accept="video/*", multiple=False)
        labels = [(LABELS[method], method) for method in METHODS]
        self.methods = widgets.SelectMultiple(options=labels, rows=6, description="Methods", layout=WIDE)
        self.target, self.against = (widgets.Dropdown(description=one, layout=WIDE) for one in ("Target", "Against"))
        self.other = widgets.Dropdown(options=[TWIN, ANOTHER], description="Beside it")
        self.other_id = widgets.Text(placeholder="its id", disabled=True)
        self.button = widgets.Button(description="Explain", button_style="primary")
        self.exchanged = widgets.ToggleButtons(options=SWAPS, description="Exchange")
        self.moment = widgets.FloatSlider(min=0, max=1, step=0.01, description="Moment")
        self.told, self.stage, self._clip = widgets.HTML(), Stage(), widgets.VBox()
        self._found = widgets.VBox([self.exchanged, self.told, self.moment])
        beside = widgets.HBox([self.other, self.other_id])
        asked = [self.run, self.source, self._clip, self.methods, self.target, self.against, beside, self.button]
        super().__init__([*asked, self._found, self.stage])
        self.run.observe(self._open, "value")
        for one in (self.source, self.other):
            one.observe(self._arrange, "value")
        self.button.on_click(self._explain)
        self.exchanged.observe(self._tell, "value")
        self.moment.observe(self._move, "value")
        self._open()

    def _open(self, _change: object = None) -> None:
        """Offer what the chosen run has."""
        self.stage.clear()
        self.params = self.picker = self.study = None
        try:
            if not self.run.value:
                raise ExploringError(f"{self._root / 'runs'}: no run there has a model; `make paper` makes the demo's")
            self._offer(run_of(self._root, self.run.value))
        except (TcarError, OSError) as error:
            self.stage.say(" ".join(str(error).split()))
        self._arrange()

    def _offer(self, run: Params) -> None:
        names, splits = class_names(run), sorted(SPLITS, key=lambda split: split != run.evaluation.evaluation_split)
        groups = groups_of(names, ground_truth(run))
        self.picker = ClipPicker(splits, lambda split: healthy_clips(run, split)[split], names, groups)
        for chosen, by_itself in ((self.target, "what the model answers"), (self.against, "the twin's class, or none")):
            chosen.options = [(by_itself, BY_ITSELF), *((name, name) for name in names)]
            chosen.value = BY_ITSELF
        self.methods.value = quick(run)
        self.params = run

    def _arrange(self, _change: object = None) -> None:
        """Show of the widgets those that can be used."""
        self.button.disabled = self.params is None
        own = self.source.value == OWN
        self._clip.children = [one for one in ([self.upload] if own else [self.picker]) if one]
        self.other_id.disabled = self.other.value != ANOTHER
        if own and self.other.value == TWIN:
            self.methods.value = tuple(method for method in self.methods.value if method != CELLS)
        self._found.layout.display = "none" if self.study is None else ""

    def _explain(self, _button: object = None) -> None:
        self.study = None
        self.stage.show(self._contents, "Explaining …")
        self.exchanged.value = SWAPS[0]
        self._tell()
        self._arrange()
        if self.stage.viewer:
            self.stage.viewer.observe(self._moved, "frame")
            self._move()

    def _contents(self) -> Contents:
        self.study = self._study()
        return self.study.contents()

    def _study(self) -> Study:
        run, clip = self.params, self.picker.clip
        asked = {"methods": self.methods.value or None, "target": self.target.value or None,
                 "against": self.against.value or None, "upright": run.data.upright, "other": self._other(),
                 "drawn": run.tabletop if ground_truth(run) else None, "progress": False}  # fmt: skip
        asked |= run.stream_checkpoints
        if self.source.value == OF_DATASET:
            if clip is None:
                raise ExploringError("No clip is chosen: choose one of a class that has some, or by its id.")
            return study(clip.path, model_folder(run), **asked)
        if not self.upload.value:
            raise ExploringError("No video is chosen: upload one.")
        given = self.upload.value[0]
        with tempfile.TemporaryDirectory(prefix="tcar-") as folder:
            path = Path(folder, Path(given["name"].replace("\\", "/")).name or "video")
            path.write_bytes(given["content"])
            return study(path, model_folder(run), **asked)

    def _other(self) -> Path | None:
        """The video that streams are taken from; None leaves a clip of Tabletop its twin."""
        if self.other.value == TWIN:
            return None
        wanted = self.other_id.value.strip()
        if found := self.picker.find(wanted):
            return found[1].path
        said = f"There is no clip {wanted!r} in {', '.join(SPLITS)}" if wanted else "No other clip is chosen"
        raise ExploringError(f"{said}: give the id of one to take streams from.")

    def _tell(self, _change: object = None) -> None:
        """Say what the model answers with the streams that are exchanged."""
        if self.study is None:
            self.told.value = ""
            return
        answers, swap = self.study.answers, self.exchanged.value
        if swap not in answers:
            alone = self.study.other is None
            self.told.value = "There is no other clip to take it from." if alone else "The model does not read it."
            return
        (name, share), (before, _) = answers[swap][0], answers[SWAPS[0]][0]
        instead = "" if name == before else f", and no longer “{before}”"
        self.told.value = html.escape(f"The model answers “{name}” ({share:.0%}){instead}.")

    def _frames(self) -> int:
        return len(self.stage.contents.clips[0].frames)

    def _move(self, _change: object = None) -> None:
        """Go to the chosen moment."""
        if self.stage.viewer:
            self.stage.viewer.frame = min(int(self.moment.value * self._frames()), self._frames() - 1)

    def _moved(self, change: Mapping) -> None:
        """Follow who has gone to a moment in the viewer."""
        if int(self.moment.value * self._frames()) != change["new"]:
            self.moment.value = (change["new"] + 0.5) / self._frames()
