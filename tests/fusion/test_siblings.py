"""The rivals of cross-attention against the plain reference, and what each of them can and cannot do."""

from dataclasses import replace

import pytest
import torch
from fusion_reference import Reference
from fusions import APART, GRIDS, SMALL, batch, build

CLOSE = {"atol": 1e-9, "rtol": 1e-9}
EXCHANGING = ["gated", "bottleneck", "cast", "joint"]
APART_UNTIL_THE_END = ["late_concat", "late_concat_raw", "sum", "semantic", "motion", "semantic_bag"]
STEPS = ["semantic_step", "motion_step"]
EVERY = ["cross_attention", *EXCHANGING, *APART_UNTIL_THE_END]


@pytest.mark.parametrize(("kind", "positions"), [
    *((kind, "rotary") for kind in (*EXCHANGING, *APART_UNTIL_THE_END, *STEPS)),
    ("bottleneck", "learned"), ("cast", "none"), ("late_concat", "learned"), ("semantic_bag", "learned"),
    ("joint", "learned"), ("joint", "none"),
])  # fmt: skip
def test_a_sibling_is_the_plain_reference(kind, positions):
    fusion = build(replace(SMALL, kind=kind, positions=positions, width=32), shaken=True).eval()
    for grids in (GRIDS, APART):
        inputs = batch(size=2, grids=grids)
        expected = torch.from_numpy(Reference(fusion)(*inputs))
        torch.testing.assert_close(fusion(*inputs), expected, **CLOSE)
        torch.testing.assert_close(fusion(*inputs, return_intermediates=True)[0], expected, **CLOSE)


@pytest.mark.parametrize("grids", [GRIDS, APART])
@pytest.mark.parametrize("window", ["time", "space"])
def test_a_window_of_the_gated_exchange_is_that_of_the_plain_reference(window, grids):
    fusion, inputs = build(replace(SMALL, kind="gated", window=window), shaken=True).eval(), batch(grids=grids)
    torch.testing.assert_close(fusion(*inputs), torch.from_numpy(Reference(fusion)(*inputs)), **CLOSE)


def test_the_narrow_exchange_has_the_width_that_is_asked_for():
    fusion = build(replace(SMALL, kind="cast", cross_width=16), shaken=True).eval()
    assert fusion.blocks[0].project["semantic"].width == 16
    torch.testing.assert_close(fusion(*batch()), torch.from_numpy(Reference(fusion)(*batch())), **CLOSE)


@pytest.mark.parametrize("kind", [k for k in EVERY if k != "motion"])
def test_streams_meet_in_their_blocks_only_where_the_kind_says_so(kind):
    """Tokens after the blocks: does another stream's clip change them?"""
    fusion = build(replace(SMALL, kind=kind), shaken=True).eval()
    semantic, semantic_xyz, motion, motion_xyz = batch()
    _, before = fusion(semantic, semantic_xyz, motion, motion_xyz, return_intermediates=True)
    _, after = fusion(semantic, semantic_xyz, motion.flip(0), motion_xyz, return_intermediates=True)
    changed = (before["semantic"] - after["semantic"]).abs().max() > 1e-3
    assert changed == (kind not in APART_UNTIL_THE_END)


@pytest.mark.parametrize(("blocks", "reaches"), [(1, False), (2, True)])
def test_what_goes_through_fusion_tokens_arrives_a_block_later(blocks, reaches):
    """In the first block fusion tokens read both streams; only from the second on does a stream read what they hold."""
    fusion = build(replace(SMALL, kind="bottleneck", blocks=blocks), shaken=True).eval()
    semantic, semantic_xyz, motion, motion_xyz = batch()
    motion.requires_grad_()
    _, steps = fusion(semantic, semantic_xyz, motion, motion_xyz, return_intermediates=True)
    gradient = torch.autograd.grad(steps["semantic"].square().sum(), motion, allow_unused=True)[0]
    assert (gradient is not None and bool(gradient.abs().max() > 1e-6)) == reaches


def test_fusion_tokens_are_as_many_as_asked_and_seen_in_the_weights():
    fusion = build(replace(SMALL, kind="bottleneck", bottleneck_tokens=3)).eval()
    _, steps = fusion(*batch(), return_intermediates=True)
    assert steps["bottleneck"].shape == (3, 3, 24)
    assert steps["block0.semantic.weights"].shape == (3, 4, 19, 19)
    assert steps["block1.motion.weights"].shape == (3, 4, 11, 11)
    assert steps["self0.weights"].shape == (3, 4, 25, 25)  # the readout reads the streams alone


def test_a_closed_gate_lets_nothing_through():
    fusion = build(replace(SMALL, kind="gated")).eval()
    with torch.no_grad():
        for block in fusion.blocks:
            for gate in block.gate.values():
                gate.bias.fill_(-1e4)
    semantic, semantic_xyz, motion, motion_xyz = batch()
    _, before = fusion(semantic, semantic_xyz, motion, motion_xyz, return_intermediates=True)
    _, after = fusion(semantic, semantic_xyz, motion.flip(0), motion_xyz, return_intermediates=True)
    torch.testing.assert_close(before["semantic"], after["semantic"], atol=0, rtol=0)
    assert not torch.equal(before["readout"], after["readout"])
    assert before["block0.semantic_from_motion.gate"].shape == (3, 16, 24)


@pytest.mark.parametrize("grids", [GRIDS, APART])
def test_the_exchange_of_cast_reads_time_one_way_and_space_the_other(grids):
    fusion = build(replace(SMALL, kind="cast", window="joint")).eval()
    semantic, semantic_xyz, motion, motion_xyz = batch(grids=grids)
    _, steps = fusion(semantic, semantic_xyz, motion, motion_xyz, return_intermediates=True)
    for name, queries, keys, axes in (
        ("semantic_from_motion", semantic_xyz, motion_xyz, [1, 2]),
        ("motion_from_semantic", motion_xyz, semantic_xyz, [0]),
    ):
        apart = (queries[:, None, axes] - keys[None, :, axes]).norm(dim=-1)
        near = (apart < apart.amin(0, keepdim=True) + 1e-6) | (apart < apart.amin(1, keepdim=True) + 1e-6)
        for weights in (steps[f"block0.{name}.weights"], steps[f"block2.{name}.weights"]):
            assert torch.equal(weights > 0, near.expand_as(weights))


@pytest.mark.parametrize("kind", EVERY)
def test_frames_may_move_with_their_coordinates(kind):
    fusion = build(replace(SMALL, kind=kind, window="time"), shaken=True).eval()
    whole = fusion(*batch())
    for stream in range(2):
        inputs = batch()
        frames = (4, 2)[stream]
        order = torch.arange(4 * frames).unflatten(0, (frames, 4)).roll(1, dims=0).flatten()
        inputs[2 * stream], inputs[2 * stream + 1] = inputs[2 * stream][:, order], inputs[2 * stream + 1][order]
        torch.testing.assert_close(fusion(*inputs), whole, **CLOSE)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
@pytest.mark.parametrize("kind", [k for k in EVERY if k not in ("late_concat_raw", "semantic_bag")])
def test_frames_that_move_without_their_coordinates_change_the_logits(kind, positions):
    fusion = build(replace(SMALL, kind=kind, positions=positions), shaken=True).eval()
    whole = fusion(*batch())
    for stream in range(2):
        if kind in ("semantic", "motion") and kind != ("semantic", "motion")[stream]:
            continue
        inputs = batch()
        inputs[2 * stream] = inputs[2 * stream].unflatten(1, (-1, 4)).flip(1).flatten(1, 2)
        assert (fusion(*inputs) - whole).abs().max() > 1e-3
