"""The additive projection against plain loops, least squares, and functions whose projection is known."""

import numpy as np
import pytest

from tcar.evaluate import EvaluationError, emap


def by_loops(f):
    n, _, classes = f.shape
    found = np.zeros((n, classes))
    for i in range(n):
        for k in range(classes):
            semantic = sum(f[i, j, k] for j in range(n)) / n
            motion = sum(f[j, i, k] for j in range(n)) / n
            found[i, k] = semantic + motion - sum(f[a, b, k] for a in range(n) for b in range(n)) / n**2
    return found


def parts_of_all(f):
    """The projection at every pair, by its definition."""
    return f.mean(1, keepdims=True) + f.mean(0, keepdims=True) - f.mean((0, 1))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 4), (2, 2, 3), (7, 7, 5)])
def test_it_is_the_sum_of_means_that_loops_make(shape):
    f = np.random.default_rng(0).normal(size=shape)
    np.testing.assert_allclose(emap(f), by_loops(f), atol=1e-12)


def test_rows_that_come_one_by_one_are_seen_once_and_not_kept():
    f, made = np.random.default_rng(1).normal(size=(9, 9, 4)).astype(np.float32), []

    def rows():
        for row in f:
            made.append(row.copy())
            yield made[-1]
            made[-1][:] = np.nan  # whoever kept it would have lost it

    np.testing.assert_allclose(emap(rows()), by_loops(f.astype(float)), atol=1e-6)
    assert len(made) == 9


def test_a_sum_of_two_streams_is_its_own_projection():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 8, 3))
    f = a[:, None] + b[None]
    np.testing.assert_allclose(emap(f), a + b, atol=1e-12)
    one_stream = np.repeat(a[:, None], 8, axis=1)
    np.testing.assert_allclose(emap(one_stream), a, atol=1e-12)


def test_of_exclusive_or_nothing_is_left():
    """Both streams are fair coins, and the class is whether they differ: each alone, and their sum, know nothing."""
    semantic, motion = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    differ = semantic[:, None] ^ motion[None]
    f = np.stack([1 - differ, differ], axis=2).astype(float)
    labels = semantic ^ motion
    assert (f[np.arange(4), np.arange(4)].argmax(1) == labels).all()
    np.testing.assert_allclose(emap(f), 0.5)
    noisy = f + np.random.default_rng(3).normal(0, 0.3, f.shape)
    kept = (emap(noisy).argmax(1) == labels).mean()
    assert kept < (noisy[np.arange(4), np.arange(4)].argmax(1) == labels).mean()


def test_projected_again_it_stays():
    f = np.random.default_rng(4).normal(size=(6, 6, 3))
    projected = parts_of_all(f)
    np.testing.assert_allclose(projected[np.arange(6), np.arange(6)], emap(f), atol=1e-12)
    np.testing.assert_allclose(emap(projected), emap(f), atol=1e-12)


def test_it_is_the_nearest_sum_in_least_squares():
    n, rng = 5, np.random.default_rng(5)
    f = rng.normal(size=(n, n, 2))
    i, j = np.divmod(np.arange(n * n), n)
    design = np.concatenate([np.eye(n)[i], np.eye(n)[j]], axis=1)
    weights = np.linalg.lstsq(design, f.reshape(n * n, 2), rcond=None)[0]
    fitted = (design @ weights).reshape(n, n, 2)
    np.testing.assert_allclose(emap(f), fitted[np.arange(n), np.arange(n)], atol=1e-10)


def test_what_does_not_fit_is_named():
    f = np.zeros((3, 3, 2))
    with pytest.raises(EvaluationError, match="2 semantic streams and 3 motion streams"):
        emap(f[:2])
    with pytest.raises(EvaluationError, match="0 semantic streams"):
        emap(iter([]))
    with pytest.raises(EvaluationError, match=r"row 1 is \[2, 2\], those before it \[3, 2\]"):
        emap(iter([f[0], f[1, :2], f[2]]))
    f[1, 2] = np.inf
    with pytest.raises(EvaluationError, match="semantic stream 1 with other motion streams are not finite"):
        emap(f)
