"""From tokens to patches: against the library's own maps of attention, multiplied out over all tokens."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import transformers
from fusions import SMALL

from tcar.explain.attention import attention_rollout
from tcar.explain.backbone import backbone_rollout, pixel_rollout, spread
from tcar.explain.errors import ExplanationError
from tcar.models.tca import TCA
from tcar.streams import image, video, vjepa2_1
from tcar.streams.grids import Tokens, grid_coordinates, pool_tokens
from tcar.streams.registry import create_stream, stream_spec

SHAPE = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
KINDS = {  # stream whose specification it takes: its class, model and configuration, and the pixels of a side
    "dinov2_vits14": (image.FrameStream, "Dinov2Model", {"patch_size": 14, "mlp_ratio": 2}, 42),
    "dinov2_vits14_reg": (image.FrameStream, "Dinov2WithRegistersModel", {"patch_size": 14, "mlp_ratio": 2}, 42),
    "dinov3_vits16": (image.FrameStream, "DINOv3ViTModel", {"num_register_tokens": 4}, 48),
    "videomae_vitb16": (video.VideoMAEStream, "VideoMAEModel", {"image_size": 48, "num_frames": 4}, 48),
    "vjepa2_vitl16_256": (video.VJepa2Stream, "VJEPA2Model", {"crop_size": 48, "mlp_ratio": 2.0}, 48),
    "timesformer_vitb16": (video.TimesformerStream, "TimesformerModel", {"image_size": 48, "num_frames": 4}, 48),
}


def small(name: str):
    """A stream of a few narrow layers whose attention is far from even."""
    stream_class, model, changes, size = KINDS[name]
    config = getattr(transformers, model).config_class(**SHAPE | changes)
    torch.manual_seed(0)
    backbone = getattr(transformers, model)(config)
    backbone = backbone.encoder if model == "VJEPA2Model" else backbone
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.15)
    return stream_class(backbone, replace(stream_spec(name), width=24, input_size=size))


def clip(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def multiplied(layers: list[np.ndarray], patches: int) -> np.ndarray:
    """Rollout of [head token token] layers, first to last: rows and columns of the patches, which come last."""
    made = np.eye(layers[0].shape[-1])
    for layer in layers:
        made = (sum(layer) / len(layer) + np.eye(len(made))) / 2 @ made
    rows = made[-patches:, -patches:]
    return rows / rows.sum(axis=1, keepdims=True)


def attentions(stream, frames: torch.Tensor) -> list[np.ndarray]:
    """The library's own maps of one sequence, from its plain attention."""
    if isinstance(stream, video.VJepa2Stream):
        config, given = stream.backbone.config, {}
    else:
        config, given = stream.backbone.config, {"output_attentions": True}
    found, before = [], config._attn_implementation
    hooks = [m.register_forward_hook(lambda _m, _i, out: found.append(out[1][0].numpy()))
             for m in stream.backbone.modules() if type(m).__name__ == "VJEPA2RopeAttention"]  # fmt: skip
    config._attn_implementation = "eager"
    with torch.no_grad():
        images = stream._prepare(frames)[0]
        output = stream.backbone(images if isinstance(stream, image.FrameStream) else images[None], **given)
    config._attn_implementation = before
    for hook in hooks:
        hook.remove()
    return found or [layer[0].numpy() for layer in output.attentions]


@pytest.mark.parametrize("name", [name for name in KINDS if not name.startswith("timesformer")])
def test_rollout_is_the_product_of_the_library_s_maps(name):
    stream, frames = small(name), clip(2, 4, 60, 60, 3)
    found = backbone_rollout(stream, frames)
    by_frame = isinstance(stream, image.FrameStream)
    assert found.shape == ((2, 4, 9, 9) if by_frame else (2, 2, 9, 18))
    for i in range(2):
        if by_frame:
            expected = [multiplied(attentions(stream, frames[i : i + 1, t : t + 1]), 9) for t in range(4)]
        else:
            expected = multiplied(attentions(stream, frames[i : i + 1]), 18).reshape(2, 9, 18)
        np.testing.assert_allclose(found[i], expected, atol=1e-5)
    assert found.std(dim=-1).max() > 0.01


