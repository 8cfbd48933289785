"""Scores of replicates part by part, against plain loops over clips."""


import numpy as np
import pytest
import token_task
from test_additive import NAMES, clips, fresh  # noqa: F401  a fixture

from tcar.lab.steps import methods, parts


def test_parts_are_counted_as_plain_loops_do(clips, monkeypatch):  # noqa: F811
    index = {name: row | {"variant": "few" if i % 8 < 4 else "many", "class": ""}
             for i, (name, row) in enumerate(parts_index(clips).items())}  # fmt: skip
    monkeypatch.setattr(parts, "ground_truth", lambda run: index)
    fits = {kind: [fresh(kind, seed) for seed in (0, 1)] for kind in ("cross_attention", "motion")}
    run = token_task.run(evaluation_split="validation", workers=1)
    found = parts.part_scores(run, fits, {"train": clips, "validation": clips}, NAMES)
    logits = methods.scored(run, fits, clips)
    for method, seeds in logits.items():
        right = [one.argmax(1) == clips.labels for one in seeds]
        assert found[method]["top1"] == pytest.approx(np.mean(right))
        for variant in ("few", "many"):
            couples = [(i, i ^ 1) for i in range(24) if index[clips.ids[i]]["variant"] == variant]
            twins = [one[i] and one[j] for one in right for i, j in couples]
            assert found[method]["per_variant"][variant]["twin_accuracy"] == pytest.approx(np.mean(twins))
        pair = found[method]["per_pair"]["class 0 / class 1"]
        here = clips.labels < 2
        losses = [-np.log(np.exp(one[i] - one[i].max())[clips.labels[i]] / np.exp(one[i] - one[i].max()).sum())
                  for one in seeds for i in np.flatnonzero(here)]  # fmt: skip
        assert pair["train_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
        twins = [one[i] and one[i ^ 1] for one in right for i in range(24) if here[i]]
        assert pair["twin_accuracy"] == pytest.approx(np.mean(twins))
    alone = found["motion"]["per_pair"]["class 2 / class 3"]
    assert alone["emap"] == alone["twin_accuracy"]


def parts_index(tokens) -> dict[str, dict]:
    """Twins of classes 0 and 1, and 2 and 3, in sets of four clips; the last clip has lost its twin."""
    return {name: {"group": "ab"[i % 4 // 2], "set": f"set-{i // 4}", "twin": tokens.ids[i ^ 1] if i < 24 else "gone"}
            for i, name in enumerate(tokens.ids)}  # fmt: skip


def test_without_twins_there_are_no_pairs(monkeypatch):
    tokens = token_task.tokens(12, 3)
    monkeypatch.setattr(parts, "ground_truth", lambda run: {
        name: {"group": "a", "set": name, "twin": "gone", "variant": ""} for name in tokens.ids})  # fmt: skip
    monkeypatch.setattr(parts, "emap_rows", lambda *asked: [])
    fits = {"motion": [fresh("motion", 0)]}
    run = token_task.run(evaluation_split="validation", workers=1)
    found = parts.part_scores(run, fits, {"train": tokens, "validation": tokens}, NAMES)
    assert "per_pair" not in found["motion"] and found["motion"]["per_variant"] == {}
