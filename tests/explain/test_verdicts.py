"""Verdicts on scores of which it is known whether one beats the other."""

import numpy as np
import pytest

from tcar.evaluate import Bootstrap
from tcar.explain.errors import ExplanationError
from tcar.explain.verdicts import RIVALS, verdict

SETS = [f"set {n // 2}" for n in range(40)]
EASE = np.random.default_rng(0).normal(0, 3, 40)  # how easy a clip is for every method, far more than what is between


def noise(seed: int, size: float = 0.2) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, size, 40)


def weaker(by: float) -> dict[str, np.ndarray]:
    return {name: EASE - by + noise(seed) for seed, name in enumerate(RIVALS, 2)}


def test_what_is_better_on_every_set_passes_however_much_clips_vary():
    found = verdict(EASE + noise(1), weaker(1.0), SETS)
    assert found.passed is True and list(found.differences) == list(RIVALS)
    for name, values in weaker(1.0).items():
        one = found.differences[name]
        assert one["value"] == pytest.approx((EASE + noise(1) - values).mean())
        assert 0 < one["low"] < one["value"] < one["high"]


@pytest.mark.parametrize("last", [0.0, -1.0])
def test_one_rival_that_is_as_good_is_enough_to_fail(last):
    rivals = weaker(1.0) | {RIVALS[1]: EASE - last}
    assert verdict(EASE.copy(), rivals, SETS).passed is False


def test_clips_of_one_set_are_not_so_many_proofs():
    """The same differences pass as sixty sets and fail as three: within a set all clips say the same."""
    differences = np.repeat([1.0, 1.0, -0.2], 20)
    rivals = {"rival": np.zeros(60)}
    assert verdict(differences, rivals, [str(n) for n in range(60)]).passed is True
    assert verdict(differences, rivals, [str(n // 20) for n in range(60)]).passed is False


def test_of_one_set_nothing_is_said():
    found = verdict(np.ones(4), {"rival": np.zeros(4)}, ["only"] * 4)
    assert found.passed is None and found.differences["rival"] == {"value": 1.0, "low": None, "high": None}


def test_of_no_set_nothing_is_said():
    found = verdict(np.ones(0), {"rival": np.zeros(0)}, [])
    assert found.passed is None and found.differences["rival"]["value"] is None


def test_the_level_is_that_of_the_bootstrap():
    scores, rivals = EASE + 0.1 + noise(1, 0.3), {"rival": EASE.copy()}
    wide, narrow = (verdict(scores, rivals, SETS, Bootstrap(confidence=c)) for c in (0.999, 0.5))
    assert wide.differences["rival"]["low"] < narrow.differences["rival"]["low"]
    assert wide.passed is False and narrow.passed is True


def test_scores_that_cannot_be_paired_are_refused(unchecked):
    with pytest.raises(ExplanationError, match="frame difference, re-initialised fusion, permuted labels"):
        verdict(np.ones(2), {}, ["a", "b"])
    with pytest.raises(ExplanationError, match="rival has 3 scores for 2 clips"):
        verdict(np.ones(2), {"rival": np.ones(3)}, ["a", "b"])
    with pytest.raises(ExplanationError, match="the method has no score for 1 of 2"):
        verdict(np.array([1, np.nan]), {"rival": np.ones(2)}, ["a", "b"])
