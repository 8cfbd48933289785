"""The model card: its front matter is read by the Hub, and it tells what is known and nothing else."""

import re

import pytest
import torch
import yaml

from tcar.models import CheckpointError
from tcar.models.card import RANDOM, SYNTHETIC, model_card
from tcar.models.fusion import FusionConfig
from tcar.models.streams import weights_digest
from tcar.models.tca import TCA, TCAConfig

FACTS = {
    "dataset": "Tabletop (32 classes)",
    "synthetic": True,
    "Seed": 3,
    "metrics": {"top-1": 0.61234567, "clips": 120},
    "protocol": "one view of each clip",
    "licence": "Apache-2.0",
}


def built(**options) -> TCA:
    fusion = FusionConfig(semantic_width=128, motion_width=128, num_classes=2, width=16, heads=2)
    grids = (4, 2, 2), (2, 2, 2)
    torch.manual_seed(0)
    return TCA.create(TCAConfig("dinov2_tiny", "i3d_tiny", 4, 8, *grids, ("push", "pull"), fusion), **options)


@pytest.fixture(scope="module")
def model() -> TCA:
    return built(pretrained=True)


def front(text: str) -> dict:
    """The YAML between the two lines of dashes, as the Hub reads it."""
    opening, matter, rest = text.split("---\n", 2)
    assert opening == "" and rest.strip()
    return yaml.safe_load(matter)


def cells(text: str, heading: str) -> list[list[str]]:
    """The rows of the first table under a heading, its own heading first."""
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    assert len({len(row) for row in rows}) == 1
    return rows


def test_the_front_matter_is_yaml_with_the_licence_that_was_given(model):
    matter = front(model_card(model, FACTS))
    assert matter["license"] == "apache-2.0"
    assert matter["library_name"] == "tcar"
    assert matter["pipeline_tag"] == "video-classification"
    assert "action-recognition" in matter["tags"]
    assert "license" not in front(model_card(model))


def test_the_facts_are_told(model):
    text = model_card(model, FACTS)
    assert "Trained on Tabletop (32 classes)." in text
    assert "Seed: 3" in text
    assert "Measured so: one view of each clip." in text
    assert ["top-1", "0.6123"] in cells(text, "Training and evaluation")
    assert "The fusion: Apache-2.0." in text


def test_synthetic_clips_are_called_synthetic_before_any_number(model):
    text = model_card(model, FACTS)
    assert 0 < text.index(SYNTHETIC) < text.index("0.6123")
    assert SYNTHETIC not in model_card(model, FACTS | {"synthetic": False})


def test_what_is_not_known_is_left_out(model):
    text = model_card(model)
    assert "## Training" not in text
    assert not re.search(r"\b(None|nan|unknown|TODO)\b", text)
    assert "Trained on" not in model_card(model, {"Seed": 1})
    assert "metric |" not in model_card(model, {"Seed": 1})


def test_the_numbers_are_those_of_the_model(model):
    text = model_card(model)
    heading, _, *rows = cells(text, "Parameters and cost")
    assert heading == ["part", "parameters", "trained", "megabytes", "GFLOPs a clip"]
    counted = {row[0]: int(row[1].replace(",", "")) for row in rows}
    assert counted["sum"] == sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.fusion.parameters())
    assert f"Frozen: {1 - trained / counted['sum']:.1%} of all parameters" in text
    streams = cells(text, "Streams")
    for row, stream in zip(streams[2:], (model.semantic, model.motion), strict=True):
        assert stream.name in row[0] and weights_digest(stream) in row[-1]


def test_random_streams_are_told(model):
    assert RANDOM not in model_card(model)
    assert RANDOM in model_card(built())


def test_the_card_lies_beside_the_model_and_its_call_is_the_real_one(model, tmp_path):
    model.save_pretrained(tmp_path, FACTS)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert text == model_card(model, FACTS)
    (tmp_path / "README.md").write_text("edited")
    with pytest.raises(CheckpointError, match="edited"):
        model.save_pretrained(tmp_path, FACTS)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    video = torch.zeros(8, 24, 32, 3, dtype=torch.uint8).numpy()
    names = {"path/to/this/folder": str(tmp_path), '"clip.mp4"': "video"}
    for written, real in names.items():
        code = code.replace(written, real)
    shown = []
    exec(code, {"video": video, "print": shown.append})
    assert {name for name, _ in shown[0].top} == {"push", "pull"}
