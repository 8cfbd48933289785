"""Single clips of a run, studied: chosen, explained, and laid out for a figure or a gallery."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tcar.data.ssv2 import Clip
from tcar.explain.methods import ATTENTION, CELLS
from tcar.explain.study import Study, study
from tcar.fusion.settings import WITHOUT_ATTENTION
from tcar.ground import log
from tcar.lab.steps.clips import class_names, ground_truth, healthy_clips
from tcar.lab.steps.model import model_folder

if TYPE_CHECKING:
    from tcar.lab.params import Params

SHOWN = (CELLS, "rollout", "gradient_rollout", "integrated_gradients", "grad_cam", "frame_ablation")
PREFERRED = ("bound", "motion")  # groups whose twins differ in what only time or binding tells
STRIP = 6  # frames of a figure


def study_clip(run: Params, clip: str, **asked) -> Study:
    """Study one clip of the run with the model of the run; `asked` are arguments of `tcar.study`.

    It is explained as what it is, against what its twin is; a clip without a twin as what the model says.
    """
    path = run.data_root / "videos" / f"{clip}.webm" if ground_truth(run) else _path(run, clip)
    told = ground_truth(run).get(clip)
    if told:
        asked = {"target": told["class"], "against": ground_truth(run)[told["twin"]]["class"]} | asked
        asked = {"drawn": run.tabletop} | asked
    return study(path, model_folder(run), upright=run.data.upright, **run.stream_checkpoints, **asked)


def shown(run: Params) -> tuple[str, ...]:
    """Give the methods that a notebook shows of a clip: those that this dataset and fusion allow."""
    attends = run.fusion.fusion not in WITHOUT_ATTENTION
    left_out = {*(() if ground_truth(run) else (CELLS,)), *(() if attends else ATTENTION)}
    return tuple(method for method in SHOWN if method not in left_out)


def _path(run: Params, clip: str):
    split = run.evaluation.evaluation_split
    return next(one.path for one in healthy_clips(run, split)[split] if one.id == clip)


def one_per_group(run: Params, clips: Sequence[Clip], count: int) -> list[str]:
    """Choose the first clip of each group, the groups of `PREFERRED` first; without groups, the first clips."""
    index = ground_truth(run)
    if not index:
        return [clip.id for clip in clips[:count]]
    first: dict[str, str] = {}
    for clip in clips:
        first.setdefault(index[clip.id]["group"], clip.id)
    rank = {group: number for number, group in enumerate(PREFERRED)}
    return [first[group] for group in sorted(first, key=lambda group: (rank.get(group, len(rank)), group))][:count]


def panel(one: Study) -> dict:
    """Give a study as `tcar.lab.plots.explanations.maps` draws it."""
    told, moments = one.seen.known, np.linspace(0, len(one.seen.shown) - 1, STRIP).round().astype(int)
    decisive = told and told.decisive[_same(moments, told.decisive, one)]
    return {
        "name": one.named(one.target), "against": "" if one.against is None else one.named(one.against),
        "frames": one.seen.shown[moments], "decisive": decisive,
        "maps": {(m, s): v.float().numpy() for m, made in one.explanations.items() for s, v in made.maps.items()},
        "passed": one.passed,
    }  # fmt: skip


def _same(moments: np.ndarray, mask: np.ndarray, one: Study) -> np.ndarray:
    """The frames of a mask that are shown at these frames of a study, which may show fewer than there are."""
    return np.minimum((moments + 0.5) * len(mask) / len(one.seen.shown), len(mask) - 1).astype(int)


def for_gallery(run: Params, places: Sequence[tuple[str, tuple[float, float]]], **asked) -> Iterator:
    """Study clips one after the other, as contents of `tcar.viewer.gallery`: (id, its place in the scatter) each."""
    for clip, point in log.progress(places, len(places), "studying", "clips"):
        yield study_clip(run, clip, progress=False, **asked).contents(point=point)


def wrong_clips(
    run: Params, predicted: np.ndarray, labels: np.ndarray, ids: Sequence[str]
) -> dict[tuple[str, str], list[str]]:
    """Give the ids of the clips that are named wrongly, by (their class, the class they were taken for)."""
    names, found = class_names(run), {}
    for clip, label, said in zip(ids, labels.tolist(), predicted.tolist(), strict=True):
        if label != said:
            found.setdefault((names[label], names[said]), []).append(clip)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def plain(maps: Mapping[str, Mapping[tuple[str, str], np.ndarray]]) -> dict[str, dict[str, np.ndarray]]:
    """Give maps by clip, method and stream with keys that JSON has."""
    return {clip: {" ".join(key): values for key, values in by.items()} for clip, by in maps.items()}
