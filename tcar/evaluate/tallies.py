"""What is kept of a model's predictions: sums over each set of clips, of which every metric of a resample is made.

Each part of a tally takes weights of sets to the values of its metrics, row by row: weights of 1 give the values
themselves, a draw of sets gives those of a resample. A clip counts for one class of 174: what counts is kept as a
sparse matrix, whose sums of integers are exact in any order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy import sparse
from scipy.stats import rankdata

from tcar.evaluate.confidence import confidence_bins, probabilities

Path = tuple[str, ...]  # of keys that lead to a metric
RISKS = (0.05, 0.1, 0.2)  # at which coverage is given
STEPS = 20  # of the risk-coverage curve


@runtime_checkable
class Part(Protocol):
    """Metrics that are made in one go."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """The keys of each metric."""

    @property
    def bearing(self) -> list[int]:
        """The sets that bear on each metric."""

    def __call__(self, weights: Float[np.ndarray, "b g"]) -> Float[np.ndarray, "b m"]:
        """Every metric under each row of set weights."""


@dataclass(frozen=True, eq=False)
class Ratios:
    """Ratios of two sums, not a number where nothing counts; with `mean`, the mean of those that are one comes last."""

    names: tuple[Path, ...]
    hits: Float[sparse.csr_array, "g m"]
    counts: Float[sparse.csr_array, "g m"]
    mean: Path = ()

    @classmethod
    def of(
        cls, columns: Mapping[Path, tuple[np.ndarray, np.ndarray]], of_set: Shaped[sparse.csr_array, "g n"],
        mean: Path = (),
    ) -> "Ratios":  # fmt: skip
        """Sum over sets what counts of each clip, and what hits: `columns` has both for each metric."""
        counts, hits = (
            of_set @ sparse.hstack([sparse.csc_array(column[:, None]) for column in part], format="csr")
            for part in zip(*columns.values(), strict=True)
        )
        return cls(tuple(columns), hits, counts, mean)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The ratios, and their mean."""
        return (*self.names, self.mean) if self.mean else self.names

    @property
    def bearing(self) -> list[int]:
        """The sets in which something counts."""
        found = (self.counts > 0).sum(axis=0).tolist()
        return [*found, int((self.counts.sum(axis=1) > 0).sum())] if self.mean else found

    def __call__(self, weights: Float[np.ndarray, "b g"]) -> Float[np.ndarray, "b m"]:
        """Every ratio under each row of set weights."""
        with np.errstate(invalid="ignore"):  # 0/0 where no clip counts: not a number, reported as None
            ratios = (weights @ self.hits) / (weights @ self.counts)
        if not self.mean:
            return ratios
        known = ~np.isnan(ratios)
        mean = np.where(known, ratios, 0).sum(axis=1) / known.sum(axis=1)
        return np.concatenate([ratios, mean[:, None]], axis=1)


@dataclass(frozen=True, eq=False)
class Gaps:
    """A calibration error: the sum of (confidence - outcome) in each bin, without its sign, over the clips.

    `shared` divides it: the number of classes, each with bins of its own, that it is the mean of.
    """

    paths: tuple[Path, ...]
    gaps: Float[sparse.csr_array, "g bins"]
    clips: Float[np.ndarray, " g"]
    shared: int = 1

    @property
    def bearing(self) -> list[int]:
        """All sets."""
        return [len(self.clips)]

    def __call__(self, weights: Float[np.ndarray, "b g"]) -> Float[np.ndarray, "b 1"]:
        """The error under each row of set weights."""
        return (np.abs(weights @ self.gaps).sum(axis=1) / (weights @ self.clips) / self.shared)[:, None]


@dataclass(frozen=True, eq=False)
class Selective:
    """Selective prediction: of clips in falling order of confidence, which a model answers, and how often it is wrong.

    A threshold on the confidence answers all clips that reach it, so clips of equal confidence are answered together.
    `last` marks the last of these. The area under the risk-coverage curve is the mean risk over the thresholds that the
    clips set (Geifman and El-Yaniv 2017, arXiv:1705.08500). The risk at a coverage is that of the highest threshold
    which covers as much; the coverage at a risk is the largest whose risk is no higher, 0 where there is none.
    """

    set_of: Int[np.ndarray, " n"]
    wrong: Bool[np.ndarray, " n"]
    last: Bool[np.ndarray, " n"]
    sets: int

    @classmethod
    def of(
        cls, confidence: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " n"], set_of: Int[np.ndarray, " n"]
    ) -> "Selective":
        """Put clips in order."""
        order = np.argsort(-confidence, kind="stable")
        falling = confidence[order]
        last = np.append(falling[1:] < falling[:-1], True)
        return cls(set_of[order], ~correct[order], last, int(set_of.max()) + 1)

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        """The area, the coverage at each of `RISKS`, and the risk at each coverage of the curve."""
        coverages = tuple(("selective", "coverage_at_risk", f"{risk:g}") for risk in RISKS)
        curve = tuple(("selective", "risk_at_coverage", f"{step / STEPS:g}") for step in range(1, STEPS + 1))
        return (("selective", "aurc"), *coverages, *curve)

    @property
    def bearing(self) -> list[int]:
        """All sets."""
        return [self.sets] * len(self.paths)

    def __call__(self, weights: Float[np.ndarray, "b g"]) -> Float[np.ndarray, "b m"]:
        """Every value under each row of set weights."""
        drawn = weights[:, self.set_of]
        answered = drawn.cumsum(axis=1)[:, self.last]
        mistakes = (drawn * self.wrong).cumsum(axis=1)[:, self.last]
        # Before the first drawn clip nothing is answered, and nothing wrong.
        risk = np.divide(mistakes, answered, out=np.zeros_like(mistakes), where=answered > 0)
        coverage = answered / answered[:, -1:]
        values = [(np.diff(coverage, prepend=0, axis=1) * risk).sum(axis=1)]
        values += [np.where(risk <= most, coverage, 0).max(axis=1) for most in RISKS]
        wanted = np.arange(1, STEPS + 1) / STEPS
        first = np.stack([np.searchsorted(row, wanted) for row in coverage])  # of the thresholds that cover as much
        return np.concatenate([np.stack(values, axis=1), np.take_along_axis(risk, first, axis=1)], axis=1)


