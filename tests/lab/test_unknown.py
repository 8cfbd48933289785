"""What cannot be estimated is an error that names it, or an empty cell: never a number, never a crash."""

import itertools
import warnings
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import optuna
import pytest
from scipy.special import log_softmax

from tcar import evaluate, explain
from tcar.lab import params
from tcar.lab.plots import attention, data, features, scores
from tcar.lab.steps import concepts, layouts, replicates, search
from tcar.lab.steps.words import group_sentence, replicate_sentence, shown, verdict
from tcar.tabletop import probes
from tcar.tabletop.templates import FAMILIES, LABELS

UNKNOWN = {"value": None, "low": None, "high": None}
ALONE = {"value": 0.5, "low": None, "high": None}
LABELLED = np.array([0, 1, 2])


@pytest.fixture(autouse=True)
def strict():
    """A warning of numpy's is a number that should not have been made."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield
    plt.close("all")


@pytest.mark.parametrize("use", [evaluate.fit_temperature, evaluate.reliability, evaluate.metrics])
@pytest.mark.parametrize(("logits", "labels", "named"), [
    (np.full((3, 4), np.nan), LABELLED, "logits of clip 0 are not finite"),
    (np.where(np.eye(3, 4) * [[0], [1], [0]], np.inf, 1.0), LABELLED, "logits of clip 1 are not finite"),
    (np.zeros((0, 4)), LABELLED[:0], "there are no clips to score"),
    (np.eye(3), np.array([0, 1, 3]), "labels are 0 to 3, logits have 3 classes"),
    (np.eye(3), LABELLED[:2], "3 rows of logits but 2 labels"),
])  # fmt: skip
def test_logits_that_cannot_be_scored_are_named(unchecked, use, logits, labels, named):
    with pytest.raises(evaluate.EvaluationError, match=named):
        use(logits, labels)


@pytest.mark.parametrize("logits", [np.zeros((4, 3)), np.full((4, 1), 7.0), np.array([[2.0], [-1], [0], [5]])])
def test_a_temperature_that_changes_nothing_is_one(logits):
    labels = np.arange(4) % logits.shape[1]
    losses = [-log_softmax(logits / t, axis=1)[np.arange(4), labels].mean() for t in (0.1, 1, 10)]
    assert np.ptp(losses) == 0 and evaluate.fit_temperature(logits, labels) == 1


def entries(values: dict):
    """Every {value, low, high} of nested metrics."""
    if "value" in values:
        yield values
    else:
        yield from itertools.chain(*(entries(v) for k, v in values.items() if isinstance(v, dict)))


@pytest.mark.parametrize("clips", [1, 2, 5])
@pytest.mark.parametrize("classes", [1, 2, 7])
@pytest.mark.parametrize("sets", [1, 2, 5])
def test_every_metric_is_a_share_within_its_interval_or_empty(clips, classes, sets):
    for number, right in enumerate((0.0, 0.5, 1.0)):
        random = np.random.default_rng(number)
        labels = random.integers(0, classes, clips)
        told = 9 * (random.random((clips, 1)) < right) * np.eye(classes)[labels]
        logits = random.normal(size=(clips, classes)) + told
        names = [f"set {i % sets}" for i in range(clips)]
        twins = np.array([i + sets if i + sets < clips and i < sets else i - sets if sets <= i < 2 * sets else -1
                          for i in range(clips)])  # fmt: skip
        known = {"groups": ["a"] * clips, "twins": twins, "sets": names}
        draws = [evaluate.Scoring(**known, bootstrap=evaluate.Bootstrap(20, seed)) for seed in (0, 1)]
        made = [evaluate.metrics(logits, labels, drawn) for drawn in draws]
        difference = evaluate.paired_difference(made[0], made[1], "twin_accuracy", "a")
        difference["value"] = difference["difference"]
        for entry in (*entries(made[0]), *entries(evaluate.over_seeds(made)), difference):
            known = [entry[key] for key in ("value", "low", "high") if entry[key] is not None]
            assert len(known) in (0, 1, 3) and np.isfinite(known).all()
            assert len(known) < 3 or entry["low"] - 1e-9 <= entry["value"] <= entry["high"] + 1e-9 or right == 0.5
        one = min(sets, clips) == 1
        assert (made[0]["top1"]["low"] is None) == one and (made[0]["ece"]["high"] is None) == one
        assert made[0]["twin_accuracy"]["value"] is not None or not (twins >= 0).any()


@pytest.mark.parametrize("values", [[], [0.4], [0.4, np.nan], [np.nan]])
def test_fewer_than_two_replicates_have_no_interval_and_no_p(values):
    a, known = np.array(values, float), len(values) == 1 and not np.isnan(values[0])
    assert evaluate.student(a, 0.95) == {
        "value": 0.4 if known else None, "low": None, "high": None, "spread": None}  # fmt: skip
    made = evaluate.paired(a, a - 0.25, 0.95)
    assert made == {"difference": pytest.approx(0.25) if known else None, "low": None, "high": None, "p": None}
    assert evaluate.holm([made["p"], 0.04, None, 0.01]) == [None, pytest.approx(0.04), None, pytest.approx(0.02)]
    row = made | {"a": "cross_attention", "b": "motion", "metric": "top1", "holm": None}
    assert verdict(row) in replicate_sentence(row, 0.05) and "p =" not in replicate_sentence(row, 0.05)


def test_one_replicate_is_summed_up():
    row = {"top1": 0.5, "twin_accuracy": None, "per_group": {"relation": {"top1": 0.5, "twin_accuracy": None}}}
    made = replicates.summary([{"cross_attention": row, "motion": row}], "cross_attention", 0.95)
    assert made["methods"]["motion"]["top1"] == {"value": 0.5, "low": None, "high": None, "spread": None}
    compared = {(row["difference"], row["p"], row["holm"]) for row in made["comparisons"]}
    assert compared == {(0.0, None, None), (None, None, None)}


def test_a_group_without_pairs_is_told_as_that():
    nothing = {"difference": None, "low": None, "high": None}
    said = group_sentence("relation", UNKNOWN, {"semantic": nothing, "late_concat": nothing})
    assert said.count("–") == 3 and said.endswith("So nothing is known of this group, which has no pair.")
    assert shown(ALONE) == "50.0%" and shown({"difference": 0.5, "low": 0.25, "high": 1.0}, "+") == (
        "+50.0% [+25.0%, +100.0%]")  # fmt: skip


def test_means_over_clips_and_sets():
    draws = evaluate.Bootstrap(200)
    assert evaluate.mean_interval(np.array([]), [], draws) == UNKNOWN
    assert evaluate.mean_interval(np.array([0.5]), None, draws) == ALONE
    assert evaluate.mean_interval(np.array([0.25, 0.75]), ["a", "a"], draws) == ALONE
    assert evaluate.mean_interval(np.array([0.25, 0.75]), None, draws)["low"] == 0.25
    assert evaluate.ratio_interval(np.array([1.0, 0.0]), np.ones(2), ["a", "a"], draws) == ALONE
    found = evaluate.ratio_interval(np.array([1.0, 0, 1]), np.array([1.0, 0, 2]), ["a", "b", "c"], draws)
    assert 0.5 <= found["low"] <= found["value"] <= found["high"] <= 1  # draws of "b" alone say nothing


@pytest.mark.parametrize(("hand", "asked"), [((0.3, 0.3), False), ((0.1, 0.6), True)])
def test_a_concept_that_never_varies_is_not_asked_for(monkeypatch, hand, asked):
    def cells(run, clip, grid):
        varying = np.full((1, 1), float(clip.id))
        return {"hand": np.full((1, 1), hand[int(clip.id) % 2]) if int(clip.id) > 3 else varying, "position": varying,
                "flow": np.ones((1, 2)), "speed": varying, "in hand": []}  # fmt: skip

    clips = [SimpleNamespace(id=str(n)) for n in range(8)]
    monkeypatch.setattr(concepts, "_cells", cells)
    monkeypatch.setattr(concepts, "load_index", lambda root: {clip.id: {"set": clip.id} for clip in clips})
    found = concepts._targets(params.Params(), clips, np.arange(8) < 4, (1, 1, 1))
    assert ("hand" in found) == asked and "position" in found and "flow" not in found


@pytest.mark.parametrize(("trials", "found"), [
    ([], set()), ([(0.1, 0.5)], set()), ([(0.1, 0.5), (0.1, 0.6)], set()), ([(0.1, 0.5), (0.2, 0.5)], set()),
    ([(0.1, 0.5), (0.2, 0.6)], {"learning_rate"}),
])  # fmt: skip
def test_importance_of_few_trials(unchecked, trials, found):
    study = optuna.create_study()
    space = {"learning_rate": optuna.distributions.FloatDistribution(0.0, 1.0)}
    for rate, value in trials:
        study.add_trial(optuna.trial.create_trial(params={"learning_rate": rate}, distributions=space, value=value))
    made = search.importance(SimpleNamespace(trials=study.trials, study=study), SimpleNamespace(seed=0))
    assert set(made) == found and sum(made.values()) == pytest.approx(len(found))


def test_twins_that_were_not_rendered_have_no_probe_and_one_set_no_interval():
    name, family = next((name, family) for name, family in FAMILIES.items() if len(family.pairs) > 1)
    classes = [LABELS[index] for index in family.pairs[0].twins]
    correct = {probe: np.array([1.0, 0.0]) for probe in (*probes.CEILINGS, *probes.LEAKS)}
    (told,) = probes._by_pair(probes.Asked(name, classes, ["set", "set"], correct))
    rows = probes._rows(*told, 0, 0.95)
    assert {tuple(row["twins"]) for row in rows} == {tuple(classes)}
    assert {(row["value"], row["low"], row["high"]) for row in rows} == {(0.5, None, None)}


@pytest.mark.parametrize("entry", [ALONE, UNKNOWN])
def test_figures_leave_out_what_is_unknown(entry):
    rows = [{"stream": "motion", "target": "class", "pooling": "averaged", "chance": 0.1, **entry}]
    concept = [{"stream": "motion", "variant": "in use", "concept": "flow", "measure": "R2", "chance": 0.0, **entry}]
    level = {"confidence": 0.95}
    for figure in (
        scores.methods({"motion": {"top1": entry, "twin_accuracy": UNKNOWN}}, **level),
        scores.per_group({"motion": {"direction": entry}}, **level),
        features.stream_probes(rows, **level),
        features.concepts(concept),
        data.probes({"direction": {"oracle": entry}}, **level),
        attention.temporal_importance({"direction": [{"time": 0.5, **entry}]}),
        scores.ablations([{"factor": "heads", "level": "4", "headline": False, "top1": entry}], ("top1",), **level),
        scores.replicates([{"motion": {"top1": entry["value"]}}], ("top1",)),
    ):
        figure.canvas.draw()
        drawn = np.concatenate([line.get_xdata() for axis in figure.axes for line in axis.lines] + [[]]).astype(float)
        assert (entry["value"] in drawn) == (entry is ALONE)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_umap_of_too_few_clips_says_how_many_it_needs(count):
    with pytest.raises(ValueError, match="at least 4 clips"):
        explain.embed(np.zeros((count, 8), np.float32), neighbours=max(0, count - 1))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_clips_have_no_layout_and_numbers_only_of_what_there_is(count):
    run = SimpleNamespace(common=SimpleNamespace(seed=0))
    features = {name: np.eye(count, 4, dtype=np.float32) for name in layouts.ORDER}
    points, numbers = layouts.laid_out(run, features, [0] * count)
    assert points == {}
    assert numbers["n"] == count and numbers["trustworthiness"] == []
    assert [row["same_class_neighbours"] for row in numbers["features"]] == [1.0] * 3 * (count > 1)
    assert all(row["silhouette"] is None for row in numbers["features"])


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 5), (1, 1, 1, 2, 5), (2, 1, 1, 1, 2), (1, 2, 2, 2, 1)])
def test_few_tokens_have_the_colours_of_the_components_they_have(shape):
    colours = features.pca_colours(np.random.default_rng(0).normal(size=shape))
    assert colours.shape == (*shape[:-1], 3) and np.isfinite(colours).all()
    rank = min(np.prod(shape[:-1]) - 1, shape[-1], 3)
    assert ((colours.reshape(-1, 3) > 0.01).any(axis=0) == (np.arange(3) < rank)).all()
