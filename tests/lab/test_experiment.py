"""The tests of the hypotheses against hand-made replicates, and the figures of the experiment."""

from dataclasses import replace
from pathlib import Path

import pytest
from scipy import stats

from tcar.lab import measured, numerals, params, pipeline, results
from tcar.lab.paper import apart
from tcar.lab.plots import experiment as figures
from tcar.lab.steps import experiment, replicates
from tcar.tabletop.dataset import chosen_families
from tcar.tabletop.templates import LABELS

ROOT = Path(__file__).parents[2]
METHODS = [kind + form for kind in experiment.KINDS for form in ("", "_averaged")]
# The twin accuracy of each method on the first replicate, on closer/away and on many movers.
REACHED = dict(zip(METHODS, [0.9, 0.85, 0.6, 0.1, 0.5, 0.05, 0.88, 0.8], strict=True))
WOBBLE = (0.0, 0.02, -0.01, 0.03)


def values(heads: int = 5) -> dict:
    """Four replicates; all methods move together, but the sum of scores twice as far."""
    def row(method: str, shift: float) -> dict:
        reached = REACHED[method] + shift * (2 if method == "sum" else 1 + METHODS.index(method) / 100)
        pairs = {pair: {"twin_accuracy": reached, "emap": reached / 2, "train_loss": 0.1} for pair in experiment.PAIRS}
        movers = {f"{n} movers": {"twin_accuracy": reached - n * (0.01 if method == "cross_attention" else 0.03)}
                  for n in (3, 5, 9)}  # fmt: skip
        both = {"top1": reached, "twin_accuracy": reached}
        return both | {"per_group": {"bound": both}, "per_pair": pairs, "per_variant": movers}

    scores = [{method: row(method, shift) for method in METHODS} for shift in WOBBLE]
    return {"replicates": scores, "alpha": 0.05, "split": "validation", "seeds": [{"heads": list(range(heads))}],
            **replicates.summary(scores, "cross_attention", 0.95)}  # fmt: skip


def test_every_hypothesis_is_tested_as_it_was_written_down():
    rows = experiment.tests(values())
    assert [row["hypothesis"] for row in rows] == sorted(row["hypothesis"] for row in rows)
    found = {(row["hypothesis"], row["part"], row["a"], row["b"]): row for row in rows}
    assert len(found) == len(rows) == 4 + 1 + 1 + 4 + 4
    one = found[1, experiment.CLOSER, "cross_attention_averaged", "sum_averaged"]
    assert one["difference"] == pytest.approx(0.75, abs=0.01)
    order = found[2, experiment.CLOSER, "sum", "sum_averaged"]
    mine, other = ([row[m]["twin_accuracy"] for row in values()["replicates"]] for m in ("sum", "sum_averaged"))
    assert order["p"] == order["holm"] == pytest.approx(stats.ttest_rel(mine, other).pvalue)
    lead = found[3, "9 movers", "lead among 9 movers", "lead among 3 movers"]
    assert lead["difference"] == pytest.approx(6 * 0.02)
    kept = found[4, experiment.COVER, "cross_attention", "its additive projection"]
    assert kept["difference"] == pytest.approx((0.9 + sum(WOBBLE) / 4) / 2, abs=0.01)
    assert found[5, experiment.MANY, "cross_attention", "joint"]["difference"] == pytest.approx(0.02, abs=0.01)


def test_rivals_of_a_pair_are_corrected_together():
    rows = [row for row in experiment.tests(values()) if row["hypothesis"] == 1 and row["part"] == experiment.CLOSER]
    assert [row["holm"] >= row["p"] for row in rows] == [True, True]


def test_the_size_with_most_trainings_is_the_main_one():
    assert experiment.main_size({36: values(1), 120: values(5), 260: values(5), 1000: values(1)}) == 260


def test_only_results_of_todays_parameter_files_are_shown(tmp_path):
    assert experiment.found(replace(params.Params(), root=tmp_path)) == {}
    (tmp_path / "params").mkdir()
    file = tmp_path / "params" / "bound_12.yaml"
    file.write_text("name: bound_12\npublish_as: bound_12\ntrain_sets: 12\nevaluation_split: validation\n")
    run = replace(params.Params(), root=tmp_path)
    plan = replace(params.load(file), root=tmp_path)
    results.save(measured.shared(plan) / measured.FILE, {"split": "validation"}, params=plan)
    assert experiment.found(run) == {12: {"split": "validation"}}
    opened = replace(plan, evaluation=replace(plan.evaluation, evaluation_split="test"))
    results.save(measured.shared(plan) / measured.FILE, {"split": "test"}, params=opened)
    assert experiment.found(run) == {12: {"split": "test"}}
    for step in (*pipeline.TABLE, pipeline.REPORT):  # who shows it has it among what makes it stale
        shows = step.name in ("04_evaluation", "report")
        assert (measured.shared(plan) / measured.FILE in pipeline._inputs(step, run)) == shows, step.name
    real = replace(run, data=replace(run.data, dataset="ssv2"))
    assert experiment.found(real) == {}
    file.write_text(file.read_text().replace("train_sets: 12", "train_sets: 13"))
    assert experiment.found(run) == {}


