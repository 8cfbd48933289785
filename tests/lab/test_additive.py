"""The additive projection of fits on stored tokens: which clips are put together, and what comes of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import token_task
import torch

from tcar.fusion.kinds import create_fusion
from tcar.ground.errors import TcarError
from tcar.lab import params
from tcar.lab.steps import additive, methods
from tcar.lab.steps.fits import Fit

CLIPS = 24
NAMES = [f"class {k}" for k in range(token_task.CLASSES)]


class Fresh(Fit):
    """A fit that has learned nothing: the weights that its seed draws."""

    @property
    def trained(self) -> dict[str, torch.Tensor]:
        torch.manual_seed(self.seed)
        return {f"fusion.{name}": value for name, value in create_fusion(self.fusion).state_dict().items()}


def fresh(kind: str, seed: int) -> Fresh:
    return Fresh(Path(f"{kind}-{seed}"), replace(token_task.FUSION, kind=kind), seed, [], 1, {})


@pytest.fixture
def clips(monkeypatch):
    """Tokens of twins of classes 0 and 1, and 2 and 3, in sets of four clips; the last clip has lost its twin."""
    tokens = token_task.tokens(CLIPS + 1, 3)
    tokens.labels[:] = np.arange(CLIPS + 1) % 4
    index = {
        name: {"group": "ab"[i % 4 // 2], "set": f"set-{i // 4}", "twin": tokens.ids[i ^ 1] if i < CLIPS else "gone"}
        for i, name in enumerate(tokens.ids)
    }
    monkeypatch.setattr(additive, "ground_truth", lambda run: index)
    monkeypatch.setattr(additive, "class_names", lambda run: NAMES)
    return tokens


def of(rows, method):
    return {"-".join(row["pair"]) if row["pair"] != "all" else "all": row for row in rows if row["method"] == method}


def test_each_pair_of_classes_is_projected_as_plain_loops_do(clips):
    run = token_task.run(bootstrap_samples=50)
    fits = {"cross_attention": [fresh("cross_attention", seed) for seed in (0, 1)]}
    rows = of(additive.emap_rows(run, fits, clips), "cross_attention")
    assert list(rows) == ["class 0-class 1", "class 2-class 3", "all"]
    assert [row["group"] for row in rows.values()] == ["a", "b", None]
    assert [row["clips"] for row in rows.values()] == [12, 12, 24]
    correct = {"own": [], "projected": []}
    for fit in fits["cross_attention"]:
        model = methods.token_model(fit, clips).eval()
        for first in (0, 2):
            places = [i for i in range(CLIPS) if i % 4 in (first, first + 1)]
            semantic, motion = (part[0].float() for part in clips.read(places))
            with torch.inference_mode():
                f = np.array([[model(s[None], m[None])[0].numpy() for m in motion] for s in semantic])
            labels, m = clips.labels[places], np.arange(len(places))
            for key, logits in {"own": f[m, m], "projected": f.mean(1) + f.mean(0) - f.mean((0, 1))}.items():
                correct[key].append((logits.argmax(1) == labels).reshape(-1, 2).all(1).mean())
    for key, name in (("own", "twin_accuracy"), ("projected", "emap")):
        by_pair = np.array(correct[key]).reshape(2, 2).mean(0)
        expected = [*by_pair, by_pair.mean()]
        assert [row[name]["value"] for row in rows.values()] == pytest.approx(expected)
    for row in rows.values():
        assert row["kept"]["value"] == pytest.approx(row["emap"]["value"] - row["twin_accuracy"]["value"])
        assert row["kept"]["low"] <= row["kept"]["value"] <= row["kept"]["high"]


def test_a_single_stream_is_its_own_projection_and_a_sum_of_scores_keeps_everything(clips):
    run = token_task.run(bootstrap_samples=50, workers=1)
    kinds = ("semantic", "motion", "motion_probe_1", "sum")
    rows = additive.emap_rows(run, {kind: [fresh(kind, 0)] for kind in kinds}, clips)
    assert all(row["kept"] == {"value": 0, "low": 0, "high": 0} for row in rows)
    assert all(row["emap"] == row["twin_accuracy"] for row in rows)
    assert [of(rows, kind)["all"]["streams"] for kind in kinds] == [
        ["semantic"], ["motion"], ["motion"], ["semantic", "motion"]
    ]  # fmt: skip


def test_methods_side_by_side_are_projected_as_one_after_the_other(clips):
    fits = {kind: [fresh(kind, 0)] for kind in ("cross_attention", "late_concat")}
    one, two = (additive.emap_rows(token_task.run(bootstrap_samples=9, workers=n), fits, clips) for n in (1, 2))
    assert one == two and {row["method"] for row in two} == set(fits)


def test_its_own_logits_are_those_that_are_scored(clips):
    run, fit = token_task.run(), fresh("cross_attention", 0)
    every = methods.scored(run, {"one": [fit]}, clips)["one"][0]
    places = additive.twin_pairs(clips.labels, np.append(np.arange(CLIPS) ^ 1, -1), CLIPS, 0)[0, 1]
    _, own, _ = additive._both(run, [fit], clips, [places])
    np.testing.assert_allclose(own[0], every[places], atol=1e-5)


def test_whole_couples_are_drawn_and_no_more_than_are_asked_for():
    labels, twins = np.arange(40) % 4, np.arange(40) ^ 1
    twins[[0, 1]] = -1
    every = additive.twin_pairs(labels, twins, 100, 0)
    assert {pair: len(places) for pair, places in every.items()} == {(0, 1): 18, (2, 3): 20}
    some = additive.twin_pairs(labels, twins, 7, 0)
    for pair, places in some.items():
        assert len(places) == 6 and set(places) <= set(every[pair])
        assert set(twins[places]) == set(places)
    assert any((additive.twin_pairs(labels, twins, 7, 1)[pair] != some[pair]).any() for pair in some)
    assert additive.twin_pairs(labels, twins, 0, 0) == {}


def test_without_twins_or_clips_there_are_no_rows(clips, monkeypatch):
    fits = {"sum": [fresh("sum", 0)]}
    assert additive.emap_rows(token_task.run(emap_clips=0), fits, clips) == []
    monkeypatch.setattr(additive, "ground_truth", lambda run: {})
    assert additive.emap_rows(token_task.run(), fits, clips) == []


def test_one_clip_is_no_pair_of_twins():
    with pytest.raises(TcarError, match="emap_clips is 1"):
        params.from_values({"emap_clips": 1})
