"""Weights as training frameworks wrap them, through every loader; what does not fit is refused in a few lines."""

from collections import OrderedDict
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPVisionModel, Dinov2Model, VideoMAEForVideoClassification

from tcar.fusion.kinds import FusionConfig
from tcar.models.cast import CAST, clip_config, videomae_config
from tcar.models.cast_blocks import CASTConfig
from tcar.models.tca import TCA, TCAConfig
from tcar.streams import i3d, pretrained, vjepa2_1
from tcar.streams.i3d_layouts import CONFIGS, load_i3d
from tcar.streams.image import DINOV2_TINY
from tcar.streams.registry import create_stream
from tcar.streams.weights import CheckpointError, load_strict, read_state


def before(prefix: str, state: dict) -> dict:
    return {f"{prefix}{key}": value for key, value in state.items()}


WRAPPINGS = {
    "parallel": lambda state: before("module.", state),
    "compiled": lambda state: {"model": before("_orig_mod.", state), "epoch": 3},
    "lightning": lambda state: {"state_dict": before("model.backbone.", state), "hyper_parameters": {"lr": 1e-3}},
    "encoder": lambda state: before("encoder.", state),
    "nested": lambda state: {"model": {"state_dict": state}, "optimizer": {"state": {}}},
    "teacher": lambda state: {
        "student": before("module.backbone.", other(state)),
        "teacher": before("backbone.", state),
        "epoch": 7,
    },
    "side by side": lambda state: before("student.", other(state)) | before("teacher.", state),
}


def other(state: dict) -> dict:
    return {key: value + 1 for key, value in state.items()}


def equal(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_wrapper_is_taken_off_where_every_key_then_matches(wrapping, tmp_path):
    torch.manual_seed(3)
    module = nn.Sequential(OrderedDict(stem=nn.Linear(2, 3), head=nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))))
    torch.save(WRAPPINGS[wrapping](module.state_dict()), tmp_path / "weights.pth")
    fresh = nn.Sequential(OrderedDict(stem=nn.Linear(2, 3), head=nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))))
    load_strict(fresh, read_state(tmp_path / "weights.pth"), tmp_path / "weights.pth")
    assert equal(fresh.state_dict(), module.state_dict())


def test_names_that_are_the_networks_own_stay():
    module = nn.Sequential(OrderedDict(module=nn.Sequential(OrderedDict(encoder=nn.Linear(2, 3)))))
    state = {key: torch.ones_like(value) for key, value in module.state_dict().items()}
    for wrapped in (state, before("module.", state), before("module.module.", state)):
        nn.init.zeros_(module.module.encoder.weight)
        assert all(value.eq(1).all() for value in load_strict(module, wrapped, "here").parameters())


@pytest.mark.parametrize("wrapping", ["parallel", "lightning", "teacher"])
def test_dinov2_from_a_file_and_a_folder(wrapping, tmp_path):
    model = pretrained.build(Dinov2Model, DINOV2_TINY)
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    torch.save(WRAPPINGS[wrapping](state), tmp_path / "weights.pth")
    loaded = pretrained.load(Dinov2Model, DINOV2_TINY, tmp_path / "weights.pth")
    assert equal(loaded.state_dict(), model.state_dict())
    save_file(before("module.", state), tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert equal(pretrained.load(Dinov2Model, DINOV2_TINY, tmp_path).state_dict(), model.state_dict())
    lacking = {key: value for key, value in before("module.", state).items() if "layernorm" not in key}
    save_file(lacking, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"it is loaded into\n  missing \(2\): layernorm.bias, layernorm.weight"):
        pretrained.load(Dinov2Model, DINOV2_TINY, tmp_path)


def test_the_streams_of_timm_and_the_small_i3d(tmp_path):
    torch.manual_seed(3)
    model = timm.create_model("resnet10t")  # with its classifier
    torch.save(WRAPPINGS["lightning"](model.state_dict()), tmp_path / "resnet.pth")
    stream = create_stream("timm:resnet10t", checkpoint=tmp_path / "resnet.pth")
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in stream.backbone.state_dict().items())
    small = i3d.I3D(i3d.TINY)
    torch.save(before("module.", small.state_dict()), tmp_path / "i3d.pth")
    assert equal(create_stream("i3d_tiny", checkpoint=tmp_path / "i3d.pth").backbone.state_dict(), small.state_dict())


