"""Intervals and tests: the bootstrap over sets of clips, and Student's over replicates.

Clips of one twin set are rendered from one seed and differ in one factor, so they are not independent: a resample
draws whole sets. It is a row of integer weights, and thousands of resamples are one matrix product.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import special, stats

Interval = dict[str, float | None]  # "value", "low" and "high"


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made: number of resamples, seed, and confidence level (0.95 = a 95% interval)."""

    samples: int = 2000
    seed: int = 0
    confidence: float = 0.95


def draw_sets(draw: np.random.Generator, sets: int, samples: int) -> Int[np.ndarray, "b g"]:
    """Return how often each of so many sets is drawn in each resample, with replacement."""
    return draw.multinomial(sets, np.full(sets, 1 / sets), size=samples)


def interval(
    value: float, samples: Float[np.ndarray, " b"], confidence: float, sets: int, centred: bool = False
) -> Interval:
    """Return `value` with quantiles of its resamples, `low` and `high`; those that are not a number say nothing.

    The quantiles lie a little further out than `confidence` has them: resamples of few sets vary less than samples do,
    by sqrt(1 - 1 / sets), and their spread is itself a guess, as in Student's t. This is the expanded percentile
    interval (Hesterberg 2015, arXiv:1411.5279); of 10 sets it takes 0.86% for 2.5%, of 1000 sets 2.48%.

    `sets` counts the sets that bear on the value: fewer than two give no interval, as one says nothing of others.
    All are None where the value itself is not a number. `centred` moves the resamples to the value, and keeps them
    above 0.
    """
    samples = samples[~np.isnan(samples)]
    if np.isnan(value):
        return dict.fromkeys(("value", "low", "high"))
    if sets < 2 or not len(samples):
        return {"value": float(value), "low": None, "high": None}
    if centred:
        samples = np.maximum(samples - samples.mean() + value, 0)
    outside = special.ndtr(-((sets / (sets - 1)) ** 0.5) * special.stdtrit(sets - 1, (1 + confidence) / 2))
    low, high = np.quantile(samples, [outside, 1 - outside])
    return {"value": float(value), "low": float(low), "high": float(high)}


def widened(
    samples: Float[np.ndarray, "b m"], value: Float[np.ndarray, " m"], seeds: Sequence[Float[np.ndarray, "_ m"]],
    sets: Int[np.ndarray, " m"], confidence: float,
) -> Float[np.ndarray, "b m"]:  # fmt: skip
    """Return resamples over sets and seeds as far from the `value` as so few seeds demand; each column is one metric.

    Resamples of s seeds vary by (s - 1) / s of what seeds do, and how much these do is a guess from s values. The
    distance grows by what is missing, and by Student's t of the degrees of freedom of sets and seeds together (Welch
    1947, Satterthwaite 1946) over that of the sets, which `interval` sees to. `seeds` has the values of each seed, one
    array for each independent draw of seeds, as the resamples have; of one seed alone nothing is known.
    """
    several = [values for values in seeds if len(values) > 1]
    if not several:
        return samples
    errors = [values.var(axis=0, ddof=1) / len(values) for values in several]
    known = ~np.isnan(samples)
    distance = np.where(known, samples - value, 0)
    count = np.maximum(known.sum(axis=0), 1)
    seen = (distance**2).sum(axis=0) / count - (distance.sum(axis=0) / count) ** 2
    whole = seen + sum(error / len(values) for error, values in zip(errors, several, strict=True))
    of_sets = np.maximum(whole - sum(errors), 0)
    with np.errstate(divide="ignore", invalid="ignore"):  # where nothing varies, nothing grows
        of_seeds = sum(error**2 / (len(values) - 1) for error, values in zip(errors, several, strict=True))
        degrees = whole**2 / (of_sets**2 / (sets - 1) + of_seeds)
        upper = (1 + confidence) / 2
        factor = np.sqrt(whole / seen) * special.stdtrit(degrees, upper) / special.stdtrit(sets - 1, upper)
    return value + (samples - value) * np.where(np.isfinite(factor), np.maximum(factor, 1), 1)


