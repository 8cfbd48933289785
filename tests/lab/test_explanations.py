"""The measurement of explanations: what is kept of one clip, what is chosen, and what is made of many."""

from types import SimpleNamespace

import numpy as np
import pytest
import twins

from tcar.explain.scoring import FRAME_DIFFERENCE
from tcar.explain.verdicts import RIVALS
from tcar.lab import params
from tcar.lab.steps import explained_clips, explanations
from tcar.lab.steps.explained_clips import CONVERGENCE, HEADLINE, LATE, PERMUTED, PIXELS, TOKENS, UNTRAINED, Asked


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return twins.rendered(tmp_path_factory.mktemp("twins"))


@pytest.fixture
def run(root):
    common = SimpleNamespace(seed=0)
    evaluation = SimpleNamespace(bootstrap_samples=200, confidence=0.95, evaluation_split="test")
    sets = SimpleNamespace(explanation_sets=0, explanation_pixel_sets=1)
    data = SimpleNamespace(upright=True, dataset="tabletop")
    return SimpleNamespace(
        data_root=root, tabletop=twins.DRAWN, common=common, data=data, evaluation=evaluation, interpretability=sets
    )


@pytest.fixture
def models(root, monkeypatch):
    own = twins.model(root)
    found = {HEADLINE: own, LATE: twins.model(root, kind="late_concat"), PERMUTED: own, UNTRAINED: own}
    monkeypatch.setattr(explained_clips, "models_of", lambda run, fusions: found)
    monkeypatch.setattr(explained_clips, "ON_PIXELS", ("gradient", "integrated_gradients"))
    monkeypatch.setattr(explained_clips, "CURVES", ("gradient",))
    monkeypatch.setattr(explained_clips, "RIVALS_SAMPLED", {})
    monkeypatch.setattr(explained_clips, "SAMPLED", {
        "integrated_gradients": {"steps": 4}, "frame_shapley": {"samples": 2}
    })  # fmt: skip
    return found


def measured(run, root, kind, folder):
    asked = Asked(run, folder, twins.test_clips(root)[0], kind)
    found = explained_clips.measure(asked)
    assert explained_clips.measure(asked) == found  # as it was kept
    return found


def test_of_a_clip_explained_to_pixels_everything_is_kept(run, root, models, tmp_path):
    found = measured(run, root, PIXELS, tmp_path)
    scored = {(row["model"], row["method"], row["stream"], row["mask"]) for row in found["rows"]}
    assert {(name, "gradient", "motion", "decisive") for name in (HEADLINE, PERMUTED, UNTRAINED)} <= scored
    assert not any(model == LATE for model, *_ in scored)
    assert (HEADLINE, FRAME_DIFFERENCE, "semantic", "mover") in scored
    assert not any(method == "even" and model != HEADLINE for model, method, *_ in scored)
    moments = {(row["model"], row["method"]) for row in found["moments"]}
    assert moments == {(HEADLINE, "frame_shapley"), *((n, "frame_ablation") for n in (HEADLINE, PERMUTED, UNTRAINED))}
    assert found["convergence"]["error"] > 0
    assert [row["method"] for row in found["curves"]] == ["gradient"]
    assert found["group"] == "bound" and len(found["pair"]) == 2


def test_other_kinds_keep_what_they_are_for(run, root, models, tmp_path):
    converged = measured(run, root, CONVERGENCE, tmp_path)
    assert {row["model"] for row in converged["rows"]} == {HEADLINE} and not converged["moments"]
    assert converged["convergence"]["error"] > 0
    tokens = measured(run, root, TOKENS, tmp_path)
    late = {row["method"] for row in tokens["rows"] if row["model"] == LATE}
    assert late == {"grad_cam"}
    assert {row["method"] for row in tokens["rows"] if row["model"] == UNTRAINED} == set(explained_clips.ON_TOKENS)
    assert "convergence" not in tokens


def test_one_clip_of_each_pair_and_set_is_chosen_either_side_in_turn(run, root, monkeypatch):
    clips = twins.test_clips(root)
    healthy = {"test": [SimpleNamespace(id=one) for one in clips]}
    monkeypatch.setattr(explanations, "healthy_clips", lambda run, split: healthy)
    found = explanations.chosen(run)
    assert len(found[TOKENS]) == 2 and len(found[PIXELS]) == len(found[CONVERGENCE]) == 1
    assert sorted(found[PIXELS] + found[CONVERGENCE]) == sorted(found[TOKENS])
    index = explanations.ground_truth(run)
    assert len({index[clip]["class"] for clip in found[TOKENS]}) == 2
    monkeypatch.setattr(explanations, "healthy_clips", lambda run, split: {"test": healthy["test"][1:]})
    assert len(explanations.chosen(run)[TOKENS]) == 1  # whose twin is quarantined has nothing to be held against


def clip_row(number: int, rng: np.random.Generator) -> dict:
    """A clip on which the exchange of cells beats everything, and rollout nothing."""
    rows = []
    for method, levels in {"exchanged_cells": (0.3, 0.1, 0.1), "rollout": (0.1, 0.1, 0.1)}.items():
        for model, level in zip((HEADLINE, UNTRAINED, PERMUTED), levels, strict=True):
            row = {"model": model, "method": method, "stream": "motion", "mask": "decisive", "most": 0.4}
            scores = dict.fromkeys(("mass", "pointing", "auc"), level + 0.01 * rng.standard_normal())
            rows.append(row | scores | {"frame_difference_mass": 0.1 + 0.01 * rng.standard_normal()})
    return {"clip": str(number), "group": "bound", "set": f"test-x-{number}", "pair": ["a", "b"], "rows": rows,
            "moments": []}  # fmt: skip


def test_what_beats_all_rivals_passes_and_what_does_not_fails(run):
    rng = np.random.default_rng(0)
    by = {PIXELS: [], CONVERGENCE: [], TOKENS: [clip_row(number, rng) for number in range(12)]}
    found = explanations.summary(run, by)
    judged = {row["method"]: row for row in found["verdicts"]}
    assert judged["exchanged_cells"]["passed"] is True and judged["rollout"]["passed"] is False
    assert set(judged["rollout"]["differences"]) == set(RIVALS)
    assert judged["exchanged_cells"]["clips"] == 12
    cells = {(row["stream"], row["group"]): row for row in found["cells"]}["motion", "all"]
    shares = [row["mass"] / 0.4 for clip in by[TOKENS] for row in clip["rows"]
              if (row["model"], row["method"]) == (HEADLINE, "exchanged_cells")]  # fmt: skip
    assert cells["share"]["value"] == pytest.approx(np.mean(shares))
    assert cells["more"]["low"] > 0
    assert found["convergence"] == {"clips": 0} and found["moments"] == found["curves"] == found["binding"] == []


def test_convergence_is_told_as_it_was(run):
    rows = [{"convergence": {"error": error, "note": "" if error < 0.01 else "did not converge"}}
            for error in (0.001, 0.002, 0.05, 0.004)]  # fmt: skip
    found = explanations._convergence(rows)
    assert found["median"] == pytest.approx(0.003) and found["below"]["share"] == 0.75 and found["unconverged"] == 1


def test_datasets_without_truth_and_runs_without_a_model_are_refused(project):
    made = params.from_values({"name": "t", "dataset": "ssv2", "data_root": "data"})
    with pytest.raises(params.ParameterError, match="known of Tabletop's alone"):
        explanations.build(made)
    with pytest.raises(params.ParameterError, match="no model to explain yet"):
        explanations.build(params.from_values({"name": "t"}))
