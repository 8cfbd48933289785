"""Every fusion kind: fast path against explicit weights, matched sizes, symmetries, windows, errors."""

from dataclasses import replace

import jaxtyping
import pytest
import torch
from fusion_reference import Reference
from fusions import APART, GRIDS, SMALL, batch, build

from tcar.fusion.kinds import (
    FusionConfig,
    create_fusion,
    fusion_cost,
    hidden_width,
    list_fusions,
    trained_parameters,
)
from tcar.fusion.probe import PROBES
from tcar.fusion.settings import MOTION_ALONE
from tcar.fusion.step import STEPS
from tcar.streams.grids import grid_coordinates

DEMO = FusionConfig(semantic_width=128, motion_width=96, num_classes=32, width=64)
FULL = FusionConfig()
CLOSE = {"atol": 1e-9, "rtol": 1e-9}


@pytest.mark.parametrize(("kind", "window", "heads", "positions", "cross_width"), [
    ("cross_attention", "joint", 8, "rotary", 0),
    ("cross_attention", "time", 16, "rotary", 0),
    ("cross_attention", "time", 4, "learned", 32),
    ("cross_attention", "space", 16, "none", 0),
    ("semantic_from_motion", "time", 8, "rotary", 32),
    ("semantic_from_motion", "space", 4, "learned", 0),
    ("motion_from_semantic", "space", 4, "rotary", 32),
    ("motion_from_semantic", "joint", 16, "learned", 0),
])  # fmt: skip
def test_cross_attention_is_the_plain_reference(kind, window, heads, positions, cross_width):
    config = replace(SMALL, kind=kind, window=window, heads=heads, positions=positions, width=64)
    fusion = build(replace(config, cross_width=cross_width), shaken=True).eval()
    for grids in (GRIDS, APART):
        inputs = batch(size=2, grids=grids)
        expected = torch.from_numpy(Reference(fusion)(*inputs))
        torch.testing.assert_close(fusion(*inputs), expected, **CLOSE)
        torch.testing.assert_close(fusion(*inputs, return_intermediates=True)[0], expected, **CLOSE)


@pytest.mark.parametrize(("blocks", "self_blocks"), [(1, 1), (3, 1), (2, 3), (2, 0)])
def test_depth_is_that_of_the_plain_reference(blocks, self_blocks):
    config = replace(SMALL, blocks=blocks, self_blocks=self_blocks, mlp_ratio=1.5)
    fusion = build(config, shaken=True).eval()
    torch.testing.assert_close(fusion(*batch()), torch.from_numpy(Reference(fusion)(*batch())), **CLOSE)


@pytest.mark.parametrize("kind", list_fusions())
def test_the_weights_path_agrees_with_the_fast_path(kind):
    fusion = build(replace(SMALL, kind=kind, window="time", self_blocks=2)).eval()
    fast = fusion(*batch())
    explicit, steps = fusion(*batch(), return_intermediates=True)
    assert fast.shape == (3, 5)
    torch.testing.assert_close(fast, explicit, atol=1e-10, rtol=1e-10)
    weights = {name: w for name, w in steps.items() if name.endswith(".weights")}
    assert bool(weights) == (kind != "late_concat_raw")
    for w in weights.values():
        torch.testing.assert_close(w.sum(dim=-1), torch.ones(w.shape[:-1], dtype=w.dtype))
    assert steps["readout"].shape[0] == 3


def test_the_names_of_intermediates_are_stable():
    _, steps = build(SMALL).eval()(*batch(), return_intermediates=True)
    shapes = {name: tuple(step.shape) for name, step in steps.items()}
    assert shapes == {
        "block0.semantic_from_motion.weights": (3, 4, 16, 8),
        "block0.motion_from_semantic.weights": (3, 4, 8, 16),
        "block1.semantic_from_motion.weights": (3, 4, 16, 8),
        "block1.motion_from_semantic.weights": (3, 4, 8, 16),
        "self0.weights": (3, 4, 25, 25),
        "semantic": (3, 16, 24),
        "motion": (3, 8, 24),
        "readout": (3, 24),
    }
    _, steps = build(replace(SMALL, kind="late_concat")).eval()(*batch(), return_intermediates=True)
    own = {"block0.semantic.weights", "block1.motion.weights", "self0.semantic.weights", "motion.readout"}
    assert own <= steps.keys()
    _, steps = build(replace(SMALL, kind="joint")).eval()(*batch(), return_intermediates=True)
    shapes = {name: tuple(step.shape) for name, step in steps.items()}
    assert shapes == {
        "block0.joint.weights": (3, 4, 24, 24),
        "block1.joint.weights": (3, 4, 24, 24),
        "self0.weights": (3, 4, 25, 25),
        "semantic": (3, 16, 24),
        "motion": (3, 8, 24),
        "readout": (3, 24),
    }


