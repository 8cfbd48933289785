"""How clips lie by what each stream, and the readout, makes of them: pictures, and the numbers beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from tcar.explain.embedding import METHODS, UMAP_CLIPS, embed, knn_accuracy, knn_most, silhouette, trustworthiness
from tcar.lab.steps.clips import ground_truth

if TYPE_CHECKING:
    from tcar.lab.params import Params

ORDER = ("semantic", "motion", "readout")
NEIGHBOURS = 15
Points = dict[str, dict[str, Float[np.ndarray, "n 2"]]]


def laid_out(
    run: Params, features: Mapping[str, Float[np.ndarray, "n _"]], labels: Sequence[int]
) -> tuple[Points, dict[str, Any]]:
    """Lay clips out by each of the features: points by method and features, and what is said of the full space.

    `same_class_neighbours` is the mean share of a clip's nearest others that are of its class, `most` the most that so
    few clips of a class allow, `chance` what a random order gives. No points for fewer clips than UMAP takes.
    """
    count = len(labels)
    neighbours = min(NEIGHBOURS, count - 1)
    found: dict[str, Any] = {"seed": run.common.seed, "n": count, "neighbours": neighbours, "features": []}
    if neighbours < 1:
        return {}, found | {"trustworthiness": []}
    chance = float(sum((size / count) ** 2 for size in Counter(labels).values()))
    for name in ORDER:
        found["features"].append({
            "features": name, "same_class_neighbours": knn_accuracy(features[name], labels, neighbours),
            "most": knn_most(labels, neighbours), "chance": chance, "silhouette": _silhouette(features[name], labels),
        })  # fmt: skip
    points: Points = {}
    if count > max(neighbours, UMAP_CLIPS - 1):
        points = {
            method: {name: embed(features[name], method, run.common.seed, neighbours=neighbours) for name in ORDER}
            for method in METHODS
        }
    found["trustworthiness"] = [
        {"features": name, "method": method, "value": trustworthiness(features[name], one, neighbours)}
        for method, by in points.items() for name, one in by.items() if 2 * neighbours < count
    ]  # fmt: skip
    return points, found


def _silhouette(features: Float[np.ndarray, "n d"], labels: Sequence[int]) -> float | None:
    """None where there are too few classes, or no clip beside another of its class."""
    classes = len(set(labels))
    return silhouette(features, labels) if 2 <= classes < len(labels) else None


def lengths(run: Params, clips: Sequence[str]) -> list[str]:
    """Give what must not tell the class apart and may show in a picture: the clips' numbers of frames."""
    from tcar.tabletop.dataset import load_truth

    if not ground_truth(run):
        return []
    return [f"{len(load_truth(run.data_root, clip)[1])} frames" for clip in clips]
