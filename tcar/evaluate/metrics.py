"""Metrics with their uncertainty: accuracies, calibration errors, selective prediction, and two methods compared.

Every metric is made of sums over sets of clips (`tcar.evaluate.tallies`), so that its bootstrap over whole sets is a
matrix product (`tcar.evaluate.statistics`; a clip without a set is a set of its own).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from tcar.evaluate.confidence import EvaluationError, check_logits
from tcar.evaluate.statistics import Bootstrap, Interval, draw_sets, interval, widened
from tcar.evaluate.tallies import Part, Path, Ratios, Tally

# Weights of one block of resamples stay below this many entries (16 MB), however many clips there are.
_BLOCK_ENTRIES = 2**21
# Sums of absolute deviations, which grow with the noise of resampling.
_DEVIATIONS = (("ece",), ("ece_equal_mass",), ("ece_classwise",))
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

    Gives `top1`, `top5`, `twin_accuracy` (a pair counts when both clips are right), `per_class[name]` (top-1, with the
    number of its clips as `support`), `mean_class_accuracy` over the classes that have clips,
    `per_group[group]["top1"]` and `per_group[group]["twin_accuracy"]`, each {"value", "low", "high"} as fractions, None
    where no clip counts, and without interval where fewer than two sets do; and `confusion`, counts of clips whose rows
    are the true classes.

    Of the probabilities there are `brier`, their squared distance from the truth summed over classes, from 0 to 2
    (Brier 1950); `ece`, the expected calibration error over bins of equal width (Guo et al. 2017, arXiv:1706.04599);
    `ece_equal_mass`, over bins of equally many clips; `ece_classwise`, the mean over classes of the error of each
    one's probability (Kull et al. 2019, arXiv:1910.12656); and `selective`, which `tcar.evaluate.tallies.Selective`
    describes: `aurc`, `coverage_at_risk[risk]` and `risk_at_coverage[coverage]`.

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
    tally = Tally.of(logits, labels, sets, scoring.calibration_bins, columns)
    values = _nested([tally], scoring.bootstrap)
    values["confusion"] = confusion(logits, labels).tolist()
    return Metrics(values, tally, scoring.bootstrap)


def over_seeds(runs: Sequence[Metrics]) -> dict:
    """Return the mean of each metric over runs that differ in their seed, with intervals over clips and seeds.

    Every resample draws sets and seeds, and all drawn seeds answer for the same drawn sets, as they did in
    truth (the crossed bootstrap of Owen 2007, arXiv:0712.1111): what is common to all seeds does not average
    away. Intervals are as wide as so few seeds demand (`tcar.evaluate.statistics.widened`). The keys are those of
    `metrics` (confusion matrices are summed), with `per_seed` values of the main ones.

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
    same_seeds: bool = False,
) -> dict:
    """Return how much higher `metric` is for method a than for b on the same clips, with its interval.

    Both methods answer for the same resampled sets; their seeds are resampled independently, for equal seeds
    of two methods have nothing in common. With `same_seeds` they have: the runs of a and b are two readings of the same
    trainings, in one order. `group` restricts it to one group (top1 and twin_accuracy only). A metric inside another is
    named by both, as "selective/aurc".

    Raises:
        EvaluationError: the methods were scored on different clips, there is no such metric, or no such seeds.
    """
    a, b = ([runs] if isinstance(runs, Metrics) else list(runs) for runs in (a, b))
    tallies = _comparable([*a, *b])
    if same_seeds and len(a) != len(b):
        raise EvaluationError(f"{len(a)} runs of a and {len(b)} of b cannot be of the same seeds")
    path = ("per_group", group, metric) if group else tuple(metric.split("/"))
    places = {p: (part, column) for part, of in enumerate(tallies[0].parts) for column, p in enumerate(of.paths)}
    if path not in places:
        known = ", ".join("/".join(p) for p in places if p[0] != "per_class")
        raise EvaluationError(f"no metric {'/'.join(path)}; there are {known}")
    (place, column), bootstrap = places[path], a[0].bootstrap
    parts = [tally.parts[place] for tally in tallies]
    first, second = parts[: len(a)], parts[len(a) :]
    sets, most = len(tallies[0].sets), _most(path)
    of_a, of_b = _by_seed(first, sets), _by_seed(second, sets)
    difference = of_a.mean(axis=0) - of_b.mean(axis=0)
    samples = _resample(first, sets, bootstrap) - _resample(second, sets, bootstrap, 1 if same_seeds else 2)
    seeds = [of_a - of_b] if same_seeds else [of_a, of_b]
    bearing = np.array(first[0].bearing)
    samples = widened(samples, difference, seeds, bearing, bootstrap.confidence)[:, column].clip(-most, most)
    found = interval(difference[column], samples, bootstrap.confidence, int(bearing[column]))
    return {"metric": metric, "difference": found.pop("value"), **found}