@pytest.mark.parametrize("sets", [36, 120, 260, 1000])
def test_the_experiment_s_files_are_of_one_design(sets):
    """They differ in data, lengths of training and trainings alone, and have what the hypotheses are about."""
    run = params.load(ROOT / "params" / f"bound_{sets}.yaml")
    other = params.load(ROOT / "params" / "bound_36.yaml").as_dict()
    differs = {key for key, value in run.as_dict().items() if value != other[key]}
    assert differs <= {"name", "publish_as", "train_sets", "epochs", "epochs_by_method", "learning_rate_by_method",
                       "replicate_seeds", "recipe_epochs", "recipe_learning_rates"}  # fmt: skip
    assert set(run.ablations.replicate_methods) == set(METHODS) and run.tabletop.train_sets == sets
    assert run.evaluation.evaluation_split == "validation" and run.ablations.replicates == 4


def test_the_pairs_of_the_hypotheses_are_those_of_the_experiment_s_clips():
    """By the names that scores have: both labels, the class of the smaller index first."""
    families = chosen_families(params.load(ROOT / "params" / "bound_36.yaml").tabletop.classes)
    named = {" / ".join(LABELS[k] for k in sorted(pair.twins)) for family in families for pair in family.pairs}
    assert set(experiment.PAIRS) == set(experiment.SHORT) == named


def test_a_pair_that_was_not_scored_is_no_difference_of_nothing():
    given = values()
    for row in given["replicates"]:
        del row["joint"]["per_pair"][experiment.CLOSER]
    with pytest.raises(KeyError, match="away"):
        experiment.tests(given)


def test_figures_show_every_method_where_it_stands():
    given = values()
    accuracy, projected = (experiment.cells(given, metric=metric) for metric in ("twin_accuracy", "emap"))
    drawn = figures.by_pair(accuracy, projected, experiment.KINDS, experiment.PAIRS, confidence=0.95)
    assert [axis.get_title() for axis in drawn.axes] == list(experiment.PAIRS.values())
    dots = [line for line in drawn.axes[0].lines if line.get_marker() == "o"]
    mean = sum(WOBBLE) / 4
    reached = [100 * (REACHED[m] + mean * (2 if m == "sum" else 1)) for m in METHODS]
    assert [dot.get_xdata()[0] for dot in dots] == pytest.approx(reached, abs=0.2)
    movers = experiment.by_movers(given)
    curve = figures.by_count(movers, experiment.KINDS, axis_label="movers", confidence=0.95)
    assert [axis.get_title() for axis in curve.axes] == ["appearance in order", "averaged over time"]
    ordered = [line for line in curve.axes[0].lines if line.get_marker() == "o"]
    assert [list(line.get_xdata()) for line in ordered] == [[3, 5, 9]] * 4
    assert ordered[0].get_ydata()[2] == pytest.approx(100 * (0.9 + mean - 0.09))
    more = experiment.by_sets({36: given, 120: given})
    assert set(more) == {experiment.PAIRS[pair] for pair in experiment.BOUND}
    averaged = {kind: accuracy[experiment.CLOSER][f"{kind}_averaged"] for kind in experiment.KINDS}
    assert more["closer / away"] == {"36": averaged, "120": averaged}
    curve = figures.by_count(more, experiment.KINDS, axis_label="training sets", confidence=0.95, log=True)
    assert [list(line.get_xdata()) for line in curve.axes[0].lines if line.get_marker() == "o"] == [[36, 120]] * 4


def test_tables_say_what_was_measured_and_are_empty_where_nothing_was():
    assert apart.experiment_tables({}, "synthetic", "95%") == []
    small = values(1)
    for row in small["methods"].values():
        for pair in row["per_pair"].values():
            pair["train_loss"]["value"] = 0.25
    alone = {table.name: table.rows for table in apart.experiment_tables({120: values(5)}, "synthetic", "95%")}
    assert alone.pop("experiment_sets") == [] and all(alone.values())  # one size is the table of pairs once more
    pairs, tests, sizes, losses = apart.experiment_tables({36: small, 120: values(5)}, "synthetic", "95%")
    assert "120 training sets" in pairs.caption and "4 replicates of 5 trainings" in pairs.caption
    assert pairs.columns[:4] == ["Appearance", "Method", "Closer / away", "Closer / away, EMAP"]
    reached = 100 * (REACHED["cross_attention"] + sum(WOBBLE) / 4)
    assert pairs.rows[0][2].startswith(f"{reached:.1f}") and pairs.rows[0][3].startswith(f"{reached / 2:.1f}")
    ordered = [("in order", numerals.readable(kind)) for kind in experiment.KINDS]
    averaged = [("averaged over time", name) for _, name in ordered]
    assert sorted(tuple(row[:2]) for row in pairs.rows) == sorted(ordered + averaged)
    assert {row[0] for row in pairs.rows[:4]} == {"in order"}  # a title stands before the first of each
    assert [row[0] for row in tests.rows] == [str(row["hypothesis"]) for row in experiment.tests(values())]
    for table in (sizes, losses):
        assert [row[0].split()[0] for row in table.rows] == ["36"] * 8 + ["120"] * 8
    assert {cell for row in losses.rows[:8] for cell in row[3:]} == {"0.25"}
    assert {cell for row in losses.rows[8:] for cell in row[3:]} == {"0.10"}


def test_the_table_of_recipes_shows_what_was_chosen():
    assert apart.recipes_table(None, "").rows == []
    row = {"method": "sum", "learning_rate": 0.002, "epochs": 20, "train_loss": 0.31, "validation_loss": 0.5,
           "validation_top1": 0.6}  # fmt: skip
    chosen = {"sum": {"learning_rate": 0.002, "epochs": 20, "converged": False, "gain": None}}
    table = apart.recipes_table({"rows": [row], "chosen": chosen, "threshold": 0.01}, "synthetic")
    assert table.rows == [["Sum of scores (additive)", "0.00200", "20", "0.31", "0.50", "60.0", ""]]
