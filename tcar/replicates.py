"""What replicates say: statistics over other clips, other streams and other trainings, and where they are kept.

`tcar.stages.replicates` measures them. A replicate draws everything anew, so replicates are the unit of the statistics:
means have Student's interval over replicates, and two methods are compared by the paired t-test on the same replicates,
corrected for the number of rivals (Holm 1979).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy import stats

from tcar import results
from tcar.params import Params

METRICS = ("top1", "twin_accuracy")
FILE = "replicates.json"


def recipe(run: Params) -> str:
    """Give the digest of all parameters that decide the numbers: results of another recipe are not shown."""
    chosen = ("data", "streams", "fusion", "training")
    values = {name: results.digest(vars(getattr(run, name))) for name in chosen}
    ablations = run.ablations
    return results.digest([values, run.common.seed, ablations.replicates, ablations.replicate_methods])


def find(run: Params) -> Path | None:
    """Find what was measured with the parameters of a run, by itself or as published; None where nothing was."""
    for path in (run.results_dir / FILE, run.root / "paper" / "results" / FILE):
        if path.is_file() and results.load(path)["recipe"] == recipe(run):
            return path
    return None


def summary(scores: Sequence[dict[str, dict]], headline: str, confidence: float) -> dict:
    """Put the scores of replicates together: means with intervals, and the headline method against each rival.

    scores: of each replicate, what `measure` gives. Gives `methods` (each metric {"value", "low", "high", "spread"},
    `per_group` likewise), `comparisons` (rows of a, b, metric, `difference`, `low`, `high`, `p`, and `holm`, the p
    corrected for the number of rivals) and `by_group` (twin accuracy; group -> rival -> the same, uncorrected; only
    groups that have pairs).
    """
    methods, groups = list(scores[0]), list(scores[0][headline]["per_group"])
    rivals = [method for method in methods if method != headline]

    def of(method: str, metric: str, group: str = "") -> np.ndarray:
        entries = [row[method]["per_group"][group] if group else row[method] for row in scores]
        return np.array([entry[metric] for entry in entries], float)  # None, where no pair counts, becomes NaN

    comparisons = []
    for metric in METRICS:
        rows = [
            {"a": headline, "b": b, "metric": metric} | paired(of(headline, metric), of(b, metric), confidence)
            for b in rivals
        ]
        for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
            row["holm"] = corrected
        comparisons += rows
    return {
        "methods": {
            method: {metric: student(of(method, metric), confidence) for metric in METRICS}
            | {
                "per_group": {
                    group: {metric: student(of(method, metric, group), confidence) for metric in METRICS}
                    for group in groups
                }
            }
            for method in methods
        },
        "comparisons": comparisons,
        "by_group": {
            group: {
                b: paired(of(headline, "twin_accuracy", group), of(b, "twin_accuracy", group), confidence)
                for b in rivals
            }
            for group in groups
            if not np.isnan(of(headline, "twin_accuracy", group)).any()
        },
    }


def student(values: Float[np.ndarray, " r"], confidence: float) -> dict[str, float | None]:
    """Give the mean, its interval by Student's t within [0, 1], and the standard deviation (`spread`).

    All are None where a value is unknown (NaN).
    """
    if np.isnan(values).any():
        return dict.fromkeys(("value", "low", "high", "spread"))
    mean, spread = float(values.mean()), float(values.std(ddof=1))
    half = spread / len(values) ** 0.5 * stats.t.ppf((1 + confidence) / 2, len(values) - 1)
    return {"value": mean, "low": max(0.0, mean - half), "high": min(1.0, mean + half), "spread": spread}


def paired(a: Float[np.ndarray, " r"], b: Float[np.ndarray, " r"], confidence: float) -> dict[str, float]:
    """Compare two methods on the same replicates: the mean difference, its interval, and p of the paired t-test."""
    difference = a - b
    if np.ptp(difference) == 0:  # the t statistic of a difference that never varies is 0/0 or infinite
        return {"difference": float(difference[0]), "low": float(difference[0]), "high": float(difference[0]),
                "p": float(difference[0] == 0)}
    test = stats.ttest_rel(a, b)
    low, high = test.confidence_interval(confidence)
    return {"difference": float(difference.mean()), "low": float(low), "high": float(high), "p": float(test.pvalue)}


def holm(p: Sequence[float]) -> list[float]:
    """Correct p-values of several tests (Holm 1979): the k-th smallest of m times m - k + 1, never falling."""
    order = np.argsort(p)
    corrected = np.maximum.accumulate(np.array(p)[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return corrected[np.argsort(order)].tolist()
