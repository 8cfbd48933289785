import json

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.metrics import confusion_matrix, recall_score, top_k_accuracy_score

from tcar import evaluate
from tcar.evaluate import Bootstrap, EvaluationError, Scoring, metrics, over_seeds, paired_difference

CLASSES = 8


def predictions(n=240, seed=0, signal=1.0):
    """Logits that favour the true class by `signal` standard deviations of their noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % CLASSES
    logits = rng.normal(size=(n, CLASSES))
    logits[np.arange(n), labels] += signal
    return logits, labels


def twin_sets(n, size=4):
    """Sets of `size` clips; clips 2k and 2k + 1 are twins; two groups in turn."""
    sets = [f"set-{i // size}" for i in range(n)]
    return {"sets": sets, "twins": np.arange(n) ^ 1, "groups": ["ab"[i // size % 2] for i in range(n)]}


def few(**known):
    """Scoring whose intervals nobody looks at."""
    return Scoring(bootstrap=Bootstrap(10), **known)


@pytest.mark.parametrize("signal", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("n", [40, 240])
def test_accuracies_and_confusion_agree_with_sklearn(n, signal):
    logits, labels = predictions(n, signal=signal)
    found = metrics(logits, labels, few())
    classes = np.arange(CLASSES)
    for k in (1, 5):
        reference = top_k_accuracy_score(labels, logits, k=k, labels=classes)
        assert found[f"top{k}"]["value"] == pytest.approx(reference)
    per_class = [found["per_class"][str(k)]["value"] for k in classes]
    assert per_class == pytest.approx(recall_score(labels, logits.argmax(1), average=None))
    reference = confusion_matrix(labels, logits.argmax(1), labels=classes)
    np.testing.assert_array_equal(found["confusion"], reference)


@pytest.mark.parametrize("signal", [0.0, 1.0, 3.0])
def test_accuracy_and_calibration_agree_with_torchmetrics(signal):
    # Imported here, after tcar: torchmetrics needs the repair of torchvision that comes with it.
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

    logits, labels = predictions(signal=signal)
    found = metrics(logits, labels, few())
    tensors = torch.tensor(logits), torch.tensor(labels)
    reference = multiclass_calibration_error(*tensors, CLASSES, n_bins=15, norm="l1")
    assert found["ece"]["value"] == pytest.approx(reference.item(), abs=1e-6)
    micro = multiclass_accuracy(*tensors, CLASSES, average="micro")
    assert found["top1"]["value"] == pytest.approx(micro.item())


def test_a_constant_prediction_is_not_rewarded_for_its_ties():
    labels = np.arange(80) % CLASSES
    found = metrics(np.zeros((80, CLASSES)), labels, few())
    assert found["top1"]["value"] == pytest.approx(1 / CLASSES)
    assert found["top5"]["value"] == pytest.approx(5 / CLASSES)


def test_twin_accuracy_and_groups_against_a_plain_loop():
    logits, labels = predictions()
    facts = twin_sets(len(labels))
    facts["twins"][10:20] = -1
    found = metrics(logits, labels, few(**facts))
    right = logits.argmax(1) == labels
    for group in ("a", "b", None):
        pairs = [
            bool(right[i] and right[j])
            for i, j in enumerate(facts["twins"])
            if 0 <= i < j and group in (None, facts["groups"][i])
        ]
        inside = [bool(r) for r, g in zip(right, facts["groups"], strict=True) if group in (None, g)]
        scores = found["per_group"][group] if group else found
        assert scores["twin_accuracy"]["value"] == pytest.approx(np.mean(pairs))
        assert scores["top1"]["value"] == pytest.approx(np.mean(inside))


def naive_interval(values_of, sets, samples=3000, seed=5):
    """Bootstrap over sets by drawing their names and gathering their clips."""
    rng, names = np.random.default_rng(seed), sorted(set(sets))
    members = {name: [i for i, s in enumerate(sets) if s == name] for name in names}
    draws = [[i for s in rng.choice(names, len(names)) for i in members[s]] for _ in range(samples)]
    return np.quantile([values_of(draw) for draw in draws], [0.025, 0.975])


def test_intervals_agree_with_a_naive_bootstrap_over_sets():
    logits, labels = predictions()
    facts = twin_sets(len(labels))
    found = metrics(logits, labels, Scoring(**facts, bootstrap=Bootstrap(3000)))
    right = logits.argmax(1) == labels
    both = right[0::2] & right[1::2]
    for name, values in {"top1": right, "twin_accuracy": np.repeat(both, 2)}.items():
        reference = naive_interval(lambda draw, values=values: values[draw].mean(), facts["sets"])
        assert [found[name]["low"], found[name]["high"]] == pytest.approx(reference, abs=0.012)


def test_clips_that_rise_and_fall_together_widen_the_interval():
    right = np.repeat(np.random.default_rng(1).random(60) < 0.5, 4)
    labels = np.zeros(240, dtype=int)
    logits = np.stack([right, ~right], axis=1).astype(float)
    together = metrics(logits, labels, Scoring(sets=[str(i // 4) for i in range(240)]))["top1"]
    alone = metrics(logits, labels)["top1"]
    assert (together["high"] - together["low"]) / (alone["high"] - alone["low"]) == pytest.approx(2, rel=0.15)


def test_every_value_lies_in_its_interval_and_the_block_size_does_not_matter(monkeypatch):
    logits, labels = predictions()
    whole = metrics(logits, labels, Scoring(**twin_sets(len(labels))))
    for name in ("top1", "top5", "twin_accuracy", "ece"):
        assert whole[name]["low"] <= whole[name]["value"] <= whole[name]["high"]
    monkeypatch.setitem(metrics.__globals__, "_BLOCK_ENTRIES", 1000)
    monkeypatch.setattr("tcar.evaluate.confidence._ROWS", 7)
    assert metrics(logits, labels, Scoring(**twin_sets(len(labels)))) == whole


def test_a_class_without_clips_has_no_score_and_the_result_is_json():
    logits, labels = predictions()
    kept = labels != 3
    found = metrics(logits[kept], labels[kept], few())
    assert found["per_class"]["3"] == {"value": None, "low": None, "high": None, "support": 0}
    assert found["twin_accuracy"]["value"] is None
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def runs_of(signal, seeds, n=240):
    scoring = Scoring(**twin_sets(n), bootstrap=Bootstrap(1000))
    return [metrics(*predictions(n, seed=s, signal=signal), scoring) for s in seeds]


def test_over_seeds_averages_and_widens_with_disagreement():
    alike, apart = runs_of(1.0, [0, 0, 0]), runs_of(0.3, [0]) + runs_of(1.0, [1]) + runs_of(2.5, [2])
    same = over_seeds(alike)
    for name in ("top1", "twin_accuracy", "ece"):
        assert same[name] == pytest.approx(alike[0][name]), "identical seeds add no uncertainty"
    mean = over_seeds(apart)
    assert mean["top1"]["value"] == pytest.approx(np.mean([run["top1"]["value"] for run in apart]))
    assert mean["per_seed"]["top1"] == [run["top1"]["value"] for run in apart]
    assert np.sum(mean["confusion"]) == 3 * 240
    assert mean["top1"]["high"] - mean["top1"]["low"] > 2 * (same["top1"]["high"] - same["top1"]["low"])


def test_paired_difference_gains_from_pairing():
    logits, labels = predictions(signal=1.0)
    better = logits.copy()
    better[np.arange(0, 240, 12), labels[::12]] += 10  # every twelfth clip put right, the rest untouched
    a, b = (metrics(x, labels, Scoring(**twin_sets(240))) for x in (better, logits))
    found = paired_difference(a, b, "top1")
    assert found["difference"] == pytest.approx(a["top1"]["value"] - b["top1"]["value"])
    assert 0 < found["low"] <= found["difference"] <= found["high"]
    assert found["high"] - found["low"] < 0.5 * (a["top1"]["high"] - a["top1"]["low"])
    assert paired_difference(a, a, "top1") == {"metric": "top1", "difference": 0, "low": 0, "high": 0}


def test_paired_difference_of_groups_and_seeds():
    a, b = runs_of(2.0, [0, 1, 2]), runs_of(0.5, [3, 4])
    found = paired_difference(a, b, "twin_accuracy", group="b")
    values = [np.mean([run["per_group"]["b"]["twin_accuracy"]["value"] for run in runs]) for runs in (a, b)]
    assert found["difference"] == pytest.approx(values[0] - values[1])
    assert found["low"] > 0
    mirrored = paired_difference(b, a, "twin_accuracy", group="b")
    assert mirrored["low"] == pytest.approx(-found["high"], abs=0.03)


def test_temperature_recovers_the_one_that_was_applied_and_equals_a_gradient_search():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, CLASSES)) * 2
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(1)  # drawn from softmax(logits): calibrated
    assert evaluate.fit_temperature(logits, labels) == pytest.approx(1, abs=0.06)
    assert evaluate.fit_temperature(logits * 3, labels) == pytest.approx(3, abs=0.2)

    def loss(inverse):
        return -log_softmax(3 * logits * inverse, axis=1)[np.arange(4000), labels].mean()

    reference = 1 / minimize(loss, x0=1.0).x[0]
    assert evaluate.fit_temperature(logits * 3, labels) == pytest.approx(reference, rel=1e-3)


def test_temperature_lowers_the_calibration_error_and_keeps_the_ranking():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2000, CLASSES)) * 2
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(1)
    sharp = logits * 4
    calm = sharp / evaluate.fit_temperature(sharp, labels)
    before, after = (metrics(x, labels, few()) for x in (sharp, calm))
    assert after["ece"]["value"] < 0.2 * before["ece"]["value"]
    assert after["top5"]["value"] == before["top5"]["value"]


def test_temperature_of_perfect_predictions_stops_at_its_bound():
    assert evaluate.fit_temperature(np.eye(CLASSES), np.arange(CLASSES)) == pytest.approx(0.05, rel=1e-3)


def test_reliability_bins_add_up_to_the_calibration_error():
    logits, labels = predictions(400, signal=2.0)
    bins = evaluate.reliability(logits, labels, bins=10)
    assert len(bins) == 10
    assert sum(row["share"] for row in bins) == pytest.approx(1)
    filled = [(i, row) for i, row in enumerate(bins) if row["share"]]
    assert all(i / 10 <= row["confidence"] <= (i + 1) / 10 for i, row in filled)
    gaps = [row["share"] * abs(row["confidence"] - row["accuracy"]) for _, row in filled]
    assert sum(gaps) == pytest.approx(metrics(logits, labels, few(calibration_bins=10))["ece"]["value"])


def test_annotations_follow_the_index_and_forget_absent_twins():
    index = {
        "a": {"group": "binding", "set": "s0", "twin": "b"},
        "b": {"group": "binding", "set": "s0", "twin": "a"},
        "c": {"group": "camera", "set": "s1", "twin": None},
    }
    found = evaluate.annotations(["c", "b", "a"], index)
    assert found["groups"] == ["camera", "binding", "binding"]
    assert found["sets"] == ["s1", "s0", "s0"]
    assert found["twins"].tolist() == [-1, 2, 1]
    assert evaluate.annotations(["b"], index)["twins"].tolist() == [-1]
    assert evaluate.annotations(["b"], {}) == {}
    with pytest.raises(EvaluationError, match="index.json, as d"):
        evaluate.annotations(["a", "d"], index)


def test_what_does_not_fit_is_named():
    logits, labels = predictions(16)
    cases = {
        "16 rows of logits but 3 groups": {"groups": ["a", "b", "c"]},
        "8 classes but 2 class names": {"names": ["x", "y"]},
        "labels are 0 to 9": {"labels": np.where(labels == 1, 9, labels)},
        "logits of clip 4 are not finite": {"logits": np.where(np.arange(16)[:, None] == 4, np.nan, logits)},
        "its twin in set 1": {"sets": [str(i) for i in range(16)], "twins": np.arange(16) ^ 1},
    }
    for message, change in cases.items():
        given = {"logits": logits, "labels": labels} | change
        scored = given.pop("logits"), given.pop("labels")
        with pytest.raises(EvaluationError, match=message):
            metrics(*scored, Scoring(**given))
    a, b = metrics(logits, labels), metrics(*predictions(24))
    with pytest.raises(EvaluationError, match="different clips"):
        paired_difference(a, b, "top1")
    with pytest.raises(EvaluationError, match="no metric top2; there are top1, top5"):
        paired_difference(a, a, "top2")
    with pytest.raises(EvaluationError, match="no run"):
        over_seeds([])
