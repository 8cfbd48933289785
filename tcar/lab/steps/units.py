"""What accuracies count: single clips, and pairs of twins, of which both must be right.

Units are arrays of places [k, u]: k clips each (1, or the 2 of a pair), u of them.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int


def right(logits: Sequence[Float[np.ndarray, "n c"]], labels: Int[np.ndarray, " n"]) -> Bool[np.ndarray, "s n"]:
    """Return which clips each seed of a method names rightly."""
    return np.stack([one.argmax(axis=1) == labels for one in logits])


def clip_units(count: int) -> Int[np.ndarray, "1 n"]:
    """Return every clip as a unit of its own."""
    return np.arange(count)[None]


def twin_units(twins: Int[np.ndarray, " n"]) -> Int[np.ndarray, "2 p"]:
    """Return the pairs of twins, by the place of each clip's twin (-1: none), the earlier clip of each first."""
    pairs = {(min(i, j), max(i, j)) for i, j in enumerate(twins.tolist()) if j >= 0}
    return np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2).T


def shares(named: Bool[np.ndarray, "s n"], units: Int[np.ndarray, "k u"]) -> Float[np.ndarray, " u"]:
    """Return the share of seeds that name all clips of each unit rightly."""
    return named[:, units].all(axis=1).mean(axis=0)


def by_set(values: Float[np.ndarray, " u"], sets: Sequence[str] | np.ndarray) -> Float[np.ndarray, " g"]:
    """Return what each set adds to the mean of values, so scaled that the mean over sets is that of the values."""
    _, place = np.unique(np.asarray(sets), return_inverse=True)
    sums = np.bincount(place, weights=values)
    return sums * len(sums) / max(1, len(values))
