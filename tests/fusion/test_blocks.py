"""Blocks against torch's own multi-head attention and a plain numpy reference, in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from tcar.fusion.blocks import Readout, Residual, SelfBlock, attend
from tcar.fusion.exchange import CrossBlock
from tcar.fusion.positions import rotary_table, window_mask

WIDTH, HEADS = 24, 4
TIGHT = {"atol": 1e-10, "rtol": 1e-10}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def numpy_attention(q, k, v, heads, mask=None):
    """Return output and weights of attention, one head and query at a time."""
    batch, n, width = q.shape
    size = width // heads
    out, weights = np.zeros((batch, n, width)), np.zeros((batch, heads, n, k.shape[1]))
    for b in range(batch):
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            for i in range(n):
                logits = k[b, :, part] @ q[b, i, part] / np.sqrt(size)
                logits = logits if mask is None else np.where(mask[i], logits, -np.inf)
                e = np.exp(logits - logits.max())
                weights[b, h, i] = e / e.sum()
                out[b, i, part] = weights[b, h, i] @ v[b, :, part]
    return out, weights


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("heads", [1, 4, 12])
def test_attention_is_the_slow_reference_on_both_paths(heads, masked):
    q, k, v = torch.randn(2, 5, WIDTH), torch.randn(2, 7, WIDTH), torch.randn(2, 7, WIDTH)
    mask = (torch.rand(5, 7) > 0.5) | (torch.arange(7) == 0) if masked else None
    expected, weights = numpy_attention(*(x.numpy() for x in (q, k, v)), heads, mask)
    fast, none = attend(q, k, v, heads, mask)
    explicit, found = attend(q, k, v, heads, mask, weights=True)
    assert none is None
    np.testing.assert_allclose(fast, expected, atol=1e-12)
    np.testing.assert_allclose(explicit, expected, atol=1e-12)
    np.testing.assert_allclose(found, weights, atol=1e-12)


@pytest.mark.parametrize("sharpness", [1, 64])
@pytest.mark.parametrize("autocast", [False, True])
def test_weights_in_half_precision_are_those_of_the_same_numbers_in_double(sharpness, autocast):
    q, k, v = (torch.randn(2, 16, WIDTH, dtype=torch.float32).bfloat16() for _ in range(3))
    q = q * sharpness
    mask = torch.eye(8, dtype=torch.bool).repeat(2, 2)
    for allowed in (None, mask):
        expected, weights = numpy_attention(*(x.double().numpy() for x in (q, k, v)), 4, allowed)
        given = (x.float() for x in (q, k, v)) if autocast else (q, k, v)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            read, found = attend(*given, 4, allowed, weights=True)
        np.testing.assert_allclose(found.double(), weights, atol=1e-5)
        np.testing.assert_allclose(read.double(), expected, atol=2e-2)  # the last rounding, of numbers up to 4
    in_place, _ = attend(q, k, v, 12, mask, places=8)
    expected, _ = numpy_attention(*(x.double().numpy() for x in (q, k, v)), 12, mask)
    np.testing.assert_allclose(in_place.double(), expected, atol=2e-2)
    assert in_place.dtype == torch.bfloat16


def tables(masks=None, rotary=None):
    """Return what a block takes of two grids: rotary tables and masks by stream, none by default."""
    nothing = dict.fromkeys(("semantic", "motion"))
    return {"rotary_across": rotary or nothing, "other": masks or nothing, "common": dict.fromkeys(nothing, 0)}


def torch_attention(query_part, source_part, out: nn.Linear) -> nn.MultiheadAttention:
    """Return torch's module with the weights of a block's projections: (weight, bias) of q, of k with v."""
    reference = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([query_part[0], source_part[0]]))
        reference.in_proj_bias.copy_(torch.cat([query_part[1], source_part[1]]))
        reference.out_proj.load_state_dict(out.state_dict())
    return reference


def rows(linear: nn.Linear, start: int, end: int):
    return linear.weight[start * WIDTH : end * WIDTH], linear.bias[start * WIDTH : end * WIDTH]


def test_a_self_block_is_torchs_attention_in_the_same_wiring():
    block = SelfBlock(WIDTH, HEADS, 40).eval()
    linear = block.project.linear
    reference = torch_attention(rows(linear, 0, 1), rows(linear, 1, 3), block.out)
    x = torch.randn(3, 9, WIDTH)
    h = block.project.norm(x)
    read, weights = reference(h, h, h, average_attn_weights=False)
    record = {}
    expected = x + read
    expected = expected + block.feed_forward(expected)
    torch.testing.assert_close(block(x), expected, **TIGHT)
    torch.testing.assert_close(block(x, record=record, name="a"), expected, **TIGHT)
    torch.testing.assert_close(record["a.weights"], weights, **TIGHT)


@pytest.mark.parametrize("readers", [("semantic", "motion"), ("semantic",), ("motion",)])
def test_both_directions_read_the_tokens_from_before_the_block(readers):
    block = CrossBlock(WIDTH, HEADS, 40, readers=readers).eval()
    x = {"semantic": torch.randn(3, 9, WIDTH), "motion": torch.randn(3, 5, WIDTH)}
    normed = {s: block.project[s].norm(x[s]) for s in x}
    record = {}
    after = block(x, tables(), record=record, name="b")
    for s, other in (("semantic", "motion"), ("motion", "semantic")):
        if s not in readers:
            assert after[s] is x[s]
            continue
        kv = len(block.project[other].roles)
        reference = torch_attention(
            rows(block.project[s].linear, 0, 1), rows(block.project[other].linear, kv - 2, kv), block.out[s]
        )
        read, weights = reference(normed[s], normed[other], normed[other], average_attn_weights=False)
        expected = x[s] + read
        expected = expected + block.feed_forward[s](expected)
        torch.testing.assert_close(after[s], expected, **TIGHT)
        torch.testing.assert_close(record[f"b.{s}_from_{other}.weights"], weights, **TIGHT)
    assert len(record) == len(readers)
    fast = block(x, tables())
    for s in x:
        torch.testing.assert_close(fast[s], after[s], **TIGHT)


def test_the_first_token_alone_is_the_first_of_all_and_so_are_its_gradients():
    block, xyz = SelfBlock(WIDTH, HEADS, 40), torch.rand(6, 3)
    x = torch.randn(2, 6, WIDTH, requires_grad=True)
    rotary = rotary_table(xyz, HEADS, WIDTH // HEADS)
    inputs = [x, *block.parameters()]
    every = block(x, rotary)[:, :1]
    first = block(x, rotary, first_only=True)
    torch.testing.assert_close(first, every, **TIGHT)
    probe = torch.randn_like(every)
    for a, b in zip(
        torch.autograd.grad((first * probe).sum(), inputs),
        torch.autograd.grad((every * probe).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, **TIGHT)


def test_rotary_reaches_the_attention_of_a_block():
    block, x, xyz = SelfBlock(WIDTH, HEADS, 40).eval(), torch.randn(2, 6, WIDTH), torch.rand(6, 3)
    moved = block(x, rotary_table(xyz.flip(0), HEADS, WIDTH // HEADS))
    assert (moved - block(x, rotary_table(xyz, HEADS, WIDTH // HEADS))).abs().max() > 1e-3


@pytest.mark.parametrize("window", ["time", "space"])
def test_masks_reach_the_reading_across(window):
    block, x = CrossBlock(WIDTH, HEADS, 40).eval(), {s: torch.randn(2, 6, WIDTH) for s in ("semantic", "motion")}
    xyz, record = torch.rand(6, 3), {}
    mask = window_mask(xyz, xyz, window)
    assert mask.any() and not mask.all()
    block(x, tables(dict.fromkeys(x, mask)), record=record, name="b")
    for weights in record.values():
        assert torch.equal(weights > 0, mask.expand(2, HEADS, 6, 6))


def test_the_readout_ignores_the_order_of_tokens_that_bring_their_positions():
    readout, x, xyz = Readout(2, WIDTH, heads=HEADS, hidden=40), torch.randn(2, 6, WIDTH), torch.rand(6, 3)
    order = torch.randperm(6)
    table = rotary_table(xyz, HEADS, WIDTH // HEADS)
    torch.testing.assert_close(readout(x[:, order], table[order]), readout(x, table), **TIGHT)
    assert (readout(x[:, order], table) - readout(x, table)).abs().max() > 1e-4


def test_dropout_keeps_the_mean_and_drop_path_whole_samples():
    trunk, branch = torch.zeros(4000, 3, 5), torch.ones(4000, 3, 5)
    dropped = Residual(0.25, 0.0)(trunk, branch)
    torch.testing.assert_close(dropped.unique(), torch.tensor([0, 1 / 0.75]))
    assert abs(dropped.mean() - 1) < 0.02
    paths = Residual(0.0, 0.4)(trunk, branch)
    torch.testing.assert_close(paths, paths[:, :1, :1].expand_as(paths))
    assert abs((paths[:, 0, 0] == 0).double().mean() - 0.4) < 0.04
    both = Residual(0.25, 0.4)(trunk, branch)
    torch.testing.assert_close(both.unique(), torch.tensor([0, 1 / 0.75 / 0.6]))
    torch.testing.assert_close(Residual(0.25, 0.4).eval()(trunk, branch), branch)


def test_a_query_without_keys_reads_nothing_and_spoils_no_gradient():
    q, k, v = (torch.randn(2, 5, WIDTH, requires_grad=True) for _ in range(3))
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[1] = False
    others = [0, 2, 3, 4]
    for weights in (False, True):
        out, attention = attend(q, k, v, HEADS, mask, weights=weights)
        expected, _ = attend(q[:, others], k, v, HEADS)
        assert out[:, 1].abs().max() == 0
        assert attention is None or attention[:, :, 1].abs().max() == 0
        torch.testing.assert_close(out[:, others], expected, **TIGHT)
        for found, wanted in zip(
            torch.autograd.grad(out.square().sum(), (q, k, v)),
            torch.autograd.grad(expected.square().sum(), (q, k, v)),
            strict=True,
        ):
            torch.testing.assert_close(found, wanted, **TIGHT)


@pytest.mark.parametrize("path", ["fast", "explicit", "in place"])
def test_large_products_stay_within_half_precision(path):
    q = k = torch.full((1, 128, 64), 40.0).half()  # products of 102,400 before the scale, 12,800 after it
    v, mask = torch.randn(1, 128, 64).half(), torch.arange(128)[:, None] % 64 == torch.arange(128) % 64
    out, _ = attend(q, k, v, 1, mask, weights=path == "explicit", places=64 if path == "in place" else 0)
    torch.testing.assert_close(out, (v + v.roll(64, dims=1)) / 2, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_attention_in_place_is_the_masked_one_with_its_gradients(heads, monkeypatch):
    q, k, v = (torch.randn(3, n, 16, dtype=torch.float64, requires_grad=True) for n in (80, 40, 40))
    mask = torch.arange(80)[:, None] % 20 == torch.arange(40) % 20
    masked = attend(q, k, v, heads, mask)[0]
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", None)  # the masked kernel is not asked
        in_place = attend(q, k, v, heads, mask, places=20)[0]
    torch.testing.assert_close(in_place, masked)
    weight = torch.randn_like(masked)
    expected, found = (torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in (masked, in_place))
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other)
