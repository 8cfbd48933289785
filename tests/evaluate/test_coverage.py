"""The intervals hold the truth as often as they say, in a world where it is known."""

import numpy as np
import pytest
from known_truth import World, coverage
from scipy.special import ndtri, stdtrit

from tcar.evaluate import interval, student
from tcar.evaluate.statistics import draw_sets, widened


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


def held_over_seeds(seeds: int, spread: float, datasets: int = 500) -> dict[str, float]:
    """How often intervals hold 0, of values that add up one of each of 100 sets and one of each seed, all normal."""
    rng, sets, found = np.random.default_rng(0), 100, {"as drawn": 0, "widened": 0}
    for _ in range(datasets):
        of_sets, of_seeds = rng.normal(size=sets), rng.normal(size=seeds) * spread
        drawn = [draw_sets(rng, count, 500) / count for count in (sets, seeds)]
        samples = (drawn[0] @ of_sets + drawn[1] @ of_seeds)[:, None]
        values = of_sets.mean() + of_seeds[:, None]
        value = values.mean(axis=0)
        wide = widened(samples, value, [values], np.array([sets]), 0.95)
        for name, resamples in {"as drawn": samples, "widened": wide}.items():
            made = interval(float(value[0]), resamples[:, 0], 0.95, sets)
            found[name] += made["low"] <= 0 <= made["high"]
    return {name: count / datasets for name, count in found.items()}


@pytest.mark.parametrize(("seeds", "spread"), [(3, 0.3), (5, 0.3), (3, 0.0)])
def test_few_seeds_that_differ_are_allowed_for(seeds, spread):
    """Where seeds differ three times as much as the mean over sets is unsure, few of them say little."""
    found = held_over_seeds(seeds, spread)
    assert 0.93 <= found["widened"] <= 0.975
    assert (found["as drawn"] < 0.93) == (spread > 0)


def test_where_only_seeds_differ_the_interval_is_about_that_of_student():
    values, rng = np.random.default_rng(1).uniform(0.4, 0.6, (20, 1)), np.random.default_rng(2)
    samples = (draw_sets(rng, 20, 5000) / 20) @ values
    sets = np.array([100_000])
    made = interval(0.0, widened(samples, values.mean(axis=0), [values], sets, 0.95)[:, 0], 0.95, 100_000)
    reference = student(values[:, 0], 0.95)
    assert (made["low"], made["high"]) == pytest.approx((reference["low"], reference["high"]), abs=0.004)


def test_one_seed_and_seeds_that_agree_widen_nothing():
    samples = np.random.default_rng(0).normal(size=(300, 2))
    value, sets = np.zeros(2), np.array([40, 40])
    assert widened(samples, value, [np.zeros((1, 2))], sets, 0.95) is samples
    np.testing.assert_allclose(widened(samples, value, [np.zeros((3, 2))], sets, 0.95), samples)
    unknown = np.full((3, 2), np.nan)
    np.testing.assert_array_equal(widened(samples, value, [unknown], sets, 0.95), samples)
