"""The grid of lengths and learning rates: what is tried, what is chosen, and that nothing is trained twice."""

import dataclasses
from collections import Counter

import pytest
from token_task import FUSION, run, tokens

from tcar.lab import measured, pipeline, results
from tcar.lab.steps import recipes
from tcar.lab.steps.fits import Fit, Job


def row(method: str, rate: float, epochs: int, loss: float, top1: float) -> dict:
    return {"method": method, "learning_rate": rate, "epochs": epochs, "validation_loss": loss,
            "validation_top1": top1, "train_loss": 0.1}  # fmt: skip


ROWS = [
    row("sum", 0.001, 10, 0.9, 0.50), row("sum", 0.002, 10, 0.7, 0.55),
    row("sum", 0.002, 20, 0.5, 0.60), row("sum", 0.002, 40, 0.4, 0.605),
    row("joint", 0.001, 10, 0.3, 0.9), row("joint", 0.002, 10, 0.4, 0.95), row("joint", 0.001, 20, 0.2, 0.905),
]  # fmt: skip


def test_the_rate_is_that_of_the_lowest_loss_and_the_length_the_shortest_that_twice_does_not_beat():
    assert recipes.chosen(ROWS) == {
        "sum": {"learning_rate": 0.002, "epochs": 20, "converged": True, "gain": pytest.approx(0.005)},
        "joint": {"learning_rate": 0.001, "epochs": 10, "converged": True, "gain": pytest.approx(0.005)},
    }


def test_what_has_not_converged_has_its_longest_training_and_says_so():
    found = recipes.chosen(ROWS[:3])
    assert found["sum"] == {"learning_rate": 0.002, "epochs": 20, "converged": False, "gain": None}
    stated = recipes.stated(found)
    assert stated == "epochs_by_method: {sum: 20}\nlearning_rate_by_method: {sum: 0.002}"


def test_only_what_has_not_converged_is_trained_for_longer(tmp_path, monkeypatch):
    """The better rate goes on; a method that twice the epochs did not help ends there."""
    given = {"replicate_methods": ["cross_attention", "sum"], "recipe_learning_rates": [0.001, 0.004],
             "recipe_epochs": [1, 2, 4], "recipe_seeds": [7]}  # fmt: skip
    asked, run_ = [], dataclasses.replace(run(name="small", **given), root=tmp_path)

    def fit_jobs(jobs, tokens, folder):
        asked.extend(jobs)
        return [made(job) for job in jobs]

    def made(job: Job) -> Fit:
        training, slow = job.run.training, job.fusion.method == "sum"
        row = {"epoch": 1, "validation_loss": training.learning_rate, "train_loss": 0.0,
               "validation_top1": 0.1 * training.epochs if slow else 0.5}  # fmt: skip
        return Fit(tmp_path, job.fusion, job.seed, [row], 1, {})

    monkeypatch.setattr(recipes, "fit_jobs", fit_jobs)
    monkeypatch.setattr(recipes, "fusion_config", lambda run, method: dataclasses.replace(FUSION, kind=method))
    rows = recipes.measure(run_, {})
    lengths = Counter((job.fusion.method, job.run.training.learning_rate, job.run.training.epochs) for job in asked)
    assert lengths == dict.fromkeys([
        ("cross_attention", 0.001, 1), ("cross_attention", 0.004, 1), ("cross_attention", 0.001, 2),
        ("sum", 0.001, 1), ("sum", 0.004, 1), ("sum", 0.001, 2), ("sum", 0.001, 4),
    ], 1)  # fmt: skip
    assert recipes.chosen(rows)["sum"]["converged"] is False and all(job.seed == 7 for job in asked)
    assert all(not job.run.training.epochs_by_method for job in asked)


def test_a_method_trains_at_its_own_rate(tmp_path):
    made = run(learning_rate=0.1, learning_rate_by_method={"sum": 0.02})
    rates = {
        kind: Job(made, dataclasses.replace(FUSION, kind=kind, appearance=looks), 0)
        .task({"train": tokens(12, 1), "validation": tokens(6, 2)}).recipe.learning_rate
        for kind, looks in (("sum", "ordered"), ("sum", "averaged"), ("cross_attention", "ordered"))
    }  # fmt: skip
    assert rates == {"sum": 0.02, "cross_attention": 0.1}


def test_a_grid_makes_stale_what_shows_it(tmp_path):
    asked = dataclasses.replace(run(), root=tmp_path)
    path = results.save(measured.shared(asked) / measured.RECIPES, {}, params=asked)
    stale = [step.name for step in (*pipeline.TABLE, pipeline.REPORT) if path in pipeline._inputs(step, asked)]
    assert stale == ["03_training", "report"]


def test_what_follows_from_a_grid_does_not_make_it_another(tmp_path):
    """A parameter file takes over what was found; other data, or another grid, is another matter."""
    asked = dataclasses.replace(run(), root=tmp_path)
    results.save(measured.shared(asked) / measured.RECIPES, {}, params=asked)
    taken = {"epochs": 20, "epochs_by_method": {"sum": 40}, "learning_rate_by_method": {"sum": 0.01}}
    for changes, shown in ((taken, True), ({"train_sets": 9}, False), ({"recipe_epochs": [1, 2]}, False),
                           ({"weight_decay": 0.3}, False)):  # fmt: skip
        other = dataclasses.replace(run(**changes), root=tmp_path)
        assert bool(measured.find(other, measured.RECIPES)) == shown, changes