def test_an_i3d_of_published_layout(tmp_path, monkeypatch):
    monkeypatch.setitem(CONFIGS, "i3d_r50", i3d.TINY)
    config = replace(i3d.TINY, num_classes=2)
    network = i3d.I3D(config)
    torch.save({"model": before("module.", network.state_dict())}, tmp_path / "i3d.pth")
    assert equal(load_i3d(tmp_path / "i3d.pth")[0].state_dict(), network.state_dict())


def test_vjepa2_1(tmp_path, monkeypatch):
    config = vjepa2_1.VJepa21Config(width=24, depth=1, heads=2, hidden=48)
    monkeypatch.setitem(vjepa2_1.SIZES, "b", config)
    encoder = vjepa2_1.VJepa21Encoder(config)
    for wrapped in (before("module.", encoder.state_dict()), {"state_dict": before("backbone.", encoder.state_dict())}):
        torch.save(wrapped, tmp_path / "file.pt")
        assert equal(vjepa2_1.load_vjepa2_1(tmp_path / "file.pt", "b").state_dict(), encoder.state_dict())


def test_the_experts_of_cast(tmp_path):
    sizes = {"frames": 4, "image_size": 28, "patch_size": 14, "width": 32, "depth": 1, "heads": 2}
    config = CASTConfig(num_classes=3, **sizes, adapter_width=8, cross_width=16)
    experts = {
        "clip": CLIPVisionModel(clip_config(config)),
        "videomae": VideoMAEForVideoClassification(videomae_config(config)),
    }
    for name, expert in experts.items():
        expert.save_pretrained(tmp_path / name)
        torch.save(before("module.", load_file(tmp_path / name / "model.safetensors")), tmp_path / f"{name}.pth")
    model = CAST(config)
    model.load_experts(tmp_path / "clip.pth", tmp_path / "videomae.pth")
    assert equal(model.videomae.state_dict(), experts["videomae"].videomae.state_dict())
    with pytest.raises(CheckpointError, match="loaded with fill_head=False"):
        CAST(replace(config, num_classes=4)).load_experts(tmp_path / "clip.pth", tmp_path / "videomae.pth")


def test_a_kept_model(tmp_path):
    fusion = FusionConfig(semantic_width=128, motion_width=128, num_classes=2, width=16, heads=2)
    torch.manual_seed(0)
    config = TCAConfig("dinov2_tiny", "i3d_tiny", 4, 8, (4, 2, 2), (2, 2, 2), ("push", "pull"), fusion)
    model = TCA.create(config, pretrained=True)
    model.save_pretrained(tmp_path)
    save_file(before("module.", load_file(tmp_path / "model.safetensors")), tmp_path / "model.safetensors")
    assert equal(TCA.from_pretrained(tmp_path).fusion.state_dict(), model.fusion.state_dict())


@pytest.mark.parametrize("name", ["dinov2_vits14", "timm:resnet10t", "i3d_tiny"])
def test_another_network_is_refused_in_a_few_lines_that_say_which(name, tmp_path):
    with torch.device("meta"):
        wrong = timm.create_model("vit_tiny_patch16_224", depth=3).state_dict()
    wrong = {key: torch.zeros(1).expand(value.shape) for key, value in wrong.items()}
    torch.save(before("module.", wrong), tmp_path / "other.pth")
    with pytest.raises(CheckpointError) as error:
        create_stream(name, checkpoint=tmp_path / "other.pth", input_size=None if "timm" not in name else 64)
    text = str(error.value)
    assert len(text) < 1000 and str(tmp_path / "other.pth") in text
    assert "a vision transformer in the names of timm or of Meta, 3 blocks, 192 wide" in text


@pytest.mark.parametrize("name", ["timm:coat_tiny", "timm:crossvit_9_240"])
def test_models_of_timm_that_make_several_grids_are_refused_by_name(name):
    with torch.device("meta"):
        stream = create_stream(name)
        with pytest.raises(ValueError, match=f"{name} makes several sets of tokens of a frame"):
            stream(torch.zeros(1, 1, 240, 240, 3, dtype=torch.uint8))


def test_a_model_of_timm_that_gives_its_class_token_alone_is_refused_by_name():
    with torch.device("meta"):
        stream = create_stream("timm:pit_ti_224")
        with pytest.raises(ValueError, match="timm:pit_ti_224: 1 patch tokens make no square grid"):
            stream(torch.zeros(1, 1, 224, 224, 3, dtype=torch.uint8))
