"""The attentive probe against transformers' own pooler, a slow reference, and the published sizes."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tcar.fusion.kinds import trained_parameters
from tcar.fusion.probe import AttentiveProbe, ProbeConfig, probe_width_within

SMALL = ProbeConfig(width=24, num_classes=5, depth=4, heads=4)
TIGHT = {"atol": 1e-10, "rtol": 1e-10}
VARIANTS = [SMALL, replace(SMALL, depth=1), replace(SMALL, depth=2, bottleneck=12)]


def build(config=SMALL, seed=0, **options):
    """A probe in float64 whose parameters are all far from zero, so that none can be left out unseen."""
    torch.manual_seed(seed)
    probe = AttentiveProbe(config, **options).double()
    for parameter in probe.parameters():
        nn.init.normal_(parameter, std=0.3)
    return probe


def clips(n=7, size=3, width=24, seed=1, dtype=torch.float64):
    return torch.randn(size, n, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def count(config):
    with torch.device("meta"):
        return trained_parameters(AttentiveProbe(config))


@pytest.mark.parametrize(
    ("width", "depth", "millions"),
    [(1024, 1, 11.7), (1408, 1, 22.1), (768, 4, 27.9), (1024, 4, 49.5), (1408, 4, 93.5), (1664, 4, 130.5)],
)
def test_sizes_are_the_published_ones(width, depth, millions):
    found = count(ProbeConfig(width=width, depth=depth))
    assert round(found / 1e6, 1) == millions
    norms, feed_forward = 4 * width, (4 * width + 1) * width + (width + 1) * 4 * width
    self_block = 4 * width * (width + 1) + feed_forward + norms
    cross_block = width + 3 * width * (width + 1) + feed_forward + norms
    assert found == (depth - 1) * self_block + cross_block + (width + 1) * 174


def slow_norm(x, norm):
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / ((centred**2).mean(dim=-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias


def slow_linear(x, weight, bias):
    return torch.einsum("...i,oi->...o", x, weight) + bias


def slow_attention(q, k, v, heads):
    """One head and one query at a time; returns what is read and the weights."""
    size, read, weights = q.shape[-1] // heads, torch.zeros_like(q), q.new_zeros(len(q), heads, q.shape[1], k.shape[1])
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        for i in range(q.shape[1]):
            scores = torch.einsum("bd,bnd->bn", q[:, i, part], k[:, :, part]).div(size**0.5).exp()
            weights[:, h, i] = scores / scores.sum(dim=1, keepdim=True)
            read[:, i, part] = torch.einsum("bn,bnd->bd", weights[:, h, i], v[:, :, part])
    return read, weights


def slow_feed_forward(x, layers):
    norm, inner, _, outer = layers
    hidden = slow_linear(slow_norm(x, norm), inner.weight, inner.bias)
    hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
    return x + slow_linear(hidden, outer.weight, outer.bias)


def slow_probe(probe, x):
    """Logits, readout and the weights of every block."""
    heads, found = probe.config.heads, {}
    if probe.config.bottleneck:
        x = slow_linear(x, probe.reduce.weight, probe.reduce.bias)
    for i, block in enumerate(probe.blocks):
        linear, normed = block.project.linear, slow_norm(x, block.project.norm)
        qkv = (slow_linear(normed, w, b) for w, b in zip(linear.weight.chunk(3), linear.bias.chunk(3), strict=True))
        read, found[f"self{i}.weights"] = slow_attention(*qkv, heads)
        x = slow_feed_forward(x + slow_linear(read, block.out.weight, block.out.bias), block.feed_forward)
    cross = probe.cross
    linear, normed = cross.project.linear, slow_norm(x, cross.project.norm)
    kv = (slow_linear(normed, w, b) for w, b in zip(linear.weight.chunk(2), linear.bias.chunk(2), strict=True))
    token = torch.stack([cross.token] * len(x))[:, None]
    read, found["cross.weights"] = slow_attention(slow_linear(token, cross.query.weight, cross.query.bias), *kv, heads)
    found["readout"] = slow_feed_forward(token + read, cross.feed_forward)[:, 0]
    return slow_linear(found["readout"], probe.head.weight, probe.head.bias), found


@pytest.mark.parametrize("config", VARIANTS)
def test_both_paths_are_the_slow_reference(config):
    probe, tokens = build(config), clips()
    expected, steps = slow_probe(probe, tokens)
    torch.testing.assert_close(probe(tokens), expected, **TIGHT)
    logits, found = probe(tokens, return_intermediates=True)
    torch.testing.assert_close(logits, expected, **TIGHT)
    assert found.keys() == steps.keys()
    for name, step in steps.items():
        torch.testing.assert_close(found[name], step, **TIGHT)
    assert found["cross.weights"].shape == (3, 4, 1, 7)
    assert found["readout"].shape == (3, config.block_width)


@pytest.mark.parametrize("depth", [1, 4])
def test_it_is_the_pooler_and_classifier_of_transformers(depth):
    """The published probes run in transformers; its LayerNorm there has the encoder's eps, set to the probe's here."""
    from transformers import VJEPA2Config
    from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2AttentivePooler

    config = VJEPA2Config(
        hidden_size=24,
        num_attention_heads=4,
        num_pooler_layers=depth - 1,
        layer_norm_eps=1e-5,
        attn_implementation="sdpa",
    )
    pooler, probe = VJEPA2AttentivePooler(config).double().eval(), build(replace(SMALL, depth=depth))

    def load(layer, attention, block, names):
        layer.layer_norm1.load_state_dict(block.project.norm.state_dict())
        layer.layer_norm2.load_state_dict(block.feed_forward[0].state_dict())
        layer.mlp.fc1.load_state_dict(block.feed_forward[1].state_dict())
        layer.mlp.fc2.load_state_dict(block.feed_forward[3].state_dict())
        linear = block.project.linear
        for i, name in enumerate(names):
            part = {"weight": linear.weight.chunk(len(names))[i], "bias": linear.bias.chunk(len(names))[i]}
            getattr(attention, f"{name}_proj").load_state_dict(part)

    with torch.no_grad():
        pooler.query_tokens.copy_(probe.cross.token)
    for layer, block in zip(pooler.self_attention_layers, probe.blocks, strict=True):
        load(layer, layer.self_attn, block, "qkv")
        layer.self_attn.out_proj.load_state_dict(block.out.state_dict())
    layer = pooler.cross_attention_layer
    load(layer, layer.cross_attn, probe.cross, "kv")
    layer.cross_attn.q_proj.load_state_dict(probe.cross.query.state_dict())
    assert trained_parameters(pooler) == trained_parameters(probe) - trained_parameters(probe.head)
    tokens = clips()
    torch.testing.assert_close(probe(tokens), probe.head(pooler(tokens)), **TIGHT)


def test_tokens_are_a_set_so_clips_join_in_any_order():
    probe, first, second = build(), clips(seed=1), clips(seed=2)
    joined = probe(torch.cat([first, second], dim=1))
    torch.testing.assert_close(probe(torch.cat([second, first], dim=1)), joined, **TIGHT)
    order = torch.randperm(14, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(probe(torch.cat([first, second], dim=1)[:, order]), joined, **TIGHT)
    assert (joined - probe(first)).abs().max() > 1e-3


@pytest.mark.parametrize("config", VARIANTS)
def test_a_gradient_reaches_every_parameter(config):
    probe = build(config)
    probe(clips()).square().sum().backward()
    for name, parameter in probe.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
        if name.endswith("project.linear.bias"):
            # A bias of the keys shifts all scores of a query alike: it is there as published, and learns nothing.
            keys = parameter.grad.chunk(2 if "cross" in name else 3)[-2]
            assert keys.abs().max() < 1e-9 * parameter.grad.abs().max()


@pytest.mark.parametrize("config", VARIANTS)
def test_checkpointing_gives_the_same_gradients_from_fewer_stored_tensors(config):
    stored, gradients, plain = {}, {}, build(config)
    for on in (False, True):
        probe, sizes = build(config, checkpointing=on), []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x):
            loss = probe(clips()).square().sum()
        stored[on] = sum(sizes)
        gradients[on] = torch.autograd.grad(loss, list(probe.parameters()))
    for one, other in zip(gradients[False], gradients[True], strict=True):
        torch.testing.assert_close(one, other, **TIGHT)
    assert stored[True] < stored[False] / 2
    recorded, steps = build(config, checkpointing=True)(clips(), return_intermediates=True)
    torch.testing.assert_close(recorded, plain(clips()), **TIGHT)
    assert "cross.weights" in steps


def test_fresh_weights_are_those_of_the_released_code():
    torch.manual_seed(0)
    probe = AttentiveProbe(ProbeConfig(width=128, num_classes=50, depth=4))
    expected = {name: 0.02 for name, p in probe.named_parameters() if p.ndim == 2} | {"cross.token": 0.02}
    for i, scale in enumerate((2, 4, 6)):
        expected[f"blocks.{i}.out.weight"] = expected[f"blocks.{i}.feed_forward.3.weight"] = 0.02 / scale**0.5
    expected["cross.feed_forward.3.weight"] = 0.02 / 6**0.5
    for name, parameter in probe.named_parameters():
        if name.startswith("head."):  # torch's own: uniform, the bias too
            assert 0.9 / 128**0.5 < parameter.abs().max() <= 1 / 128**0.5, name
            spread = 0.03 if parameter.ndim > 1 else 0.3
            assert parameter.std().item() == pytest.approx(1 / (3 * 128) ** 0.5, rel=spread), name
        elif name in expected:
            spread = 4 / (2 * parameter.numel()) ** 0.5  # four standard errors
            assert parameter.std().item() == pytest.approx(expected[name], rel=spread), name
            assert abs(parameter.mean()) < 4 * expected[name] / parameter.numel() ** 0.5, name
        else:
            norm = "norm.weight" in name or "feed_forward.0.weight" in name
            assert torch.equal(parameter, torch.full_like(parameter, float(norm))), name
    alone = AttentiveProbe(ProbeConfig(width=128, num_classes=50, depth=1))
    assert alone.cross.feed_forward[3].weight.std().item() == pytest.approx(0.02 / 2**0.5, rel=0.02)


def test_autocast_stays_near_full_precision():
    torch.manual_seed(0)
    probe, tokens = AttentiveProbe(ProbeConfig(width=64, num_classes=5)).eval(), clips(width=64, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        half = probe(tokens)
    exact = probe(tokens)
    assert (half - exact).abs().max() < 0.02 * exact.abs().max()


@pytest.mark.parametrize(("stream_width", "depth"), [(768, 2), (1024, 4), (1664, 2)])
def test_the_bottleneck_is_the_widest_within_the_budget(stream_width, depth):
    budget = 20_000_000
    bottleneck = probe_width_within(budget, stream_width, 174, depth)
    config = ProbeConfig(width=stream_width, depth=depth, bottleneck=bottleneck)
    assert count(config) <= budget
    if bottleneck == 0:
        assert (stream_width, depth) == (768, 2)
        return
    assert count(replace(config, bottleneck=0)) > budget
    wider = bottleneck + 16
    assert wider >= stream_width or count(replace(config, bottleneck=wider)) > budget
    exact = count(config)
    assert probe_width_within(exact, stream_width, 174, depth) == bottleneck
    assert probe_width_within(exact - 1, stream_width, 174, depth) == bottleneck - 16


def test_the_rival_on_vit_l_tokens_within_20_million():
    assert probe_width_within(20_000_000, 1024, 174, depth=1) == 0
    published = count(ProbeConfig(width=1024, depth=1))
    assert probe_width_within(published, 1024, 174, depth=1) == 0
    assert probe_width_within(published - 1, 1024, 174, depth=1) > 0
    assert probe_width_within(20_000_000, 1024, 174, depth=4) == 624


def test_a_budget_that_nothing_fits_is_refused():
    with pytest.raises(ValueError, match="no probe of depth 4 on tokens of width 1024 has at most 20,000 trained"):
        probe_width_within(20_000, 1024)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "depth must be a whole number of at least 1, got 0"),
        ({"num_classes": 2.5}, "num_classes must be a whole number of at least 1"),
        ({"bottleneck": -8}, "bottleneck must be a whole number of at least 0"),
        ({"bottleneck": 24}, "bottleneck 24 must be below width 24; 0 leaves it out"),
        ({"bottleneck": 10}, "bottleneck 10 does not divide into heads 4"),
        ({"heads": 5}, "width 24 does not divide into heads 5"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_by_name(unchecked, change, message):
    with pytest.raises(ValueError, match=f"ProbeConfig.{message}"):
        replace(SMALL, **change)


@pytest.mark.parametrize("shape", [(3, 7, 20), (3, 0, 24)])
def test_tokens_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match=r"\[batch, 1 or more, 24\] expected"):
        build()(torch.zeros(shape, dtype=torch.float64))
