"""Streams keep one contract: the smallest of each family, cut to a block, on frames; every one in shapes and sizes."""

import math
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tcar.streams import pretrained, vjepa2_1
from tcar.streams.catalogue import STREAMS
from tcar.streams.registry import create_stream, list_streams, stream_spec, weights_digest

TIMM = ["timm:resnet18", "timm:vit_tiny_patch16_224", "timm:convnext_atto", "timm:swin_tiny_patch4_window7_224"]
# Pixels at which a stream is cheap; those of one size alone have none.
SIZES = {"dinov2_vit": 42, "dinov3": 48, "i3d_r50": 48, "vjepa2": 32, "timm:resnet": 96, "timm:conv": 64,
         "timm:vit": 48, "timm:swin": 112}  # fmt: skip
SOLE = ("videomae_vitb16", "timesformer_vitb16")
# Published parameters, in millions: of the model cards and papers, but for the classifier and pre-training heads.
PUBLISHED = {
    "dinov2_vits14": 22.1, "dinov2_vitb14": 86.6, "dinov2_vitl14": 304.4, "dinov2_vitg14": 1136.5,
    "dinov2_vits14_reg": 22.1, "dinov2_vitb14_reg": 86.6, "dinov2_vitl14_reg": 304.4, "dinov2_vitg14_reg": 1136.5,
    "dinov3_vits16": 21.6, "dinov3_vits16plus": 28.7, "dinov3_vitb16": 85.7, "dinov3_vitl16": 303.1,
    "dinov3_vith16plus": 840.6, "dinov3_vit7b16": 6716.0, "i3d_r50": 27.2, "i3d_r50_mmaction2": 27.2,
    "i3d_r50_tushar_n": 27.2, "i3d_r50_inflated": 27.2,
    "timesformer_vitb16": 121.3, "videomae_vitb16": 86.2, "vjepa2_vitl16_256": 303.9,
    "vjepa2_vith16_256": 631.6, "vjepa2_vitg16_256": 1012.2, "vjepa2_vitg16_384": 1012.2,
    "vjepa2_1_vitb16_384": 86.8, "vjepa2_1_vitl16_384": 304.7, "vjepa2_1_vitg16_384": 1013.3,
    "vjepa2_1_vitG16_384": 1845.2,
}  # fmt: skip
WIDTHS = {"s": 384, "b": 768, "l": 1024, "h": 1280, "g": 1408, "G": 1664, "7": 4096}


