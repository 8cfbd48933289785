"""What the notebooks share: clips without the quarantined, probes, checks of positions, means over sets."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from memory_store import in_memory
from stores import write_store

from tcar.data.ssv2 import Clip, DatasetError
from tcar.features import FeatureStore
from tcar.fusion.kinds import FusionConfig, create_fusion
from tcar.lab import params, results
from tcar.lab.steps import ablations, audit, clips, extractors, fusion, interpretability, methods
from tcar.lab.steps.words import group_sentence, shown, verdict
from tcar.streams.grids import grid_coordinates

TEMPLATES = ["Moving something down", "Moving something up"]


def clip(number: int, label: int | None = 0) -> Clip:
    return Clip(str(number), Path(f"{number}.webm"), label, "", "", ())


@pytest.fixture
def run(project):
    """A run of a dataset without ground truth: four clips a split, of which one is quarantined."""
    made = params.from_values(
        {"name": "t", "dataset": "ssv2", "data_root": "data", "fusion_width": 32, "bootstrap_samples": 200}
    )
    made.data_root.mkdir()
    labels = {name: str(index) for index, name in enumerate(TEMPLATES)}
    (made.data_root / "labels.json").write_text(json.dumps(labels))
    for number, split in enumerate(("train", "validation", "test")):
        rows = [f"{10 * number + row},{row % 2}" for row in range(4)]
        (made.data_root / f"{split}.csv").write_text("\n".join(["id,label_index", *rows]) + "\n")
    audit = {"quarantined": [{"id": "11", "reason": "empty"}], "classes": TEMPLATES}
    results.save(made.results_dir / "audit.json", audit, params=made)
    return made


def test_quarantined_clips_are_left_out(run):
    found = clips.healthy_clips(run)
    assert [[c.id for c in found[split]] for split in found] == [
        ["0", "1", "2", "3"],
        ["10", "12", "13"],
        ["20", "21", "22", "23"],
    ]


def test_what_a_later_audit_found_broken_is_left_out_too(run):
    later = run.run_dir / "audit" / "quarantine.json"
    later.parent.mkdir(parents=True)
    later.write_text('[{"id": "2", "reason": "altered", "detail": ""}]')
    assert [c.id for c in clips.healthy_clips(run)["train"]] == ["0", "1", "3"]


def test_an_audit_of_one_s_own_dataset_is_kept_and_that_of_tabletop_is_not(run):
    listed = {"train": clips.load_split(run.data_root, "train")}
    own = audit.audited(run, listed)
    assert [health.reason for health in own["train"]] == ["missing"] * 4
    assert (audit.monitored(run) / "history.jsonl").is_file()
    rendered = replace(run, data=replace(run.data, dataset="tabletop"), common=replace(run.common, name="other"))
    assert audit.audited(rendered, listed) == {"train": [replace(health, trusted="") for health in own["train"]]}
    assert not audit.monitored(rendered).exists()


def test_a_test_split_without_answers_is_an_error(run):
    (run.data_root / "test.csv").unlink()
    (run.data_root / "test.json").write_text('[{"id": "20"}]')
    with pytest.raises(DatasetError, match=r"no clip of test has a known class.*test-answers.csv"):
        clips.healthy_clips(run)


def test_one_per_class_spreads_over_the_classes():
    found = [clip(number, label) for number, label in enumerate([4, 4, 0, 1, 3, 2, 0])]
    assert [c.id for c in clips.one_per_class(found, 9)] == ["2", "3", "5", "4", "0"]
    assert [c.label for c in clips.one_per_class(found, 3)] == [0, 2, 4]


def test_probe_needs_the_order_where_only_the_order_tells(run, tmp_path):
    """Two classes with the same moments, one the other's reversal: averaged tokens cannot part them."""
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 2
    ramp = np.repeat(np.linspace(-1, 1, 4), 2)[None, :, None] * np.where(labels, 1, -1)[:, None, None]
    tokens = ramp * np.ones(3) + rng.normal(0, 0.05, (120, 8, 3))
    opened = {"motion": write_store(tmp_path / "s", tokens, (4, 1, 2), [str(n) for n in range(120)])}
    found = [clip(number, int(label)) for number, label in enumerate(labels)]
    rows = extractors.linear_probes(run, opened, {"train": found[:80], "validation": found[80:]})
    scores = {row["pooling"]: row for row in rows}
    assert scores["in order"]["value"] == 1.0
    assert scores["averaged"]["low"] <= 0.65
    assert scores["averaged"]["chance"] == 0.5


