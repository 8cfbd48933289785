"""Scores of maps whose agreement with the mask is known: drawn by hand, or counted pixel by pixel."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from tcar.explain import scores
from tcar.explain.errors import ExplanationError
from tcar.explain.scores import auc, grid_limit, mass_gain, mass_inside, moment_inside, pointing, strength

SHAPE = (2, 8, 8)
ALL = (mass_inside, mass_gain, pointing, auc)


def corner() -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[1, 4:8, 0:4] = True  # the lower left quarter of the second frame
    return mask


def scattered(seed: int = 0, shape: tuple[int, int, int] = (5, 9, 7)) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < 0.3


def by_loop(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The map at the resolution of the mask, one pixel after the other; its cells are no smaller than pixels."""
    found = np.empty(shape)
    for place in np.ndindex(*shape):
        cell = tuple(int((p + 0.5) * v // s) for p, v, s in zip(place, values.shape, shape, strict=True))
        found[place] = values[cell]
    return found


def test_mass_inside_of_even_exact_and_missing_maps():
    mask = corner()
    assert mass_inside(np.ones(SHAPE), mask) == pytest.approx(mask.mean())
    assert mass_inside(mask.astype(float), mask) == 1
    assert mass_inside(1.0 - mask, mask) == 0
    assert mass_inside(torch.ones(1, 1, 1), torch.from_numpy(mask)) == pytest.approx(mask.mean())
    coarse = np.zeros((2, 2, 2))
    coarse[1, 1, 0], coarse[0, 0, 0] = 3, 1  # three parts of four in the cell that is the mask
    assert mass_inside(coarse, mask) == pytest.approx(0.75)


def test_maps_and_masks_that_score_nothing_are_refused():
    for score in ALL:
        for values in (np.zeros(SHAPE), -np.ones(SHAPE), np.full(SHAPE, np.nan)):
            with pytest.raises(ExplanationError, match="a map must be"):
                score(values, corner())
        with pytest.raises(ExplanationError, match="at least one pixel set"):
            score(np.ones(SHAPE), np.zeros(SHAPE, dtype=bool))
    with pytest.raises(ExplanationError, match="no pixel beside it"):
        auc(np.ones(SHAPE), np.ones(SHAPE, dtype=bool))


@pytest.mark.parametrize("score", ALL)
def test_a_coarse_map_scores_as_its_spread_does(score):
    values, mask = np.random.default_rng(1).random((2, 4, 3)), scattered()
    assert score(values, mask) == pytest.approx(score(by_loop(values, mask.shape), mask))


@pytest.mark.parametrize("score", ALL)
def test_a_finer_map_scores_as_the_means_of_its_cells(score):
    values, mask = np.random.default_rng(2).random((10, 18, 21)), scattered()
    means = values.reshape(5, 2, 9, 2, 7, 3).mean((1, 3, 5))
    if score is not pointing:  # the strongest cell is one of the finer map
        assert score(values, mask) == pytest.approx(score(means, mask))
    else:
        strongest = np.unravel_index(values.argmax(), values.shape)
        assert score(values, mask) == mask[tuple(s // f for s, f in zip(strongest, (2, 2, 3), strict=True))]


def test_a_finer_map_that_does_not_divide_keeps_all_its_mass():
    values, mask = np.zeros((1, 1, 5)), np.array([[[True, False, False]]])
    values[0, 0, 1], values[0, 0, 4] = 1, 1  # from 0.6 to 1.2 and from 2.4 to 3 pixels: two thirds of the first inside
    assert mass_inside(values, mask) == pytest.approx(1 / 3)


def test_an_even_map_gains_nothing_points_by_chance_and_orders_nothing():
    mask = scattered()
    for shape in ((1, 1, 1), (2, 3, 3), mask.shape):
        even = scores.even(shape)
        assert mass_gain(even, mask) == pytest.approx(0, abs=1e-12)
        assert pointing(even, mask) == pytest.approx(mask.mean())
        assert auc(even, mask) == pytest.approx(0.5)


def test_pointing_is_a_hit_a_miss_or_the_share_of_the_cell_that_hits():
    mask, values = corner(), np.zeros(SHAPE)
    values[1, 5, 2] = 2
    assert pointing(values, mask) == 1
    values[0, 0, 0] = 3
    assert pointing(values, mask) == 0
    coarse = np.zeros((1, 2, 2))
    coarse[0, 1, 0] = 1  # over both frames, and the mask is in one
    assert pointing(coarse, mask) == pytest.approx(0.5)


@pytest.mark.parametrize("levels", [2, 5, 10**6])
def test_auc_is_that_of_scikit_learn_and_of_every_pair_ties_or_not(levels):
    mask = scattered(3)
    values = np.random.default_rng(4).integers(1, levels + 1, mask.shape).astype(float) + mask * (levels // 3)
    assert auc(values, mask) == pytest.approx(roc_auc_score(mask.ravel(), values.ravel()))
    on, beside = values[mask], values[~mask]
    pairs = [(a > b) + (a == b) / 2 for a in on for b in beside]
    assert auc(values, mask) == pytest.approx(np.mean(pairs))


def test_nothing_on_a_grid_exceeds_its_limit_and_the_best_cell_reaches_it():
    mask, grid = scattered(5), (2, 4, 3)
    limit = grid_limit(mask, grid)
    random = np.random.default_rng(6)
    reached = []
    for place in np.ndindex(*grid):
        one = np.zeros(grid)
        one[place] = 1
        reached.append(mass_inside(one, mask))
        assert mass_inside(random.random(grid) ** 8, mask) <= limit.mass_inside
    assert limit.mass_inside == pytest.approx(max(reached)) and max(reached) < 1
    assert limit.mass_gain == pytest.approx(max(reached) - mask.mean())
    assert grid_limit(corner(), (2, 2, 2)).mass_inside == 1 == grid_limit(corner(), (4, 16, 16)).mass_inside
    assert grid_limit(corner(), (1, 2, 2)).mass_inside == 0.5


def test_a_signed_map_counts_by_its_magnitude():
    values = np.where(corner(), -2.0, 0.0)
    assert mass_inside(strength(values), corner()) == 1
    assert torch.equal(strength(torch.tensor([[[-1.0, 2.0]]])), torch.tensor([[[1.0, 2.0]]]))


def test_references_know_nothing_of_the_mask():
    one, again, other = (scores.random((3, 4, 5), seed) for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other) and one.shape == (3, 4, 5)
    middle = scores.centre((2, 5, 7))
    assert torch.equal(middle, middle.flip(1)) and torch.equal(middle, middle.flip(2))
    assert middle.argmax() % 35 == 17 and middle[0, 2, 3] == 1
    # a quarter of the frame from the middle is one standard deviation
    assert scores.centre((1, 1, 2))[0, 0, 0] == pytest.approx(np.exp(-0.5))


@pytest.mark.parametrize("of", [np.asarray, torch.from_numpy])
def test_the_frame_difference_is_that_of_both_neighbours(of):
    frames = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 3), dtype=np.uint8)
    found = scores.frame_difference(of(frames))
    exact = frames.astype(float) / 255
    for t in range(4):
        near = [n for n in (t - 1, t + 1) if 0 <= n < 4]
        expected = np.mean([np.abs(exact[t] - exact[n]).mean(-1) for n in near], axis=0)
        np.testing.assert_allclose(found[t], expected, atol=1e-6)
    torch.testing.assert_close(scores.frame_difference(of(exact)), found)
    with pytest.raises(ExplanationError, match="at least 2"):
        scores.frame_difference(of(frames[:1]))


def test_moments_by_hand():
    times = np.array([0.125, 0.375, 0.625, 0.875])
    assert moment_inside(times, np.ones(4), [(0.2, 0.6)]) == pytest.approx(0)
    assert moment_inside(times, np.array([0.0, 3, -5, 1]), [(0.25, 0.5)]) == pytest.approx(3 / 4 - 1 / 4)
    # half of the second moment's stretch, and what two events share is counted once
    assert moment_inside(times, np.array([0.0, 1, 0, 0]), [(0.3, 0.375), (0.25, 0.35)]) == pytest.approx(1 / 2 - 1 / 8)
    # unequal stretches: the first moment stands for three quarters of the clip, a third of which is in the event
    assert moment_inside(torch.tensor([0.6, 0.9]), torch.tensor([1.0, 1]), [(0.5, 1)]) == pytest.approx(
        (1 / 3 + 1) / 2 - 1 / 2
    )


def test_moments_agree_with_a_fine_sum_over_time():
    random = np.random.default_rng(0)
    times, values = np.sort(random.random(6)), random.normal(size=6)
    events = [(0.1, 0.3), (0.25, 0.45), (0.7, 1.4)]
    fine = (np.arange(200_000) + 0.5) / 200_000
    nearest = np.abs(fine[:, None] - times).argmin(1)
    density = np.maximum(values, 0)[nearest] / np.bincount(nearest, minlength=6)[nearest]
    inside = ((fine > 0.1) & (fine < 0.45)) | (fine > 0.7)
    expected = density[inside].sum() / density.sum() - inside.mean()
    assert moment_inside(times, values, events) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("times", "values", "events", "message"), [
    ([0.5, 0.2], [1, 1], [(0, 1)], "must rise"), ([0.5, 1.2], [1, 1], [(0, 1)], "must rise"),
    ([0.2, 0.5], [-1, 0], [(0, 1)], "no moment speaks"), ([0.2, 0.5], [1, np.nan], [(0, 1)], "no moment speaks"),
    ([0.2, 0.5], [1, 1], [(0.4, 0.4)], "no event"), ([0.2, 0.5], [1, 1], [], "no event")])
def test_moments_that_score_nothing_are_refused(times, values, events, message):
    with pytest.raises(ExplanationError, match=message):
        moment_inside(np.array(times, float), np.array(values, float), events)
