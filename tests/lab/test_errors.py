"""Errors are counted by what they lose, conditions are told from classes, and both are said no louder than measured."""

import json
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
import pytest
from one_process import Here

from tcar.data.ssv2 import load_split
from tcar.evaluate import Bootstrap
from tcar.lab import params, results
from tcar.lab.plots import save
from tcar.lab.plots.errors import gallery
from tcar.lab.steps import conditions, errors
from tcar.lab.steps.audit import dataset_folder
from tcar.lab.steps.conditions import CONDITIONS, contrast, thirds
from tcar.lab.steps.errors import KINDS, Answers, error_analysis, kinds_of, pictures
from tcar.lab.steps.words import error_sentences
from tcar.tabletop import dataset
from tcar.tabletop.dataset import SetPlan, draw, load_index
from tcar.tabletop.settings import TabletopSettings
from tcar.tabletop.templates import FAMILIES, LABELS

TINY = {"name": "t", "classes": [45, 43, 166, 167], "train_sets": 1, "validation_sets": 1, "test_sets": 2,
        "lengths": [16], "bootstrap_samples": 50, "workers": 1, "device": "cpu"}  # fmt: skip
# Twins stand beside each other.
GROUPS = {"up": "motion", "down": "motion", "left": "motion", "right": "motion", "put": "order of appearance",
          "pick": "order of appearance", "near": "bound", "far": "bound", "over": "what and where",
          "beside": "what and where", "full": "one frame", "empty": "one frame"}  # fmt: skip
NAMES = list(GROUPS)
TWINS = np.arange(len(NAMES)) ^ 1


@pytest.fixture
def run(project, monkeypatch):
    """A dataset with two clips of each class, whose index alone is there."""
    made = params.from_values(TINY)
    results.save(made.results_dir / "audit.json", {"quarantined": [], "classes": NAMES}, params=made)
    index = {
        f"{name}{number}": {"class": name, "group": GROUPS[name], "set": f"{place // 2}-{number}",
                            "twin": f"{NAMES[TWINS[place]]}{number}"}
        for place, name in enumerate(NAMES) for number in (0, 1)
    }  # fmt: skip
    (made.data_root / "ground_truth").mkdir(parents=True)
    (made.data_root / "ground_truth" / "index.json").write_text(json.dumps(index))
    monkeypatch.setattr(errors, "amounts", lambda run, ids: {"small": np.full(len(ids), np.nan)})
    return made


IDS = [f"{name}{number}" for name in NAMES for number in (0, 1)]
CLIP_LABELS = np.repeat(np.arange(len(NAMES)), 2)


def logits(answers: dict[str, tuple[str, float]]) -> np.ndarray:
    """Of clips that are named rightly with a probability of 0.8, but for those whose answer is given."""
    made = np.empty((len(IDS), len(NAMES)))
    for row, (clip, label) in enumerate(zip(IDS, CLIP_LABELS, strict=True)):
        answer, probability = answers.get(clip, (NAMES[label], 0.8))
        made[row] = np.log((1 - probability) / (len(NAMES) - 1))
        made[row, NAMES.index(answer)] = np.log(probability)
    return made


# An error of every kind; and one clip, rightly named, of which the first seed is sure.
FIRST = {"up0": ("down", 0.99), "put1": ("pick", 0.6), "near0": ("far", 0.97), "over0": ("beside", 0.5),
         "left0": ("up", 0.7), "full0": ("down", 0.95), "empty1": ("empty", 0.98)}  # fmt: skip
SECOND = {"up0": ("right", 0.93), "near1": ("far", 0.98), "near0": ("far", 0.4)}


def test_each_kind_of_error_is_counted_where_it_occurs(run):
    found = error_analysis(run, [logits(FIRST), logits(SECOND)], CLIP_LABELS, IDS, [3, 8])
    assert (found["clips"], found["answers"], found["errors"]) == (24, 48, 9)
    expected = {"order lost": 2, "binding lost": 3, "appearance lost": 1, "within the group": 2, "another group": 1}
    assert {row["kind"]: row["count"] for row in found["kinds"]} == expected
    for row in found["kinds"]:
        share = row["share"]
        assert share["value"] == pytest.approx(row["count"] / 9) and share["low"] <= share["value"] <= share["high"]
    assert found["twins"]["count"] == 6 and found["twins"]["share"]["value"] == pytest.approx(6 / 9)


