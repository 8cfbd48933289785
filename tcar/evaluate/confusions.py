"""What is taken for what: the classes in an order that shows it, and the pairs that are confused most."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from tcar.evaluate.confidence import EvaluationError
from tcar.evaluate.metrics import Metrics, rates_over_seeds


def class_twins(labels: Int[np.ndarray, " n"], twins: Int[np.ndarray, " n"], classes: int) -> Int[np.ndarray, " c"]:
    """Return each class's twin, the class that most twins of its clips have, or -1 where none has any.

    `twins[i]` is the position of clip i's twin, or -1, as in `tcar.evaluate.Scoring`.
    """
    there = twins >= 0
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (labels[there], labels[twins[there]]), 1)
    return np.where(counts.any(axis=1), counts.argmax(axis=1), -1)


def kinship_order(
    confusion: Int[np.ndarray, "c c"], groups: Sequence[str] | None = None, twins: Int[np.ndarray, " c"] | None = None
) -> Int[np.ndarray, " c"]:
    """Return the classes in an order in which kin are neighbours.

    Known kin come from `groups`, one for each class, in the order in which they first appear, and within a group from
    `twins` (see `class_twins`). Where neither is known, classes that are taken for each other are kin: hierarchical
    clustering with average linkage of one minus the share of the clips of two classes that are confused, the leaves
    ordered so that neighbours are as near as they can be (Bar-Joseph et al. 2001).

    Raises:
        EvaluationError: groups or twins that are not as many as the classes.
    """
    counts = np.asarray(confusion, dtype=float)
    classes = len(counts)
    for what, given in {"groups": groups, "twins": twins}.items():
        if given is not None and len(given) != classes:
            raise EvaluationError(f"{classes} classes but {len(given)} {what}")
    if groups is None and twins is None:
        if classes < 3:
            return np.arange(classes)
        clips = counts.sum(axis=1)
        both = np.maximum(clips[:, None] + clips[None, :], 1)
        distance = 1 - (counts + counts.T) / both
        np.fill_diagonal(distance, 0)
        condensed = squareform(distance, checks=False)
        return leaves_list(linkage(condensed, "average", optimal_ordering=True)).astype(int)
    names = list(groups) if groups is not None else [""] * classes
    other = np.full(classes, -1) if twins is None else np.asarray(twins)
    first = {name: place for place, name in reversed(list(enumerate(names)))}
    # Of two twins the one that is listed first leads; the other follows it.
    leads = np.where(other >= 0, np.minimum(other, np.arange(classes)), np.arange(classes))
    return np.array(sorted(range(classes), key=lambda k: (first[names[k]], leads[k], k)), dtype=int)


def confused_pairs(runs: Sequence[Metrics], names: Sequence[str], most: int = 20) -> list[dict]:
    """Return the pairs of a true and a predicted class that are confused most, over runs that differ in their seed.

    Each has `true`, `predicted`, the `count` of clips summed over runs, and the `share` of the clips of the true class,
    the mean over runs with its interval over sets and seeds. The largest counts come first, of equal ones the larger
    share, then the order of the classes. At most `most` pairs, fewer where fewer are confused.

    Raises:
        EvaluationError: no run, runs over different clips, or other names than classes.
    """
    if not runs:
        raise EvaluationError("there is no run whose confusions could be listed")
    counts = np.sum([run["confusion"] for run in runs], axis=0)
    classes = len(counts)
    if len(names) != classes:
        raise EvaluationError(f"{classes} classes but {len(names)} names")
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    true, predicted = np.nonzero(counts * (1 - np.eye(classes, dtype=int)))
    order = np.lexsort((predicted, true, -shares[true, predicted], -counts[true, predicted]))[:most]
    pairs = [(int(true[place]), int(predicted[place])) for place in order]
    found = rates_over_seeds(runs, pairs)
    return [
        {"true": names[t], "predicted": names[p], "count": int(counts[t, p]), "share": share}
        for (t, p), share in zip(pairs, found, strict=True)
    ]