def test_timesformer_reads_over_time_then_over_the_frame():
    """Every step a matrix over the class token and all patches, entry by entry, from the layers' own projections."""
    stream, frames = small("timesformer_vitb16"), clip(1, 4, 48, 48, 3)
    found, given = backbone_rollout(stream, frames)[0], []
    hooks = [
        part.attention.register_forward_hook(lambda m, i, _o: given.append((m, i[0])))
        for layer in stream.backbone.encoder.layer
        for part in (layer.temporal_attention, layer.attention)
    ]
    stream(frames)
    for hook in hooks:
        hook.remove()
    made = np.eye(37)  # the class token, then patch p at time t at 1 + 4 p + t
    for index, (module, x) in enumerate(given):
        query, key, _ = module.qkv(x).detach().unflatten(-1, (3, 2, 12)).unbind(2)
        weights = (torch.einsum("snhc,smhc->shnm", query, key) / 12**0.5).softmax(dim=-1).mean(dim=1).numpy()
        step = np.eye(37) / 2
        if index % 2 == 0:
            assert weights.shape == (9, 4, 4)
            step[0, 0] = 1  # the class token takes no part
            for p in range(9):
                for t in range(4):
                    for u in range(4):
                        step[1 + 4 * p + t, 1 + 4 * p + u] += weights[p, t, u] / 2
        else:
            assert weights.shape == (4, 10, 10)
            for t in range(4):
                rows = [0, *(1 + 4 * p + t for p in range(9))]
                for i, row in enumerate(rows):
                    for j, column in enumerate(rows):
                        step[row, column] += weights[t, i, j] / 2 / (4 if i == 0 else 1)
        made = step @ made
    order = [1 + 4 * p + t for t in range(4) for p in range(9)]
    expected = made[np.ix_(order, order)]
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.reshape(36, 36), expected, atol=1e-5)


@pytest.mark.parametrize("name", [*KINDS, "dinov2_tiny", "timm:vit_tiny_patch16_224"])
def test_the_stream_gives_the_same_tokens_and_is_left_as_it_was(name):
    size = {"input_size": 48} if name.startswith("timm") else {}
    stream, frames = small(name) if name in KINDS else create_stream(name, **size), clip(1, 4, 48, 48, 3)
    tokens, seen = stream(frames).values, []
    kept = {m: (len(m._forward_hooks), len(m._forward_pre_hooks)) for m in stream.modules()}
    plain = stream._tokens
    stream._tokens = lambda *given: seen.append(plain(*given)) or seen[-1]
    found = backbone_rollout(stream, frames)
    del stream._tokens
    torch.testing.assert_close(torch.cat([part.values for part in seen], dim=1), tokens, atol=1e-5, rtol=0)
    assert torch.equal(stream(frames).values, tokens)
    assert {m: (len(m._forward_hooks), len(m._forward_pre_hooks)) for m in stream.modules()} == kept
    assert found.shape[1:3] == tokens.shape[1:3]
    torch.testing.assert_close(found.sum(dim=3), torch.ones(found.shape[:3]))
    assert (found > 0).all()


def test_a_frame_at_a_time_is_read(monkeypatch):
    stream, sizes = small("dinov2_vits14"), []
    stream.backbone.register_forward_pre_hook(lambda _m, inputs: sizes.append(len(inputs[0])))
    backbone_rollout(stream, clip(2, 5, 42, 42, 3))
    assert sizes == [1] * 10


def test_clips_of_another_length_than_the_network_s():
    """Two clips one after the other have no patches of each other; a short one shows its frames twice."""
    stream, frames = small("videomae_vitb16"), clip(1, 8, 48, 48, 3)
    found = backbone_rollout(stream, frames)
    assert found.shape == (1, 4, 9, 36)
    torch.testing.assert_close(found[:, 2:, :, 18:], backbone_rollout(stream, frames[:, 4:]))
    assert found[:, :2, :, 18:].abs().max() == found[:, 2:, :, :18].abs().max() == 0
    assert backbone_rollout(stream, frames[:, :2]).shape == (1, 2, 9, 18)
    encoder = vjepa2_1.VJepa21Encoder(vjepa2_1.VJepa21Config(width=24, depth=2, heads=2, hidden=32))
    spec = replace(stream_spec("vjepa2_1_vitb16_384"), width=24, input_size=48)
    assert backbone_rollout(video.VJepa21Stream(encoder, spec), frames[:, :3]).shape == (1, 2, 9, 18)


def test_a_stream_without_attention_is_refused_with_those_that_have_it():
    for name, size in (("i3d_tiny", None), ("timm:resnet18", 64), ("timm:swin_tiny_patch4_window7_224", 224)):
        with pytest.raises(ExplanationError, match=f"{name} has no attention.*dinov2_.*timesformer_"):
            backbone_rollout(create_stream(name, input_size=size), clip(1, 8, 32, 32, 3))
    stream = create_stream("timm:vit_tiny_patch16_224", input_size=48)
    for block in stream.blocks:
        block.attn.fused_attn = False
    with pytest.raises(ExplanationError, match="has 12 layers but 0 calls"):
        backbone_rollout(stream, clip(1, 1, 32, 32, 3))


