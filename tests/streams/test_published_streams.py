"""Streams against the plain models they wrap, and published files of every layout through the code that loads them."""

from copy import deepcopy

import numpy as np
import pytest
import timm
import torch
from i3d_files import WRITERS, published_state, weights
from safetensors.torch import load_file, save_file
from transformers import (
    DINOv3ViTConfig,
    DINOv3ViTModel,
    TimesformerConfig,
    TimesformerForVideoClassification,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VJEPA2Config,
    VJEPA2ForVideoClassification,
    VJEPA2Model,
)

from tcar.streams import pretrained
from tcar.streams.catalogue import STREAMS
from tcar.streams.i3d_layouts import LAYOUTS, load_i3d
from tcar.streams.registry import create_stream
from tcar.streams.weights import CheckpointError

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def frames(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def pixels(clip: torch.Tensor, mean=MEAN, std=STD) -> torch.Tensor:
    """Normalised frames [b t 3 h w]."""
    return ((clip.float() / 255 - mean) / std).permute(0, 1, 4, 2, 3)


def equal(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


def seeded(build, *arguments):
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return build(*arguments).eval()


# --- DINOv3


def test_dinov3_in_the_published_key_names(tmp_path):
    config = DINOv3ViTConfig(**STREAMS["dinov3_vits16"].shape)
    model = seeded(pretrained.build, DINOv3ViTModel, config)
    # The files were published before the library put its encoder into a module of its own.
    state = {key.replace("model.layer.", "layer.").replace("model.", ""): v for key, v in model.state_dict().items()}
    assert "layer.0.attention.q_proj.weight" in state
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(tmp_path)
    for checkpoint in (tmp_path, tmp_path / "model.safetensors"):
        stream = create_stream("dinov3_vits16", checkpoint=checkpoint, input_size=48)
        assert equal(stream.backbone.state_dict(), model.state_dict())
    clip = frames(1, 2, 48, 48, 3)
    with torch.inference_mode():
        hidden = model(pixels(clip)[0]).last_hidden_state
    tokens = stream(clip)
    torch.testing.assert_close(tokens.class_token[0], hidden[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tokens.values[0], hidden[:, 5:], rtol=1e-4, atol=1e-4)


# --- timm


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto", "resnet10t", "swin_tiny_patch4_window7_224"])
def test_timm_models_with_and_without_their_classifier(tmp_path, name):
    size = 224 if "swin" in name else 64
    sized = {"img_size": size} if "patch" in name else {}
    model = seeded(lambda: timm.create_model(name, **sized))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "model.safetensors")
    stream = create_stream(f"timm:{name}", checkpoint=tmp_path, input_size=size)
    clip = frames(1, 1, size, size, 3)
    about = timm.get_pretrained_cfg(name)
    with torch.inference_mode():
        features = model.forward_features(pixels(clip, torch.tensor(about.mean), torch.tensor(about.std))[0])
    expected = {
        "vit": lambda: features[:, 1:],
        "swin": lambda: features.flatten(1, 2),
    }.get(name.split("_")[0], lambda: features.flatten(2).transpose(1, 2))()
    torch.testing.assert_close(stream(clip).values[0], expected, rtol=1e-4, atol=1e-4)


def test_timm_positions_are_resampled_as_timm_does(tmp_path):
    model = seeded(timm.create_model, "vit_tiny_patch16_224")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    stream = create_stream("timm:vit_tiny_patch16_224", checkpoint=tmp_path / "model.safetensors", input_size=64)
    expected = timm.layers.resample_abs_pos_embed(model.pos_embed, [4, 4], num_prefix_tokens=1)
    torch.testing.assert_close(stream.backbone.pos_embed, expected)


def test_timm_names_and_files_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match="timm:resnet5: timm has no such model; did you mean resnet50"):
        create_stream("timm:resnet5")
    model = timm.create_model("vit_tiny_patch16_224")
    state = model.state_dict()
    state["surplus"] = state.pop("norm.weight")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing \(1\): norm.weight\n.*unexpected \(1\): surplus"):
        create_stream("timm:vit_tiny_patch16_224", checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match="hf download timm/vit_tiny_patch16_224.*Without"):
        create_stream("timm:vit_tiny_patch16_224", pretrained=True, local_files_only=True)


# --- V-JEPA 2

SMALL = {"num_hidden_layers": 2, "pred_num_hidden_layers": 1, "num_pooler_layers": 1}


def cut(monkeypatch, layers: int):
    """Streams of published width and few blocks, so that a file of that shape is small enough to write."""
    original = pretrained.load

    def load(model_class, config, checkpoint, **options):
        config = deepcopy(config)  # the registered one is every stream's
        config.num_hidden_layers = layers
        for name in ("pred_num_hidden_layers", "num_pooler_layers"):
            if hasattr(config, name):
                setattr(config, name, SMALL[name])
        return original(model_class, config, checkpoint, **options)

    monkeypatch.setattr(pretrained, "load", load)


@pytest.mark.parametrize("probe", [False, True])
def test_vjepa2_files_of_the_encoder_and_with_a_probe(tmp_path, monkeypatch, probe):
    cut(monkeypatch, 2)
    config = VJEPA2Config(crop_size=64, **SMALL)
    model = seeded(VJEPA2ForVideoClassification if probe else VJEPA2Model, config)
    model.save_pretrained(tmp_path)
    stream = create_stream("vjepa2_vitl16_256", checkpoint=tmp_path, input_size=64)
    inner = model.vjepa2 if probe else model
    assert equal(stream.backbone.state_dict(), inner.encoder.state_dict())
    clip = frames(1, 4, 64, 64, 3)
    with torch.inference_mode():
        expected = inner(pixels(clip), skip_predictor=True).last_hidden_state
    torch.testing.assert_close(stream(clip).values.flatten(1, 2), expected, rtol=1e-4, atol=1e-4)


def test_vjepa2_positions_follow_the_input_size():
    """The library counts rows by the grid of its configuration; a stream of another size has to change that."""
    large, small = (
        pretrained.build(
            VJEPA2Model,
            VJEPA2Config(crop_size=s, hidden_size=96, num_attention_heads=2, pred_num_attention_heads=6, **SMALL),
        )
        for s in (256, 64)
    )
    small.load_state_dict(large.state_dict())
    clip = pixels(frames(1, 2, 64, 64, 3))
    wrong, right = (m.eval().encoder(clip).last_hidden_state for m in (large, small))
    assert (wrong - right).abs().max() > 1e-4
    with torch.device("meta"):
        assert create_stream("vjepa2_vitl16_256", input_size=64).backbone.config.crop_size == 64


# --- VideoMAE and TimeSformer


def test_videomae_file_with_its_classifier(tmp_path, monkeypatch):
    cut(monkeypatch, 1)
    model = seeded(VideoMAEForVideoClassification, VideoMAEConfig(num_hidden_layers=1, layer_norm_eps=1e-6))
    model.save_pretrained(tmp_path)
    published = load_file(tmp_path / "model.safetensors")
    assert any(key.endswith("attention.attention.q_bias") for key in published)  # the published name of it
    stream = create_stream("videomae_vitb16", checkpoint=tmp_path)
    assert equal(stream.backbone.state_dict(), model.videomae.state_dict())
    clip = frames(1, 16, 224, 224, 3)
    with torch.inference_mode():
        expected = model.videomae(pixels(clip)).last_hidden_state
    torch.testing.assert_close(stream(clip).values.flatten(1, 2), expected, rtol=1e-4, atol=1e-4)


def test_timesformer_tokens_are_put_in_the_order_of_time(tmp_path, monkeypatch):
    cut(monkeypatch, 1)
    model = seeded(TimesformerForVideoClassification, TimesformerConfig(num_hidden_layers=1))
    model.save_pretrained(tmp_path)
    stream = create_stream("timesformer_vitb16", checkpoint=tmp_path)
    assert equal(stream.backbone.state_dict(), model.timesformer.state_dict())
    clip = frames(1, 8, 224, 224, 3)
    with torch.inference_mode():
        hidden = model.timesformer(pixels(clip, 0.45, 0.225)).last_hidden_state[0, 1:]
    tokens = stream(clip).values[0]
    for moment, place in ((0, 0), (3, 100), (7, 195)):
        torch.testing.assert_close(tokens[moment, place], hidden[place * 8 + moment], rtol=1e-4, atol=1e-4)


# --- a local cache of the Hub


def test_a_name_on_the_hub_is_read_from_its_local_cache(tmp_path, monkeypatch):
    hub = "facebook/dinov3-vits16-pretrain-lvd1689m"
    model = seeded(DINOv3ViTModel, DINOv3ViTConfig(**STREAMS["dinov3_vits16"].shape))
    snapshot = tmp_path / f"models--{hub.replace('/', '--')}" / "snapshots" / "0123456789abcdef"
    model.save_pretrained(snapshot)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(snapshot.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    stream = create_stream("dinov3_vits16", pretrained=True, local_files_only=True)
    assert stream.pretrained and equal(stream.backbone.state_dict(), model.state_dict())


@pytest.mark.parametrize("name", ["dinov2_vitb14", "dinov3_vitb16", "vjepa2_vitl16_256", "videomae_vitb16"])
def test_without_a_network_the_error_says_what_to_fetch_and_where_to_put_it(tmp_path, monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"hf download [\w-]+/[\w-]+\. Without: put its config.json and model"):
        create_stream(name, pretrained=True, local_files_only=True)


# --- I3D


@pytest.mark.parametrize("name", ["slowfast_caffe2", "mmaction2", "tushar_n"])
def test_the_layout_of_an_i3d_file_sets_normalisation_and_sampling(tmp_path, name):
    layout = LAYOUTS[name]
    path = tmp_path / "i3d_r50.pth"
    WRITERS[name](path, published_state(name, weights(layout.config)))
    stream = create_stream("i3d_r50", checkpoint=path, input_size=48)
    assert stream.frames == layout.facts.frames and stream.info["layout"] == name
    torch.testing.assert_close(stream.mean.flatten(), torch.tensor(layout.facts.mean))
    torch.testing.assert_close(stream.std.flatten(), torch.tensor(layout.facts.std))
    clip = frames(1, 8, 48, 48, 3)
    network = load_i3d(path)[0]
    expected = network.features(pixels(clip, stream.mean.flatten(), stream.std.flatten()).transpose(1, 2))
    values = stream(clip).values
    torch.testing.assert_close(values.flatten(1, 2), expected.flatten(2).transpose(1, 2), rtol=1e-3, atol=1e-3)
    if name == "mmaction2":
        assert create_stream("i3d_r50_mmaction2", checkpoint=path).info["layout"] == name
        with pytest.raises(CheckpointError, match="its keys are of the layout 'mmaction2', not 'tushar_n'"):
            create_stream("i3d_r50_tushar_n", checkpoint=path)
