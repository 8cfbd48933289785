"""The figures of scores show the numbers they are given, in an order of their own."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from test_plots import entry

from tcar.lab.plots import scores


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_figures_list_methods_and_groups_in_their_own_order():
    values = {
        m: {"motion": entry(0.5), "bound": entry(0.5)} for m in ("motion", "cross_attention", "semantic")
    }
    axes = scores.per_group(values, confidence=0.95).axes
    assert [axis.get_title() for axis in axes] == ["motion", "bound"]
    names = [tick.get_text() for tick in axes[0].get_yticklabels()]
    assert names == ["Semantic stream", "Motion stream", "Cross-attention"]


def test_confusion_is_a_share_of_the_true_class_in_the_order_that_is_given():
    matrix = [[8, 2, 0], [0, 5, 5], [1, 0, 3]]
    axis = scores.confusion(matrix, ["a", "b", "c"], [1, 0, 2], ["bound", "motion", "bound"]).axes[0]
    np.testing.assert_allclose(axis.images[0].get_array(), [[0.5, 0, 0.5], [0.2, 0.8, 0], [0, 0.25, 0.75]])
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["b  1", "a  2", "c  3"]


def test_of_many_classes_the_most_confused_pairs_are_shown():
    classes = [f"class {number:03d}" for number in range(174)]
    matrix = 10 * np.eye(174, dtype=int)
    matrix[5, 3], matrix[5, 5] = 6, 4  # sixty in a hundred, one way
    matrix[7, 8], matrix[8, 7] = 5, 5  # a third of each, both ways
    axis = scores.confusion(matrix.tolist(), classes, range(174)).axes[0]
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["class 007\nclass 008", "class 003\nclass 005"]
    upper, lower = ([bar.get_width() for bar in bars] for bars in axis.containers)
    np.testing.assert_allclose(upper, [5 / 15, 0])
    np.testing.assert_allclose(lower, [5 / 15, 0.6])
    assert not axis.images


def test_of_many_classes_no_more_than_twenty_pairs_are_shown():
    matrix = np.random.default_rng(0).integers(0, 9, (174, 174))
    axis = scores.confusion(matrix, [str(number) for number in range(174)], range(174)).axes[0]
    assert len(axis.get_yticklabels()) == 20


def test_reliability_leaves_out_empty_bins():
    values = [(0.0, None, None), (0.75, 0.5, 0.4), (0.25, 0.9, 1.0)]
    bins = [dict(zip(("share", "confidence", "accuracy"), row, strict=True)) for row in values]
    axis = scores.reliability(bins, bins).axes[0]
    np.testing.assert_allclose(axis.lines[1].get_xydata(), [[0.5, 0.4], [0.9, 1.0]])


def test_risk_is_drawn_over_coverage_from_the_surest_clips_on():
    curve = {"1": entry(0.4), "0.5": entry(0.2), "0.1": {"value": 0.0, "low": None, "high": None}}
    axis = scores.risk_coverage({"motion": {"risk_at_coverage": curve}}, confidence=0.95).axes[0]
    np.testing.assert_allclose(axis.lines[0].get_xydata(), [[0.1, 0.0], [0.5, 0.2], [1, 0.4]])
    (band,) = axis.collections
    np.testing.assert_allclose(band.get_datalim(axis.transData).extents, [0.5, 0.1, 1, 0.45])


def test_replicates_are_dots_and_their_mean_is_marked():
    rows = [{name: {"top1": base + 0.01 * n} for name, base in (("motion", 0.4), ("sum", 0.8))} for n in range(3)]
    axis = scores.replicates(rows, ("top1",)).axes[0]
    assert [line.get_xdata()[0] for line in axis.lines[1::2]] == pytest.approx([0.41, 0.81])
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["Motion stream", "Sum of scores (additive)"]


def test_ablations_stand_under_their_factor_and_the_headline_is_a_line():
    def row(factor, level, value):
        estimate = {"value": value, "low": value - 0.1, "high": value + 0.1}
        return {"factor": factor, "level": level, "headline": value == 0.8, "top1": estimate}

    rows = [row("heads", "4", 0.8), row("heads", "1", 0.7), row("semantic_grid", "4x2x2", 0.6)]
    axis = scores.ablations(rows, ("top1",), confidence=0.95).axes[0]
    names = [tick.get_text() for tick in axis.get_yticklabels()]
    assert names == ["Heads", "4 heads", "1 head", "Semantic grid", "4 × 2 × 2"]
    *drawn, own = [line.get_xydata() for line in axis.lines]
    assert [(x, names[int(y)]) for ((x, y),) in drawn[1::2]] == [
        (0.8, "4 heads"), (0.7, "1 head"), (0.6, "4 × 2 × 2")
    ]  # fmt: skip
    np.testing.assert_allclose(own[:, 0], 0.8)


def test_only_changes_whose_interval_excludes_zero_are_framed():
    def row(control, group, value, low, high):
        return {"control": control, "group": group, "change": {"value": value, "low": low, "high": high}}

    rows = [row("frozen", "all", -0.2, -0.3, -0.1), row("frozen", "b", -0.1, -0.2, 0.1),
            row("noise", "all", 0.0, None, None), row("noise", "b", None, None, None)]  # fmt: skip
    axis = scores.controls(rows).axes[0]
    (frame,) = axis.patches
    assert (round(frame.get_x()), round(frame.get_y())) == (0, 0)
    assert sorted(text.get_text() for text in axis.texts) == ["+0", "\u221210", "\u221220"]