def frames(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def shallow(monkeypatch):
    """Build transformers of one block: what a stream does with frames and tokens does not depend on the depth."""

    whole = pretrained.build

    def build(model_class, config):
        config = deepcopy(config)
        config.num_hidden_layers = 1
        return whole(model_class, config)

    encoder = vjepa2_1.VJepa21Encoder
    monkeypatch.setattr(pretrained, "build", build)
    monkeypatch.setattr(vjepa2_1, "VJepa21Encoder", lambda c: encoder(replace(c, depth=1)))


# The smallest of each family: the others have the same code.
FAMILIES = {STREAMS[name].family: name for name in sorted(STREAMS, key=lambda name: (-STREAMS[name].width, name))}


@pytest.fixture(scope="module", params=[*FAMILIES.values(), *TIMM])
def stream(request):
    """One stream after the other, so that no two large ones are in memory together."""
    size = next((size for start, size in SIZES.items() if request.param.startswith(start)), None)
    with pytest.MonkeyPatch.context() as monkeypatch:
        shallow(monkeypatch)
        return create_stream(request.param, input_size=size)


@pytest.mark.parametrize("shape", [(2, 8, 61, 83, 3), (1, 1, 48, 32, 3), (1, 32, 40, 40, 3)])
def test_shapes_and_coordinates(stream, shape):
    clip = frames(*shape)
    tokens = stream(clip)
    t, h, w = tokens.grid
    assert tokens.values.shape == (shape[0], t, h * w, stream.width)
    assert tokens.coordinates.shape == (t, h * w, 3)
    assert ((tokens.coordinates > 0) & (tokens.coordinates < 1)).all()
    assert tokens.coordinates[:, :, 0].diff(dim=0).min() > 0 if t > 1 else t == 1
    assert tokens.class_token is None or tokens.class_token.shape == (shape[0], t, stream.width)
    assert torch.isfinite(tokens.values.half()).all()  # the feature store keeps half precision


def test_the_same_clip_has_the_same_tokens_in_any_batch_and_as_floats(stream):
    clips = frames(2, 4, 40, 40, 3)
    both, alone = stream(clips).values, stream(clips[1:]).values
    assert torch.equal(alone, stream(clips[1:]).values)
    torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(stream(clips[1:].float() / 255).values, alone, rtol=1e-3, atol=1e-3)


def test_tokens_are_ordered_in_time_and_space(stream):
    """What changes in one corner, late in the clip, changes the tokens there most."""
    clip = frames(1, 16, 64, 64, 3) // 4
    changed = clip.clone()
    changed[:, 8:, 40:, :24] = 255
    before, after = stream(clip), stream(changed)
    change = (after.values - before.values).norm(dim=-1)[0].unflatten(1, before.grid[1:])
    late = change[change.shape[0] // 2 :].mean(dim=0)
    assert late[-1, 0] > late[0, -1]
    if stream.role == "semantic":
        assert change[: len(change) // 2].max() < 1e-3 * change.max()
    elif len(change) > 2:  # fewer steps see the whole clip each
        assert change[-1].mean() > change[0].mean()


def test_frozen_even_inside_a_training_model(stream):
    before = weights_digest(stream)
    nn.Sequential(stream).train()
    assert not any(module.training for module in stream.modules())
    assert not any(parameter.requires_grad for parameter in stream.parameters())
    assert not stream(frames(1, 4, 40, 40, 3)).values.requires_grad
    assert weights_digest(stream) == before  # batch-norm statistics included


def test_saliency_reaches_the_frames_and_no_weight(stream):
    clip = (frames(1, 4, 40, 40, 3).float() / 255).requires_grad_()
    stream(clip).values.square().sum().backward()
    assert clip.grad.abs().sum(dim=(2, 3, 4)).min() > 0
    assert all(parameter.grad is None for parameter in stream.parameters())


@pytest.mark.parametrize(("clip", "message"), [
    (torch.zeros(1, 4, 3, 40, 40), r"\[batch, time, height, width, 3\], got \[1, 4, 3, 40, 40\]"),
    (torch.zeros(4, 40, 40, 3), r"\[batch, time, height, width, 3\]"),
    (torch.zeros(1, 0, 40, 40, 3), r"\[batch, time, height, width, 3\]"),
    (torch.full((1, 4, 40, 40, 3), 255.0), r"must lie in \[0, 1\], got 255 to 255; divide"),
    (torch.full((1, 4, 40, 40, 3), math.nan), r"must lie in \[0, 1\]"),
    (torch.zeros(1, 4, 40, 40, 3, dtype=torch.int64), r"uint8, or float in \[0, 1\]; got torch.int64"),
])  # fmt: skip
def test_frames_it_cannot_mean_are_refused(unchecked, stream, clip, message):
    with pytest.raises(ValueError, match=f"{stream.name}: .*{message}"):
        stream(clip)


@pytest.mark.parametrize("name", sorted(set(list_streams()) - {"dinov2_tiny", "i3d_tiny"}))
def test_the_network_has_the_published_size(monkeypatch, name):
    with torch.device("meta"):
        built = create_stream(name)
    size = name.partition("_vit")[2][:1]
    width = 2048 if name.startswith("i3d") else 1536 if name.startswith("dinov2_vitg") else WIDTHS[size]
    assert built.width == stream_spec(name).width == width
    parameters = sum(parameter.numel() for parameter in built.parameters())
    assert parameters / 1e6 == pytest.approx(PUBLISHED[name], abs=0.06)
    facts = STREAMS[name]
    assert facts.blocks == (len(built.blocks) if built.role == "semantic" else 0)
    shallow(monkeypatch)
    with torch.device("meta"):
        cut = create_stream(name)
    for count in (built.frames, 1, 5):
        tokens = cut(torch.empty(1, count, 90, 120, 3, dtype=torch.uint8, device="meta"))
        assert tokens.values.shape == (1, tokens.grid[0], tokens.grid[1] * tokens.grid[2], width)
        assert tokens.coordinates.shape == (*tokens.values.shape[1:3], 3)
        assert tokens.grid == facts.grid(count)
    assert not any(module.training for module in built.modules())
    assert not any(parameter.requires_grad for parameter in built.parameters())


@pytest.mark.parametrize("name", SOLE)
def test_positions_of_one_size_are_not_stretched(name):
    with torch.device("meta"), pytest.raises(ValueError, match=f"{name} has positions for 224 pixels alone, .* 112"):
        create_stream(name, input_size=112)


@pytest.mark.parametrize(("name", "length"), [("videomae_vitb16", 16), ("timesformer_vitb16", 8)])
def test_clips_of_another_length_than_the_model_has_positions_for(monkeypatch, name, length):
    shallow(monkeypatch)
    built, clip = create_stream(name), frames(1, 2 * length, 40, 40, 3)
    both = built(clip).values
    parts = [built(part).values for part in clip.split(length, dim=1)]
    torch.testing.assert_close(both, torch.cat(parts, dim=1), rtol=1e-3, atol=1e-3)
    repeated = clip[:, : length // 4].repeat_interleave(4, dim=1)
    torch.testing.assert_close(built(clip[:, : length // 4]).values, built(repeated).values)
    with pytest.raises(ValueError, match=f"{name} reads {length} frames at a time, got {length + 1}: give a multiple"):
        built(clip[:, : length + 1])