def test_probes_read_a_few_clips_at_a_time(run, tmp_path, monkeypatch):
    """And what they pool stands in the table as if all clips had been read at once."""
    rng, asked, load = np.random.default_rng(0), [], FeatureStore.load
    tokens, labels = rng.normal(size=(60, 8, 3)), np.arange(60) % 2
    tokens[labels == 1, 4:] += 2
    opened = {"motion": write_store(tmp_path / "s", tokens, (4, 1, 2), [str(n) for n in range(60)])}
    found = [clip(number, int(label)) for number, label in enumerate(labels)]
    split = {"train": found[:40], "validation": found[40:]}
    whole = extractors.linear_probes(run, opened, split)
    monkeypatch.setattr(extractors, "BATCH", 4 * 7 * 8 * 3)
    monkeypatch.setattr(FeatureStore, "load", lambda self, ids: (asked.append(list(ids)), load(self, ids))[1])
    assert extractors.linear_probes(run, opened, split) == whole
    assert sum(asked, []) == [str(n) for n in range(60)] and max(map(len, asked)) == 7
    assert {path.name for path in run.run_dir.iterdir()} <= {"pipeline", "results"}


def test_a_target_of_one_kind_is_left_out(run, tmp_path, monkeypatch):
    """As the group of a few classes that all are of one: nothing can be told apart there."""
    monkeypatch.setattr(extractors, "class_groups", lambda run: ["direction"] * 2)
    tokens = np.random.default_rng(0).normal(size=(12, 2, 3))
    opened = {"motion": write_store(tmp_path / "s", tokens, (1, 1, 2), [str(n) for n in range(12)])}
    found = [clip(number, number % 2) for number in range(12)]
    rows = extractors.linear_probes(run, opened, {"train": found[:8], "validation": found[8:]})
    assert [row["target"] for row in rows] == ["class"] * 2


def test_a_probe_never_names_a_class_that_training_did_not_show(run, tmp_path):
    tokens = np.random.default_rng(0).normal(size=(12, 2, 3))
    opened = {"motion": write_store(tmp_path / "s", tokens, (1, 1, 2), [str(n) for n in range(12)])}
    found = [clip(number, number % 2) for number in range(8)] + [clip(8 + number, 7) for number in range(4)]
    rows = extractors.linear_probes(run, opened, {"train": found[:8], "validation": found[8:]})
    assert {row["value"] for row in rows} == {0.0}


def test_best_score_lies_at_the_own_place_whatever_the_strides(run, tmp_path, monkeypatch):
    opened = {
        role: write_store(tmp_path / role, np.zeros((1, int(np.prod(grid)), 4)), grid, ["0"])
        for role, grid in (("semantic", (8, 4, 4)), ("motion", (4, 2, 2)))
    }
    monkeypatch.setattr(fusion, "stores", lambda run: opened)
    for scores, queries, keys in fusion.rotary_alignment(run).values():
        assert scores.shape == (len(queries), len(keys))
        nearest = np.abs(queries[:, None] - keys[None]).argmin(axis=1)
        np.testing.assert_array_equal(scores.argmax(axis=1), nearest)


