"""What every method of explanation says of one clip whose truth is known, by several models beside one another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from tcar.data.video import read_segments
from tcar.explain import pixels
from tcar.explain.curves import growing_clip, insertion_deletion
from tcar.explain.errors import ExplanationError
from tcar.explain.known import Known, truth_of
from tcar.explain.methods import CELLS, MOMENTS, Explanation, explain
from tcar.explain.scores import moment_inside, strength
from tcar.explain.scoring import rows
from tcar.fusion.kinds import FusionConfig
from tcar.ground import files, records
from tcar.lab.steps.clips import ground_truth
from tcar.lab.steps.model import model_config
from tcar.models.tca import TCA
from tcar.streams.weights import read_state

if TYPE_CHECKING:
    from tcar.lab.params import Params

HEADLINE, UNTRAINED, PERMUTED, LATE = "headline", "re-initialised fusion", "permuted labels", "late_concat"
# What a clip is explained for: by every method that goes back to pixels, by integrated gradients alone, to see whether
# they converge, or by the methods that read tokens.
PIXELS, CONVERGENCE, TOKENS = KINDS = "pixels", "convergence", "tokens"
ON_TOKENS = (CELLS, "rollout", "gradient_rollout")  # a few passes of the fusion: of many clips
ON_PIXELS = ("rollout_to_pixels", *pixels.METHODS)  # through the streams: of few
INTEGRATED = "integrated_gradients"
CURVES = (INTEGRATED, "grad_cam", "tubes", CELLS)  # whose insertion and deletion are measured
OF_LATE = ("grad_cam",)  # the saliency of late concatenation, beside what cross-attention reads
# Half the samples that one clip alone is given, and fewer orders of its moments: they are averaged over clips.
SAMPLED = {"gradient_shap": {"steps": 16}, "smooth_grad": {"steps": 16}, "frame_shapley": {"samples": 6}}
# Of fusions that serve for comparison alone, whose maps need not be complete to 1%.
RIVALS_SAMPLED = {"integrated_gradients": {"steps": 64}}
GROWN = 40  # frames of the video that grows
_OPENED: dict[Path, dict[str, TCA]] = {}


@dataclass(frozen=True)
class Asked:
    """One clip to explain by the fusions kept in a folder (`<name>.safetensors`), as one of `KINDS`."""

    run: Params
    fusions: Path
    clip: str
    kind: str

    @property
    def deep(self) -> bool:
        """Whether every method goes back to pixels."""
        return self.kind == PIXELS

    @property
    def path(self) -> Path:
        """Where what is found is kept."""
        return self.fusions / f"{self.kind}-{self.clip}.json"


def keep_fusions(folder: Path, fusions: Mapping[str, tuple[FusionConfig, dict[str, Tensor]]]) -> None:
    """Write the weights of fusions, and what they are made of, where `measure` finds them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (config, state) in fusions.items():
        records.write(folder / f"{name}.json", asdict(config))
        with files.drafted(folder / f"{name}.safetensors") as draft:
            save_file({key: value.contiguous() for key, value in state.items()}, draft)


def models_of(run: Params, fusions: Path) -> dict[str, TCA]:
    """Open the models of a folder, which share their frozen streams; once in each process."""
    if fusions not in _OPENED:
        found: dict[str, TCA] = {}
        for path in sorted(fusions.glob("*.safetensors")):
            config = model_config(run, FusionConfig(**records.load(path.with_suffix(".json"))))
            first = next(iter(found.values()), None)
            streams = {"semantic": first.semantic, "motion": first.motion} if first else {}
            model = TCA(config, **streams) if first else TCA.create(config, pretrained=True, **run.stream_checkpoints)
            model.fusion.load_state_dict(read_state(path))
            found[path.stem] = model.eval()
        _OPENED[fusions] = found
    return _OPENED[fusions]


