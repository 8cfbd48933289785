"""What the paper says and shows of results that commands of their own measure, and by what each result was made."""

import json
from dataclasses import replace

import pytest
from test_report import METHODS, PAPER, run_in, write_results
from token_task import FUSION, run, tokens

from tcar.lab import measured, params, results
from tcar.lab.paper import apart, report, sentences
from tcar.lab.steps import fits
from tcar.lab.steps.apart import publish


def test_replicates_are_told_by_their_corrected_test():
    groups = {"binding": {"top1": {"value": 0.5}, "twin_accuracy": {"value": 0.625, "low": 0.5, "high": 0.75}}}
    score = {"value": 0.8125, "low": 0.7, "high": 0.9, "spread": 0.04}
    measured = {
        "headline": "cross_attention", "alpha": 0.05, "replicates": [{}] * 5,
        "methods": {m: {"top1": score, "twin_accuracy": score, "per_group": groups} for m in METHODS},
        "comparisons": [
            {"a": "cross_attention", "b": b, "metric": metric, "difference": 0.125, "low": 0.01, "high": 0.24,
             "p": p, "holm": p}
            for metric in ("top1", "twin_accuracy") for b, p in (("late_concat", 0.09), ("motion", 0.002))
        ],
    }  # fmt: skip
    methods, per_group = apart.replicate_tables(measured, "synthetic (Tabletop)", "95%")
    assert methods.rows[1] == ["Late concatenation", "81.2 [70.0, 90.0]", "81.2 [70.0, 90.0]", "4.0",
                               "+12.5 [1.0, 24.0]", "0.090"]
    assert methods.rows[0][4:] == ["", ""] and "over 5 replicates" in methods.caption
    assert per_group.rows[0] == ["Cross-attention", "62.5 [50.0, 75.0]"]
    said = sentences.all_over_replicates({"replicates": measured})
    # an interval above zero is not enough: the word follows the p that is corrected for the number of rivals
    late = "not distinguishable from late concatenation (+12.5 points [1.0, 24.0], corrected p = 0.090)"
    assert said == f"above the motion stream; {late}"
    assert [table.rows for table in apart.replicate_tables(None, "", "95%")] == [[], []]
    assert sentences.all_over_replicates({}) == sentences.over_replicates({}, ("motion",)) == ""
    assert sentences.over_replicates({"replicates": measured}, ("late_concat",)) == late
    both = sentences.over_replicates({"replicates": measured}, ("late_concat", "motion"))
    assert both.startswith(f"{late} and above the motion stream (")
    for row in measured["comparisons"]:
        row["holm"] = 0.01
        row["difference"] -= 0.0625 * (row["b"] == "motion")
    said = sentences.all_over_replicates({"replicates": measured})
    assert said == "above both rivals, and closest to the motion stream (+6.2 points [1.0, 24.0], corrected p = 0.010)"


def test_the_abstract_names_both_main_rivals_as_the_replicates_have_them():
    """Of the paper as it is committed: three seeds may tell a rival that new clips and streams do not."""
    said = json.loads((PAPER / "tables" / "numbers.json").read_text())["text"]["anew"]
    path = PAPER / "results" / "replicates.json"
    measured = json.loads(path.read_text()) if path.is_file() else {"comparisons": []}
    if not measured["comparisons"]:
        assert said == ""
        return
    rows = {row["b"]: row for row in measured["comparisons"] if row["metric"] == "twin_accuracy"}
    for rival, name in (("late_concat", "late concatenation"), ("sum", "the sum of both streams' scores")):
        told = rows[rival]["holm"] < measured["alpha"]
        word = "not distinguishable from" if not told else "above" if rows[rival]["difference"] > 0 else "below"
        assert f"{word} {name} (" in said


def test_a_result_says_what_its_trainings_took(tmp_path, monkeypatch):
    """Those that were there already too: a measurement that was cut off and gone on with took all of them."""
    asked = replace(run(name="small", epochs=2, workers=1), root=tmp_path)
    drawn = {"train": tokens(16, 1), "validation": tokens(8, 2)}
    took = []
    for _ in range(2):
        monkeypatch.setattr(fits, "_ASKED_FOR", {})
        done = fits.fit_all(asked, {"ours": FUSION}, [0, 1], drawn)["ours"]
        fits.fit_all(asked, {"ours": FUSION}, [0], drawn)  # asked for again, it did not take its time again
        path = publish(asked, measured.TERMS, {})
        assert results.load(path.with_suffix(".meta.json"))["extra"] == {
            "training_seconds": pytest.approx(sum(fit.seconds for fit in done))
        }
        took.append(sum(row["seconds"] for fit in done for row in fit.history))
    assert took[0] == took[1] > 0


def test_the_paper_shows_what_each_result_was_made_by(tmp_path):
    asked = run_in(tmp_path)
    write_results(asked.results_dir)
    (tmp_path / "params").mkdir()
    bound = "name: bound_9\npublish_as: bound_9\ntrain_sets: 9\nevaluation_split: validation\n"
    (tmp_path / "params" / "bound_9.yaml").write_text(bound)
    plan = replace(params.load(tmp_path / "params" / "bound_9.yaml"), root=tmp_path)
    opened = replace(plan, evaluation=replace(plan.evaluation, evaluation_split="test"))
    folder = tmp_path / "paper" / "results"
    results.save(folder / "loss_terms.json", {}, params=asked, extra={"training_seconds": 360.0})
    results.save(folder / "pairs.json", {}, params=replace(asked, common=replace(asked.common, seed=9)))
    results.save(folder / "bound_9" / "recipes.json", {}, params=plan, extra={"training_seconds": 7200.0})
    results.save(folder / "bound_9" / "replicates.json", {}, params=opened)
    shown = apart.compute_table(report.provenance(asked))
    assert {row[0]: row[1:3] for row in shown.rows} == {
        "loss_terms": ["tcar terms params/demo.yaml", "0.10"],  # pairs of another seed are not shown
        "bound_9/recipes": ["tcar recipes params/bound_9.yaml", "2.0"],
        "bound_9/replicates": ["tcar replicates params/bound_9.yaml --unseal", ""],
    }
    assert apart.compute_table({}).rows == []


def test_a_commit_with_changes_is_told(tmp_path):
    made = {"parameters": {"name": "demo", "evaluation_split": "test"}, "extra": {}, "device": "cpu"}
    rows = apart.compute_table({"pairs": made | {"commit": "0123456789", "dirty": True},
                                "search": made | {"commit": None, "dirty": None}}).rows  # fmt: skip
    assert [row[-1] for row in rows] == ["0123456 and changes", ""]


def test_a_group_is_not_called_as_the_method_of_its_name():
    score = {"value": 0.5, "low": 0.25, "high": 0.75}
    by_method = apart.grid_table("g", "", "Method", {"motion": {"motion": score, "what_and_where": score}})
    assert (by_method.columns, by_method.rows[0][0]) == (["Method", "Motion", "What and where"], "Motion stream")
    by_group = apart.grid_table("g", "", "Group", {"motion": {"true_flow": score}})
    assert (by_group.columns, by_group.rows[0][0]) == (["Group", "True flow"], "Motion")
