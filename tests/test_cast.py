"""CAST against a slow rewrite in loops, against transformers' own experts, and against its published size."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers  # lazily: tcar repairs torchvision before its models need it
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.special import erf
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tcar.models.cast import CAST, CASTConfig, cast_parameter_groups
from tcar.models.cast_blocks import Block, initialise
from tcar.models.checkpoints import CheckpointError

MINI = CASTConfig(
    num_classes=5, frames=4, image_size=32, width=24, depth=2, heads=3, adapter_width=5, cross_width=12, drop_path=0.5
)
BATCH, MOMENTS, PLACES, SIDE = 2, 2, 4, 32
STREAMS = ("spatial", "temporal")
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
DEAD = "blocks.1.exchange.over_time."  # the last block's patches are read by nothing


def clips(seed=0, batch=BATCH, side=SIDE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 4, side, side, 3), dtype=torch.uint8, generator=generator)


def disturb(model: nn.Module, seed=1) -> nn.Module:
    """Move every weight from where it starts, so that zeros, ones and missing biases hide nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


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


class Slow:
    """CAST for one clip, place by place and moment by moment, from nothing but a state dict."""

    def __init__(self, model: CAST):
        self.w = {key: value.double().numpy() for key, value in model.state_dict().items()}
        self.heads = model.config.heads
        self.weights = {}

    def linear(self, x, key):
        return x @ self.w[f"{key}.weight"].T + self.w.get(f"{key}.bias", 0)

    def norm(self, x, key, eps):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * self.w[f"{key}.weight"] + self.w[f"{key}.bias"]

    def gelu(self, x):
        return x * (1 + erf(x / 2**0.5)) / 2

    def adapter(self, x, key):
        return self.linear(self.gelu(self.linear(x, f"{key}.down")), f"{key}.up")

    def read(self, q, k, v):
        """Attention of a list of queries over a list of keys, and its weights [h q k]."""
        out, size = np.zeros_like(q), q.shape[1] // self.heads
        weights = np.zeros((self.heads, len(q), len(k)))
        for head in range(self.heads):
            cut = slice(head * size, (head + 1) * size)
            for i in range(len(q)):
                scores = np.array([q[i, cut] @ k[j, cut] / size**0.5 for j in range(len(k))])
                weights[head, i] = np.exp(scores) / np.exp(scores).sum()
                out[i, cut] = sum(weights[head, i, j] * v[j, cut] for j in range(len(k)))
        return out, weights

    def cross(self, x, source, key):
        queries = self.linear(x + self.w[f"{key}.query_position"], f"{key}.query")
        both = self.linear(source + self.w[f"{key}.key_position"], f"{key}.key_value")
        half = both.shape[1] // 2
        out, weights = self.read(queries, both[:, :half], both[:, half:])
        return self.linear(out, f"{key}.out"), weights

    def attend(self, i, s, t):
        """Self-attention with adapters behind it; s is [moments, 1 + places, d], t [moments, places, d]."""
        clip, mae = f"clip.encoder.layers.{i}", f"videomae.encoder.layer.{i}"
        after = s.copy()
        for moment in range(len(s)):
            h = self.norm(s[moment], f"{clip}.layer_norm1", 1e-5)
            q, k, v = (self.linear(h, f"{clip}.self_attn.{x}_proj") for x in "qkv")
            h = self.linear(self.read(q, k, v)[0], f"{clip}.self_attn.out_proj")
            after[moment] += h + self.adapter(h, f"blocks.{i}.attention_adapter.spatial")
        flat = t.reshape(-1, t.shape[-1])
        h = self.norm(flat, f"{mae}.layernorm_before", 1e-6)
        q, k, v = (self.linear(h, f"{mae}.attention.attention.{x}") for x in ("query", "key", "value"))
        h = self.linear(self.read(q, k, v)[0], f"{mae}.attention.output.dense")
        return after, (flat + h + self.adapter(h, f"blocks.{i}.attention_adapter.temporal")).reshape(t.shape)

    def exchange(self, i, s, t):
        """What the exchange adds to both streams."""
        key = f"blocks.{i}.exchange"
        s, t = (
            self.norm(self.linear(x, f"{key}.down.{name}"), f"{key}.norm.{name}", 1e-6)
            for name, x in (("spatial", s), ("temporal", t))
        )
        to_s, to_t = s.copy(), t.copy()
        over_time, over_space = [], []
        for place in range(t.shape[1]):
            to_s[:, 1 + place], weights = self.cross(s[:, 1 + place], t[:, place], f"{key}.over_time")
            over_time.append(weights)
        for moment in range(len(t)):
            to_t[moment], weights = self.cross(t[moment], s[moment, 1:], f"{key}.over_space")
            over_space.append(weights)
        self.weights[f"block{i}.spatial_from_temporal.weights"] = np.stack(over_time)
        self.weights[f"block{i}.temporal_from_spatial.weights"] = np.stack(over_space)
        return self.linear(self.gelu(to_s), f"{key}.up.spatial"), self.linear(self.gelu(to_t), f"{key}.up.temporal")

    def feed_forward(self, i, s, t):
        clip, mae, adapter = (
            f"clip.encoder.layers.{i}", f"videomae.encoder.layer.{i}", f"blocks.{i}.feed_forward_adapter",
        )  # fmt: skip
        h = self.norm(s, f"{clip}.layer_norm2", 1e-5)
        inner = self.linear(h, f"{clip}.mlp.fc1")
        inner = inner / (1 + np.exp(-1.702 * inner))
        s = s + self.linear(inner, f"{clip}.mlp.fc2") + 0.5 * self.adapter(h, f"{adapter}.spatial")
        h = self.norm(t, f"{mae}.layernorm_after", 1e-6)
        inner = self.gelu(self.linear(h, f"{mae}.intermediate.dense"))
        return s, t + self.linear(inner, f"{mae}.output.dense") + 0.5 * self.adapter(h, f"{adapter}.temporal")

    def embed(self, frames):
        """Patch by patch, from bytes [frames, side, side, 3]."""
        pixels, patch = (frames / 255 - MEAN) / STD, 16
        rows = [(y, x) for y in range(0, SIDE, patch) for x in range(0, SIDE, patch)]
        positions = self.w["clip.embeddings.position_embedding.weight"]
        kernel = self.w["clip.embeddings.patch_embedding.weight"]
        mae = "videomae.embeddings.patch_embeddings.projection"
        s, t = [], []
        for moment in range(MOMENTS):
            image = pixels[2 * moment + 1]
            tokens = [self.w["clip.embeddings.class_embedding"] + positions[0]]
            for n, (y, x) in enumerate(rows):
                cut = image[y : y + patch, x : x + patch]
                tokens.append(np.einsum("dcyx,yxc->d", kernel, cut) + positions[1 + n])
                tube = pixels[2 * moment : 2 * moment + 2, y : y + patch, x : x + patch]
                token = np.einsum("dctyx,tyxc->d", self.w[f"{mae}.weight"], tube) + self.w[f"{mae}.bias"]
                index, width = moment * len(rows) + n, len(token)
                angles = np.array([index / 10000 ** (2 * (j // 2) / width) for j in range(width)])
                t.append(token + np.where(np.arange(width) % 2, np.cos(angles), np.sin(angles)))
            s.append(self.norm(np.stack(tokens), "clip.pre_layrnorm", 1e-5))
        return np.stack(s), np.stack(t).reshape(MOMENTS, len(rows), -1)

    def head(self, s, t):
        s = self.norm(sum(s[moment, 0] for moment in range(len(s))) / len(s), "head.norm.spatial", 1e-5)
        t = self.norm(t.reshape(-1, t.shape[-1]).mean(0), "head.norm.temporal", 1e-6)
        readout = self.adapter(s, "head.adapter.spatial") + self.adapter(t, "head.adapter.temporal")
        return self.linear(readout, "head.classifier")

    def forward(self, frames):
        s, t = self.embed(frames)
        for i in range(2):
            s, t = self.attend(i, s, t)
            to_s, to_t = self.exchange(i, s, t)
            s, t = self.feed_forward(i, s + to_s, t + to_t)
        return s, t, self.head(s, t)


def tokens(seed=2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = (BATCH, MOMENTS, 1 + PLACES, 24), (BATCH, MOMENTS, PLACES, 24)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


def agree(found, slow, atol=1e-10):
    """Compare a batch with the slow results of its clips."""
    for got, wanted in zip(found, zip(*slow, strict=True), strict=True):
        np.testing.assert_allclose(got.detach().numpy(), np.stack(wanted), atol=atol, rtol=0)


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


# --- training


def gradients(model, frames, seed=7):
    torch.manual_seed(seed)
    model.zero_grad()
    model(frames).square().sum().backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def test_gradients_reach_all_that_is_trained_and_nothing_frozen():
    model = disturb(CAST(MINI))
    found = gradients(model.eval(), clips())
    frozen = {name for name in found if name.startswith(("clip.", "videomae."))}
    assert {name for name, gradient in found.items() if gradient is None} == frozen
    still = {name for name in found.keys() - frozen if not found[name].abs().sum() > 0}
    assert still == {name for name in found if name.startswith(DEAD)}
    assert len(still) == 8


def test_the_experts_never_leave_evaluation_mode():
    model = CAST(MINI).train()
    assert model.training and model.blocks.training
    assert not any(m.training for expert in (model.clip, model.videomae) for m in expert.modules())
    assert not model.eval().blocks.training


def test_checkpointing_changes_no_gradient():
    plain, spared = (disturb(CAST(MINI, checkpointing=c)).train() for c in (False, True))
    frames = clips(batch=4)
    wanted, found = gradients(plain, frames), gradients(spared, frames)
    assert any(gradient is not None and gradient.any() for gradient in wanted.values())
    for name, gradient in wanted.items():
        assert (gradient is None and found[name] is None) or torch.equal(gradient, found[name]), name
    other = gradients(plain, frames, seed=8)
    name = "blocks.1.exchange.up.temporal.weight"
    assert not torch.equal(other[name], wanted[name])  # drop-path was on


def test_checkpointing_runs_a_block_anew_for_its_backward():
    model, runs = CAST(MINI, checkpointing=True), []
    # Of the second run, only what the backward needs is done: it begins, but need not reach the end of the block.
    model.blocks[0].register_forward_pre_hook(lambda *_: runs.append(1))
    model(clips()).sum().backward()
    assert len(runs) == 2
    with torch.no_grad():
        model(clips())
    assert len(runs) == 3


def test_drop_path_leaves_out_whole_clips_and_is_true_on_average(model):
    block, count = model.blocks[1], 400
    layers = model.clip.encoder.layers[1], model.videomae.encoder.layer[1]
    one = tokens()
    many = [x[:1].expand(count, -1, -1, -1) for x in one]
    branches, alone = [], []
    for s, layer_norm in zip(STREAMS, (layers[0].layer_norm2, layers[1].layernorm_after), strict=True):
        x = one[STREAMS.index(s)][0]
        branches.append(block.feed_forward_adapter[s](layer_norm(x)) / 2)
    whole = block.feed_forward(*layers, *(x[:1] for x in one))
    alone = [after[0] - branch for after, branch in zip(whole, branches, strict=True)]
    torch.manual_seed(0)
    block.train()
    try:
        found = block.feed_forward(*layers, *many)
    finally:
        block.eval()
    kept = []
    for after, trunk, branch in zip(found, alone, branches, strict=True):
        factor = ((after - trunk) / branch).flatten(1)
        torch.testing.assert_close(factor, factor[:, :1].expand_as(factor), atol=1e-6, rtol=0)
        kept.append(factor[:, 0].round(decimals=6))
        assert set(kept[-1].tolist()) == {0.0, 2.0}
        assert kept[-1].mean().item() == pytest.approx(1, abs=0.2)
    assert not torch.equal(*kept)


def test_autocast_stays_near_full_precision_and_trains():
    model = disturb(CAST(MINI)).eval()
    frames = clips(batch=4)
    with torch.no_grad():
        whole = model(frames)
        with torch.autocast("cpu", torch.bfloat16):
            half, steps = model(frames, return_intermediates=True)
    assert steps["spatial"].dtype == torch.float32  # the residual keeps full precision
    assert (half.float() - whole).norm() < 0.03 * whole.norm()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.train()(frames).float().square().sum()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_each_trained_parameter_is_in_one_group_with_its_rate_and_decay():
    model = CAST(MINI)
    groups = cast_parameter_groups(model, 1.5e-3, 0.05)
    place = {p: group for group in groups for p in group["params"]}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sum(len(group["params"]) for group in groups) == len(place) == len(trained)
    tables = 0
    for name, p in trained.items():
        exponent = 2 - int(name.split(".")[1]) if name.startswith("blocks") else 0
        assert place[p]["lr"] == pytest.approx(1.5e-3 * 0.75**exponent), name
        tables += p.ndim == 2 and not name.endswith("weight")
        assert place[p]["weight_decay"] == (0.05 if name.endswith("weight") and p.ndim == 2 else 0), name
    assert tables == 4 * 2
    assert len({group["name"] for group in groups}) == len(groups) == 6
    torch.optim.AdamW(groups)


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


# --- the experts' weights


def published_shapes() -> tuple[dict, dict]:
    """Keys and shapes of openai/clip-vit-base-patch16 (its text model cut short) and of VideoMAE's file for SSv2."""
    d, hidden, linear = 768, 3072, ("weight", "bias")
    clip = {
        "logit_scale": (),
        "text_projection.weight": (512, 512),
        "visual_projection.weight": (512, d),
        "text_model.embeddings.position_ids": (1, 77),
        "text_model.embeddings.position_embedding.weight": (77, 512),
        "text_model.final_layer_norm.weight": (512,),
        "vision_model.embeddings.class_embedding": (d,),
        "vision_model.embeddings.patch_embedding.weight": (d, 3, 16, 16),
        "vision_model.embeddings.position_embedding.weight": (197, d),
        "vision_model.embeddings.position_ids": (1, 197),
    }
    mae = {
        "videomae.embeddings.patch_embeddings.projection.weight": (d, 3, 2, 16, 16),
        "videomae.embeddings.patch_embeddings.projection.bias": (d,),
        "fc_norm.weight": (d,),
        "fc_norm.bias": (d,),
        "classifier.weight": (174, d),
        "classifier.bias": (174,),
    }
    for i in range(12):
        root = f"vision_model.encoder.layers.{i}"
        for x in "kvq":
            clip |= {f"{root}.self_attn.{x}_proj.weight": (d, d), f"{root}.self_attn.{x}_proj.bias": (d,)}
        clip |= {f"{root}.self_attn.out_proj.weight": (d, d), f"{root}.self_attn.out_proj.bias": (d,)}
        clip |= {f"{root}.layer_norm{n}.{x}": (d,) for n in (1, 2) for x in linear}
        clip |= {f"{root}.mlp.fc1.weight": (hidden, d), f"{root}.mlp.fc1.bias": (hidden,)}
        clip |= {f"{root}.mlp.fc2.weight": (d, hidden), f"{root}.mlp.fc2.bias": (d,)}
        root = f"videomae.encoder.layer.{i}"
        mae |= {f"{root}.attention.attention.{x}": (d,) for x in ("q_bias", "v_bias")}
        mae |= {f"{root}.attention.attention.{x}.weight": (d, d) for x in ("query", "key", "value")}
        mae |= {f"{root}.attention.output.dense.weight": (d, d), f"{root}.attention.output.dense.bias": (d,)}
        mae |= {f"{root}.intermediate.dense.weight": (hidden, d), f"{root}.intermediate.dense.bias": (hidden,)}
        mae |= {f"{root}.output.dense.weight": (d, hidden), f"{root}.output.dense.bias": (d,)}
        mae |= {f"{root}.layernorm_{n}.{x}": (d,) for n in ("before", "after") for x in linear}
    for norm in ("pre_layrnorm", "post_layernorm"):
        clip |= {f"vision_model.{norm}.{x}": (d,) for x in linear}
    return clip, mae


def test_files_in_the_published_layout_load_whole_at_full_size(tmp_path):
    files = []
    for name, shapes in zip(("clip", "videomae"), published_shapes(), strict=True):
        noise = torch.randn(1 << 22, generator=torch.Generator().manual_seed(len(name))).half()
        state = {}
        for i, (key, shape) in enumerate(shapes.items()):
            state[key] = noise[i : i + math.prod(shape)].reshape(shape).clone()
        (tmp_path / name).mkdir()
        save_file(state, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
        files.append(state)
    model = CAST(num_classes=174)
    model.load_experts(tmp_path / "clip", tmp_path / "videomae" / "model.safetensors")
    clip, mae = files
    own = model.state_dict()

    def found(key):
        if key.startswith("vision_model.post_layernorm"):
            return own[key.replace("vision_model.post_layernorm", "head.norm.spatial")]
        if key.startswith("classifier"):
            return own[f"head.{key}"]
        key = key.replace("vision_model", "clip").replace("q_bias", "query.bias").replace("v_bias", "value.bias")
        return own.pop(key)

    for state, unused in ((clip, ("text", "visual", "logit")), (mae, ("fc_norm",))):
        for key, value in state.items():
            if not key.startswith(unused) and not key.endswith("position_ids"):
                assert torch.equal(found(key), value.float()), key
    assert not [key for key in own if key.startswith(("clip.", "videomae."))]
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Both experts in miniature, as transformers writes them."""
    folder = tmp_path_factory.mktemp("published")
    shape = {
        "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96,
        "image_size": SIDE, "patch_size": 16,
    }  # fmt: skip
    text = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    torch.manual_seed(11)
    both = transformers.CLIPConfig(text_config=text, vision_config=shape, projection_dim=6)
    clip = disturb(transformers.CLIPModel(both))
    tuned = transformers.VideoMAEConfig(**shape, num_frames=4, num_labels=5)
    videomae = disturb(transformers.VideoMAEForVideoClassification(tuned))
    clip.save_pretrained(folder / "clip")
    videomae.save_pretrained(folder / "videomae")
    return folder, clip.eval(), videomae.eval()


def test_loaded_experts_are_those_of_the_files(published):
    folder, clip, videomae = published
    model = CAST(MINI)
    model.load_experts(folder / "clip", folder / "videomae")
    for key, value in videomae.videomae.state_dict().items():
        assert torch.equal(model.videomae.state_dict()[key], value)
    images = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = clip.vision_model(images)
        found = model.clip(images).last_hidden_state
        torch.testing.assert_close(found, wanted.last_hidden_state)
        torch.testing.assert_close(model.head.norm["spatial"](found[:, 0]), wanted.pooler_output)
    assert torch.equal(model.head.classifier.weight, videomae.classifier.weight)
    assert not any(p.requires_grad for expert in (model.clip, model.videomae) for p in expert.parameters())
    assert all(p.requires_grad for p in model.head.parameters())


def test_the_classifier_stays_as_it_is_on_request(published):
    model = CAST(MINI)
    before = model.head.classifier.weight.clone()
    model.load_experts(published[0] / "clip", published[0] / "videomae", fill_head=False)
    assert torch.equal(model.head.classifier.weight, before)


def test_experts_that_do_not_match_are_refused_and_change_nothing(published, tmp_path):
    folder = published[0]
    clip = load_file(folder / "clip" / "model.safetensors")
    mae = load_file(folder / "videomae" / "model.safetensors")
    model = CAST(MINI)
    before = {key: value.clone() for key, value in model.state_dict().items()}

    def refuses(clip_state, mae_state, message, target=model, **options):
        save_file(clip_state, tmp_path / "clip.safetensors")
        save_file(mae_state, tmp_path / "mae.safetensors")
        with pytest.raises(CheckpointError, match=message):
            target.load_experts(tmp_path / "clip.safetensors", tmp_path / "mae.safetensors", **options)

    post = "vision_model.post_layernorm.weight"
    cut = {key: value for key, value in clip.items() if key != post}
    refuses(cut, mae, r"(?s)clip.safetensors.*missing \(1\): post_layernorm.weight$")
    refuses(clip | {"vision_model.extra": torch.zeros(1)}, mae, r"unexpected \(1\): (vision_model\.)?extra$")
    refuses(clip | {post: torch.zeros(23)}, mae, r"misshapen \(1\): post_layernorm.weight \[23\], expected \[24\]")
    key = next(key for key in mae if key.endswith("layer.1.attention.attention.q_bias"))
    refuses(clip, {k: v for k, v in mae.items() if k != key}, r"(?s)mae.safetensors.*missing \(1\).*1.*query.bias$")
    refuses(clip, mae | {"decoder.norm.weight": torch.zeros(1)}, r"unexpected \(1\): decoder.norm.weight$")
    headless = {key: value for key, value in mae.items() if not key.startswith(("fc_norm", "classifier"))}
    refuses(clip, headless, r"(?s)missing \(4\): classifier.bias.*fill_head=False")
    refuses(clip, mae, r"(?s)classifier.weight \[5, 24\], expected \[7, 24\].*without a classifier of 7 classes",
            CAST(replace(MINI, num_classes=7)))  # fmt: skip
    with pytest.raises(CheckpointError, match="nowhere: no such checkpoint"):
        model.load_experts(tmp_path / "nowhere", folder / "videomae")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


# --- keeping it


def test_saving_and_loading_is_exact(published, tmp_path):
    random, loaded = CAST(MINI, seed=6), CAST(MINI)
    paths = {"clip_checkpoint": published[0] / "clip", "videomae_checkpoint": published[0] / "videomae"}
    loaded.load_experts(*paths.values())
    for name, model, given in (("random", random, {}), ("loaded", loaded, paths)):
        disturb(model.blocks)
        disturb(model.head)
        model.eval().save_pretrained(tmp_path / name)
        again = CAST.from_pretrained(tmp_path / name, **given)
        assert again.config == MINI and not again.training
        assert torch.equal(again(clips()), model(clips()))
        mine, kept = model.state_dict(), again.state_dict()
        assert mine.keys() == kept.keys() and all(torch.equal(mine[key], kept[key]) for key in mine)
        written = load_file(tmp_path / name / "model.safetensors")
        assert written.keys() == {key for key, p in model.named_parameters() if p.requires_grad}


def test_a_folder_that_does_not_match_is_refused(unchecked, published, tmp_path):
    model = CAST(MINI)
    with pytest.raises(CheckpointError, match=r"config\.json: not found"):
        CAST.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    kept = json.loads((tmp_path / "config.json").read_text())
    paths = {"clip_checkpoint": published[0] / "clip", "videomae_checkpoint": published[0] / "videomae"}

    def refuses(message, given=None, **changes):
        (tmp_path / "config.json").write_text(json.dumps(kept | changes))
        with pytest.raises(CheckpointError, match=message):
            CAST.from_pretrained(tmp_path, **(given or {}))

    refuses("missing or unknown: colour", config=kept["config"] | {"colour": 1})
    refuses("missing or unknown: depth", config={k: v for k, v in kept["config"].items() if k != "depth"})
    refuses("CASTConfig.heads must be a whole number", config=kept["config"] | {"heads": "3"})
    refuses("not a CAST configuration", experts={})
    refuses("not a CAST configuration", config=[1])
    refuses("saved with random experts; give no checkpoints", paths)
    loaded = kept["experts"] | {"pretrained": True}
    refuses("saved with loaded experts; give both clip_checkpoint= and", {"clip_checkpoint": "x"}, experts=loaded)
    refuses("saved with other experts", paths, experts=loaded)
    refuses("saved with other experts", experts=kept["experts"] | {"seed": 1})
    (tmp_path / "config.json").write_text(json.dumps(kept))
    state = load_file(tmp_path / "model.safetensors")
    state["extra"] = state.pop("head.classifier.bias")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"(?s)missing \(1\): head.classifier.bias.*unexpected \(1\): extra"):
        CAST.from_pretrained(tmp_path)


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
