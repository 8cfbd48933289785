"""Notebook 04: whether clips that are hard to see are named worse than others of their class, by the ground truth.

A condition has an amount for each clip, in which it is compared with the other clips of its class alone: a class whose
things are always small says nothing of what being small does. Amounts are observed and not set, so that what goes along
with one of them may be what matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from tcar.evaluate import Bootstrap, mean_interval

if TYPE_CHECKING:
    from tcar.lab.params import Params

CONDITIONS = ("small", "fast", "late", "occluded")
_GROWING = "towards_camera"  # of this family a thing that is seen less is far away, and not hidden


def amounts(run: Params, ids: Sequence[str]) -> dict[str, Float[np.ndarray, " n"]]:
    """Read how much of each of `CONDITIONS` clips of Tabletop have; NaN where their ground truth has no such amount.

    What acts are the objects, without hands, that the ground truth has as moving: where only a hand or the camera
    moves there is none, and of the first, second and last condition nothing is known. `small` is minus the area of what
    acts, as a share of the frame, where most of it is seen; `fast` its largest speed in frame widths a second; `late`
    when the last event of the clip begins, as a share of the clip; and `occluded` the share of the area that is hidden
    or out of the picture, the mean over frames. Several things that act count by their mean, and in speed by the
    fastest. Raises DatasetError where the ground truth is damaged.
    """
    from tcar.tabletop.dataset import load_flow, load_truth

    rows = []
    for clip in ids:
        truth, instances = load_truth(run.data_root, clip)
        row = {"late": truth["events"][-1]["start"] / len(instances)} if truth["events"] else {}
        objects = {one["id"] for one in truth["instances"] if one["category"] == "object"}
        acting = np.array(sorted(objects & set(truth["moving"])), np.uint8)
        seen = (instances[..., None] == acting).mean(axis=(1, 2))  # [t, k]
        if len(acting) and seen.any(axis=0).all():
            whole, speed = seen.max(axis=0), _speed(instances, load_flow(run.data_root, clip), acting)
            row |= {"small": -float(whole.mean()), "fast": speed * run.tabletop.frame_rate}
            if truth["family"] != _GROWING:
                row["occluded"] = float(1 - (seen.mean(axis=0) / whole).mean())
        rows.append(row)
    return {name: np.array([row.get(name, np.nan) for row in rows], float) for name in CONDITIONS}


def _speed(
    instances: UInt8[np.ndarray, "t h w"], flow: Float[np.ndarray, "s h2 w2 2"], acting: UInt8[np.ndarray, " k"]
) -> float:
    """The largest speed of what acts, in frame widths a frame: at each moment the median over what is seen of it."""
    from tcar.tabletop.dataset import FLOW_STRIDE

    here, pixels = instances[:-1, ::FLOW_STRIDE, ::FLOW_STRIDE], np.hypot(flow[..., 0], flow[..., 1])
    speeds = [
        np.median(now[inside])
        for one in acting
        for now, inside in zip(pixels, here == one, strict=True)
        if inside.any()
    ]
    return float(max(speeds) / instances.shape[2]) if speeds else np.nan


def thirds(
    amount: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"]
) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Return which clips are in the third of their class with the most of an amount, and which in that with the least.

    Clips of equal amount are together: a third has more clips where several are as much as its last one, and a class
    has none where the thirds could not be told apart, or with fewer than three clips. NaN is in neither.
    """
    most, least = np.zeros((2, len(labels)), bool)
    for label in np.unique(labels):
        inside = np.flatnonzero((labels == label) & ~np.isnan(amount))
        count, ordered = len(inside) // 3, np.sort(amount[inside])
        if count and ordered[count - 1] < ordered[-count]:
            most[inside], least[inside] = amount[inside] >= ordered[-count], amount[inside] <= ordered[count - 1]
    return most, least


def contrast(
    right: Float[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    sets: Sequence[str],
    amount: Float[np.ndarray, " n"],
    how: Bootstrap,
) -> dict:
    """Return how much more often clips are right in the third of their class with most of an amount than in that with
    least: the `difference` of the accuracies `most` and `least`, means over classes by their clips.

    `right` is the share of seeds that name a clip rightly. `clips` and `classes` count those that have an amount and
    thirds; `amounts` are the medians of both thirds, without their sign. The interval is of the bootstrap over sets of
    what each clip adds to the difference: how far it is right above the mean of its class, over the share of its third
    in the class.
    """
    upper, lower = thirds(amount, labels)
    adds, counted, accuracies = np.zeros(len(labels)), np.zeros(len(labels), bool), []
    for label in np.unique(labels[upper]):
        inside = (labels == label) & ~np.isnan(amount)
        counted |= inside
        for third, sign in ((upper & inside, 1), (lower & inside, -1)):
            adds[third] = sign * (right[third] - right[inside].mean()) * inside.sum() / third.sum()
        accuracies.append((inside.sum(), right[upper & inside].mean(), right[lower & inside].mean()))
    difference = mean_interval(adds[counted], np.asarray(sets)[counted], how)
    if difference["low"] is not None:  # no two shares differ by more than one
        difference |= {end: float(np.clip(difference[end], -1, 1)) for end in ("low", "high")}
    clips, most, least = np.array(accuracies).reshape(-1, 3).T
    means = [float(clips @ one / clips.sum()) if len(clips) else None for one in (most, least)]
    medians = [float(abs(np.median(amount[third]))) if len(clips) else None for third in (upper, lower)]
    about = {"clips": int(counted.sum()), "classes": len(clips), "most": means[0], "least": means[1]}
    return about | {"amounts": medians, "difference": difference}