def test_confident_errors_are_those_above_the_threshold_and_the_surest_of_each_clip_is_listed(run):
    confident = error_analysis(run, [logits(FIRST), logits(SECOND)], CLIP_LABELS, IDS, [3, 8])["confident"]
    assert (confident["above"], confident["answers"], confident["count"]) == (0.9, 6, 5)
    assert confident["share"]["value"] == pytest.approx(5 / 6)
    listed = [(row["id"], row["predicted"], row["seed"], row["wrong_seeds"]) for row in confident["clips"]]
    assert listed == [("up0", "down", 3, 2), ("near1", "far", 8, 1), ("near0", "far", 3, 2), ("full0", "down", 3, 1)]
    assert [row["confidence"] for row in confident["clips"]] == pytest.approx([0.99, 0.98, 0.97, 0.95])


def test_the_example_of_a_kind_is_its_surest_error(run):
    examples = error_analysis(run, [logits(FIRST), logits(SECOND)], CLIP_LABELS, IDS, [3, 8])["examples"]
    assert [(row["kind"], row["id"], row["true"], row["predicted"]) for row in examples] == [
        ("order lost", "up0", "up", "down"), ("binding lost", "near1", "near", "far"),
        ("appearance lost", "over0", "over", "beside"), ("within the group", "up0", "up", "right"),
        ("another group", "full0", "full", "down"),
    ]  # fmt: skip


