"""The order of the classes, and the pairs that are confused most."""

from collections import Counter

import numpy as np
import pytest

from tcar.evaluate import (
    Bootstrap,
    EvaluationError,
    Scoring,
    class_twins,
    confused_pairs,
    confusion,
    kinship_order,
    metrics,
)


def test_twins_of_classes_are_those_of_most_of_their_clips():
    labels = np.array([0, 2, 0, 2, 0, 1, 3])
    twins = np.array([1, 0, 3, 2, 5, 4, -1])
    assert class_twins(labels, twins, 5).tolist() == [2, 0, 0, -1, -1]


def test_groups_come_as_they_appear_and_twins_are_neighbours():
    groups = ["b", "a", "b", "a", "b", "b"]
    twins = np.array([4, 3, 5, 1, 0, 2])
    assert kinship_order(np.zeros((6, 6), int), groups, twins).tolist() == [0, 4, 2, 5, 1, 3]
    assert kinship_order(np.zeros((6, 6), int), groups).tolist() == [0, 2, 4, 5, 1, 3]
    assert kinship_order(np.zeros((6, 6), int), None, twins).tolist() == [0, 4, 1, 3, 2, 5]
    with pytest.raises(EvaluationError, match="6 classes but 2 groups"):
        kinship_order(np.zeros((6, 6), int), ["a", "b"])


def test_without_known_kin_those_that_are_confused_stand_together():
    kin = [(0, 7), (3, 5), (1, 6), (2, 4)]
    counts = 50 * np.eye(8, dtype=int) + np.random.default_rng(0).integers(0, 2, (8, 8))
    for a, b in kin:
        counts[a, b] += 30
    order = kinship_order(counts).tolist()
    assert sorted(order) == list(range(8))
    assert all(abs(order.index(a) - order.index(b)) == 1 for a, b in kin)


@pytest.mark.parametrize("classes", [1, 2, 3, 4])
def test_of_few_classes_and_of_none_confused_each_has_its_place(classes):
    for counts in (np.zeros((classes, classes), int), 5 * np.eye(classes, dtype=int)):
        assert sorted(kinship_order(counts).tolist()) == list(range(classes))


def scored(seed, n=90, classes=5):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % (classes - 1)  # of the last class there is no clip
    logits = rng.normal(size=(n, classes))
    logits[np.arange(n), labels] += 0.7
    return logits, labels, Scoring(sets=[str(i // 3) for i in range(n)], bootstrap=Bootstrap(300))


def test_confused_pairs_against_a_counter():
    given = [scored(seed) for seed in (0, 1)]
    runs = [metrics(*one) for one in given]
    names = ["v", "w", "x", "y", "z"]
    rows = confused_pairs(runs, names, most=100)
    wrong = Counter()
    for logits, labels, _ in given:
        wrong.update((names[t], names[p]) for t, p in zip(labels, logits.argmax(1), strict=True) if t != p)
    assert {(row["true"], row["predicted"]): row["count"] for row in rows} == wrong
    assert [row["count"] for row in rows] == sorted(wrong.values(), reverse=True)
    clips = Counter(names[t] for t in given[0][1])
    for row in rows:
        assert row["share"]["value"] == pytest.approx(row["count"] / (2 * clips[row["true"]]))
        assert 0 <= row["share"]["low"] <= row["share"]["value"] <= row["share"]["high"] <= 1
    assert confused_pairs(runs, names, most=3) == rows[:3]
    counts = sum(confusion(*one[:2]) for one in given)
    assert sum(row["count"] for row in rows) == counts.sum() - np.trace(counts)


def test_where_nothing_is_confused_there_are_no_pairs():
    made = metrics(np.eye(3), np.arange(3))
    assert confused_pairs([made], ["a", "b", "c"]) == []
    with pytest.raises(EvaluationError, match="3 classes but 1 names"):
        confused_pairs([made], ["a"])
    with pytest.raises(EvaluationError, match="no run"):
        confused_pairs([], ["a"])


def test_one_clip_that_is_wrong_has_no_interval():
    (row,) = confused_pairs([metrics(np.array([[0.0, 1.0]]), np.array([0]))], ["a", "b"])
    assert (row["count"], row["share"]) == (1, {"value": 1.0, "low": None, "high": None})