def measure(asked: Asked) -> dict:
    """Explain one clip by every method and model, score the maps, and keep what is found; gives it.

    `clip`, `group`, `set`, `pair`; `rows` as in `tcar.explain.scoring`, each with its `model`; `convergence` (relative
    error) where integrated gradients were taken; and where it is `deep`, `moments` (share inside events less their
    share of time, by model and method), and of the headline `curves` (areas of insertion and deletion) and `moment` (of
    the growing clip).
    """
    if asked.path.is_file():
        return records.load(asked.path)
    run, models = asked.run, models_of(asked.run, asked.fusions)
    truth = truth_of(run.data_root, asked.clip, run.tabletop)
    names = list(models[HEADLINE].config.class_names)
    pair = truth.label, ground_truth(run)[truth.twin]["class"]
    about = {"clip": asked.clip, "group": truth.group, "set": truth.set, "pair": sorted(pair)}
    found = about | {"rows": [], "moments": []}
    clip, other = (_frames(run, models[HEADLINE], one) for one in (asked.clip, truth.twin))
    for name, model in models.items():
        if asked.kind == CONVERGENCE and name != HEADLINE:
            continue
        sampled = SAMPLED | (RIVALS_SAMPLED if name != HEADLINE else {})
        one = _Clip(model, clip, other, *(names.index(label) for label in pair), run.common.seed, sampled)
        made = one.maps(_methods(name, asked.kind))
        maps = {(m, s): values for m, given in made.items() for s, values in given.maps.items()}
        scored = rows(maps, truth, one.frames, run.common.seed, references=name == HEADLINE)
        found["rows"] += [{"model": name, **row} for row in scored]
        if asked.deep and name != LATE:
            asked_of = MOMENTS if name == HEADLINE else ("frame_ablation",)
            found["moments"] += [{"model": name, **row} for row in one.moments(truth, asked_of)]
        if INTEGRATED in made and name == HEADLINE:
            found["convergence"] = {"error": made[INTEGRATED].error, "note": made[INTEGRATED].note}
        if asked.deep and name == HEADLINE:
            found["curves"] = one.curves(made | one.maps((CELLS,)))
            video = read_segments(_video(run, truth.clip), GROWN, upright=run.data.upright)
            found["moment"] = growing_clip(model, torch.from_numpy(video)[None] / 255, one.target, steps=16).moment
    records.write(asked.path, found)
    return records.load(asked.path)  # rounded as it is kept, so that the second time says the same


def _methods(model: str, kind: str) -> tuple[str, ...]:
    """The methods by which a model is explained; of late concatenation its saliency alone, for comparison."""
    if model == LATE:
        return OF_LATE if kind == TOKENS else ()
    return {PIXELS: ON_PIXELS, CONVERGENCE: (INTEGRATED,), TOKENS: ON_TOKENS}[kind]


@dataclass(frozen=True)
class _Clip:
    """A clip as a model sees it, beside its twin, and the classes of both."""

    model: TCA
    clip: tuple[Tensor, Tensor]
    other: tuple[Tensor, Tensor]
    target: int
    against: int
    seed: int
    sampled: Mapping[str, dict[str, int]]

    @property
    def frames(self) -> dict[str, Tensor]:
        both = dict(zip(("semantic", "motion"), self.clip, strict=True))
        return {s: both[s][0] for s in self.model.fusion.streams}

    def explained(self, method: str) -> Explanation:
        running = {"seed": self.seed, "batch": 4} | self.sampled.get(method, {})
        return explain(self.model, self.clip, method, self.target, self.against, other=self.other, **running)

    def maps(self, methods: Sequence[str]) -> dict[str, Explanation]:
        return {method: self.explained(method) for method in methods}

    def moments(self, truth: Known, methods: Iterable[str]) -> list[dict]:
        found = {method: self.explained(method).moments for method in methods}
        return [
            {"method": method, "inside": _inside(one.times.numpy(), one.values[0].double().numpy(), truth)}
            for method, one in found.items()
        ]

    def curves(self, made: Mapping[str, Explanation]) -> list[dict]:
        found = []
        for method in CURVES:
            maps = {s: strength(values)[None] for s, values in made[method].maps.items()}
            areas = insertion_deletion(self.model, self.clip, maps, self.target, baseline="mean_frame", steps=8)
            found.append({"method": method, "insertion": areas.insertion_area, "deletion": areas.deletion_area})
        return found


def _inside(times: np.ndarray, values: np.ndarray, truth: Known) -> float | None:
    """The share of importance inside the events less their share of time; None where an event takes the whole clip."""
    events = [(start, end) for _, start, end in truth.events]
    if not events or max(end for _, end in events) - min(start for start, _ in events) > 0.95:
        return None
    try:
        return moment_inside(times, values, events)
    except ExplanationError:  # no moment speaks for the class
        return 0.0


def _frames(run: Params, model: TCA, clip: str) -> tuple[Tensor, Tensor]:
    counts = model.config.semantic_frames, model.config.motion_frames
    read = (read_segments(_video(run, clip), count, upright=run.data.upright) for count in counts)
    return tuple(torch.from_numpy(frames)[None] / 255 for frames in read)


def _video(run: Params, clip: str) -> Path:
    return Path(run.data_root) / "videos" / f"{clip}.webm"


def _label(run: Params, clip: str) -> str:
    return ground_truth(run)[clip]["class"]
