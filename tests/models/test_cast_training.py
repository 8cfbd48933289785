"""CAST in training: what learns, how fast, from how much memory and in which precision."""

import pytest
import torch
from cast_reference import DEAD, MINI, STREAMS, clips, disturb, tokens

from tcar.models.cast import CAST, cast_parameter_groups


@pytest.fixture(scope="module")
def model() -> CAST:
    return disturb(CAST(MINI).double()).eval()


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
