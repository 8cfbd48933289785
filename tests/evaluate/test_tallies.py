"""Probabilistic and selective metrics against scikit-learn, torchmetrics and plain loops, at the edges too."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss, recall_score

from tcar.evaluate import Bootstrap, EvaluationError, Scoring, metrics, over_seeds, paired_difference, probabilities
from tcar.evaluate.tallies import RISKS, STEPS, equal_mass_bins

CLASSES, BINS = 6, 5


def given(name):
    """Logits and labels: usual ones, and all kinds of unusual ones."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, CLASSES, 60)
    logits = rng.normal(size=(60, CLASSES))
    logits[np.arange(60), labels] += 1.5
    if name == "ties":
        logits = np.round(logits)
        logits[::3] = logits[0]
    if name == "all equal":
        logits[:] = 0
    if name == "absent classes":
        labels = labels % 2 * 3
    if name == "one class in the clips":
        labels[:] = 2
    if name == "one class alone":
        logits, labels = logits[:, :1], labels * 0
    if name == "all wrong":
        logits[np.arange(60), labels] = -9
    if name == "all right":
        logits[np.arange(60), labels] = 9
    if name == "one clip":
        logits, labels = logits[:1], labels[:1]
    return logits, labels


CASES = ("usual", "ties", "all equal", "absent classes", "one class in the clips", "one class alone", "all wrong",
         "all right", "one clip")  # fmt: skip
case = pytest.mark.parametrize("name", CASES)


def found(name):
    logits, labels = given(name)
    return metrics(logits, labels, Scoring(bootstrap=Bootstrap(20), calibration_bins=BINS)), logits, labels


@case
def test_mean_class_accuracy_brier_and_support_agree_with_sklearn(name):
    made, logits, labels = found(name)
    reference = recall_score(labels, logits.argmax(1), labels=np.unique(labels), average="macro")
    assert made["mean_class_accuracy"]["value"] == pytest.approx(reference)
    support = [made["per_class"][str(k)]["support"] for k in range(logits.shape[1])]
    assert support == np.bincount(labels, minlength=logits.shape[1]).tolist()
    if logits.shape[1] > 1:
        brier = brier_score_loss(labels, probabilities(logits), labels=range(CLASSES), scale_by_half=False)
        assert made["brier"]["value"] == pytest.approx(brier)
    else:
        assert made["brier"]["value"] == 0


@case
def test_classwise_error_is_the_mean_of_a_binary_one_of_each_class(name):
    from torchmetrics.functional.classification import binary_calibration_error

    made, logits, labels = found(name)
    errors = [
        binary_calibration_error(torch.tensor(share), torch.tensor(labels == k).int(), n_bins=BINS, norm="l1").item()
        for k, share in enumerate(probabilities(logits).T.copy())
    ]
    assert made["ece_classwise"]["value"] == pytest.approx(np.mean(errors), abs=1e-6)


@case
def test_equal_mass_error_against_a_plain_loop(name):
    made, logits, labels = found(name)
    confidence, n = probabilities(logits).max(1).tolist(), len(labels)
    right = (logits.argmax(1) == labels).tolist()
    total = 0.0
    for b in range(BINS):
        # the clips before which so many others are strictly less sure
        inside = [i for i in range(n) if b <= sum(c < confidence[i] for c in confidence) * BINS / n < b + 1]
        total += abs(sum(confidence[i] - right[i] for i in inside)) / n
    assert made["ece_equal_mass"]["value"] == pytest.approx(total)


def test_bins_of_equal_mass_hold_as_many_clips_in_any_order():
    confidence = np.random.default_rng(0).random(53)
    bins = equal_mass_bins(confidence, 10)
    assert set(np.bincount(bins)) == {5, 6} and len(np.bincount(bins)) == 10
    assert (np.diff(bins[np.argsort(confidence)]) >= 0).all()
    assert equal_mass_bins(np.full(7, 0.5), 3).tolist() == [0] * 7
    order = np.random.default_rng(1).permutation(53)
    tied = np.round(confidence, 1)
    assert (equal_mass_bins(tied[order], 10) == equal_mass_bins(tied, 10)[order]).all()


def thresholds(confidence, right):
    """(coverage, risk) at each threshold that a clip sets, from the highest on; one entry a clip."""
    rows = []
    for threshold in sorted(confidence, reverse=True):
        answered = [r for c, r in zip(confidence, right, strict=True) if c >= threshold]
        rows.append((len(answered) / len(right), answered.count(False) / len(answered)))
    return rows


