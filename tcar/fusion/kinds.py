"""Fusion of a semantic and a motion token grid into class logits: cross-attention and its siblings.

Every kind takes the same input and is built from the same blocks. `cross_attention` takes the feed-forward
width of `mlp_ratio`; a sibling takes the one that brings its trained parameters to those of `cross_attention`
with the same configuration, so that a comparison is about wiring and not about size.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tcar.fusion.base import CrossFusion, Fusion, block_sizes
from tcar.fusion.blocks import STREAMS
from tcar.fusion.config import FusionConfig
from tcar.fusion.exchange import CrossBlock, GatedBlock, NarrowExchange, StreamBlocks
from tcar.fusion.probe import PROBES, ProbeFusion, probe_hidden
from tcar.fusion.settings import FUSIONS
from tcar.fusion.siblings import (
    BottleneckFusion,
    JointTransformer,
    LateConcat,
    LateConcatRaw,
    SingleStream,
    SumOfScores,
)
from tcar.fusion.step import STEPS, StepFusion, step_width


def _cross_attention(config: FusionConfig, hidden: int, readers: tuple[str, ...] = STREAMS) -> Fusion:
    sizes = block_sizes(config, hidden)
    return CrossFusion(
        config, hidden, lambda: CrossBlock(**sizes, readers=readers, cross_width=config.reading_width)
    )


def _gated(config: FusionConfig, hidden: int) -> Fusion:
    return CrossFusion(
        config, hidden, lambda: GatedBlock(config.width, hidden, config.dropout, config.drop_path)
    )


def _cast(config: FusionConfig, hidden: int) -> Fusion:
    sizes = config.width, config.heads, config.reading_width, config.dropout, config.drop_path
    return CrossFusion(
        config,
        hidden,
        lambda: NarrowExchange(*sizes),
        lambda: StreamBlocks(**block_sizes(config, hidden)),
        windows=("time", "space"),
    )


_KINDS: dict[str, Callable[[FusionConfig, int], Fusion]] = {
    "cross_attention": _cross_attention,
    "semantic_from_motion": lambda config, hidden: _cross_attention(config, hidden, readers=("semantic",)),
    "motion_from_semantic": lambda config, hidden: _cross_attention(config, hidden, readers=("motion",)),
    "late_concat": LateConcat,
    "late_concat_raw": LateConcatRaw,
    "sum": SumOfScores,
    "gated": _gated,
    "bottleneck": BottleneckFusion,
    "cast": _cast,
    "joint": JointTransformer,
    "semantic": lambda config, hidden: SingleStream(config, hidden, "semantic"),
    "motion": lambda config, hidden: SingleStream(config, hidden, "motion"),
    "semantic_bag": lambda config, hidden: SingleStream(config, hidden, "semantic", timeless=True),
    **dict.fromkeys(PROBES, ProbeFusion),
    **dict.fromkeys(STEPS, StepFusion),
}


def list_fusions() -> list[str]:
    """Return the kinds that `create_fusion` knows, the reference first."""
    return list(FUSIONS)


def create_fusion(config: FusionConfig) -> Fusion:
    """Build a fusion with fresh weights from torch's global generator (seed it first)."""
    fusion = _KINDS[config.kind](config, hidden_width(config))
    if isinstance(fusion, ProbeFusion):
        return fusion  # its weights are drawn as published
    for module in fusion.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return fusion


def trained_parameters(module: nn.Module) -> int:
    """Count the parameters that take a gradient."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@lru_cache(maxsize=256)
def hidden_width(config: FusionConfig) -> int:
    """Return the hidden width of a kind's feed-forward layers, in steps of 8 for siblings (fast matrix
    products); of the kinds in `STEPS`, which have none, the width of their block.

    Raises ValueError where no width matches the parameters of `cross_attention`.
    """
    if config.kind == "cross_attention":
        return round(config.mlp_ratio * config.width)
    target = _count(replace(config, kind="cross_attention"), round(config.mlp_ratio * config.width))
    if config.kind in PROBES:
        return probe_hidden(config, target)
    if config.kind in STEPS:
        return step_width(config, target)
    # Counts are polynomials of degree two at most in the hidden width, so three of them give all others.
    first, second, third = (_count(config, 8 * steps) for steps in (1, 2, 3))
    bend = (third - 2 * second + first) / 2
    slope, offset = second - first - 3 * bend, 3 * first - 3 * second + third - target
    root = (slope**2 - 4 * bend * offset) ** 0.5 - slope if bend else -offset
    steps = root / (2 * bend if bend else slope)
    hidden = 8 * max(1, round(steps.real))  # a complex root is no match either, and refused below
    if abs(_count(config, hidden) - target) > 0.1 * target:
        raise ValueError(
            f"{config.kind} of width {config.width} has no feed-forward width with the "
            f"{target:,} trained parameters of cross_attention; raise width or mlp_ratio"
        )
    return hidden


def _count(config: FusionConfig, hidden: int) -> int:
    with torch.device("meta"):
        return trained_parameters(_KINDS[config.kind](config, hidden))


def fusion_cost(config: FusionConfig, semantic_tokens: int, motion_tokens: int) -> dict[str, int | float]:
    """Count trained parameters and the GFLOPs of one clip forward (2 a multiply-add), without running it."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        fusion = _KINDS[config.kind](config, hidden_width(config)).eval()
        fusion(
            torch.empty(1, semantic_tokens, config.semantic_width),
            torch.empty(semantic_tokens, 3),
            torch.empty(1, motion_tokens, config.motion_width),
            torch.empty(motion_tokens, 3),
        )
    return {"trained_parameters": trained_parameters(fusion), "gflops": counter.get_total_flops() / 1e9}