@pytest.mark.parametrize("kind", list_fusions())
def test_every_parameter_learns_and_only_the_named_streams_matter(kind):
    fusion = build(replace(SMALL, kind=kind))
    semantic, semantic_xyz, motion, motion_xyz = batch()
    semantic.requires_grad_()
    motion.requires_grad_()
    fusion(semantic, semantic_xyz, motion, motion_xyz).square().sum().backward()
    idle = [name for name, p in fusion.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # The first block's keys cannot gain from a bias: it shifts all logits of a query alike.
    assert [name for name in idle if not name.endswith("linear.bias")] == []
    assert (semantic.grad is not None) == (kind not in MOTION_ALONE)
    assert (motion.grad is not None) == (not kind.startswith("semantic") or kind == "semantic_from_motion")


def test_the_full_size_fits_its_budget():
    total = trained_parameters(create_fusion(FULL))
    width, classes = 512, 174
    attention, feed_forward = 4 * width * (width + 1), (4 * width * (2 * width) + 5 * width)
    norms = 2 * 2 * width
    units = 2 * 2 + 1  # two directions in two blocks, then one block over all
    inputs = (384 + 2048) * width + 2 * (384 + 2048) + 2 * width
    head = width + 2 * width + (width + 1) * classes  # readout token, norm, classes
    assert total == units * (attention + feed_forward + norms) + inputs + head
    assert 16.6e6 < total < 17.2e6


@pytest.mark.parametrize("config", [
    DEMO, replace(FULL, positions="learned", heads=16), replace(DEMO, self_blocks=0), replace(FULL, self_blocks=0),
])  # fmt: skip
@pytest.mark.parametrize("kind", list_fusions())
def test_siblings_match_the_reference_in_trained_parameters(kind, config):
    with torch.device("meta"):  # only sizes are wanted
        sizes = [trained_parameters(create_fusion(c)) for c in (config, replace(config, kind=kind))]
    if kind in PROBES or kind in STEPS:  # the published head where that is smaller, and never a larger one
        assert sizes[1] <= sizes[0]
    else:
        assert abs(sizes[1] / sizes[0] - 1) < 0.02


@pytest.mark.parametrize("kind", list_fusions())
def test_switches_that_change_no_layer_keep_the_hidden_width(kind):
    config = replace(DEMO, kind=kind)
    for change in ({"appearance": "averaged"}, {"window": "time"}, {"token_drop": 0.3}):
        assert hidden_width(replace(config, **change)) == hidden_width(config)
    whole, averaged = (fusion_cost(replace(config, appearance=a), 8, 8) for a in ("ordered", "averaged"))
    assert whole == averaged


def test_the_counted_cost_is_that_of_the_built_module():
    config = replace(DEMO, kind="late_concat_raw")
    fusion, cost = create_fusion(config), fusion_cost(config, 8, 8)
    products = sum(p.numel() for name, p in fusion.named_parameters() if p.ndim == 2)
    assert cost["trained_parameters"] == trained_parameters(fusion)
    assert cost["gflops"] == pytest.approx(2 * products / 1e9)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_a_bag_of_frames_has_no_order_and_the_ordered_stream_has(positions):
    semantic, *rest = batch()
    shuffled = semantic.unflatten(1, (4, 4))[:, [2, 0, 3, 1]].flatten(1, 2)
    spatial = semantic.unflatten(1, (4, 4))[:, :, [1, 0, 3, 2]].flatten(1, 2)
    bag = build(replace(SMALL, kind="semantic_bag", positions=positions)).eval()
    torch.testing.assert_close(bag(shuffled, *rest), bag(semantic, *rest))
    assert (bag(spatial, *rest) - bag(semantic, *rest)).abs().max() > 1e-3
    ordered = build(replace(SMALL, kind="semantic", positions=positions)).eval()
    assert (ordered(shuffled, *rest) - ordered(semantic, *rest)).abs().max() > 1e-3


@pytest.mark.parametrize("positions", ["rotary", "learned", "none"])
@pytest.mark.parametrize("kind", list_fusions())
def test_every_kind_learns_with_any_positions_and_knows_no_place_without(kind, positions):
    fusion, inputs = build(replace(SMALL, kind=kind, positions=positions)), batch()
    fusion(*inputs).square().sum().backward()
    assert all(p.grad is not None for p in fusion.parameters())
    if positions == "none" and kind not in ("cast", *STEPS):  # these have windows, and positions, of their own
        semantic, semantic_xyz, motion, motion_xyz = inputs
        turned = semantic.flip(1), semantic_xyz, motion.flip(1), motion_xyz
        torch.testing.assert_close(fusion.eval()(*turned), fusion(*inputs))


def test_a_sum_of_scores_is_additive_in_the_streams():
    """Two clips that exchange a stream: what they gain from it together cannot depend on the other stream."""
    fusion = build(replace(SMALL, kind="sum")).eval()
    semantic, semantic_xyz, motion, motion_xyz = batch(size=2)
    both = fusion(semantic, semantic_xyz, motion, motion_xyz)
    crossed = fusion(semantic, semantic_xyz, motion.flip(0), motion_xyz)
    torch.testing.assert_close(both.sum(dim=0), crossed.sum(dim=0))
    assert (both - crossed).abs().max() > 1e-3


def test_without_positions_the_cross_attention_is_blind_to_order():
    fusion = build(replace(SMALL, positions="none")).eval()
    semantic, *rest = batch()
    torch.testing.assert_close(fusion(semantic.flip(1), *rest), fusion(semantic, *rest))


@pytest.mark.parametrize("kind", ["late_concat", "semantic", "motion", "joint"])
def test_a_window_holds_across_streams_and_not_within_one(kind):
    inputs = batch()
    first = build(replace(SMALL, kind=kind, window="time")).eval()(*inputs)
    torch.testing.assert_close(first, build(replace(SMALL, kind=kind)).eval()(*inputs))


@pytest.mark.parametrize(("window", "axes"), [("time", [1, 2]), ("space", [0])])
def test_a_window_lets_nothing_through_from_elsewhere(window, axes):
    fusion = build(replace(SMALL, window=window, blocks=1)).eval()
    semantic, semantic_xyz, motion, motion_xyz = batch()
    motion.requires_grad_()
    _, steps = fusion(semantic, semantic_xyz, motion, motion_xyz, return_intermediates=True)
    for token in range(16):
        gradient = torch.autograd.grad(steps["semantic"][:, token].sum(), motion, retain_graph=True)[0]
        reached = gradient.abs().sum(dim=(0, 2)) > 1e-12
        distance = (motion_xyz[:, axes] - semantic_xyz[token, axes]).norm(dim=1)
        assert reached.tolist() == (distance < distance.min() + 1e-6).tolist()


def test_dropout_and_drop_path_act_in_training_only_and_follow_the_seed():
    fusion, inputs = build(replace(SMALL, dropout=0.3, drop_path=0.3)), batch()

    def forward(seed):
        torch.manual_seed(seed)
        return fusion(*inputs)

    assert torch.equal(forward(1), forward(1))
    assert not torch.equal(forward(1), forward(2))
    fusion.eval()
    assert torch.equal(forward(1), forward(2))


def test_the_same_seed_builds_the_same_weights():
    for kind in list_fusions():
        first, second = (build(replace(SMALL, kind=kind), seed=4).state_dict() for _ in range(2))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_autocast_stays_near_full_precision():
    fusion, inputs = create_fusion(DEMO).eval(), batch(DEMO, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        half = fusion(*inputs)
    torch.testing.assert_close(half.float(), fusion(*inputs), atol=0.1, rtol=0.1)


def test_one_grid_and_then_another_through_the_same_module():
    """Coordinates are cached, so a change of grid must be noticed."""
    fusion = build(SMALL).eval()
    small = batch()
    before = fusion(*small)
    semantic, _, motion, motion_xyz = batch()
    wide = fusion(semantic, grid_coordinates((1, 4, 4)).flatten(0, 1).double(), motion, motion_xyz)
    assert not torch.allclose(before, wide)
    torch.testing.assert_close(fusion(*small), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "cross_atention"}, "FusionConfig.kind .*did you mean 'cross_attention'"),
        ({"window": "tme"}, "did you mean 'time'"),
        ({"positions": "sine"}, "rotary, learned, none"),
        ({"heads": 5}, "width 24 over heads 5"),
        ({"heads": 24}, "even, whole number"),
        ({"dropout": 1.0}, "dropout must lie in"),
        ({"blocks": 0}, "blocks must be a whole number of at least 1"),
        ({"self_blocks": -1}, "self_blocks must be a whole number of at least 0"),
        ({"appearance": "averagd"}, "did you mean 'averaged'"),
        ({"mlp_ratio": 0}, "mlp_ratio must be above 0"),
        ({"cross_width": -8}, "cross_width must be a whole number of at least 0"),
        ({"cross_width": 12}, "cross_width 12 over heads 4"),
        ({"bottleneck_tokens": 0}, "bottleneck_tokens must be a whole number of at least 1"),
        ({"token_drop": 1}, "token_drop must lie in"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


def test_a_sibling_that_cannot_reach_the_reference_says_so():
    with pytest.raises(ValueError, match="late_concat of width 24 has no feed-forward width"):
        create_fusion(replace(SMALL, kind="late_concat", mlp_ratio=0.1))


@pytest.mark.parametrize(
    ("place", "change"),
    [
        (0, lambda x: x[..., :-1]),
        (0, lambda x: x[:, :-1]),
        (3, lambda x: x[:-1]),
        (2, lambda x: x[0]),
    ],
)
def test_tokens_that_disagree_with_widths_or_coordinates_are_refused(place, change):
    inputs = batch()
    inputs[place] = change(inputs[place])
    with pytest.raises((ValueError, jaxtyping.TypeCheckError), match="tokens|semantic|motion"):
        build(SMALL)(*inputs)
