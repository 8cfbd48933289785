"""Intervals and tests against hand-made cases."""

import numpy as np
import pytest

from tcar.evaluate import Bootstrap, holm, mean_interval, paired, student


def test_mean_interval_resamples_whole_sets():
    """Ten equal clips of a set tell no more than one: the interval is that of the sets."""
    values = np.random.default_rng(0).normal(size=30)
    alone = mean_interval(values, None, Bootstrap())
    tenfold = mean_interval(values.repeat(10), np.arange(30).repeat(10), Bootstrap())
    assert tenfold["value"] == pytest.approx(values.mean())
    assert tenfold["high"] - tenfold["low"] == pytest.approx(alone["high"] - alone["low"], rel=0.25)
    assert alone["high"] - alone["low"] == pytest.approx(2 * 1.96 * values.std() / np.sqrt(30), rel=0.2)


def test_student_interval_of_three_values():
    made = student(np.array([0.5, 0.6, 0.7]), 0.95)
    # t of two degrees of freedom is 4.3027; the standard error is 0.1 / sqrt(3)
    assert made["value"] == pytest.approx(0.6) and made["spread"] == pytest.approx(0.1)
    assert made["low"] == pytest.approx(0.6 - 4.3027 * 0.1 / 3**0.5, abs=1e-5)
    assert student(np.array([0.9, 1.0, 1.0]), 0.95)["high"] == 1


def test_paired_test_sees_the_differences_alone():
    draw = np.random.default_rng(0)
    common, noise = draw.uniform(0, 1, 8), draw.normal(0.05, 0.03, 8)
    made = paired(common + noise, common, 0.95)
    error = noise.std(ddof=1) / 8**0.5
    assert made["difference"] == pytest.approx(noise.mean())
    assert made["high"] - made["difference"] == pytest.approx(2.364624 * error, rel=1e-5)  # t of seven degrees
    # a test by permutation of the signs agrees
    signs = np.array(np.meshgrid(*[[-1, 1]] * 8)).reshape(8, -1).T
    share = (np.abs((signs * noise).mean(1)) >= abs(noise.mean()) - 1e-12).mean()
    assert made["p"] < 0.05 and share < 0.05


@pytest.mark.parametrize(("by", "p"), [(0.0, 1.0), (0.125, 0.0)])
def test_a_difference_that_never_varies(by, p):
    a = np.array([0.25, 0.5, 0.75])
    assert paired(a + by, a, 0.95) == {"difference": by, "low": by, "high": by, "p": p}


def test_no_interval_of_a_difference_leaves_what_is_possible():
    made = paired(np.array([1.0, 0.9, 1.0]), np.array([0.0, 0.1, 0.05]), 0.99)
    assert made["high"] == 1 and made["low"] < made["difference"] < 1


def test_holm_by_hand_and_between_its_bounds():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    p = np.random.default_rng(1).uniform(0, 0.2, 7)
    corrected = np.array(holm(p.tolist()))
    assert (corrected >= p).all() and (corrected <= np.minimum(1, 7 * p) + 1e-12).all()
    assert (np.diff(corrected[np.argsort(p)]) >= 0).all()
