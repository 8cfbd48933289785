"""Whether a way of explaining a model says anything about it: it must beat what knows less, clip by clip."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from tcar.evaluate import Bootstrap, mean_interval
from tcar.evaluate.statistics import Interval
from tcar.explain.errors import ExplanationError

# What a method is held against: no model at all, itself on a fusion that never learned, and itself on one that learned
# what is not so (the model's randomisation and the data's, Adebayo et al. 2018).
RIVALS = ("frame difference", "re-initialised fusion", "permuted labels")


@dataclass(frozen=True)
class Verdict:
    """Whether a method passes, None where its clips are of too few sets to say, and how much it beats each rival by."""

    passed: bool | None
    differences: dict[str, Interval]


def verdict(
    scores: Float[np.ndarray, " n"],
    rivals: Mapping[str, Float[np.ndarray, " n"]],
    sets: Sequence[str] | np.ndarray,
    bootstrap: Bootstrap | None = None,
) -> Verdict:
    """Judge a method by one score a clip against its rivals' of the same clips, in the same order.

    It passes if the interval of the mean difference, paired by clip and over twin sets, lies above 0 for every rival;
    since all must be beaten, nothing is corrected for their number (the intersection-union test, Berger 1982).
    `rivals` are usually those of RIVALS. The measure is the caller's to choose, before seeing what the verdicts are.

    Raises ExplanationError without rivals, for scores of other clips, and for clips without a score (NaN).
    """
    if not rivals:
        raise ExplanationError(f"a verdict needs rivals, such as {', '.join(RIVALS)}")
    for name, values in {"the method": scores, **rivals}.items():
        if len(values) != len(sets):
            raise ExplanationError(f"{name} has {len(values)} scores for {len(sets)} clips; give one a clip")
        if unknown := int((~np.isfinite(values)).sum()):
            raise ExplanationError(f"{name} has no score for {unknown} of {len(values)} clips; leave them out for all")
    bootstrap = bootstrap or Bootstrap()
    differences = {name: mean_interval(scores - values, sets, bootstrap) for name, values in rivals.items()}
    lows = [difference["low"] for difference in differences.values()]
    return Verdict(None if None in lows else all(low > 0 for low in lows), differences)