@case
def test_selective_prediction_against_a_plain_loop(name):
    made, logits, labels = found(name)
    rows = thresholds(probabilities(logits).max(1).tolist(), (logits.argmax(1) == labels).tolist())
    selective = made["selective"]
    assert selective["aurc"]["value"] == pytest.approx(np.mean([risk for _, risk in rows]))
    for most in RISKS:
        within = [coverage for coverage, risk in rows if risk <= most]
        assert selective["coverage_at_risk"][f"{most:g}"]["value"] == pytest.approx(max(within, default=0))
    assert len(selective["risk_at_coverage"]) == STEPS
    for coverage, entry in selective["risk_at_coverage"].items():
        first = next(risk for covered, risk in rows if covered >= float(coverage))
        assert entry["value"] == pytest.approx(first)
    assert selective["risk_at_coverage"]["1"]["value"] == pytest.approx(1 - made["top1"]["value"])


@case
def test_the_result_is_json_with_values_in_their_intervals(name):
    made = found(name)[0]
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    for key in ("brier", "ece", "ece_equal_mass", "ece_classwise"):
        assert made[key]["value"] >= 0
        assert (made[key]["low"] is None) == (name == "one clip")
    if name != "one clip":
        assert made["selective"]["aurc"]["low"] <= made["selective"]["aurc"]["high"]
        assert made["brier"]["low"] - 1e-12 <= made["brier"]["value"] <= made["brier"]["high"] + 1e-12


def test_weights_of_sets_are_clips_that_come_several_times():
    """What a resample gives is what its clips would give, each as often as it was drawn."""
    logits, labels = given("ties")
    sets = [str(i // 3) for i in range(60)]
    weights = np.random.default_rng(2).integers(0, 4, 20)
    tally = metrics(logits, labels, Scoring(sets=sets, bootstrap=Bootstrap(2), calibration_bins=BINS)).tally
    assert tally.sets == tuple(sorted(set(sets)))
    times = [weights[tally.sets.index(name)] for name in sets]
    drawn = np.repeat(np.arange(60), times)
    reference = metrics(logits[drawn], labels[drawn], Scoring(bootstrap=Bootstrap(2), calibration_bins=BINS)).tally
    weighed = dict(zip(tally.paths, tally(weights[None].astype(float))[0], strict=True))
    repeated = dict(zip(reference.paths, reference(np.ones((1, len(drawn))))[0], strict=True))
    assert weighed.keys() == repeated.keys()
    for path in weighed.keys() - {("ece_equal_mass",)}:  # its bins are those of all clips
        assert weighed[path] == pytest.approx(repeated[path], nan_ok=True), path


def test_a_perfect_ranking_has_the_least_area_and_seeds_are_averaged():
    rng = np.random.default_rng(5)
    labels = np.zeros(40, int)
    right = rng.random(40) < 0.6
    sure = np.where(right, 3, 1) + rng.random(40)

    def scored(confidence):
        logits = np.stack([np.where(right, confidence, 0), np.where(right, 0, confidence)], axis=1)
        return metrics(logits, labels, Scoring(bootstrap=Bootstrap(50)))

    best, worst = scored(sure), scored(5 - sure)
    assert best["top1"] == worst["top1"]
    difference = paired_difference(best, worst, "selective/aurc")
    assert difference["high"] < 0
    mean = over_seeds([best, worst])["selective"]["aurc"]["value"]
    assert mean == pytest.approx((best["selective"]["aurc"]["value"] + worst["selective"]["aurc"]["value"]) / 2)


def test_two_readings_of_the_same_seeds_are_drawn_together():
    """Where every seed gains as much, the difference is sure, however far the seeds are apart."""

    def scored(hits):
        labels = np.zeros(200, int)
        wrong = np.arange(200) >= hits
        return metrics(np.stack([~wrong, wrong], axis=1).astype(float), labels, Scoring(bootstrap=Bootstrap(200)))

    a, b = [scored(hits) for hits in (60, 110, 160)], [scored(hits) for hits in (50, 100, 150)]
    together, apart = (paired_difference(a, b, "top1", same_seeds=same) for same in (True, False))
    assert together["difference"] == apart["difference"] == pytest.approx(0.05)
    assert together["low"] > 0 > apart["low"]
    with pytest.raises(EvaluationError, match="3 runs of a and 2 of b"):
        paired_difference(a, b[:2], "top1", same_seeds=True)