@pytest.mark.parametrize("grid", [(4, 6, 8), (5, 7, 9), (2, 3, 3)])
def test_pooling_is_reversed_by_its_own_gradient(grid):
    pooled = clip(2, 2, 3, 3)
    values = torch.zeros(2, grid[0], grid[1] * grid[2], 1, requires_grad=True)
    cells = pool_tokens(Tokens(values, grid_coordinates(grid), None, grid), (2, 3, 3)).values
    (slope,) = torch.autograd.grad((cells[..., 0] * pooled.flatten(2)).sum(), values)
    found = spread(pooled, grid)
    torch.testing.assert_close(found.flatten(2), slope[..., 0])
    torch.testing.assert_close(found.sum(dim=(1, 2, 3)), pooled.sum(dim=(1, 2, 3)))


def model(fit: str = "squash", **changes) -> TCA:
    torch.manual_seed(0)
    config = tiny.config(replace(SMALL, **changes), tuple("abcde"), {"semantic": 4, "motion": 8})
    semantic = create_stream("dinov2_tiny", pretrained=True, fit=fit)
    return TCA(config, semantic, create_stream("i3d_tiny")).eval()


def test_pixel_rollout_reaches_the_patches_and_keeps_what_the_fusion_gave():
    both, frames = model(), clip(2, 8, 48, 64, 3)
    found = pixel_rollout(both, frames)
    record = both(frames, return_intermediates=True)[1]
    pooled = attention_rollout(record, tiny.GRIDS)
    assert found["semantic"].shape == (2, 4, 8, 8)
    torch.testing.assert_close(found["motion"], pooled["motion"])  # I3D has no attention
    torch.testing.assert_close(found["semantic"].sum(dim=(1, 2, 3)), pooled["semantic"].sum(dim=(1, 2, 3)))
    made = backbone_rollout(both.semantic, both.pick(frames)[0])
    expected = torch.zeros(8, 8)
    for row in range(8):
        for column in range(8):
            share = pooled["semantic"][1, 2, row // 4, column // 4] / 16
            expected += share * made[1, 2, 8 * row + column].unflatten(0, (8, 8))
    torch.testing.assert_close(found["semantic"][1, 2], expected)
    pair = pixel_rollout(both, both.pick(frames))
    torch.testing.assert_close(pair["semantic"], found["semantic"])


def test_pixel_rollout_of_a_clip_stream_spreads_over_all_moments():
    config = tiny.config(replace(SMALL, kind="motion"), tuple("abcde"), {"semantic": 4, "motion": 16})
    fusion = replace(config.fusion, motion_width=24)
    stream, frames = small("videomae_vitb16"), clip(1, 16, 48, 48, 3)
    torch.manual_seed(0)
    config = replace(config, motion="videomae_vitb16", fusion=fusion)
    both = TCA(config, create_stream("dinov2_tiny"), stream).eval()
    found = pixel_rollout(both, frames)
    assert set(found) == {"motion"}
    pooled = attention_rollout(both(frames, return_intermediates=True)[1], {"motion": (2, 2, 2)})["motion"]
    made = backbone_rollout(stream, frames)
    expected = spread(pooled, (8, 3, 3)).flatten() @ made[0].flatten(0, 1)
    torch.testing.assert_close(found["motion"][0], expected.unflatten(0, (8, 3, 3)))


def test_a_crop_leaves_the_sides_of_a_frame_empty():
    found = pixel_rollout(model(fit="crop"), clip(1, 8, 48, 96, 3))["semantic"]
    assert found.shape == (1, 4, 8, 16)
    assert found[..., :4].abs().max() == found[..., 12:].abs().max() == 0
    whole = pixel_rollout(model(), clip(1, 8, 48, 96, 3)[:, :, :, 24:72])["semantic"]
    torch.testing.assert_close(found[..., 4:12], whole, atol=2e-3, rtol=0)


def test_a_model_that_cannot_be_followed_is_refused():
    with pytest.raises(ExplanationError, match="late_concat_raw has no attention"):
        pixel_rollout(model(kind="late_concat_raw"), clip(1, 8, 48, 48, 3))
    with pytest.raises(ExplanationError, match="eval"):
        pixel_rollout(model().train(), clip(1, 8, 48, 48, 3))