def rates_over_seeds(runs: Sequence[Metrics], pairs: Sequence[tuple[int, int]]) -> list[dict]:
    """Return the share of the clips of class t that are taken for p, for pairs (t, p), as the mean over runs.

    The runs differ in their seed; intervals are those of `over_seeds`. Raises EvaluationError as it does.
    """
    tallies = _comparable(runs)
    if not pairs:
        return []
    parts = [tally.rates(pairs) for tally in tallies]
    return [found for _, found in _intervals(parts, len(tallies[0].sets), runs[0].bootstrap)]


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


def _comparable(runs: Sequence[Metrics]) -> list[Tally]:
    if not runs:
        raise EvaluationError("there is no run to average")
    tallies = [run.tally for run in runs]
    one = tallies[0]
    for tally in tallies[1:]:
        alike = [(t.sets, t.overall.paths, t.classes.paths) for t in (tally, one)]
        if alike[0] != alike[1] or _differ(tally.overall, one.overall) or _differ(tally.classes, one.classes):
            raise EvaluationError("the runs were scored on different clips or classes")
    return tallies


def _differ(a: Ratios, b: Ratios) -> bool:
    return (a.counts != b.counts).nnz > 0


def _by_seed(parts: Sequence[Part], sets: int) -> Float[np.ndarray, "s m"]:
    return np.concatenate([part(np.ones((1, sets))) for part in parts])


def _most(path: Path) -> float:
    """The largest value that a metric can have."""
    return 2.0 if path == ("brier",) else 1.0


def _resample(parts: Sequence[Part], sets: int, bootstrap: Bootstrap, stream: int = 1) -> Float[np.ndarray, "b m"]:
    """Means over drawn seeds on drawn sets, a part for each seed; every `stream` sees the same sets but seeds of its
    own."""
    children = np.random.SeedSequence(bootstrap.seed).spawn(stream + 1)
    of_sets, of_seeds = np.random.default_rng(children[0]), np.random.default_rng(children[stream])
    seeds, blocks = len(parts), []
    for start in range(0, bootstrap.samples, block := max(1, _BLOCK_ENTRIES // sets)):
        size = min(block, bootstrap.samples - start)
        weights = draw_sets(of_sets, sets, size).astype(np.float64)
        shares = draw_sets(of_seeds, seeds, size) / seeds
        per_seed = np.stack([part(weights) for part in parts])
        blocks.append(np.einsum("sbm,bs->bm", per_seed, shares))
    return np.concatenate(blocks)


def _intervals(parts: Sequence[Part], sets: int, bootstrap: Bootstrap) -> Iterator[tuple[Path, Interval]]:
    """Every metric of a part, which is given for each seed."""
    by_seed, bearing = _by_seed(parts, sets), parts[0].bearing
    values = by_seed.mean(axis=0)
    samples = _resample(parts, sets, bootstrap)
    samples = widened(samples, values, [by_seed], np.array(bearing), bootstrap.confidence).T
    for path, value, drawn, there in zip(parts[0].paths, values, samples, bearing, strict=True):
        within = drawn.clip(0, _most(path))
        yield path, interval(value, within, bootstrap.confidence, there, centred=path in _DEVIATIONS)


def _nested(runs: Sequence[Tally], bootstrap: Bootstrap) -> dict:
    values = {"per_class": {}, "per_group": {}}
    for path, found in _intervals(runs, len(runs[0].sets), bootstrap):
        inside = values
        for key in path[:-1]:
            inside = inside.setdefault(key, {})
        inside[path[-1]] = found
    support = runs[0].classes.counts.sum(axis=0).astype(int).tolist()
    for (_, name), clips in zip(runs[0].classes.names, support, strict=True):
        values["per_class"][name]["support"] = clips
    return values
