"""Clips under a control are those of the run, and what changes is counted clip by clip and pair by pair."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from memory_store import in_memory
from one_process import Here

from tcar.data.ssv2 import load_split
from tcar.fusion.kinds import FusionConfig, create_fusion
from tcar.lab import params, results
from tcar.lab.steps import controls, streams
from tcar.lab.steps.audit import dataset_folder
from tcar.lab.steps.controls import ALL, Paired
from tcar.lab.steps.fits import Fit
from tcar.lab.steps.words import evidence_sentence
from tcar.tabletop import dataset
from tcar.tabletop.dataset import load_index
from tcar.train.tasks import TokenModel
from tcar.train.tokens import StoredTokens

TINY = {"name": "t", "classes": [45, 43], "train_sets": 1, "validation_sets": 1, "test_sets": 3, "lengths": [16],
        "control_sets": 2, "bootstrap_samples": 20, "workers": 1,
        "device": "cpu"}  # fmt: skip


@pytest.fixture(autouse=True)
def one_process(monkeypatch, extraction_inline):
    monkeypatch.setattr(dataset, "pool", Here)


@pytest.fixture
def run(project):
    """Tabletop with three test sets of one family, and the names of its classes."""
    made = params.from_values(TINY)
    names = [clip.template for clip in load_split(dataset_folder(made), "train")]
    results.save(made.results_dir / "audit.json", {"quarantined": [], "classes": sorted(names)}, params=made)
    return made


def tokens_of_test(run) -> StoredTokens:
    clips = load_split(run.data_root, "test")
    return StoredTokens.of(*streams.extract(run, {"test": clips}).values(), clips)


@dataclass(frozen=True)
class Untrained(Fit):
    """What is as it was drawn."""

    weights: dict = field(default_factory=dict)

    @property
    def trained(self) -> dict:
        return self.weights


def fit(tokens: StoredTokens, seed: int) -> Untrained:
    """A fusion that nobody has trained."""
    config = FusionConfig(num_classes=2, width=16, heads=2, mlp_ratio=2, **tokens.widths)
    torch.manual_seed(seed)
    model = TokenModel(create_fusion(config), *tokens.coordinates.values())
    return Untrained(Path(f"{seed}"), config, seed, [], 0, {}, model.state_dict())


def test_a_control_has_a_folder_of_its_own_and_all_else_as_the_run(project):
    run = params.from_values(TINY | {"data_root": "elsewhere"})
    here = controls.controlled(run, "frozen")
    assert here.run_dir == run.run_dir / "controls" / "frozen" and here.data_root == here.run_dir / "data"
    assert here.tabletop == replace(run.tabletop, control="frozen")
    assert (here.streams, here.common.seed) == (run.streams, run.common.seed)


def test_only_some_sets_of_the_scored_split_are_rendered_and_they_are_those_of_the_run(run):
    tokens = controls.control_tokens(run, "frozen")
    index = load_index(run.data_root)
    few = {clip for clip, row in index.items() if row["set"] in ("test-up_down-0", "test-up_down-1")}
    assert set(tokens.ids) == few and len(few) == 4
    whole = replace(run, common=replace(run.common, name="whole"), tabletop=replace(run.tabletop, control="frozen"))
    dataset_folder(whole)
    expected = tokens_of_test(whole)
    place = {name: number for number, name in enumerate(expected.ids)}
    rows = [place[name] for name in tokens.ids]
    for own, other in zip(tokens.read(range(4)), expected.read(rows), strict=True):
        assert torch.equal(own[0], other[0])
    assert tokens.labels.tolist() == expected.labels[rows].tolist()


def test_under_no_control_nothing_changes(run, monkeypatch):
    """The very clips of the run in the place of controlled ones: every change is 0, and so are its bounds."""
    tokens = tokens_of_test(run)
    monkeypatch.setattr(controls, "control_tokens", lambda run, control: tokens)
    fits = {"a": [fit(tokens, 0), fit(tokens, 1)], "b": [fit(tokens, 2)]}
    made = controls.score_controls(run, fits, tokens, ["noise", "frozen"])
    own = load_index(run.data_root)[tokens.ids[0]]["group"]
    assert [(row["control"], row["method"], row["group"], row["clips"]) for row in made["rows"]] == [
        (control, method, group, 6)
        for control in ("noise", "frozen") for method in "ab" for group in (ALL, own)
    ]  # fmt: skip
    zero = {"value": 0.0, "low": 0.0, "high": 0.0}
    assert all(row["change"] == row["twin_change"] == zero for row in made["rows"])
    assert all(row["twin_change"] == zero and len(row["twins"]) == 2 for row in made["pairs"])
    assert len(made["pairs"]) == 4


def test_each_clip_is_compared_with_itself_whatever_the_order(run):
    tokens = tokens_of_test(run)
    fits = {"a": [fit(tokens, 0)]}
    (row, *_) = controls.score_controls(run, fits, tokens, ["background"])["rows"]
    (other, *_) = controls.score_controls(run, fits, controls._only(tokens, tokens.ids[::-1]), ["background"])["rows"]
    assert row == other and row["clips"] == 4


@pytest.mark.parametrize("changes", [{"control_sets": 0}, {"control": "noise"}])
def test_without_controls_there_is_nothing_to_score(project, changes):
    run = params.from_values(TINY | changes)
    xyz = np.zeros((1, 3), np.float32)
    tokens = in_memory(np.zeros((1, 1, 2), np.float32), xyz, np.zeros((1, 1, 2), np.float32), xyz, [0], ["1"])
    assert controls.score_controls(run, {}, tokens) == {"rows": [], "pairs": []}


def test_changes_are_means_over_clips_pairs_and_seeds(run, monkeypatch):
    draw = np.random.default_rng(0)
    before, after = draw.random((2, 2, 12)) < np.array([0.8, 0.4])[:, None, None]
    groups, labels = ["x"] * 8 + ["y"] * 4, np.array([0, 1] * 4 + [2, 3] * 2)
    twins = np.array([1, 0, 3, 2, 5, 4, -1, -1, 9, 8, 11, 10])
    paired = Paired(before, after, labels, groups, twins, [f"set-{n // 2}" for n in range(12)])
    rows = {row["group"]: row for row in paired.by_group(run)}
    assert list(rows) == [ALL, "x", "y"] and [row["clips"] for row in rows.values()] == [12, 8, 4]
    for group, row in rows.items():
        clips = [n for n in range(12) if group in (ALL, groups[n])]
        ones = {n: [after[s, n] for s in range(2)] for n in clips}
        assert row["accuracy"]["value"] == pytest.approx(np.mean(list(ones.values())))
        assert row["change"]["value"] == pytest.approx(np.mean([after[:, clips]]) - np.mean(before[:, clips]))
        pairs = [(n, twins[n]) for n in clips if twins[n] > n]
        both = [np.mean([right[s, i] and right[s, j] for i, j in pairs for s in range(2)]) for right in (before, after)]
        assert row["twin_accuracy"]["value"] == pytest.approx(both[1])
        assert row["twin_change"]["value"] == pytest.approx(both[1] - both[0])
        assert row["change"]["low"] <= row["change"]["value"] <= row["change"]["high"]
    monkeypatch.setattr(controls, "class_names", lambda run: list("abcd"))
    kinds = {tuple(row["twins"]): row["twin_change"]["value"] for row in paired.by_pair(run)}
    assert kinds.keys() == {("a", "b"), ("c", "d")} and kinds["c", "d"] == rows["y"]["twin_change"]["value"]


def test_a_loss_is_said_only_where_its_interval_excludes_zero():
    def row(control, value, low, high):
        return {"control": control, "change": {"value": value, "low": low, "high": high}}

    rows = [row("conflict", -0.01, -0.05, 0.02), row("frozen", -0.312, -0.35, -0.271), row("noise", -0.5, -0.6, -0.4),
            row("reversed", 0.1, 0.05, 0.2)]  # fmt: skip
    assert evidence_sentence("motion", rows) == (
        "Motion stream loses 50.0 points [40.0, 60.0] when all surfaces are noise and only motion is left, "
        "31.2 points [27.1, 35.0] when one frame stands still; gains 10.0 points [5.0, 20.0] when clips are played "
        "backwards; changes by nothing that can be told when another scene stands behind the action."
    )
