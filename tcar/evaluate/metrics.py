"""Metrics with their uncertainty: accuracy, twin accuracy, calibration error, and comparisons of two methods.

Every metric is a ratio of sums over sets of clips, or the calibration error, which is a sum of absolute sums, so its
bootstrap over whole sets is a matrix product (`tcar.evaluate.statistics`; a clip without a set is a set of its own). A
clip counts for one class of 174: what counts is kept as a sparse matrix, whose sums of integers are exact in any order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from tcar.evaluate.confidence import EvaluationError, check_logits, confidence_bins
from tcar.evaluate.statistics import Bootstrap, draw_sets, interval

# Weights of one block of resamples stay below this many entries (16 MB), however many clips there are.
_BLOCK_ENTRIES = 2**21
MAIN = ("top1", "top5", "twin_accuracy", "ece")


@dataclass(frozen=True, eq=False)
class Scoring:
    """What is known of the clips that are scored, and how their metrics are made.

    `names[k]` names class k. `twins[i]` is the position of clip i's twin, or -1; `groups` and `sets` name those of each
    clip. `calibration_bins` are the equal-width bins of the calibration error.
    """

    names: Sequence[str] | None = None
    groups: Sequence[str] | None = None
    twins: Int[np.ndarray, " n"] | None = None
    sets: Sequence[str] | None = None
    bootstrap: Bootstrap = Bootstrap()
    calibration_bins: int = 15


@dataclass(frozen=True)
class Tally:
    """Sums over each set `g`: all that a resample needs. Column `m` is the metric at `paths[m]`."""

    paths: tuple[tuple[str, ...], ...]
    hits: Float[sparse.csr_array, "g m"]
    counts: Float[sparse.csr_array, "g m"]
    gaps: Float[np.ndarray, "g bins"]  # sum of (confidence - correct) in each confidence bin
    clips: Float[np.ndarray, " g"]
    sets: tuple[str, ...]


class Metrics(dict):
    """Values ready for a result file, with the tally and the bootstrap that they came from."""

    def __init__(self, values: dict, tally: Tally, bootstrap: Bootstrap):
        super().__init__(values)
        self.tally = tally
        self.bootstrap = bootstrap


def annotations(ids: Sequence[str], index: Mapping[str, Mapping]) -> dict:
    """Return the groups, twins and sets of clips, for `Scoring`, from a dataset's `ground_truth/index.json`.

    A twin outside `ids` (quarantined, say) counts as no twin. An empty index (the real dataset has none)
    gives {}.

    Raises:
        EvaluationError: a clip is missing from an index that is not empty.
    """
    if not index:
        return {}
    missing = [clip for clip in ids if clip not in index]
    if missing:
        raise EvaluationError(f"{len(missing)} clips are not in ground_truth/index.json, as {missing[0]}")
    position = {clip: i for i, clip in enumerate(ids)}
    return {
        "groups": [index[clip]["group"] for clip in ids],
        "twins": np.array([position.get(index[clip]["twin"], -1) for clip in ids]),
        "sets": [index[clip]["set"] for clip in ids],
    }


def metrics(
    logits: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"], scoring: Scoring | None = None
) -> Metrics:
    """Return every metric of one trained model on one split, with bootstrap intervals over twin sets.

    Gives `top1`, `top5`, `twin_accuracy` (a pair counts when both clips are right), `ece`, `per_class[name]` (top-1),
    `per_group[group]["top1"]` and `per_group[group]["twin_accuracy"]`, each {"value", "low", "high"} as fractions, None
    where no clip counts, and without interval where fewer than two sets do; and `confusion`, counts of clips whose rows
    are the true classes. `ece` is the expected calibration error (Guo et al. 2017, arXiv:1706.04599).

    Raises:
        EvaluationError: sizes or labels that do not fit, logits that are not finite, twins in different sets.
    """
    scoring = scoring or Scoring()
    logits, labels = np.asarray(logits), np.asarray(labels)
    n, classes = logits.shape
    names = [str(k) for k in range(classes)] if scoring.names is None else list(scoring.names)
    sets = [f"clip-{i}" for i in range(n)] if scoring.sets is None else list(scoring.sets)
    twins = np.full(n, -1) if scoring.twins is None else np.asarray(scoring.twins)
    groups = scoring.groups
    for what, given in {"groups": groups, "twins": twins, "sets": sets}.items():
        if given is not None and len(given) != n:
            raise EvaluationError(f"{n} rows of logits but {len(given)} {what}")
    if len(names) != classes:
        raise EvaluationError(f"logits of {classes} classes but {len(names)} class names")
    check_logits(logits, labels)
    apart = [i for i, j in enumerate(twins) if j >= 0 and sets[i] != sets[j]]
    if apart:
        own, other = sets[apart[0]], sets[twins[apart[0]]]
        raise EvaluationError(f"clip {apart[0]} is in set {own}, its twin in set {other}; one set expected")
    columns = _columns(_rank(logits, labels), labels, groups, twins, names)
    tally = _tally(columns, logits, labels, sets, scoring.calibration_bins)
    values = _nested([tally], scoring.bootstrap)
    values["confusion"] = confusion(logits, labels).tolist()
    return Metrics(values, tally, scoring.bootstrap)


def over_seeds(runs: Sequence[Metrics]) -> dict:
    """Return the mean of each metric over runs that differ in their seed, with intervals over clips and seeds.

    Every resample draws sets and seeds, and all drawn seeds answer for the same drawn sets, as they did in
    truth (the crossed bootstrap of Owen 2007, arXiv:0712.1111): what is common to all seeds does not average
    away. The keys are those of `metrics` (confusion matrices are summed), with `per_seed` values of the main
    ones.

    Raises:
        EvaluationError: no run, or runs over different clips.
    """
    tallies = _comparable(runs)
    values = _nested(tallies, runs[0].bootstrap)
    values["confusion"] = np.sum([run["confusion"] for run in runs], axis=0).tolist()
    values["per_seed"] = {name: [run[name]["value"] for run in runs] for name in MAIN}
    return values


def paired_difference(
    a: Metrics | Sequence[Metrics],
    b: Metrics | Sequence[Metrics],
    metric: str = "twin_accuracy",
    group: str = "",
) -> dict:
    """Return how much higher `metric` is for method a than for b on the same clips, with its interval.

    Both methods answer for the same resampled sets; their seeds are resampled independently, for equal seeds
    of two methods have nothing in common. `group` restricts it to one group (top1 and twin_accuracy only).

    Raises:
        EvaluationError: the methods were scored on different clips, or there is no such metric.
    """
    a, b = ([runs] if isinstance(runs, Metrics) else list(runs) for runs in (a, b))
    tallies = _comparable([*a, *b])
    path = ("per_group", group, metric) if group else (metric,)
    paths = (*tallies[0].paths, ("ece",))
    if path not in paths:
        known = ", ".join("/".join(p) for p in paths if p[0] != "per_class")
        raise EvaluationError(f"no metric {'/'.join(path)}; there are {known}")
    column, bootstrap = paths.index(path), a[0].bootstrap
    first, second = tallies[: len(a)], tallies[len(a) :]
    difference = _point(first)[column] - _point(second)[column]
    samples = _resample(first, bootstrap, 1)[:, column] - _resample(second, bootstrap, 2)[:, column]
    found = interval(difference, samples, bootstrap.confidence, _sets_that_count(first[0])[column])
    return {"metric": metric, "difference": found.pop("value"), **found}


def confusion(logits: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, "c c"]:
    """Return counts of clips: rows are true classes, columns predicted ones."""
    classes = logits.shape[1]
    cells = np.asarray(labels) * classes + np.argmax(logits, axis=1)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def _rank(logits, labels) -> Int[np.ndarray, " n"]:
    """How many classes come before the true one; equal logits in order of class, as argmax takes them."""
    own = logits[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(logits.shape[1]) < np.asarray(labels)[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(axis=1)


def _columns(rank, labels, groups, twins, names) -> dict[tuple, tuple[np.ndarray, np.ndarray]]:
    """Per metric, how often each clip counts and how often it hits. A pair counts at the first of its two
    clips."""
    n, correct = len(rank), rank < 1
    pairs = {(min(i, j), max(i, j)) for i, j in enumerate(twins.tolist()) if j >= 0}
    first, second = np.array(sorted(pairs), dtype=int).reshape(-1, 2).T
    paired = np.bincount(first, minlength=n)
    both = np.bincount(first, weights=correct[first] & correct[second], minlength=n)
    columns = {
        ("top1",): (np.ones(n), correct),
        ("top5",): (np.ones(n), rank < 5),
        ("twin_accuracy",): (paired, both),
    }
    columns |= {("per_class", name): (labels == k, (labels == k) & correct) for k, name in enumerate(names)}
    for group in sorted(set(groups or ())):
        inside = np.array([g == group for g in groups])
        columns["per_group", group, "top1"] = inside, inside & correct
        columns["per_group", group, "twin_accuracy"] = inside * paired, inside * both
    return columns


def _tally(columns, logits, labels, sets, bins) -> Tally:
    unique, set_of = np.unique(np.asarray(sets), return_inverse=True)
    confidence, correct, bin_of = confidence_bins(logits, labels, bins)
    gaps = np.zeros((len(unique), bins))
    np.add.at(gaps, (set_of, bin_of), confidence - correct)
    of_set = sparse.csr_array((np.ones(len(set_of)), (set_of, np.arange(len(set_of)))))
    counts, hits = (
        of_set @ sparse.hstack([sparse.csc_array(column[:, None]) for column in part], format="csr")
        for part in zip(*columns.values(), strict=True)
    )
    clips = np.bincount(set_of).astype(np.float64)
    return Tally(tuple(columns), hits, counts, gaps, clips, tuple(unique.tolist()))


def _comparable(runs: Sequence[Metrics]) -> list[Tally]:
    if not runs:
        raise EvaluationError("there is no run to average")
    tallies = [run.tally for run in runs]
    one = tallies[0]
    for tally in tallies[1:]:
        same = (tally.sets, tally.paths) == (one.sets, one.paths)
        if not same or (tally.counts != one.counts).nnz:
            raise EvaluationError("the runs were scored on different clips or classes")
    return tallies


def _statistics(tally: Tally, weights: Float[np.ndarray, "b g"]) -> Float[np.ndarray, "b m"]:
    """Every metric under each row of set weights, the calibration error last."""
    with np.errstate(invalid="ignore"):  # 0/0 where no clip counts: not a number, reported as None
        ratios = (weights @ tally.hits) / (weights @ tally.counts)
    ece = np.abs(weights @ tally.gaps).sum(axis=1) / (weights @ tally.clips)
    return np.concatenate([ratios, ece[:, None]], axis=1)


def _sets_that_count(tally: Tally) -> list[int]:
    """How many sets bear on each metric, the calibration error last."""
    return [*(tally.counts > 0).sum(axis=0).tolist(), len(tally.sets)]


def _point(runs: Sequence[Tally]) -> Float[np.ndarray, " m"]:
    return np.mean([_statistics(run, np.ones((1, len(run.sets))))[0] for run in runs], axis=0)


def _resample(runs: Sequence[Tally], bootstrap: Bootstrap, stream: int = 1) -> Float[np.ndarray, "b m"]:
    """Means over drawn seeds on drawn sets; every `stream` sees the same sets but seeds of its own."""
    children = np.random.SeedSequence(bootstrap.seed).spawn(stream + 1)
    of_sets, of_seeds = np.random.default_rng(children[0]), np.random.default_rng(children[stream])
    sets, seeds, blocks = len(runs[0].sets), len(runs), []
    for start in range(0, bootstrap.samples, block := max(1, _BLOCK_ENTRIES // sets)):
        size = min(block, bootstrap.samples - start)
        weights = draw_sets(of_sets, sets, size).astype(np.float64)
        shares = draw_sets(of_seeds, seeds, size) / seeds
        per_seed = np.stack([_statistics(run, weights) for run in runs])
        blocks.append(np.einsum("sbm,bs->bm", per_seed, shares))
    return np.concatenate(blocks)


def _nested(runs: Sequence[Tally], bootstrap: Bootstrap) -> dict:
    paths = (*runs[0].paths, ("ece",))
    values = {"per_class": {}, "per_group": {}}
    estimates = zip(paths, _point(runs), _resample(runs, bootstrap).T, _sets_that_count(runs[0]), strict=True)
    for path, value, samples, sets in estimates:
        inside = values
        for key in path[:-1]:
            inside = inside.setdefault(key, {})
        # A sum of absolute deviations grows with resampling noise: its resamples are centred on the value.
        inside[path[-1]] = interval(value, samples, bootstrap.confidence, sets, centred=path == ("ece",))
    return values
