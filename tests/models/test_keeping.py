"""A model is kept whole or not at all, and takes no file of anything else."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tcar.models.cast import CAST
from tcar.models.keeping import keep
from tcar.models.tca import TCA
from tcar.streams.weights import CheckpointError

STATE = {"w": torch.arange(6.0).view(2, 3).T}  # not side by side in memory


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors"])
@pytest.mark.parametrize("text", ["", "mine", '{"model": "another.Model"}', "[]"])
def test_a_file_of_something_else_is_named_and_left_alone(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=f"{name} of something else"):
        keep(tmp_path, {"model": "tcar.models.tca.TCA"}, STATE, "a card")
    assert contents(tmp_path) == {name: text.encode()}


def test_a_model_is_kept_again_beside_other_files_until_its_card_is_edited(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for card in ("one", "two"):
        keep(tmp_path, {"model": "m", "config": {"a": 1}}, STATE, card)
    assert torch.equal(load_file(tmp_path / "model.safetensors")["w"], STATE["w"])
    assert json.loads((tmp_path / "config.json").read_text())["config"] == {"a": 1}
    assert (tmp_path / "README.md").read_text() == "two"

    (tmp_path / "README.md").write_text("two, and what I know of it")
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match="README.md: was edited"):
        keep(tmp_path, {"model": "m"}, STATE, "three")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", [TCA, CAST])
def test_what_was_cut_off_is_no_model_and_is_kept_again(tmp_path, monkeypatch, kind):
    config = {"model": f"tcar.models.{kind.__name__}", "config": {}}
    keep(tmp_path, config, STATE, "old")

    def cut(state, path, metadata):
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("tcar.models.keeping.save_file", cut)
    with pytest.raises(OSError, match="no space left"):
        keep(tmp_path, config, {"w": torch.zeros(1)}, "new")
    monkeypatch.undo()
    assert torch.equal(load_file(tmp_path / "model.safetensors")["w"], STATE["w"])
    with pytest.raises(CheckpointError, match="config.json: not a"):
        kind.from_pretrained(tmp_path)
    keep(tmp_path, config, {"w": torch.zeros(1)}, "new")
    assert not load_file(tmp_path / "model.safetensors")["w"].any()
    assert sorted(contents(tmp_path)) == ["README.md", "config.json", "model.safetensors"]
