"""The model card: its front matter is read by the Hub, and it tells what is known and nothing else."""

import re
from dataclasses import replace

import pytest
import torch
import yaml
from torch import nn

from tcar.fusion.kinds import FusionConfig
from tcar.models.card import RANDOM, SYNTHETIC, model_card
from tcar.models.tca import TCA, TCAConfig
from tcar.streams import registry as streams
from tcar.streams.packaged import packaged
from tcar.streams.published import PACKAGED, checkpoints_for
from tcar.streams.registry import create_stream, list_streams, stream_spec, weights_digest
from tcar.streams.stream import Stream
from tcar.streams.weights import CheckpointError

FACTS = {
    "dataset": "Tabletop (32 classes)",
    "synthetic": True,
    "ranges": {"frames": [24.0, 40.0], "rate": [12.0, 12.0]},
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
    assert "Its training clips have 24 to 40 frames, 12 frames a second." in text and "ranges" not in text
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


class StandIn(Stream):
    """What a card asks of a stream, without its network."""

    def __init__(self, backbone, spec, *, pretrained, **_):
        nn.Module.__init__(self)
        self.name, self.info, self.pretrained = spec.name, spec.info, pretrained


@pytest.fixture(scope="module")
def costs(model):
    return model.parameter_table()


@pytest.fixture
def carded(model, costs, monkeypatch):
    """The lines on licences and on the semantic stream of a card, as if that stream had been opened so."""
    monkeypatch.setattr(model, "parameter_table", lambda: costs)

    def opened(name: str, **given) -> tuple[str, list[str]]:
        spec = replace(
            stream_spec(name),
            load=lambda _: (nn.Identity(), {}),
            build=lambda _: nn.Identity(),
            stream_class=StandIn,
        )
        monkeypatch.setitem(streams._REGISTRY, name, spec)
        stream = create_stream(name, **given)
        for field in ("name", "info", "pretrained"):
            monkeypatch.setattr(model.semantic, field, getattr(stream, field))
        text = model_card(model)
        return text.split("## Licences\n\n")[1], cells(text, "Streams")[2]

    return opened


@pytest.mark.parametrize("name", list_streams())
def test_a_card_tells_the_licence_of_the_weights_that_were_loaded(name, carded, tmp_path):
    for checkpoint in checkpoints_for(name):
        given = checkpoint.address
        if checkpoint.kind != "hub":
            given = tmp_path / checkpoint.files[0]
            given.touch()
        licences, row = carded(name, checkpoint=given)
        stated = checkpoint.licence or "not known"
        assert f"publishers': {name}: {stated}; " in licences
        assert stated in row and checkpoint.page in row
    if name in PACKAGED:
        licences, row = carded(name, checkpoint=packaged(name, seed=1))
        assert f"{name}: {PACKAGED[name]}; " in licences
        assert f"tcar/streams/small_weights/{name}-seed1.safetensors" in row


def test_weights_of_ones_own_have_no_licence_of_somebody_else(carded, tmp_path):
    (tmp_path / "mine.pth").touch()
    licences, row = carded("dinov2_vits14", checkpoint=tmp_path / "mine.pth")
    assert "dinov2_vits14: not known; " in licences
    assert {"mine.pth", "not known"} <= set(row) and str(tmp_path) not in str(row)
    assert "dinov2_vits14: not known; " in carded("dinov2_vits14", checkpoint="me/mine")[0]
    licences, row = carded("dinov2_vits14")
    assert "dinov2_vits14: none (random weights); " in licences


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
