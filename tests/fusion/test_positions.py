"""Positions against explicit rotations and brute-force windows, and what coordinates may change."""

import itertools

import numpy as np
import pytest
import torch

from tcar.fusion.positions import (
    CoordinateCache,
    Geometry,
    common_places,
    interpolation_weights,
    rotary_frequencies,
    rotary_table,
    rotate,
    window_mask,
    with_origin,
)

SHAPES = [(4, 16), (8, 8), (16, 4), (8, 64)]


def grid(t: int, h: int, w: int) -> torch.Tensor:
    """Cell centres in row-major order, written out in another way than the streams do it."""
    cells = itertools.product(range(t), range(h), range(w))
    return torch.tensor([[(i + 0.5) / t, (j + 0.5) / h, (k + 0.5) / w] for i, j, k in cells])


def rotated(x: torch.Tensor, xyz: torch.Tensor, heads: int) -> torch.Tensor:
    """Rotate [n width] vectors and return them by head [n heads head_dim]."""
    table = rotary_table(xyz, heads, x.shape[-1] // heads)
    return rotate(x[None, :, None], table)[0, :, 0].unflatten(-1, (heads, -1))


@pytest.mark.parametrize(("heads", "head_dim"), SHAPES)
def test_rotation_is_that_of_two_by_two_matrices(heads, head_dim):
    torch.manual_seed(0)
    xyz = torch.rand(5, 3, dtype=torch.float64)
    x = torch.randn(5, heads * head_dim, dtype=torch.float64)
    frequencies = rotary_frequencies(heads, head_dim).numpy()
    expected = np.zeros(x.shape)
    for n, pair in itertools.product(range(5), range(len(frequencies))):
        angle = frequencies[pair] @ xyz[n].numpy()
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        expected[n, 2 * pair : 2 * pair + 2] = turn @ x[n, 2 * pair : 2 * pair + 2].numpy()
    np.testing.assert_allclose(rotated(x, xyz, heads).flatten(1), expected, atol=1e-12)


@pytest.mark.parametrize(("heads", "head_dim"), SHAPES)
def test_logits_depend_on_coordinate_differences_alone(heads, head_dim):
    torch.manual_seed(1)
    q, k = torch.randn(2, 6, heads * head_dim, dtype=torch.float64)
    q_xyz, k_xyz = torch.rand(2, 6, 3, dtype=torch.float64)

    def logits(shift_q, shift_k):
        return torch.einsum(
            "nhd,mhd->hnm", rotated(q, q_xyz + shift_q, heads), rotated(k, k_xyz + shift_k, heads)
        )

    shift = torch.tensor([0.3, -0.2, 0.7], dtype=torch.float64)
    torch.testing.assert_close(logits(shift, shift), logits(0 * shift, 0 * shift))
    for axis in range(3):  # a move along any one axis is seen by some head
        move = 0.1 * torch.eye(3, dtype=torch.float64)[axis]
        assert (logits(move, 0 * move) - logits(0 * move, 0 * move)).abs().max() > 1e-2


@pytest.mark.parametrize(("heads", "head_dim"), SHAPES)
def test_every_head_has_an_axis_in_turn_and_the_axes_share_the_frequencies_evenly(heads, head_dim):
    frequencies = rotary_frequencies(heads, head_dim).unflatten(0, (heads, -1))
    assert ((frequencies != 0).sum(dim=-1) == 1).all()
    axes_of_a_head = (frequencies != 0).any(dim=1).sum(dim=-1)
    assert (axes_of_a_head == min(3, head_dim // 2)).all()
    counts = (frequencies != 0).sum(dim=(0, 1))
    assert counts.max() - counts.min() <= heads


def test_grids_of_different_strides_line_up():
    """Of equal keys, a fine token's logit is highest at the coarse token that covers it."""
    fine, coarse = grid(8, 4, 4), grid(4, 2, 2)
    same = torch.ones(1, 64)
    q, k = rotated(same.expand(128, 64), fine, 4), rotated(same.expand(16, 64), coarse, 4)
    best = torch.einsum("nhd,mhd->nm", q, k).argmax(dim=1)
    covering = [(n // 32) * 4 + (n // 8 % 2) * 2 + (n // 2 % 2) for n in range(128)]
    assert best.tolist() == covering


def test_rotation_of_half_precision_keeps_its_type_and_small_error():
    x, table = torch.randn(2, 7, 1, 16), rotary_table(torch.rand(7, 3), 2, 8)
    half = rotate(x.bfloat16(), table)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), rotate(x, table), atol=0.05, rtol=0.02)
    assert rotate(x, None) is x


@pytest.mark.parametrize("last", [False, True])
def test_tokens_at_the_origin_are_those_of_zero_coordinates(last):
    xyz, more = torch.rand(5, 3), torch.zeros(2, 3)
    whole = rotary_table(torch.cat([xyz, more] if last else [more, xyz]), 2, 8)
    torch.testing.assert_close(with_origin(rotary_table(xyz, 2, 8), 2, last=last), whole)
    assert with_origin(None, 2, last=last) is None


@pytest.mark.parametrize("window", ["time", "space"])
@pytest.mark.parametrize("grids", [((8, 4, 4), (4, 4, 4)), ((4, 2, 2), (8, 4, 4)), ((3, 5, 5), (2, 3, 3))])
def test_windows_pair_the_nearest_of_either_side(window, grids):
    queries, keys = (grid(*g) for g in grids)
    axes = [1, 2] if window == "time" else [0]
    distance = np.linalg.norm(queries.numpy()[:, None, axes] - keys.numpy()[None, :, axes], axis=-1)
    mask = window_mask(queries, keys, window)
    for n, m in itertools.product(range(len(queries)), range(len(keys))):
        nearest = max(distance[n].min(), distance[:, m].min())
        assert mask[n, m] == (distance[n, m] < nearest + 1e-6)
    assert mask.any(dim=1).all()
    assert mask.any(dim=0).all()


def test_windows_between_eight_and_four_frames_are_what_a_reader_expects():
    space = window_mask(grid(8, 1, 1), grid(4, 1, 1), "space")
    assert space.int().argmax(dim=1).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert (space.sum(dim=1) == 1).all()
    time = window_mask(grid(2, 2, 2), grid(2, 2, 2), "time")
    assert time[0].tolist() == [True, False, False, False] * 2
    assert window_mask(grid(2, 2, 2), grid(2, 2, 2), "joint") is None


def test_learned_places_interpolate_linearly():
    xyz = torch.rand(20, 3) * 0.8 + 0.1
    weights = interpolation_weights(xyz, 16)
    centres = (torch.arange(16) + 0.5) / 16
    tables = torch.zeros(48, 3)  # every table holds the centres of its bins: reading gives the place back
    for axis in range(3):
        tables[16 * axis : 16 * (axis + 1), axis] = centres
    torch.testing.assert_close(weights @ tables, xyz, atol=1e-6, rtol=0)
    torch.testing.assert_close(weights.sum(dim=1), torch.full((20,), 3.0))


def test_the_cache_computes_once_for_equal_coordinates_and_again_for_others():
    calls = []

    def table(xyz):
        calls.append(xyz.clone())
        return xyz * 2

    cache, xyz = CoordinateCache(table), torch.rand(4, 3)
    first = cache(xyz)
    assert cache(xyz) is first
    assert cache(xyz.clone()) is first
    assert len(calls) == 1
    xyz += 1  # a write in place keeps the object but not the values
    torch.testing.assert_close(cache(xyz), xyz * 2)
    torch.testing.assert_close(cache(xyz[:2]), xyz[:2] * 2)
    torch.testing.assert_close(cache(xyz.double()), xyz.double() * 2)
    assert len(calls) == 4


def test_a_cache_filled_in_inference_mode_serves_training():
    cache = CoordinateCache(lambda xyz: xyz * 2)
    with torch.inference_mode():
        xyz = torch.rand(4, 3)
        cache(xyz)
        cache(xyz)
    weight = torch.ones(4, 3, requires_grad=True)
    (weight * cache(xyz.clone())).sum().backward()
    torch.testing.assert_close(weight.grad, xyz * 2)


def test_tables_of_kept_tokens_are_those_of_their_coordinates_in_the_windows_of_whole_grids():
    xyz = {"semantic": grid(4, 2, 2), "motion": grid(2, 2, 2)}
    kept = {"semantic": torch.tensor([0, 3, 9]), "motion": torch.tensor([1, 4])}
    for positions in ("rotary", "learned", "none"):
        geometry = Geometry(positions, ("time", "space"), 2, (16, 8))
        tables, own = geometry(xyz, kept), geometry({s: xyz[s][kept[s]] for s in xyz}, {})
        assert tables.keys() == own.keys()
        for name in ("rotary", "rotary_across", "places"):
            for s in xyz:
                assert (tables[name][s] is None) == (own[name][s] is None)
                assert tables[name][s] is None or torch.equal(tables[name][s], own[name][s])
    # Semantic tokens at places 0, 3 and 1 read motion tokens at places 1 and 0; motion ones, of moments 0 and 1,
    # read semantic ones of moments 0, 0 and 2, which are the first, the first and the second half.
    assert tables["other"]["semantic"].tolist() == [[False, True], [False, False], [True, False]]
    assert tables["other"]["motion"].tolist() == [[True, True, False], [False, False, True]]
    assert tables["common"] == {"semantic": 0, "motion": 0}
    assert geometry(xyz, {})["common"] == {"semantic": 4, "motion": 0}


def test_common_places_are_found_where_a_window_keeps_to_them_alone():
    assert common_places(window_mask(grid(4, 2, 3), grid(2, 2, 3), "time")) == 6
    assert common_places(window_mask(grid(2, 3, 3), grid(5, 3, 3), "time")) == 9
    assert common_places(window_mask(grid(4, 4, 4), grid(4, 2, 2), "time")) == 0  # a coarse place covers four fine ones
    assert common_places(window_mask(grid(4, 2, 2), grid(4, 2, 2), "space")) == 0
    assert common_places(window_mask(grid(1, 2, 2), grid(1, 2, 2), "space")) == 0
    assert common_places(None) == 0
    backwards = grid(2, 2, 2).flip(0)  # the same places in another order
    assert common_places(window_mask(grid(2, 2, 2), backwards, "time")) == 0
