"""The intervals hold the truth as often as they say, in a world where it is known."""

import numpy as np
import pytest
from known_truth import World, coverage
from scipy.special import ndtri, stdtrit

from tcar.evaluate import interval


@pytest.fixture(scope="module")
def held():
    """Of 200 data sets with 26 sets of two to four clips each, as many as the demo has of two classes of twins."""
    return coverage(sets=26, datasets=200, seed=0)


@pytest.mark.parametrize("name", ["top1", "twin_accuracy", "difference"])
def test_about_95_of_100_intervals_hold_the_truth(held, name):
    assert 0.93 <= held[name] <= 0.97


def test_the_truth_of_the_world_is_what_many_sets_show():
    world = World()
    (first, second), known = world.draw(40_000, np.random.default_rng(0))
    pairs = [(i, j) for i, j in enumerate(known["twins"]) if i < j]
    shown = {"top1": first.mean(), "difference": first.mean() - second.mean(),
             "twin_accuracy": np.mean([first[i] and first[j] for i, j in pairs])}  # fmt: skip
    assert shown == pytest.approx(world.truth, abs=0.008)


@pytest.mark.parametrize("sets", [5, 26, 1000])
def test_an_interval_is_as_wide_as_that_of_student(sets):
    """Of a mean whose resamples are normal, with the spread that resamples of so many values have."""
    spread = 0.3  # the standard deviation of the values, of which resamples have sqrt((n - 1) / n)
    error = spread / sets**0.5
    quantiles = (np.arange(200_000) + 0.5) / 200_000
    resamples = ndtri(quantiles) * error * ((sets - 1) / sets) ** 0.5
    found = interval(0.0, resamples, 0.95, sets)
    half = stdtrit(sets - 1, 0.975) * error
    assert (found["low"], found["high"]) == pytest.approx((-half, half), rel=0.01)
