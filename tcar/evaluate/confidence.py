"""Whether a model's confidence means something: probabilities, temperature, and the bins of a reliability diagram."""

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from tcar.ground.errors import TcarError

_ROWS = 4096  # clips whose probabilities are in memory at once
_TEMPERATURES = (0.05, 20.0)


class EvaluationError(TcarError, ValueError):
    """Predictions that cannot be scored; the message names what does not fit."""


def check_logits(logits: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " m"]) -> None:
    """Raise EvaluationError for no clip, logits that are not finite, or labels that do not fit."""
    if len(labels) != len(logits):
        raise EvaluationError(f"{len(logits)} rows of logits but {len(labels)} labels")
    if not len(logits):
        raise EvaluationError("there are no clips to score")
    broken = ~np.isfinite(logits).all(axis=1)
    if broken.any():
        raise EvaluationError(f"logits of clip {broken.argmax()} are not finite")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise EvaluationError(f"labels are {labels.min()} to {labels.max()}, logits have {logits.shape[1]} classes")


def probabilities(logits: Float[np.ndarray, "n c"], temperature: float = 1.0) -> Float[np.ndarray, "n c"]:
    """Return the class probabilities of logits divided by a temperature (no unit, above 0)."""
    return softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=1)


def fit_temperature(logits: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]) -> float:
    """Return the temperature that minimises the negative log-likelihood, to be fitted on validation clips only.

    The likelihood is convex in 1/temperature, so a bounded search on the logarithm finds the one minimum, or
    the bound (0.05 or 20) where there is none, as when every clip is right (Guo et al. 2017,
    arXiv:1706.04599). It is 1 where no clip's logits differ, as then no temperature changes anything.

    Raises:
        EvaluationError: no clip, logits that are not finite, labels that do not fit.
    """
    logits, rows = np.asarray(logits, dtype=np.float64), np.arange(len(labels))
    check_logits(logits, np.asarray(labels))
    if not np.ptp(logits, axis=1).any():
        return 1.0

    def negative_log_likelihood(log_temperature: float) -> float:
        return -log_softmax(logits / np.exp(log_temperature), axis=1)[rows, labels].mean()

    bounds = tuple(np.log(_TEMPERATURES))
    found = minimize_scalar(negative_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def calibration(logits: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]) -> dict[str, float | int | str]:
    """Return what is kept beside a model for `tcar.predict`: the `temperature`, and on how many `clips` of which split
    it was fitted.
    """
    return {"temperature": fit_temperature(logits, labels), "fitted_on": "validation", "clips": len(labels)}


def reliability(
    logits: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"], bins: int = 15
) -> list[dict[str, float | None]]:
    """Return what a reliability diagram shows, a row for each bin of confidence, from low to high.

    Each has the `share` of the clips in it, their mean `confidence` and their `accuracy` (both None where the bin is
    empty). Raises EvaluationError as `fit_temperature` does.
    """
    logits = np.asarray(logits, dtype=np.float64)
    check_logits(logits, np.asarray(labels))
    confidence, correct, bin_of = confidence_bins(logits, labels, bins)
    rows = []
    for inside in (bin_of == b for b in range(bins)):
        means = [float(x[inside].mean()) if inside.any() else None for x in (confidence, correct)]
        rows.append({"share": float(inside.mean()), "confidence": means[0], "accuracy": means[1]})
    return rows


def confidence_bins(
    logits: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"], bins: int
) -> tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Return each clip's confidence, whether it is right, and its bin of equal width."""
    parts = (logits[start : start + _ROWS] for start in range(0, len(logits), _ROWS))
    confidence = np.concatenate([softmax(part.astype(np.float64), axis=1).max(axis=1) for part in parts])
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    return confidence, np.argmax(logits, axis=1) == labels, bin_of
