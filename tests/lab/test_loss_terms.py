"""Loss terms against their absence: what is changed, that nothing is trained twice, and what the numbers bear."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from test_report import read_table, run_in, write_results
from token_task import FUSION, run, token_task, tokens

from tcar.lab import measured as replicates
from tcar.lab import params, results
from tcar.lab.paper import apart, report, sentences
from tcar.lab.params import ParameterError
from tcar.lab.plots import training as figures
from tcar.lab.steps import loss_terms
from tcar.train.trainer import train
from tcar.train.watch import TrainingError

ROOT = Path(__file__).parents[2]
TERMS = {"label_smoothing": 0.1, "mixup": 0.2}


def asked(project, **changes):
    """A run whose recipe smooths labels and mixes nothing."""
    made = run(
        name="small", workers=2, loss_terms=TERMS, loss_term_seeds=[3, 5, 8], epochs=2, label_smoothing=0.1, **changes
    )
    return dataclasses.replace(made, root=project)


def test_a_term_of_the_recipe_is_taken_away_and_any_other_added(project):
    base = asked(project)
    for term, value in (("label_smoothing", 0.0), ("mixup", 0.2)):
        changed = loss_terms.changed(base, term)
        differing = {key for key, given in changed.as_dict().items() if given != base.as_dict()[key]}
        assert differing == {term} and changed.as_dict()[term] == value and changed.root == base.root


@pytest.mark.parametrize(("terms", "named"), [
    ({"order_weight": 0.5}, "expected one of label_smoothing"),
    ({"learning_rate": 0.1}, "expected one of label_smoothing"),
    ({"label_smooth": 1.0}, "did you mean 'label_smoothing'"),
    ({"mixup": 0.0}, "mixup is 0 in the recipe and here"),
    ({"drop_path": 3.0}, "drop_path"),
])  # fmt: skip
def test_what_cannot_be_compared_is_refused_by_name(project, terms, named):
    with pytest.raises(ParameterError, match=named):
        run(loss_terms=terms)


def test_a_term_that_the_fusion_cannot_have_is_refused_before_anything_is_trained(project):
    base = asked(project, fusion="semantic", methods=["semantic", "cross_attention"])
    terms = dataclasses.replace(base.ablations, loss_terms={"contrastive_weight": 0.1})
    with pytest.raises(ParameterError, match="contrastive_weight is 0.1, but only a fusion of cross_attention"):
        loss_terms.measure(dataclasses.replace(base, ablations=terms), {})


@pytest.mark.parametrize("changes", [{"loss_term_seeds": [1]}, {"loss_term_seeds": [1, 1]}, {"loss_terms": {}}])
def test_too_little_to_compare_is_refused_by_name(changes):
    with pytest.raises(ParameterError, match=next(iter(changes))):
        loss_terms.build(run(**changes))


def test_the_default_terms_can_be_compared_in_every_run_that_comes_with_the_project():
    for file in sorted((ROOT / "params").glob("*.yaml")):
        if file.stem != "search":
            base = params.load(file)
            for term in base.ablations.loss_terms:
                before, after = (made.as_dict()[term] for made in (base, loss_terms.changed(base, term)))
                assert (before == 0.0) != (after == 0.0), (file, term)


def test_no_term_is_on_by_default_that_has_not_earned_its_place():
    demo = params.load(ROOT / "params" / "demo.yaml")
    on = {term for term in demo.ablations.loss_terms if demo.as_dict()[term]}
    path = ROOT / "paper" / "results" / replicates.TERMS
    measured = results.load(path) if path.is_file() else {"terms": [], "alpha": 0.05}
    helping = {row["term"] for row in measured["terms"]
               if loss_terms.verdict(row, measured["alpha"]).startswith("helps")}  # fmt: skip
    assert on <= helping


@pytest.fixture
def small(monkeypatch):
    """Random tokens and their small fusion in place of those of a run."""
    given = {"train": tokens(78, 1), "validation": tokens(21, 2)}
    monkeypatch.setattr(loss_terms, "tokens_of", lambda run, *splits: given)
    monkeypatch.setattr(loss_terms, "fusion_config", lambda run: FUSION)


def test_measured_kept_and_summed_up_as_the_trainer_gives_them(project, small, monkeypatch):
    base = asked(project)
    written = loss_terms.build(base)
    made = results.load(written)
    assert written == base.results_dir / replicates.TERMS and replicates.find(base, replicates.TERMS) == written
    assert {term: [row["seed"] for row in rows] for term, rows in made["scores"].items()} == {
        "": [3, 5, 8], "label_smoothing": [3, 5, 8], "mixup": [3, 5, 8],
    }  # fmt: skip
    mixed = loss_terms.changed(base, "mixup")
    alone = train(token_task(mixed, seed=5), project / "alone")
    reached = alone.history[alone.best_epoch - 1]["validation_top1"]
    assert made["scores"]["mixup"][1]["validation_top1"] == pytest.approx(reached, rel=1e-9)
    monkeypatch.setattr("tcar.lab.steps.fits.train_together", lambda *_: pytest.fail("trained again"))
    assert results.load(loss_terms.build(base)) == made


def test_a_training_that_fails_is_named(project, small):
    with pytest.raises(TrainingError, match=r"cross_attention, seed \d, .*lower learning_rate"):
        loss_terms.build(asked(project, learning_rate=1e30))


def scores() -> dict[str, list[dict]]:
    """The recipe with smoothing; without it clearly worse, and mixing of no use that can be told."""
    draw = np.random.default_rng(0)
    values = {"": 0.7 + draw.normal(0, 0.02, 5)}
    values["label_smoothing"] = values[""] - 0.05 + draw.normal(0, 0.004, 5)
    values["mixup"] = values[""] + draw.normal(0, 0.02, 5)
    return {term: [{"seed": seed, "validation_top1": float(top1), "best_epoch": 2} for seed, top1 in enumerate(some)]
            for term, some in values.items()}  # fmt: skip


def test_each_term_is_with_minus_without_whichever_the_recipe_is(project):
    base, given = asked(project), scores()
    smoothing, mixup = loss_terms.summary(base, given)["terms"]
    tops = {term: np.array([row["validation_top1"] for row in rows]) for term, rows in given.items()}
    assert (smoothing["on_by_default"], smoothing["value"]) == (True, 0.1)
    assert (mixup["on_by_default"], mixup["value"]) == (False, 0.2)
    for row, gained in ((smoothing, tops[""] - tops["label_smoothing"]), (mixup, tops["mixup"] - tops[""])):
        low, high = stats.t.interval(0.95, 4, gained.mean(), stats.sem(gained))
        assert (row["difference"], row["low"], row["high"]) == pytest.approx((gained.mean(), low, high))
    assert smoothing["with"]["value"] == mixup["without"]["value"] == pytest.approx(tops[""].mean())
    assert smoothing["holm"] == pytest.approx(2 * smoothing["p"]) and mixup["holm"] == mixup["p"]
    assert loss_terms.verdict(smoothing, 0.05) == "helps; the recipe has it"
    assert loss_terms.verdict(mixup, 0.05) == "makes no difference that can be told; the recipe does without"
    harmful = smoothing | {key: -smoothing[key] for key in ("difference", "low", "high")}
    assert loss_terms.verdict(harmful, 0.05).startswith("harms")
    assert loss_terms.sentence(smoothing, 0.05).startswith("`label_smoothing` 0.1: +")


def test_what_was_measured_with_another_trainer_is_not_shown(project):
    base = asked(project)
    path = results.save(base.results_dir / replicates.TERMS, {}, params=base)
    assert replicates.find(base, replicates.TERMS) == path
    other = dataclasses.replace(base, trainer=dataclasses.replace(base.trainer, weight_averaging=0.9))
    assert replicates.find(other, replicates.TERMS) is None
    reseeded = dataclasses.replace(base, ablations=dataclasses.replace(base.ablations, loss_term_seeds=[1, 2]))
    assert replicates.find(reseeded, replicates.TERMS) is None


def test_table_figure_and_sentence_show_the_same_numbers(project):
    made = loss_terms.summary(asked(project), scores()) | {"seeds": [0, 1, 2, 3, 4], "alpha": 0.05}
    table = apart.terms_table(json.loads(json.dumps(made)), "synthetic (Tabletop)", "95%")
    smoothing, mixup = made["terms"]
    assert [row[:3] for row in table.rows] == [["Label smoothing", "0.1", "yes"], ["Mixup", "0.2", "no"]]
    assert table.rows[0][5].startswith(f"{100 * smoothing['difference']:+.1f} [")
    assert "synthetic" in table.caption and "5 seeds" in table.caption
    assert apart.terms_table(None, "", "").rows == []
    axis = figures.loss_terms(made["terms"], confidence=0.95).axes[0]
    dots = [line for line in axis.lines if line.get_marker() == "o"]
    assert [dot.get_xdata()[0] for dot in dots] == pytest.approx([100 * row["difference"] for row in made["terms"]])
    assert [dot.get_fillstyle() for dot in dots] == ["full", "none"]
    ends = [line.get_xdata() for line in axis.lines if line.get_marker() == "None" and len(set(line.get_xdata())) == 2]
    assert ends[1] == pytest.approx([100 * mixup["low"], 100 * mixup["high"]])
    assert sentences.terms_told(made) == (
        "Of 2 terms, label smoothing raises validation top-1, and no difference can be told of the others"
    )
    assert sentences.terms_told({"terms": [mixup], "alpha": 0.05}) == "Of 1 terms, no difference can be told of any"
    assert sentences.terms_told({}) == ""


def test_the_paper_shows_what_was_measured_with_its_parameters(project):
    made_for = run_in(project)
    write_results(made_for.results_dir)
    values = loss_terms.summary(asked(project), scores()) | {"seeds": [0, 1, 2, 3, 4], "alpha": 0.05}
    results.save(made_for.results_dir / replicates.TERMS, values, params=made_for)
    folder = made_for.run_dir / "paper"
    report.build(made_for, [])
    assert [row["Term"] for row in read_table(folder / "tables", "loss_terms")] == ["Label smoothing", "Mixup"]
    said = json.loads((folder / "tables" / "numbers.json").read_text())["text"]["loss_terms"]
    assert said == sentences.terms_told(values) + "."
    assert (folder / "results" / "loss_terms.meta.json").is_file()
    other = dataclasses.replace(made_for, trainer=dataclasses.replace(made_for.trainer, mixup=0.5))
    written = report.build(other, [])  # what is not written any more, the pipeline removes
    assert "loss_terms.csv" not in {path.name for path in written}
    assert json.loads((folder / "tables" / "numbers.json").read_text())["text"]["loss_terms"] == ""
