"""Clips of a dataset to choose and to play in a notebook. No model is asked, and only the chosen video is read."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import ipywidgets as widgets
import traitlets

from tcar.data.ssv2 import Clip, DatasetError
from tcar.data.video import VideoError, probe, read_segments
from tcar.ground.errors import TcarError
from tcar.ground.project import revision
from tcar.lab.steps.clips import ground_truth
from tcar.tabletop.dataset import load_truth
from tcar.tabletop.truth import decisive, event_times, role_masks
from tcar.viewer import Contents, Footer, ShownClip, Viewer
from tcar.viewer.still import draw

if TYPE_CHECKING:
    from tcar.lab.params import Params

LISTED = 50  # clips of a class in the list; the others are found by their id
FRAMES = 40  # of a clip that is played
ALL, UNKNOWN = "all groups", -1  # of all classes, and the class of a clip without a label
WIDE = widgets.Layout(width="min(100%, 46em)")


class Stage(widgets.VBox):
    """Where a clip plays, below one line that says what cannot be shown, and why."""

    def __init__(self):
        self.line, self.contents = widgets.HTML(), None
        super().__init__([self.line])

    @property
    def viewer(self) -> Viewer | None:
        """What plays, if anything does."""
        return next((child for child in self.children if isinstance(child, Viewer)), None)

    def say(self, text: str) -> None:
        """Write the line."""
        self.line.value = html.escape(text)

    def clear(self, line: str = "") -> None:
        """Show nothing but a line."""
        self.say(line)
        if self.viewer:
            before, self.children, self.contents = self.viewer, (self.line,), None
            before.close()

    def show(self, make: Callable[[], Contents], meanwhile: str = "") -> None:
        """Show what is made in place of what was shown, or say why it cannot be made."""
        self.clear(meanwhile)
        try:
            self.contents = make()
        except VideoError as error:
            self.say(": ".join(filter(None, (error.path.name, error.reason, error.detail))))
        except (TcarError, OSError) as error:
            self.say(" ".join(str(error).split()))
        else:
            self.say("")
            self.children = self.line, Viewer(self.contents)


class ClipPicker(widgets.VBox):
    """A split, a class of it and one of its clips to choose, or any clip by its id; `clip` is the chosen one.

    `of_split` gives the clips of a split, asked when it is first chosen; `groups` are those of the classes.
    """

    clip = traitlets.Instance(Clip, allow_none=True)

    def __init__(
        self,
        splits: Sequence[str],
        of_split: Callable[[str], Sequence[Clip]],
        names: Sequence[str],
        groups: Sequence[str] | None = None,
    ):
        self._of_split, self._names, self._groups = of_split, names, groups
        self._found: dict[str, dict[int, list[Clip]]] = {}
        self._busy = False
        self.split = widgets.Dropdown(options=list(splits), description="Split")
        self.group = widgets.Dropdown(options=[ALL, *filter(None, dict.fromkeys(groups or ()))], description="Group")
        self.kind = widgets.Dropdown(description="Class", layout=WIDE)
        self.listed = widgets.Dropdown(description="Clip")
        self.id = widgets.Text(description="or its id", placeholder="then Enter", continuous_update=False)
        self.note = widgets.HTML()
        first = [self.split, self.group] if groups else [self.split]
        super().__init__([widgets.HBox(first), self.kind, widgets.HBox([self.listed, self.id]), self.note])
        for one in (self.split, self.group, self.kind, self.listed, self.id):
            one.observe(self._follow, "value")
        self._follow({"owner": self.split})

    def find(self, clip: str) -> tuple[str, Clip] | None:
        """Find the clip of an id, and its split: that which is chosen, or another."""
        for split in sorted(self.split.options, key=lambda one: one != self.split.value):
            with suppress(DatasetError):  # of a split without answers there is nothing to find
                for clips in self._by_class(split).values():
                    if found := next((one for one in clips if one.id == clip), None):
                        return split, found
        return None

    def _by_class(self, split: str) -> dict[int, list[Clip]]:
        if split not in self._found:
            found: dict[int, list[Clip]] = {}
            for clip in self._of_split(split):
                found.setdefault(_key(clip), []).append(clip)
            self._found[split] = found
        return self._found[split]

    def _follow(self, change: Mapping) -> None:
        """Offer what follows from the choice that has changed."""
        if self._busy:
            return
        self._busy, owner, found = True, change["owner"], None
        try:
            if owner is self.id:
                found = self._named()
            elif owner is not self.listed:
                if owner is not self.kind:
                    self._offer_classes(self.kind.value)
                self._offer_clips()
            self.clip = found or self.listed.value
        except TcarError as error:
            self.listed.options, self.clip = (), None
            self.note.value = html.escape(str(error))
        finally:
            self._busy = False

    def _named(self) -> Clip | None:
        """The clip of the id that was written, with all choices set to it."""
        if not (wanted := self.id.value.strip()):
            return None
        place = self.find(wanted)
        if place is None:
            self.note.value = html.escape(f"There is no clip {wanted!r} in {', '.join(self.split.options)}.")
            return None
        self.split.value, self.group.value = place[0], ALL
        self._offer_classes(_key(place[1]))
        self._offer_clips(place[1])
        return place[1]

    def _offer_classes(self, wanted: int | None) -> None:
        found = self._by_class(self.split.value)
        options = [(f"{name} ({len(found.get(k, ())):,})", k) for k, name in enumerate(self._names) if self._grouped(k)]
        if UNKNOWN in found:
            options.append((f"class not known ({len(found[UNKNOWN]):,})", UNKNOWN))
        offer(self.kind, options, wanted)

    def _grouped(self, label: int) -> bool:
        """Whether a class is of the chosen group."""
        return self.group.value == ALL or self._groups[label] == self.group.value

    def _offer_clips(self, also: Clip | None = None) -> None:
        found = self._by_class(self.split.value).get(self.kind.value, [])
        listed = found[:LISTED] + [also] * (also is not None and also not in found[:LISTED])
        offer(self.listed, [(clip.id, clip) for clip in listed], also)
        told = f"The first {LISTED} of {len(found):,} clips; the others by their id." if len(found) > LISTED else ""
        self.note.value = told if found else f"No clip of this class in {self.split.value}."


class ClipBrowser(widgets.VBox):
    """A clip to choose, and to play beside its twin where it has one, with what the ground truth knows of both."""

    def __init__(self, run: Params, clips: Mapping[str, Sequence[Clip]], names: Sequence[str]):
        self._run, self._names, self._truth = run, names, ground_truth(run)
        self.picker = ClipPicker(list(clips), clips.__getitem__, names, groups_of(names, self._truth))
        self.stage = Stage()
        super().__init__([self.picker, self.stage])
        self.picker.observe(self._play, "clip")
        self._play()

    def _play(self, _change: object = None) -> None:
        clip = self.picker.clip
        if clip is None:
            self.stage.clear()
            return
        self.stage.show(lambda: contents(self._run, clip, self._names, self._truth))

    def _repr_mimebundle_(self, **asked) -> dict:
        """The widget, and a picture of what it shows for whoever shows no widgets."""
        data = super()._repr_mimebundle_(**asked)
        if self.stage.contents:
            data["image/png"] = base64.b64encode(draw(self.stage.contents)).decode()
        return data


def clip_browser(run: Params, clips: Mapping[str, Sequence[Clip]], names: Sequence[str]) -> ClipBrowser:
    """Give a widget that plays the clips of the splits; `names` are those of the classes."""
    return ClipBrowser(run, clips, names)


def groups_of(names: Sequence[str], truth: Mapping[str, Mapping]) -> list[str] | None:
    """Give the groups of classes by the index of Tabletop, "" for one without a clip; None where there is no index."""
    found = {told["class"]: told["group"] for told in truth.values()}
    return [found.get(name, "") for name in names] if found else None


def contents(run: Params, clip: Clip, names: Sequence[str], truth: Mapping[str, Mapping]) -> Contents:
    """Read one clip as the viewer takes it, and its twin where `truth`, the index of Tabletop, knows one.

    Roles, events and where the twins differ are those of the ground truth. Raises VideoError for what cannot be read.
    """
    told, remarks = truth.get(clip.id), []
    label = None if clip.label is None else names[clip.label]
    shown = [_shown(run, clip.path, label, told, remarks)]
    if told:
        twin = truth[told["twin"]]
        shown.append(_shown(run, clip.path.with_name(f"{told['twin']}.webm"), twin["class"], twin, []))
    commit = (revision(run.root)["commit"] or "")[:12]
    footer = Footer(commit, {"dataset": run.data.dataset}, run.material != "ssv2", tuple(remarks))
    group = told["group"] if told else ""
    return Contents(label or clip.id, tuple(shown), (), {}, {}, "", footer, group=group)


def _shown(run: Params, path: Path, label: str | None, told: Mapping | None, remarks: list[str]) -> ShownClip:
    about = probe(path)
    frames = read_segments(path, min(about.frames, FRAMES), upright=run.data.upright)
    known = _known(run, path.stem, remarks) if told else {}
    return ShownClip(path.stem, frames, label, about.duration or None, **known)


def _known(run: Params, clip: str, remarks: list[str]) -> dict:
    """What the ground truth knows of a clip; where the twins differ is drawn anew, and a remark says why it is not."""
    truth, instances = load_truth(run.data_root, clip)
    differs = None
    try:
        differs = decisive(run.data_root, clip, run.tabletop)
    except DatasetError as error:
        remarks.append(f"Where the twins differ is not shown: {error}")
    return {
        "events": tuple((name, start, end) for name, (start, end) in event_times(truth).items()),
        "roles": {role: mask for role, mask in role_masks(truth, instances).items() if mask.any()},
        "decisive": differs if differs is not None and differs.any() else None,
    }


def _key(clip: Clip) -> int:
    return UNKNOWN if clip.label is None else clip.label


def offer(select: widgets.Dropdown, options: Sequence[tuple[str, object]], wanted: object = None) -> None:
    """Give a list new choices, and choose the wanted one, else the first."""
    select.options = options
    values = [value for _, value in options]
    select.index = values.index(wanted) if wanted in values else 0 if values else None
