"""CAST agrees with a slow one, starts as its experts are, and has the published size."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers  # lazily: tcar repairs torchvision before its models need it
from cast_reference import BATCH, MEAN, MINI, MOMENTS, PLACES, SIDE, STD, Slow, agree, clips, disturb, tokens
from PIL import Image
from scipy.special import erf
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tcar.models.cast import CAST, CASTConfig
from tcar.models.cast_blocks import Block, initialise


@pytest.fixture(scope="module")
def fresh() -> CAST:
    return CAST(MINI).eval()


@pytest.fixture(scope="module")
def model() -> CAST:
    return disturb(CAST(MINI).double()).eval()


@pytest.fixture(scope="module")
def full() -> CAST:
    with torch.device("meta"):
        return CAST(num_classes=174)


# --- the published size


def test_the_published_size_to_the_parameter(full):
    trained = {name: p.numel() for name, p in full.named_parameters() if p.requires_grad}
    assert (len(trained), sum(trained.values())) == (542, 45_205_038)
    assert sum(p.numel() for p in full.parameters()) == 217_228_590
    assert sum(p.numel() for p in full.parameters() if not p.requires_grad) == 172_023_552

    def part(*words):
        return sum(n for name, n in trained.items() if all(word in name for word in words))

    assert part("blocks", "exchange") == 30_274_560
    assert part("blocks", "adapter") == 14_201_856
    assert part("head", "adapter") == 591_744
    assert part("head", "norm.spatial") == part("head", "norm.temporal") == 1_536
    assert part("head", "classifier") == 133_806


def test_the_published_cost_and_token_counts(full):
    frames = torch.empty(1, 16, 224, 224, 3, dtype=torch.uint8, device="meta")
    with FlopCounterMode(display=False) as counter:
        logits, steps = full(frames, return_intermediates=True)
    assert counter.get_total_flops() / 2 == pytest.approx(390.5e9, rel=0.001)
    assert logits.shape == (1, 174)
    assert steps["spatial"].shape == (1, 8, 197, 768)
    assert steps["temporal"].shape == (1, 8, 196, 768)
    assert steps["block11.spatial_from_temporal.weights"].shape == (1, 196, 12, 8, 8)
    assert steps["block11.temporal_from_spatial.weights"].shape == (1, 8, 12, 196, 196)


def test_the_experts_are_built_as_described(full):
    eps = {name: m.eps for name, m in full.named_modules() if isinstance(m, nn.LayerNorm)}
    for name, value in eps.items():
        assert value == (1e-5 if name.startswith("clip.") or name == "head.norm.spatial" else 1e-6), name
    assert len(eps) == 1 + 12 * 2 + 12 * 2 + 12 * 2 + 2
    for layer in full.clip.encoder.layers:
        assert layer.mlp.activation_fn(torch.tensor(1.0)).item() == pytest.approx(1 / (1 + math.exp(-1.702)))
    for layer in full.videomae.encoder.layer:
        found = layer.intermediate.intermediate_act_fn(torch.tensor(1.0)).item()
        assert found == pytest.approx((1 + erf(0.5**0.5)) / 2, abs=1e-6)
        attention = layer.attention.attention
        assert [x.bias is None for x in (attention.query, attention.key, attention.value)] == [False, True, False]
    assert full.clip.embeddings.patch_embedding.bias is None
    assert full.clip.config._attn_implementation == full.videomae.config._attn_implementation == "sdpa"


def test_the_drop_path_rises_from_nothing_to_its_rate(full):
    assert [block.residual.drop_path for block in full.blocks] == pytest.approx(np.linspace(0, 0.3, 12).tolist())


# --- the same in loops, numpy and float64


@pytest.mark.parametrize("part", ["attend", "exchange", "feed_forward"])
def test_each_part_of_a_block_agrees_with_the_slow_one(model, part):
    slow, (s, t) = Slow(model), tokens()
    layers = model.clip.encoder.layers[1], model.videomae.encoder.layer[1]
    given = () if part == "exchange" else layers
    found = getattr(model.blocks[1], part)(*given, s, t)
    agree(found, [getattr(slow, part)(1, s[b].numpy(), t[b].numpy()) for b in range(BATCH)])


@pytest.mark.parametrize("adapter", ["blocks.1.attention_adapter.temporal", "blocks.0.feed_forward_adapter.spatial"])
def test_an_adapter_agrees_with_the_slow_one(model, adapter):
    x = tokens()[0]
    slow = Slow(model).adapter(x.numpy(), adapter) + ("attention" in adapter) * x.numpy()
    np.testing.assert_allclose(model.get_submodule(adapter)(x).detach().numpy(), slow, atol=1e-12)


def test_the_head_agrees_with_the_slow_one(model):
    slow, (s, t) = Slow(model), tokens()
    agree([model.head(s, t)], [[slow.head(s[b].numpy(), t[b].numpy())] for b in range(BATCH)])


def test_the_whole_agrees_with_the_slow_one_from_bytes_to_logits_and_weights(model):
    # The library keeps VideoMAE's positions in single precision.
    slow, frames = [Slow(model) for _ in range(BATCH)], clips()
    wanted = [one.forward(frames[b].double().numpy()) for b, one in enumerate(slow)]
    logits, steps = model(frames, return_intermediates=True)
    agree([steps["spatial"], steps["temporal"], logits], wanted, atol=1e-5)
    weights = {name for name in steps if name.endswith(".weights")}
    assert weights == slow[0].weights.keys()
    assert steps["readout"].shape == (BATCH, 24)
    for name in weights:
        agree([steps[name]], [[one.weights[name]] for one in slow], atol=1e-5)


def test_the_fast_path_agrees_with_the_one_that_keeps_weights(model):
    torch.testing.assert_close(model(clips()), model(clips(), return_intermediates=True)[0], atol=1e-10, rtol=1e-10)


# --- a fresh model


def test_a_fresh_model_leaves_both_experts_as_transformers_has_them(fresh):
    shape = {
        "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96,
        "image_size": SIDE, "patch_size": 16,
    }  # fmt: skip
    clip = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**shape))
    videomae = transformers.VideoMAEModel(transformers.VideoMAEConfig(**shape, num_frames=4, layer_norm_eps=1e-6))
    norm = {f"post_layernorm.{key}": value for key, value in fresh.head.norm["spatial"].state_dict().items()}
    clip.load_state_dict(fresh.clip.state_dict() | norm)
    videomae.load_state_dict(fresh.videomae.state_dict())
    frames = clips()
    pixels = ((frames / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).float().movedim(-1, 2)
    with torch.no_grad():
        _, steps = fresh(frames, return_intermediates=True)
        images = clip(pixels[:, [1, 3]].flatten(0, 1))
        torch.testing.assert_close(steps["spatial"].flatten(0, 1), images.last_hidden_state)
        temporal = videomae(pixels).last_hidden_state
        torch.testing.assert_close(steps["temporal"].flatten(1, 2), temporal)


def test_the_logits_of_a_fresh_head_are_its_bias():
    model = CAST(MINI)
    bias = torch.arange(5.0)
    model.head.classifier.bias.data.copy_(bias)
    assert torch.equal(model(clips()), bias.expand(BATCH, 5))


def test_what_is_new_starts_as_published():
    torch.manual_seed(0)
    block = Block(CASTConfig())
    initialise(block)
    exchange = block.exchange
    for linear in (exchange.over_time.query, exchange.over_space.key_value, exchange.down["spatial"]):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert not linear.bias.any()
    adapters = [*block.attention_adapter.values(), *block.feed_forward_adapter.values()]
    for up in (*exchange.up.values(), *(adapter.up for adapter in adapters)):
        assert not up.weight.any() and not up.bias.any()
    assert all(adapter.down.weight.any() for adapter in adapters)
    for table in (exchange.over_space.query_position, exchange.over_space.key_position):
        assert table.shape == (196, 384)
        assert table.var().item() == pytest.approx(1 / 32, rel=0.03)
    assert exchange.over_time.query_position.shape == (8, 384)


def test_a_seed_gives_all_weights_and_takes_nothing_from_the_global_generator():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (CAST(MINI, seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[key], same[key]) for key in one)
    for key in ("clip.encoder.layers.0.mlp.fc1.weight", "videomae.encoder.layer.0.output.dense.weight",
                "blocks.0.exchange.down.spatial.weight"):  # fmt: skip
        assert not torch.equal(one[key], other[key])


# --- frames


def test_float_frames_mean_the_same_as_bytes_and_clips_do_not_mix(model):
    frames = clips()
    both = model(frames)
    torch.testing.assert_close(model(frames.double() / 255), both, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(model(frames[1:]), both[1:], atol=1e-9, rtol=1e-9)


def test_frames_of_another_size_are_squashed_as_pillow_would(fresh):
    frames = clips(batch=1, side=80)[:, :, :60]

    def squashed(filter_: Image.Resampling) -> torch.Tensor:
        images = [Image.fromarray(frame.numpy()).resize((SIDE, SIDE), filter_) for frame in frames[0]]
        return torch.from_numpy(np.stack([np.asarray(image) for image in images]))[None]

    found = fresh.embed(frames)
    for filter_, same in ((Image.Resampling.BILINEAR, True), (Image.Resampling.BOX, False)):
        for got, expected in zip(found, fresh.embed(squashed(filter_)), strict=True):
            # Pillow rounds to bytes; another filter is an order of magnitude away.
            assert ((got - expected).norm() < 0.02 * expected.norm()) == same


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(1, 8, 32, 32, 3), r"\[batch, 4, .*got \[1, 8, 32, 32, 3\]; sample 4 frames .*CASTConfig.frames"),
        (torch.zeros(1, 4, 3, 32, 32), r"\[batch, 4, height, width, 3\], got \[1, 4, 3, 32, 32\]"),
        (torch.zeros(4, 32, 32, 3), r"\[batch, 4, height, width, 3\]"),
        (torch.zeros(0, 4, 32, 32, 3), r"\[batch, 4, height, width, 3\]"),
        (torch.full((1, 4, 32, 32, 3), 255.0), r"must lie in \[0, 1\], got 255 to 255; divide"),
        (torch.full((1, 4, 32, 32, 3), math.nan), r"must lie in \[0, 1\]"),
        (torch.zeros(1, 4, 32, 32, 3, dtype=torch.int64), r"uint8, or float in \[0, 1\]; got torch.int64"),
    ],
)
def test_frames_it_cannot_mean_are_refused(unchecked, fresh, frames, message):
    with pytest.raises(ValueError, match=message):
        fresh(frames)


# --- configurations


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 5}, "frames 5 is not a multiple of tubelet 2"),
        ({"image_size": 40}, "image_size 40 is not a multiple of patch_size 16"),
        ({"width": 25}, "width 25 is not a multiple of heads 3"),
        ({"cross_width": 13}, "cross_width 13 is not a multiple of heads 3"),
        ({"adapter_width": 0}, "adapter_width must be a whole number of at least 1, got 0"),
        ({"drop_path": 1.0}, r"drop_path must lie in \[0, 1\)"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=f"CASTConfig.{message}"):
        replace(MINI, **change)


def test_classes_are_given_once():
    with pytest.raises(ValueError, match="a config or num_classes, not both"):
        CAST(MINI, num_classes=5)


def test_the_exchange_reads_both_streams_as_they_were(model):
    """Time at one place and space at one moment: what a token is given depends on nothing else."""
    s, t = (x.requires_grad_() for x in tokens())
    to_s, to_t = model.blocks[0].exchange(s, t)
    by_s, by_t = torch.autograd.grad(to_s[0, 0, 1 + 2].sum(), (s, t), retain_graph=True)
    assert by_s[0].abs().sum(-1).nonzero().tolist() == [[0, 3]]
    assert by_t[0].abs().sum(-1).nonzero().tolist() == [[moment, 2] for moment in range(MOMENTS)]
    by_s, by_t = torch.autograd.grad(to_t[0, 1, 2].sum(), (s, t), retain_graph=True)
    assert by_s[0].abs().sum(-1).nonzero().tolist() == [[1, 1 + place] for place in range(PLACES)]
    assert by_t[0].abs().sum(-1).nonzero().tolist() == [[1, 2]]
    by_s, by_t = torch.autograd.grad(to_s[0, :, 0].sum(), (s, t))
    assert by_s[0].abs().sum(-1).nonzero().tolist() == [[moment, 0] for moment in range(MOMENTS)]
    assert not by_t.any()
