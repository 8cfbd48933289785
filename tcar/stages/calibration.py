"""Whether confidence means something: temperatures, fitted on clips that they are not scored on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from tcar.evaluate import EvaluationError, fit_temperature, metrics, over_seeds
from tcar.stages.clips import ground_truth

if TYPE_CHECKING:
    from tcar.params import Params
    from tcar.stages.trainings import Fit


@dataclass(frozen=True)
class Calibration:
    """One temperature for each seed, and the calibration error `before` and `after` on the same rows, with intervals.

    `fitted` counts the validation clips that the temperatures were fitted on.
    """

    temperatures: list[float]
    fitted: int
    rows: Int[np.ndarray, " m"]
    before: dict
    after: dict


def calibrate(
    run: Params,
    scored: Sequence[Float[np.ndarray, "n c"]],
    labels: Int[np.ndarray, " n"],
    ids: Sequence[str],
    fits: Sequence[Fit],
) -> Calibration:
    """Give the temperatures of fits, whose logits are scored, as the trainer fitted them on the validation clips.

    Where the scored clips are themselves those of validation, half of them, drawn by the run's seed and by whole twin
    sets, fit the temperatures anew, and the other half is scored. Raises EvaluationError where there is nothing to
    halve.
    """
    index = ground_truth(run)
    sets = np.array([index[name]["set"] if index else name for name in ids])
    rows = np.arange(len(ids))
    if run.evaluation.evaluation_split == "test":
        temperatures, fitted = [fit.calibration["temperature"] for fit in fits], fits[0].calibration["clips"]
    else:
        chosen = np.random.default_rng(run.common.seed).permutation(np.unique(sets))
        if len(chosen) < 2:
            raise EvaluationError(f"validation has {len(chosen)} independent clips: calibrating and scoring takes two")
        inside = np.isin(sets, chosen[: len(chosen) // 2])
        temperatures = [fit_temperature(one[inside], labels[inside]) for one in scored]
        rows, fitted = np.flatnonzero(~inside), int(inside.sum())

    def error(divisors: Sequence[float]) -> dict:
        settings = {
            "sets": sets[rows].tolist(),
            "bootstrap_samples": run.evaluation.bootstrap_samples,
            "seed": run.common.seed,
            "confidence": run.evaluation.confidence,
            "calibration_bins": run.evaluation.calibration_bins,
        }
        pairs = zip(scored, divisors, strict=True)
        return over_seeds([metrics(one[rows] / divisor, labels[rows], **settings) for one, divisor in pairs])["ece"]

    return Calibration(temperatures, fitted, rows, error([1.0] * len(scored)), error(temperatures))
