"""Probes of single tokens: tokens that hold the truth answer every question, tokens of noise none."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tcar.data.ssv2 import load_split
from tcar.data.video import read_segments
from tcar.lab import params, results
from tcar.lab.steps import concepts
from tcar.lab.steps.audit import dataset_folder
from tcar.lab.steps.streams import stream
from tcar.streams.grids import pool_tokens
from tcar.streams.packaged import packaged
from tcar.tabletop.dataset import load_truth


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Clips of putting and taking, and of pushing and pulling: enough of each that a reader can be fitted."""
    folder = tmp_path_factory.mktemp("concepts")
    sizes = {"train_sets": 12, "validation_sets": 4, "test_sets": 1}
    made = params.from_values({
        "name": "concepts", "runs": str(folder), "classes": [109, 47, 74, 68, 93, 94, 86, 87], "workers": 2,
        "width": 96, "height": 72, "lengths": [16], "bootstrap_samples": 200, **sizes,
    })  # fmt: skip
    dataset_folder(made)
    return made


def test_variants_are_streams_of_the_same_kind_with_other_tokens(run, found):
    frames = torch.from_numpy(read_segments(found["train"][0].path, 8))[None]
    made = {"in use": stream(run, "semantic"), **concepts.variants(run, "semantic")}
    tokens = {name: pool_tokens(one(frames), (4, 4, 4)).values for name, one in made.items()}
    assert set(made) == {"in use", "trained from seed 1", "56 pixels", "untrained"}
    assert all(value.shape == (1, 4, 16, 128) for value in tokens.values())
    assert all(not torch.allclose(tokens["in use"], tokens[name], atol=0.1) for name in made if name != "in use")
    finer = params.from_values(run.as_dict() | {"semantic_grid": [4, 5, 5]})
    assert set(concepts.variants(finer, "semantic")) == {"trained from seed 1", "untrained"}  # 56 pixels give four rows


@pytest.fixture(scope="module")
def found(run):
    return {split: load_split(run.data_root, split) for split in ("train", "validation")}


def test_cells_hold_the_share_that_masks_cover(run, found):
    clip = found["train"][0]
    cells = concepts._cells(run, clip, (4, 4, 4))
    truth, ids = load_truth(run.data_root, clip.id)
    hands = {entry["id"] for entry in truth["instances"] if entry["category"] == "hand"}
    for t, y, x in ((0, 1, 2), (2, 2, 1), (3, 3, 3)):
        inside = ids[4 * t : 4 * t + 4, 18 * y : 18 * y + 18, 24 * x : 24 * x + 24]
        share = sum((inside == hand).sum() for hand in hands) / inside.size
        assert cells["hand"][16 * t + 4 * y + x, 0] == pytest.approx(share, abs=1e-6)
    assert cells["hand"].max() > 0.05


def rows_for(run, found, monkeypatch, make) -> dict[str, dict]:
    """The probes of a single variant whose tokens are what `make(clip)` gives."""
    clips = {clip.id: clip for part in found.values() for clip in part}
    monkeypatch.setattr(concepts, "variants", lambda run, role: {})
    monkeypatch.setattr(concepts, "CLIPS", {"train": 12, "validation": 4})
    store = SimpleNamespace(
        ids=list(clips), grid=(4, 4, 4), frames=16, load=lambda ids: np.stack([make(clips[i]) for i in ids])
    )
    rows = concepts.concept_probes(run, {"semantic": store, "motion": store}, found)
    assert {row["variant"] for row in rows} == {"in use"}
    return {row["concept"]: row for row in rows if row["stream"] == "semantic"}


def test_tokens_that_hold_the_truth_answer_everything(run, found, monkeypatch):
    names: dict[str, int] = {}

    def truth(clip):
        cells = concepts._cells(run, clip, (4, 4, 4))
        told = np.zeros((64, 40))
        told[:, :5] = np.concatenate([cells[key] for key in ("hand", "position", "flow", "speed")], axis=1)
        turn = np.round(np.arctan2(told[:, 3], told[:, 2]) / (np.pi / 2)).astype(int) % 4
        told[np.arange(64), 5 + turn] = 1
        for cell, bit in cells["in hand"]:
            told[cell, 9] = bit
        for key in ("outline", "pattern"):
            told[cells["cell"], 10 + names.setdefault(cells[key], len(names) % 30)] = 1
        return told

    rows = rows_for(run, found, monkeypatch, truth)
    assert rows.keys() == concepts.MEASURES.keys()
    for concept, row in rows.items():
        # a rare outline may stand only in the sets that are kept apart, where no reader can know its name
        assert row["value"] > (0.7 if concept == "outline" else 0.9), concept
        assert row["low"] <= row["value"] <= row["high"]
        assert row["chance"] < row["value"]


def test_tokens_of_noise_answer_nothing(run, found, monkeypatch):
    # streams are read side by side, so that each clip has noise of its own, whichever thread asks first
    rows = rows_for(run, found, monkeypatch, lambda clip: np.random.default_rng(int(clip.id)).normal(size=(64, 40)))
    for concept, row in rows.items():
        assert row["low"] <= row["chance"] + 0.1, concept
        assert row["measure"] != "R2" or row["value"] < 0.05, concept


def test_other_datasets_have_no_truth_to_ask_for():
    assert concepts.concept_probes(params.from_values({"dataset": "ssv2"}), {}, {}) == []


def test_provenance_tells_weights_of_other_code(monkeypatch):
    run = params.Params()
    said = concepts.provenance(run)
    assert {"dinov2_tiny", "i3d_tiny"} <= said.keys() and said["i3d_tiny"]["flow R2"] > 0.5
    folder = packaged("dinov2_tiny").parent
    codes = {name: results.load(folder / f"{name}.json")["code"] for name in said}
    for told in (codes["dinov2_tiny"], {"network": results.digest("another")}):
        monkeypatch.setattr(concepts, "training_code", lambda backbone, told=told: told)
        present = {name for name, row in concepts.provenance(run).items() if row["present code"]}
        assert present == {name for name, code in codes.items() if code == told}