def test_every_error_is_of_one_kind(run):
    draw_ = np.random.default_rng(0)
    predicted, labels = draw_.integers(0, len(NAMES), (3, 400)), draw_.integers(0, len(NAMES), 400)
    kinds = kinds_of(predicted, labels, list(GROUPS.values()), TWINS)

    def slow(said: int, true: int) -> int:
        group, own = GROUPS[NAMES[said]], GROUPS[NAMES[true]]
        if said == true:
            return -1
        if {said, true} != {2 * (true // 2), 2 * (true // 2) + 1}:
            return KINDS.index("within the group" if group == own else "another group")
        lost = {"motion": "order", "order of appearance": "order", "bound": "binding"}.get(own, "appearance")
        return KINDS.index(f"{lost} lost")

    assert kinds.tolist() == [[slow(*pair) for pair in zip(row, labels, strict=True)] for row in predicted]
    scores = [np.eye(len(NAMES))[draw_.integers(0, len(NAMES), len(IDS))] for _ in range(2)]
    found = error_analysis(run, scores, CLIP_LABELS, IDS, [0, 1])
    assert sum(row["count"] for row in found["kinds"]) == found["errors"]
    assert sum(row["share"]["value"] for row in found["kinds"]) == pytest.approx(1)


def test_where_all_is_right_there_is_nothing_to_tell(run):
    found = error_analysis(run, [logits({})], CLIP_LABELS, IDS, [0])
    assert found["errors"] == found["twins"]["count"] == found["confident"]["answers"] == 0
    assert found["examples"] == found["confident"]["clips"] == [] and {row["count"] for row in found["kinds"]} == {0}
    assert found["twins"]["share"] == {"value": None, "low": None, "high": None}
    assert error_sentences("motion", found) == ["Motion stream makes no error in 24 answers (clips: 24, trainings: 1)."]


def test_without_ground_truth_it_is_the_confident_errors_alone(project):
    run = params.from_values({"name": "t", "dataset": "ssv2", "data_root": "elsewhere", "bootstrap_samples": 50})
    results.save(run.results_dir / "audit.json", {"quarantined": [], "classes": NAMES}, params=run)
    found = error_analysis(run, [logits(FIRST), logits(SECOND)], CLIP_LABELS, IDS, [3, 8])
    assert found["twins"] is None and found["kinds"] == found["conditions"] == [] and found["errors"] == 9
    assert [row["id"] for row in found["examples"]] == ["up0", "near1", "near0", "full0", "left0"]
    assert {row["kind"] for row in found["examples"]} == {None}
    said = error_sentences("cross_attention", found)
    assert len(said) == 2 and "9 errors in 48 answers" in said[0] and "twin" not in " ".join(said)


def test_the_surest_answers_come_first_and_each_clip_once():
    rng = np.random.default_rng(0)
    confidence, some = rng.random((3, 20)), rng.random((3, 20)) < 0.5
    said = Answers(np.zeros(20, int), np.zeros((3, 20), int), confidence, [str(n) for n in range(20)])
    best = {clip: max((confidence[s, clip], s) for s in range(3) if some[s, clip]) for clip in range(20)
            if some[:, clip].any()}  # fmt: skip
    expected = [(seed, clip) for clip, (_, seed) in sorted(best.items(), key=lambda item: -item[1][0])]
    assert said.surest(some) == expected


def planted(rng: np.random.Generator, sets: int = 60, classes: int = 6):
    """Amounts, labels and sets of clips: the classes of a set have much or little alike, each at a level of its own."""
    labels, places = np.tile(np.arange(classes), sets), np.repeat(np.arange(sets), classes)
    amount = 10.0 * labels + rng.random(sets)[places] + 0.2 * rng.random(len(labels))
    return amount, labels, [f"set {place}" for place in places]


def test_thirds_are_of_the_class_and_equal_amounts_stay_together():
    # The third class has the same amount everywhere, and the fourth too few clips.
    labels = np.repeat([0, 1, 2, 3, 4], [6, 5, 3, 2, 6])
    amount = np.array([5, 1, 2, 6, 3, 4, 0, 0, 0, 4, 7, 2, 2, 2, 1, 2, 1, 1, 1, 2, 3, np.nan])
    most, least = thirds(amount, labels)
    assert np.flatnonzero(most).tolist() == [0, 3, 10, 20]
    assert np.flatnonzero(least).tolist() == [1, 2, 6, 7, 8, 16, 17, 18]


@pytest.mark.parametrize("sign", [1, -1])
def test_what_depends_on_the_amount_within_a_class_is_found(sign):
    rng = np.random.default_rng(1)
    amount, labels, sets = planted(rng)
    rank = np.array([(amount[labels == label] < own).mean() for own, label in zip(amount, labels, strict=True)])
    right = (rng.random(len(rank)) < 0.75 + 0.24 * sign * (2 * rank - 1)).astype(float)
    found = contrast(right, labels, sets, amount, Bootstrap(500))
    assert (found["clips"], found["classes"]) == (360, 6)
    difference = found["difference"]
    assert difference["low"] > 0 if sign > 0 else difference["high"] < 0
    assert difference["value"] == pytest.approx(found["most"] - found["least"])
    by_class = []
    for label in range(6):
        ordered = right[labels == label][np.argsort(amount[labels == label])]
        by_class.append((ordered[-20:].mean(), ordered[:20].mean()))
    assert (found["most"], found["least"]) == pytest.approx(tuple(np.mean(by_class, axis=0)))


def test_what_depends_on_the_class_alone_is_not_found():
    rng = np.random.default_rng(2)
    amount, labels, sets = planted(rng)
    right = (rng.random(len(labels)) < 0.3 + 0.1 * labels).astype(float)
    assert np.corrcoef(amount, right)[0, 1] > 0.3
    found = contrast(right, labels, sets, amount, Bootstrap(500))["difference"]
    assert found["low"] < 0 < found["high"]


def test_the_interval_is_as_wide_as_that_of_whole_sets_drawn_again():
    rng = np.random.default_rng(3)
    amount, labels, sets = planted(rng)
    right = (rng.random(len(labels)) < 0.8).astype(float)
    most, least = thirds(amount, labels)
    found = contrast(right, labels, sets, amount, Bootstrap(2000))["difference"]
    differences = []
    for _ in range(1000):
        weights = np.repeat(np.bincount(rng.integers(0, 60, 60), minlength=60), 6)
        parts = [[np.average(right[third & (labels == label)], weights=weights[third & (labels == label)])
                  for label in range(6)] for third in (most, least)]  # fmt: skip
        differences.append(np.subtract(*np.mean(parts, axis=1)))
    low, high = np.quantile(differences, [0.025, 0.975])
    assert found["high"] - found["low"] == pytest.approx(high - low, rel=0.15)


def test_of_what_no_class_has_nothing_is_known():
    found = contrast(np.ones(6), np.zeros(6, int), list("abcdef"), np.full(6, np.nan), Bootstrap(50))
    assert (found["clips"], found["most"], found["difference"]["value"]) == (0, None, None)


def sentence(low: float, high: float) -> str:
    row = {"condition": "fast", "difference": {"value": (low + high) / 2, "low": low, "high": high}, "clips": 1200,
           "classes": 3}  # fmt: skip
    share = {"value": 0.2, "low": low + 0.5, "high": high + 0.5}
    kinds = [{"kind": kind, "count": number, "share": share} for number, kind in enumerate(KINDS)]
    sure = {"above": 0.9, "answers": 40, "count": 2, "share": {"value": 0.1, "low": low + 0.1, "high": high + 0.1}}
    found = {"clips": 600, "answers": 1800, "errors": 10, "twins": {"count": 3, "share": share}, "kinds": kinds,
             "confident": sure, "conditions": [row]}  # fmt: skip
    return " ".join(error_sentences("cross_attention", found))


@pytest.mark.parametrize(("low", "high", "fast", "many", "most"), [
    (0.01, 0.05, "named rightly more often than those", "more than the 10%", True),
    (-0.05, -0.01, "named rightly less often than those", "fewer than the 10%", False),
    (-0.05, 0.05, "not told apart from those", "not told apart from the 10%", False),
])  # fmt: skip
def test_sentences_say_what_the_intervals_bear(low, high, fast, many, most):
    said = sentence(low, high)
    assert "10 errors in 1,800 answers (clips: 600, trainings: 3)" in said and "2 of the 10 errors" in said
    assert f"{fast} of their class in which it is slow" in said and many in said
    assert ("Most of them" in said) == most and "lose order" not in said and "lose binding" in said


@pytest.fixture
def rendered(project, monkeypatch):
    """Tabletop with a family in which a thing moves, and one in which the camera does."""
    monkeypatch.setattr(dataset, "pool", Here)
    made = params.from_values(TINY)
    dataset_folder(made)
    names = sorted(LABELS[number] for number in TINY["classes"])
    results.save(made.results_dir / "audit.json", {"quarantined": [], "classes": names}, params=made)
    return made


def test_amounts_are_those_of_the_scene_that_was_drawn(rendered):
    index = {clip: row for clip, row in load_index(rendered.data_root).items() if row["split"] == "test"}
    found = conditions.amounts(rendered, list(index))
    assert tuple(found) == CONDITIONS
    numbers = {text: number for number, text in LABELS.items()}
    for place, row in enumerate(index.values()):
        number, family = numbers[row["class"]], row["set"].split("-")[1]
        plan = SetPlan(family, "test", 0, tuple(row["seed"]), ())
        scene = draw(plan, TabletopSettings(lengths=[16]))[number]
        assert found["late"][place] == pytest.approx(scene.events[-1][1] / scene.frames)
        if family == "turn_camera":
            assert all(np.isnan(found[name][place]) for name in ("small", "fast", "occluded"))
            continue
        thing = next(item for item in scene.items if item.instance == "object")
        speed = np.hypot(*np.diff(thing.track[:, :2], axis=0).T).max() / 160 * 12
        assert found["fast"][place] == pytest.approx(speed, rel=0.01)
        whole = (thing.sprite()[0][..., 3] > 0.5).sum() / (160 * 120)
        assert 0.3 * whole < -found["small"][place] <= 1.15 * whole  # fingers hide some of it
        assert 0 <= found["occluded"][place] < 0.9
    assert Counter(np.isnan(found["small"]).tolist()) == {True: 4, False: 4}


def test_the_gallery_shows_clips_and_no_text_lies_on_another(rendered):
    clips = load_split(rendered.data_root, "test")
    ids, labels = [clip.id for clip in clips], np.array([clip.label for clip in clips])
    scores = np.random.default_rng(0).normal(size=(2, len(ids), 4)) * 4
    found = error_analysis(rendered, list(scores), labels, ids, [0, 1])
    assert [row["condition"] for row in found["conditions"]] == list(CONDITIONS)
    rows = found["examples"]
    rows[0] |= {"true": "Putting something similar to other things that are already on the table"}
    rows[0] |= {"predicted": "Taking one of many similar things on the table", "conditions": list(CONDITIONS)}
    figure = gallery(rows, pictures(rendered, rows))
    save(figure, rendered, "errors", rows)
    assert json.loads((rendered.figures_dir / "errors.json").read_text())[0]["kind"] == rows[0]["kind"]
    assert len(figure.axes) == 2 * len(rows)
    written = [text for axis in figure.axes for text in axis.texts]
    figure.set_dpi(300)  # of other resolutions some measures are left over from saving
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in written]
    frames = [axis.get_window_extent() for axis in figure.axes if axis.images]
    for place, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in [*boxes[place + 1 :], *frames]), written[place].get_text()
    said = figure.axes[0].texts[2].get_text().replace("\n", " ")
    assert said == f"taken for: {rows[0]['predicted']}, {rows[0]['confidence']:.1%}"
    plt.close(figure)


def test_what_a_twin_loses_is_what_alone_tells_it_apart():
    """By the evidence that theory has as blind: frames without order, the true flow, and each of them."""
    blind_to = {"order lost": {"bag of frames"}, "appearance lost": {"true flow"},
                "binding lost": {"bag of frames", "true flow"}}  # fmt: skip
    for pair in (pair for family in FAMILIES.values() for pair in family.pairs):
        assert blind_to[errors.LOST[pair.group]] <= pair.blind