@dataclass(frozen=True, eq=False)
class Tally:
    """All that is kept of one model's predictions: what counts `overall`, in each of the `classes`, and the `others`.

    `predicted` counts in each set the clips of true class t that were taken for p, in column t * classes + p.
    """

    overall: Ratios
    classes: Ratios
    others: tuple[Part, ...]
    predicted: Float[sparse.csr_array, "g cc"]
    sets: tuple[str, ...]

    @property
    def parts(self) -> tuple[Part, ...]:
        """Everything that makes metrics."""
        return (self.overall, self.classes, *self.others)

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        """The keys of each metric."""
        return tuple(path for part in self.parts for path in part.paths)

    @property
    def bearing(self) -> list[int]:
        """The sets that bear on each metric."""
        return [sets for part in self.parts for sets in part.bearing]

    def __call__(self, weights: Float[np.ndarray, "b g"]) -> Float[np.ndarray, "b m"]:
        """Every metric of every part under each row of set weights."""
        return np.concatenate([part(weights) for part in self.parts], axis=1)

    def rates(self, pairs: Sequence[tuple[int, int]]) -> Ratios:
        """How often clips of true class t are taken for p, for pairs (t, p)."""
        true = [t for t, _ in pairs]
        columns = [t * len(self.classes.names) + p for t, p in pairs]
        names = tuple((str(t), str(p)) for t, p in pairs)
        return Ratios(names, self.predicted[:, columns], self.classes.counts[:, true])

    @classmethod
    def of(
        cls, logits: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"], sets: Sequence[str], bins: int,
        columns: Mapping[Path, tuple[np.ndarray, np.ndarray]],
    ) -> "Tally":  # fmt: skip
        """Sum up predictions; `columns` has of each further ratio how often each clip counts, and how often it hits."""
        n, classes = logits.shape
        unique, set_of = np.unique(np.asarray(sets), return_inverse=True)
        of_set = sparse.csr_array((np.ones(n), (set_of, np.arange(n))))
        confidence, correct, bin_of = confidence_bins(logits, labels, bins)
        shares, rows = probabilities(logits), np.arange(n)
        truth = np.zeros_like(shares)
        truth[rows, labels] = 1
        brier = {("brier",): (np.ones(n), ((shares - truth) ** 2).sum(axis=1))}
        per_class = {path: column for path, column in columns.items() if path[0] == "per_class"}
        overall = {path: column for path, column in columns.items() if path not in per_class} | brier

        def gaps(name: str, values: np.ndarray, places: np.ndarray, shared: int = 1) -> Gaps:
            """Of values one a clip, or one a clip and class, where each falls into one of `bins` of its class."""
            places = (places.reshape(n, shared) + np.arange(shared) * bins).ravel()
            clips = np.repeat(rows, shared)
            found = sparse.csr_array((values.ravel().astype(float), (clips, places)), shape=(n, shared * bins))
            return Gaps(((name,),), of_set @ found, np.bincount(set_of).astype(float), shared)

        errors = (
            gaps("ece", confidence - correct, bin_of),
            gaps("ece_equal_mass", confidence - correct, equal_mass_bins(confidence, bins)),
            gaps("ece_classwise", shares - truth, np.minimum((shares * bins).astype(int), bins - 1), classes),
        )
        cells = labels * classes + np.argmax(logits, axis=1)
        predicted = sparse.csr_array((np.ones(n), (rows, cells)), shape=(n, classes * classes))
        return cls(
            Ratios.of(overall, of_set),
            Ratios.of(per_class, of_set, ("mean_class_accuracy",)),
            (*errors, Selective.of(confidence, correct, set_of)),
            of_set @ predicted,
            tuple(unique.tolist()),
        )


def equal_mass_bins(confidence: Float[np.ndarray, " n"], bins: int) -> Int[np.ndarray, " n"]:
    """Return the bin of each clip, where bins hold as many clips each, give or take one.

    Clips of equal confidence share the lowest bin that one of them falls into, so their order does not matter.
    """
    return (rankdata(confidence, method="min").astype(int) - 1) * bins // len(confidence)
