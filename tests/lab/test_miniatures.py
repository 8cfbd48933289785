"""Published designs in miniature beside the headline: the same clips, honest costs, and no time among the values."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from clip_files import coloured_clips
from fusions import GRIDS
from memory_store import in_memory
from token_task import FUSION

from tcar.evaluate import Scoring
from tcar.lab import measured, params, pipeline, results
from tcar.lab.paper import apart
from tcar.lab.params import ParameterError
from tcar.lab.plots import scores as figures
from tcar.lab.steps import baselines, fits, miniatures
from tcar.models.baselines import baseline_cost
from tcar.models.tca import TCA, TCAConfig
from tcar.streams.grids import grid_coordinates

NAMES = ["red", "blue"]
ASKED = {
    "name": "small", "dataset": "ssv2", "data_root": "data", "miniatures": ["timesformer_tiny"], "epochs": 2,
    "warmup_epochs": 1, "batch_size": 4, "baseline_batch_size": 4, "workers": 2, "device": "cpu",
    "bootstrap_samples": 50,
}  # fmt: skip


def tokens(clips):
    """Tokens of clips whose mean tells the class."""
    rng, values = np.random.default_rng(0), []
    for stream, width in (("semantic", 12), ("motion", 10)):
        xyz = grid_coordinates(GRIDS[stream]).flatten(0, 1).numpy().astype(np.float32)
        drawn = rng.normal(size=(len(clips), len(xyz), width)) + np.array([clip.label for clip in clips])[:, None, None]
        values += [drawn.astype(np.float16), xyz]
    return in_memory(*values, np.array([clip.label for clip in clips]), [clip.id for clip in clips])


@pytest.fixture
def run(project, monkeypatch):
    """A run of red and blue clips, with tokens of them, all in this process."""
    made = coloured_clips(project, 14)
    found = {"train": made[:8], "validation": made[8:10], "test": made[10:]}
    for module in (miniatures, baselines):
        monkeypatch.setattr(module, "healthy_clips", lambda run, *splits: found)
        monkeypatch.setattr(module, "class_names", lambda run: NAMES)
    monkeypatch.setattr(miniatures, "tokens_of", lambda run, *splits: {s: tokens(found[s]) for s in splits})
    monkeypatch.setattr(miniatures, "fusion_config", lambda run: dataclasses.replace(FUSION, num_classes=2))
    monkeypatch.setattr(miniatures, "scoring", lambda run, ids: Scoring(names=NAMES))
    monkeypatch.setattr(miniatures, "isolated_map", lambda work, items, **_: [(0, work(items[0]))])
    return dataclasses.replace(params.from_values(ASKED), root=project)


def test_they_are_trained_scored_and_written_and_not_trained_again(run, monkeypatch):
    monkeypatch.setattr(miniatures, "timings", lambda run: {"cross_attention": {"threads": 1}})
    monkeypatch.setattr(fits, "_ASKED_FOR", {})
    written = miniatures.build(run)
    made = results.load(written)
    assert written == measured.find(run, measured.MINIATURES) == run.results_dir / "miniatures.json"
    assert made["methods"].keys() == {"cross_attention", "timesformer_tiny"}
    assert (made["clips"], made["seeds"], made["headline"]) == (4, [0], "cross_attention")
    for row in made["methods"].values():
        assert row["epochs"] == 2 and 0 <= row["top1"]["value"] <= 1
    (comparison,) = (row for row in made["comparisons"] if row["metric"] == "top1")
    tops = {name: row["top1"]["value"] for name, row in made["methods"].items()}
    assert comparison["difference"] == pytest.approx(tops["cross_attention"] - tops["timesformer_tiny"])
    assert miniatures.timings_of(written) == {"cross_attention": {"threads": 1}}
    told = json.loads(written.with_suffix(".meta.json").read_text())
    kept = [pd.read_csv(path).seconds.sum() for path in (run.run_dir / "trainings").glob("*/epochs.csv")]
    assert len(kept) == 2 and told["extra"]["training_seconds"] == pytest.approx(sum(kept), rel=0.01)
    weights = told["inputs"]
    assert any(path.endswith("timesformer_tiny.safetensors") for path in weights)
    again = "tcar.train.training.Training.step"
    monkeypatch.setattr(again, lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(miniatures, "timings", lambda run: {"cross_attention": {"threads": 2}})
    assert results.load(miniatures.build(run)) == made  # whatever the machine took


def test_what_a_method_costs_is_what_its_model_has(run):
    model = TCA.create(TCAConfig.of(run.streams, run.fusion, tuple(NAMES)), pretrained=True)
    ours, other = (miniatures.cost(run, name) for name in ("cross_attention", "timesformer_tiny"))
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    assert ours["parameters"] == sum(size for size, _ in sizes)
    assert ours["trained_parameters"] == sum(size for size, trained in sizes if trained) < ours["parameters"]
    parts = [row["gflops"] for row in model.parameter_table()[:-1]]
    assert ours["gflops"] == pytest.approx(sum(parts)) and ours["notes"] == []
    counted = baseline_cost("timesformer_tiny", 2)
    assert {key: other[key] for key in counted} == counted and other["trained_parameters"] == other["parameters"]


def test_every_method_is_timed_in_turn_and_as_often(run, monkeypatch):
    order = []
    work = {name: (lambda name=name: order.append(name)) for name in "abc"}
    spent = miniatures._in_turn(work, 2)
    assert order == list("abc") * 3 and {name: len(some) for name, some in spent.items()} == dict.fromkeys("abc", 2)
    rows = miniatures.timings(run, repeats=2)
    assert rows.keys() == {"cross_attention", "timesformer_tiny"}
    for row in rows.values():
        assert 0 < row["milliseconds"]["p10"] <= row["milliseconds"]["p50"] <= row["milliseconds"]["p90"]
        assert row["epoch_seconds"] == pytest.approx(2 * row["step_milliseconds"] / 1000)  # 8 clips, 4 a step
        assert row["repeats"] == 2


def test_nothing_to_compare_is_refused_by_name(run):
    with pytest.raises(ParameterError, match="miniatures is empty"):
        miniatures.build(dataclasses.replace(run, baselines=dataclasses.replace(run.baselines, miniatures=[])))
    with pytest.raises(ParameterError, match="timesformer_tin"):
        params.from_values(ASKED | {"miniatures": ["timesformer_tin"]})


def test_what_was_measured_with_another_recipe_is_not_shown(run):
    path = results.save(run.results_dir / measured.MINIATURES, {}, params=run)
    assert measured.find(run, measured.MINIATURES) == path
    changed = dataclasses.replace(run.baselines, baseline_learning_rate=0.5)
    assert measured.find(dataclasses.replace(run, baselines=changed), measured.MINIATURES) is None


def test_what_was_measured_makes_the_notebook_that_shows_it_stale(run):
    path = results.save(measured.shared(run) / measured.MINIATURES, {}, params=run)
    stale = [step.name for step in (*pipeline.TABLE, pipeline.REPORT) if path in pipeline._inputs(step, run)]
    assert stale == ["04_evaluation", "report"]
    assert path.with_suffix(".meta.json") in pipeline._inputs(pipeline.REPORT, run)  # it says what made the result


def rows() -> dict:
    """Two methods as a result has them."""
    def metric(value):
        return {"value": value, "low": value - 0.1, "high": value + 0.1}

    shared = {"epochs": 14, "notes": []}
    return {
        "cross_attention": {"top1": metric(0.8), "twin_accuracy": metric(0.7), "trained_parameters": 186_000,
                            "parameters": 1_318_000, "gflops": 1.62, **shared},
        "cast_tiny": {"top1": metric(0.6), "twin_accuracy": metric(0.5), "trained_parameters": 600_000,
                      "parameters": 2_300_000, "gflops": 0.9, **shared, "notes": ["its spatial expert is small"]},
    }  # fmt: skip


def test_table_figure_and_rows_show_the_same_numbers():
    comparison = {"a": "cross_attention", "b": "cast_tiny", "metric": "twin_accuracy", "difference": 0.2, "low": 0.1,
                  "high": 0.3}  # fmt: skip
    made = {"methods": rows(), "clips": 832, "seeds": [0], "comparisons": [comparison], "headline": "cross_attention"}
    table = apart.miniatures_table(made, "synthetic (Tabletop)", "95%")
    assert table.rows[1][1:4] == ["60.0 [50.0, 70.0]", "50.0 [40.0, 60.0]", "+20.0 [10.0, 30.0]"]
    assert table.rows[1][4:] == ["0.60", "2.30", "0.900", "14"]
    assert "832 clips" in table.caption and "its spatial expert is small" in table.caption
    assert apart.miniatures_table(None, "", "").rows == []
    figure = figures.trade_off(rows(), confidence=0.95)
    for axis, metric in zip(figure.axes, ("top1", "twin_accuracy"), strict=True):
        shown = {tuple(np.round(dots.get_offsets()[0], 6)) for dots in axis.collections}
        assert shown == {(row["gflops"], row[metric]["value"]) for row in rows().values()}
    timing = {"milliseconds": {"p50": 12.34}, "epoch_seconds": 56.7, "peak_megabytes": None}
    first, second = miniatures.shown(made, {"cross_attention": timing})
    assert (first["ms a clip (p50)"], first["s an epoch"], first["peak MB"]) == ("12.3", "57", "")
    assert (second["ms a clip (p50)"], second["GFLOPs"], second["note"]) == ("", "0.90", "its spatial expert is small")


def test_a_dataset_without_twins_has_no_twin_accuracy(run):
    logits = {"cross_attention": [np.eye(2)[[0, 1, 0, 1]]], "cast_tiny": [np.eye(2)[[0, 0, 0, 0]]]}
    made = miniatures.compared(run, logits, np.array([0, 1, 0, 1]), ["a", "b", "c", "d"])
    assert [row["metric"] for row in made["comparisons"]] == ["top1"]
    assert made["methods"]["cast_tiny"]["top1"]["value"] == 0.5
    assert made["comparisons"][0]["difference"] == 0.5
    assert made["methods"]["cast_tiny"].keys() == {"top1"}
