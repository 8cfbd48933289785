"""Whether confidence means something: temperatures, fitted on clips that they are not scored on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from tcar.evaluate import EvaluationError, Scoring, fit_temperature, metrics, over_seeds
from tcar.lab.steps.clips import ground_truth
from tcar.lab.steps.methods import bootstrap

if TYPE_CHECKING:
    from tcar.lab.params import Params


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
    known: Sequence[Mapping],
) -> Calibration:
    """Calibrate the scored logits, one array a seed, with temperatures of validation clips.

    `known` are those that each training fitted on all of validation (`tcar.evaluate.calibration`). Where the scored
    clips are themselves those of validation they are not taken: half of the clips, drawn by the run's seed and by whole
    twin sets, fit the temperatures, and the other half is scored. Raises EvaluationError where there is nothing to
    halve.
    """
    index = ground_truth(run)
    sets = np.array([index[name]["set"] if index else name for name in ids])
    rows, fitted = np.arange(len(ids)), known[0]["clips"]
    temperatures = [one["temperature"] for one in known]
    if run.evaluation.evaluation_split == "validation":
        chosen = np.random.default_rng(run.common.seed).permutation(np.unique(sets))
        if len(chosen) < 2:
            raise EvaluationError(f"validation has {len(chosen)} independent clips: calibrating and scoring takes two")
        inside = np.isin(sets, chosen[: len(chosen) // 2])
        rows, fitted = np.flatnonzero(~inside), int(inside.sum())
        temperatures = [fit_temperature(one[inside], labels[inside]) for one in scored]

    def error(divisors: Sequence[float]) -> dict:
        settings = Scoring(
            sets=sets[rows].tolist(), bootstrap=bootstrap(run), calibration_bins=run.evaluation.calibration_bins
        )
        pairs = zip(scored, divisors, strict=True)
        return over_seeds([metrics(one[rows] / divisor, labels[rows], settings) for one, divisor in pairs])["ece"]

    return Calibration(temperatures, fitted, rows, error([1.0] * len(scored)), error(temperatures))