def test_a_method_may_be_a_kind_whose_appearance_is_averaged(run):
    widths = {"semantic_width": 4, "motion_width": 4, "num_classes": 2}
    named = replace(run.training, methods=["sum_averaged", "cross_attention", "cross_attention_averaged"])
    varied = replace(run.ablations, ablation_fusions=["joint", "joint_averaged"])
    run = replace(run, training=named, ablations=varied)
    configs = methods.method_configs(run, **widths)
    assert [*configs] == ["cross_attention", "sum_averaged", "cross_attention_averaged"]
    assert [(c.kind, c.appearance) for c in configs.values()] == [
        ("cross_attention", "ordered"), ("sum", "averaged"), ("cross_attention", "averaged")
    ]  # fmt: skip
    levels = {key: one.fusion for key, one in ablations.variants(run, **widths).items()}
    assert levels["fusion", "joint_averaged"] == replace(levels["fusion", "joint"], appearance="averaged")
    whole = replace(run, fusion=replace(run.fusion, appearance="averaged"))
    assert fusion.fusion_config(whole, "sum", **widths) == configs["sum_averaged"]


GRIDS = {"semantic": (4, 2, 2), "motion": (2, 2, 2)}


def looked_at(kind: str, monkeypatch):
    """A model with a fusion of this kind on small grids, and tokens of six clips."""
    config = FusionConfig(kind, 12, 10, num_classes=3, width=16, heads=2, mlp_ratio=2)
    torch.manual_seed(0)
    model = SimpleNamespace(fusion=create_fusion(config).eval(), config=SimpleNamespace(fusion=config))
    stores = {role: SimpleNamespace(grid=grid) for role, grid in GRIDS.items()}
    monkeypatch.setattr(interpretability, "stores", lambda _: stores)
    draw = np.random.default_rng(0)
    arrays = []
    for role, width in (("semantic", 12), ("motion", 10)):
        places = grid_coordinates(GRIDS[role]).flatten(0, 1).numpy()
        arrays += [draw.standard_normal((6, len(places), width), np.float32), places]
    tokens = in_memory(*arrays, labels=[0, 1, 2] * 2, ids=["20", "21", "22", "23", "24", "25"])
    return model, tokens


@pytest.mark.parametrize(
    ("kind", "read"),
    [("cross_attention", set(GRIDS)), ("late_concat", set(GRIDS)), ("semantic", {"semantic"}),
     ("motion_probe_1", {"motion"}), ("motion_probe_4", {"motion"}), ("joint", set(GRIDS)),
     ("semantic_step", {"semantic"})],
)  # fmt: skip
def test_every_fusion_with_attention_is_looked_at(run, monkeypatch, kind, read):
    model, tokens = looked_at(kind, monkeypatch)
    looked = interpretability.look(run, model.fusion, tokens, list(range(6)))
    assert set(looked.features) == {"readout", *GRIDS}
    assert all(len(values) == 6 for values in looked.features.values())
    assert all(row["relative_entropy"] <= 1 + 1e-6 for row in looked.heads)
    assert set(looked.frames_read) == (
        {"semantic_from_motion", "motion_from_semantic"} if kind == "cross_attention" else set()
    )
    for frames in looked.frames_read.values():
        np.testing.assert_allclose(frames.sum(axis=1), 1, rtol=1e-5)
    (rows,) = interpretability.importance_by_group(run, model.fusion, tokens, list(range(6))).values()
    assert [row["time"] for row in rows] == ([0.125, 0.375, 0.625, 0.875] if read == {"semantic"} else [0.25, 0.75])


def test_features_of_a_stream_are_its_mean_tokens(run, monkeypatch):
    model, tokens = looked_at("cross_attention", monkeypatch)
    looked = interpretability.look(run, model.fusion, tokens, [4, 1])
    semantic = tokens.floats([4, 1])[0]
    np.testing.assert_allclose(looked.features["semantic"], semantic.mean(dim=1), rtol=1e-5)


def test_a_headline_without_attention_is_an_error_that_says_so(run, monkeypatch):
    model, tokens = looked_at("late_concat_raw", monkeypatch)
    with pytest.raises(params.ParameterError, match="fusion is late_concat_raw, which has no attention"):
        interpretability.look(run, model.fusion, tokens, [0])


