"""A store on a coarser grid against averages by hand, and against tokens that a stream's extraction has pooled."""

import numpy as np
import pytest
from bright import Brightness, extract_one, seven_clips
from stores import write_store

from tcar.features import FeatureError, unpacked
from tcar.features.pooled import PooledStore


@pytest.fixture
def store(tmp_path):
    tokens = np.random.default_rng(0).normal(size=(3, 32, 5))
    return write_store(tmp_path, tokens, (2, 4, 4), ["a", "b", "c"])


def test_a_cell_is_the_mean_of_its_tokens_and_of_their_places(store):
    pooled = PooledStore(store, (1, 2, 4))
    (values,) = pooled.read(["c", "a"])
    whole = unpacked(store.read(["c", "a"])).numpy().reshape(2, 2, 4, 4, 5)
    places = store.coordinates.reshape(2, 4, 4, 3)
    for row in range(2):
        for column in range(4):
            cell = np.s_[:, 2 * row : 2 * row + 2, column]
            token = 4 * row + column
            np.testing.assert_allclose(values[:, token], whole[:, *cell].mean((1, 2)), atol=1e-6)
            np.testing.assert_allclose(pooled.coordinates[token], places[cell].mean((0, 1)), atol=1e-6)
    assert values.shape == (2, 8, 5) and len(pooled.coordinates) == 8
    assert (pooled.width, pooled.views, pooled.ids) == (5, 1, ["a", "b", "c"])


def test_pooled_twice_is_what_an_extraction_pools_at_once(tmp_path, extraction_inline):
    clips = seven_clips(tmp_path)
    fine, coarse = (extract_one(clips, Brightness, tmp_path / name, grid=grid)
                    for name, grid in (("fine", (4, 6, 8)), ("coarse", (2, 3, 4))))  # fmt: skip
    (values,) = PooledStore(fine, (2, 3, 4)).read()
    np.testing.assert_allclose(values, unpacked(coarse.read()), atol=2e-3)  # both in half precision
    np.testing.assert_allclose(PooledStore(fine, (2, 3, 4)).coordinates, coarse.coordinates, atol=1e-6)


def test_its_content_tells_grids_apart_and_survives_a_choice_of_clips(store):
    first, second = PooledStore(store, (1, 4, 4)), PooledStore(store, (2, 4, 2))
    assert len({store.content, first.content, second.content}) == 3
    few = first.only(["b"])
    assert few.ids == ["b"] and few.content == first.content
    np.testing.assert_array_equal(few.read(["b"])[0], first.read(["b"])[0])


def test_a_finer_grid_is_refused(store):
    with pytest.raises(FeatureError, match=r"pools to none of \(4, 4, 4\)"):
        PooledStore(store, (4, 4, 4))
