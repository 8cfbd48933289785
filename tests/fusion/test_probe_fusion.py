"""The attentive probe as a method on cached tokens: the published head, one stream, never over the budget."""

from dataclasses import replace

import pytest
import torch

from tcar.explain import attention_rollout
from tcar.fusion.kinds import FusionConfig, create_fusion, fusion_cost, hidden_width, trained_parameters
from tcar.fusion.probe import PROBES, AttentiveProbe, ProbeConfig
from tcar.streams.grids import grid_coordinates

DEMO = FusionConfig(semantic_width=128, motion_width=96, num_classes=32, width=64, heads=4, mlp_ratio=2)
FULL = FusionConfig(motion_width=1024)


def size(config):
    with torch.device("meta"):
        return trained_parameters(create_fusion(config))


@pytest.mark.parametrize("kind", PROBES)
@pytest.mark.parametrize("config", [DEMO, FULL, replace(DEMO, motion_width=10)])
def test_it_is_the_largest_probe_within_the_budget(config, kind):
    stream, depth = PROBES[kind]
    budget, width = size(config), config.stream_width(stream)
    found = create_fusion(replace(config, kind=kind)).probe.config
    assert size(replace(config, kind=kind)) <= budget
    assert (found.width, found.depth) == (width, depth)
    assert found.heads == (16 if found.block_width >= 256 else config.heads)
    if found.bottleneck:  # one step wider is too much, or no bottleneck any more
        step = found.bottleneck + found.heads
        with torch.device("meta"):
            wider = AttentiveProbe(replace(found, bottleneck=step)) if step < width else None
        assert wider is None or trained_parameters(wider) > budget


def test_where_the_published_probe_fits_it_is_the_published_probe():
    fusion = create_fusion(replace(FULL, kind="motion_probe_1"))
    assert fusion.probe.config == ProbeConfig(width=1024, num_classes=174, depth=1)
    assert round(size(replace(FULL, kind="motion_probe_1")) / 1e6, 1) == 11.7
    assert hidden_width(replace(FULL, kind="motion_probe_1")) == 4096


@pytest.mark.parametrize("kind", PROBES)
def test_it_reads_its_stream_as_a_set_and_starts_with_the_published_weights(kind):
    config, stream = replace(DEMO, kind=kind), PROBES[kind][0]
    torch.manual_seed(3)
    fusion = create_fusion(config).eval()
    torch.manual_seed(3)
    alone = AttentiveProbe(fusion.probe.config).eval()
    xyz = grid_coordinates((2, 2, 2)).flatten(0, 1)
    tokens = {s: torch.randn(3, 8, config.stream_width(s)) for s in ("semantic", "motion")}
    logits = fusion(tokens["semantic"], xyz, tokens["motion"], xyz)
    torch.testing.assert_close(logits, alone(tokens[stream]))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    shuffled = {s: x[:, order] for s, x in tokens.items()}
    torch.testing.assert_close(fusion(shuffled["semantic"], xyz, shuffled["motion"], xyz), logits)


def test_intermediates_are_named_by_stream_and_lead_back_to_its_tokens():
    fusion = create_fusion(replace(DEMO, kind="motion_probe_4")).eval()
    xyz = grid_coordinates((2, 2, 2)).flatten(0, 1)
    inputs = torch.randn(3, 8, 128), xyz, torch.randn(3, 8, 96), xyz
    _, steps = fusion(*inputs, return_intermediates=True)
    assert {name: tuple(step.shape) for name, step in steps.items()} == {
        "block0.motion.weights": (3, 4, 8, 8),
        "block1.motion.weights": (3, 4, 8, 8),
        "block2.motion.weights": (3, 4, 8, 8),
        "cross.motion.weights": (3, 4, 1, 8),
        "readout": (3, fusion.probe.config.block_width),
    }
    rolled = attention_rollout(steps, {"motion": (2, 2, 2)})["motion"].flatten(1)
    expected = steps["cross.motion.weights"].mean(dim=1)[:, 0]
    for i in (2, 1, 0):  # half of a block's output is what came in
        step = (steps[f"block{i}.motion.weights"].mean(dim=1) + torch.eye(8)) / 2
        expected = torch.einsum("bn,bnm->bm", expected, step)
    torch.testing.assert_close(rolled, expected)


@pytest.mark.parametrize("kind", PROBES)
def test_only_tokens_of_its_stream_are_left_out_and_it_reads_the_others(kind):
    stream, fusion = PROBES[kind][0], create_fusion(replace(DEMO, kind=kind, token_drop=0.5)).train()
    xyz = grid_coordinates((2, 2, 2)).flatten(0, 1)
    tokens = {s: torch.randn(3, 8, DEMO.stream_width(s)) for s in ("semantic", "motion")}
    logits, steps = fusion(tokens["semantic"], xyz, tokens["motion"], xyz, return_intermediates=True)
    assert [name for name in steps if name.endswith(".kept")] == [f"{stream}.kept"]
    kept = steps[f"{stream}.kept"]
    assert len(kept) == 4
    torch.testing.assert_close(logits, fusion.probe(tokens[stream][:, kept]))


def test_checkpointing_is_passed_on_and_the_cost_is_counted():
    assert create_fusion(replace(DEMO, kind="motion_probe_4", checkpointing=True)).probe.checkpointing
    cost = fusion_cost(replace(DEMO, kind="motion_probe_1"), 8, 8)
    assert cost["trained_parameters"] == size(replace(DEMO, kind="motion_probe_1"))
    assert cost["gflops"] > 0