class Named(torch.nn.Module):
    """A fusion that names a clip by the mean of one stream: class 1 where it is above 0, else class 0."""

    streams = ("semantic", "motion")

    def __init__(self, decides: str):
        super().__init__()
        self.decides = decides

    def forward(self, semantic, semantic_xyz, motion, motion_xyz):
        found = {"semantic": semantic, "motion": motion}[self.decides].mean(dim=(1, 2))
        return torch.stack([-found, found, torch.full_like(found, -9)], dim=1)


@pytest.mark.parametrize("decides", ["semantic", "motion"])
def test_the_stream_that_decides_is_the_one_whose_exchange_flips(run, monkeypatch, decides):
    """Six clips in three sets of twins; the second set is named wrongly, so nothing is counted of it."""
    values = np.array([-1.0, 1, 1, -1, -2, 2], np.float32)[:, None, None]
    shapes = {role: grid_coordinates(grid).flatten(0, 1).numpy() for role, grid in GRIDS.items()}
    parts = [part for xyz in shapes.values() for part in (np.tile(values, (1, len(xyz), 2)), xyz)]
    tokens = in_memory(*parts, labels=[0, 1] * 3, ids=["20", "21", "22", "23", "24", "25"])
    index = {
        clip: {"twin": tokens.ids[number ^ 1], "group": "bound", "set": f"test-x-{number // 2}"}
        for number, clip in enumerate(tokens.ids)
    }
    monkeypatch.setattr(interpretability, "ground_truth", lambda _: index)
    found = interpretability.exchanged(run, Named(decides), tokens)
    rows = {(str(row["pair"]), row["stream"]): row for row in found["exchange"]}
    assert {row["clips"] for row in rows.values()} == {4}
    for stream in GRIDS:
        assert rows["all", stream]["flips"]["value"] == rows["all", stream]["moved"]["value"] == (stream == decides)
    assert [row["value"] for row in found["interaction"]] == [0, 0]
    monkeypatch.setattr(interpretability, "ground_truth", lambda _: {})
    assert interpretability.exchanged(run, Named(decides), tokens) == {"exchange": [], "interaction": []}


def test_words_say_what_the_interval_allows():
    assert verdict({"low": 0.01, "high": 0.2}) == "above"
    assert verdict({"low": -0.2, "high": -0.01}) == "below"
    assert verdict({"low": 0.0, "high": 0.2}) == "not told apart from"
    assert shown({"value": 0.5, "low": 0.25, "high": 0.751}) == "50.0% [25.0%, 75.1%]"
    assert shown({"value": None, "low": None, "high": None}) == "–"


@pytest.mark.parametrize(
    ("semantic", "motion", "late", "added", "meaning"),
    [
        (1, 1, 1, None, "reading across does better here than late concatenation, on these streams"),
        (1, 1, 1, 1, "reading across does better here than late concatenation and sum of scores (additive), on"),
        (1, 1, 1, 0, "both streams are needed; that they read each other is not shown"),
        (1, 1, 0, 1, "both streams are needed; that they read each other is not shown"),
        (1, 0, 0, None, "the motion stream alone is not shown to do worse"),
        (0, 0, 0, None, "does not tell the methods apart"),
        (1, 1, -1, 1, "not the best choice here: late concatenation does better"),
    ],
)
def test_a_group_s_sentence_says_no_more_than_its_intervals(semantic, motion, late, added, meaning):
    outcomes = {"semantic": semantic, "motion": motion, "late_concat": late}
    outcomes |= {} if added is None else {"sum": added}
    differences = {
        name: {"difference": 0.1 * sign, "low": 0.1 * sign - 0.05, "high": 0.1 * sign + 0.05}
        for name, sign in outcomes.items()
    }
    said = group_sentence("binding", {"value": 0.5, "low": 0.4, "high": 0.6}, differences)
    assert meaning in said and said.startswith("**binding**: twin accuracy 50.0% [40.0%, 60.0%]")
    assert said.count("not told apart from") == list(outcomes.values()).count(0)