def ratio_interval(
    hits: Float[np.ndarray, " n"],
    counts: Float[np.ndarray, " n"],
    sets: Sequence[str] | np.ndarray,
    bootstrap: Bootstrap,
) -> Interval:
    """Return the ratio of two sums over clips with its bootstrap interval over sets; see `interval`.

    Resamples whose counts sum to 0 say nothing.
    """
    _, place = np.unique(sets, return_inverse=True)
    hits, counts = (np.bincount(place, weights=values) for values in (hits, counts))
    value, bearing, ratios = np.nan, int((counts > 0).sum()), np.empty(0)
    if bearing:
        value = hits.sum() / counts.sum()
    if bearing > 1:
        weights = draw_sets(np.random.default_rng(bootstrap.seed), len(hits), bootstrap.samples)
        drawn = weights @ counts
        ratios = (weights @ hits)[drawn > 0] / drawn[drawn > 0]
    return interval(value, ratios, bootstrap.confidence, bearing)


def mean_interval(
    values: Float[np.ndarray, " n"], sets: Sequence[str] | np.ndarray | None, bootstrap: Bootstrap
) -> Interval:
    """Return the mean of one value a clip with its bootstrap interval over sets, or over clips where there are none."""
    sets = np.arange(len(values)) if sets is None else sets
    found = ratio_interval(values, np.ones(len(values)), sets, bootstrap)
    return found | {"value": float(values.mean()) if len(values) else None}


def student(values: Float[np.ndarray, " r"], confidence: float) -> dict[str, float | None]:
    """Return the mean of replicates, its interval by Student's t within [0, 1], and the standard deviation (`spread`).

    All are None where a value is unknown (NaN) or there is none; one alone has a mean and nothing else.
    """
    unknown = dict.fromkeys(("value", "low", "high", "spread"))
    if not len(values) or np.isnan(values).any():
        return unknown
    if len(values) == 1:
        return unknown | {"value": float(values[0])}
    mean, spread = float(values.mean()), float(values.std(ddof=1))
    half = spread / len(values) ** 0.5 * stats.t.ppf((1 + confidence) / 2, len(values) - 1)
    return {"value": mean, "low": max(0.0, mean - half), "high": min(1.0, mean + half), "spread": spread}


def paired(a: Float[np.ndarray, " r"], b: Float[np.ndarray, " r"], confidence: float) -> dict[str, float | None]:
    """Compare two methods on the same replicates: the mean difference, its interval, and p of the paired t-test.

    All are None where a value is unknown (NaN) or there is none; a single replicate has a difference and nothing else.
    """
    difference = a - b
    unknown = dict.fromkeys(("difference", "low", "high", "p"))
    if not len(difference) or np.isnan(difference).any():
        return unknown
    first = float(difference[0])
    if len(difference) == 1:
        return unknown | {"difference": first}
    if np.ptp(difference) == 0:  # the t statistic of a difference that never varies is 0/0 or infinite
        return {"difference": first, "low": first, "high": first, "p": float(first == 0)}
    test = stats.ttest_rel(a, b)
    low, high = np.clip(test.confidence_interval(confidence), -1, 1)  # no two shares differ by more
    return {"difference": float(difference.mean()), "low": float(low), "high": float(high), "p": float(test.pvalue)}


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Correct p-values of several tests (Holm 1979): the k-th smallest of m times m - k + 1, never falling.

    A test that was not made (None) is none of the m.
    """
    made = np.array([value for value in p if value is not None])
    order = np.argsort(made)
    corrected = np.maximum.accumulate(made[order] * np.arange(len(made), 0, -1)).clip(max=1)
    found = iter(corrected[np.argsort(order)].tolist())
    return [None if value is None else next(found) for value in p]
