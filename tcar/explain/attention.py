"""Where the model read: attention by name, from frame to frame, and followed back from the readout to the tokens."""

import re

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tcar.explain.errors import ExplanationError
from tcar.fusion.blocks import STREAMS
from tcar.fusion.exchange import BOTTLENECK, JOINT
from tcar.ground.errors import unknown

Grid = tuple[int, int, int]

WEIGHTS = ".weights"  # ends the names of attention among the intermediates of a fusion
ACROSS = "_from_"  # between reader and read, in the names of attention across streams


def named_attention(intermediates: dict[str, Tensor]) -> dict[str, Float[Tensor, "b h _ _"]]:
    """Return every attention of a fusion by its name, [batch, head, query, key].

    Names are "block1.semantic_from_motion" (the semantic stream reads the motion stream), "block0.joint" (the tokens of
    both streams, semantic ones first), "block0.semantic" (a stream by itself; in "bottleneck", fusion tokens come
    last), "self0" (the readout comes first, then the tokens of both streams), "cross.motion" (the query of a probe),
    and "mean" (the shares in the mean that is the readout); "self0.motion" and "mean.motion" are of one stream's tower.
    """
    return {name.removesuffix(WEIGHTS): w for name, w in intermediates.items() if name.endswith(WEIGHTS)}


def attention_of(intermediates: dict[str, Tensor], name: str) -> Float[Tensor, "b n m"]:
    """Return one head's attention, "block1.semantic_from_motion.head2", or the mean of the heads of "self0".

    Raises ExplanationError for a name or a head that is not there, with those that are.
    """
    known = named_attention(intermediates)
    if not known:
        raise ExplanationError("the fusion has no attention: late_concat_raw reads the means of all tokens")
    found = re.fullmatch(r"(.+)\.head(\w*)", name)
    block, head = found.groups() if found else (name, None)
    if block not in known:
        raise ExplanationError(f"no attention is named {block!r}: {unknown(block, known)}")
    weights = known[block]
    if head is None:
        return weights.mean(dim=1)
    if not head.isdecimal() or int(head) >= weights.shape[1]:
        heads = "head0 alone" if weights.shape[1] == 1 else f"head0 to head{weights.shape[1] - 1}"
        raise ExplanationError(f"{block} has no head{head}: it has {heads}")
    return weights[:, int(head)]


def streams_of(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return whose tokens attention of this name goes from and to, in their order: the streams of queries and of keys.

    The readout and fusion tokens are of no stream: the query of a probe and of a mean has none.
    """
    first, _, of = name.partition(".")
    if ACROSS in of:
        reader, _, read = of.partition(ACROSS)
        return (reader,), (read,)
    both = STREAMS if of in ("", JOINT) else (of,)
    return (() if first in ("cross", "mean") else both), both


def frame_to_frame(weights: Float[Tensor, "b n m"], reader_grid: Grid, read_grid: Grid) -> Float[Tensor, "b t t2"]:
    """Return how much the moments of the stream that reads take, on the mean of their places, from those of the other.

    `weights` are attention from the tokens of one grid (t, y, x) to those of another, "block0.semantic_from_motion";
    rows sum to 1 as theirs do. Raises ExplanationError where grids and weights do not fit.
    """
    wanted = tuple(int(np.prod(grid)) for grid in (reader_grid, read_grid))
    if tuple(weights.shape[1:]) != wanted:
        raise ExplanationError(
            f"attention [b {' '.join(map(str, weights.shape[1:]))}] is not from {wanted[0]} tokens {reader_grid} to "
            f"{wanted[1]} tokens {read_grid}; take one across streams, such as block0.semantic_from_motion"
        )
    moments = weights.unflatten(2, (read_grid[0], -1)).sum(dim=3)
    return moments.unflatten(1, (reader_grid[0], -1)).mean(dim=2)


def attention_received(weights: Float[Tensor, "b n m"], grid: Grid) -> Float[Tensor, "b t y x"]:
    """Return the share of all attention that each token (t, y, x) of the stream that is read receives: sums to 1.

    Raises ExplanationError where the grid has another number of tokens.
    """
    if weights.shape[2] != np.prod(grid):
        raise ExplanationError(f"attention to {weights.shape[2]} tokens, but the grid {grid} has {int(np.prod(grid))}")
    received = weights.sum(dim=1)
    return (received / received.sum(dim=1, keepdim=True)).unflatten(1, grid)


def attention_rollout(
    intermediates: dict[str, Tensor], grids: dict[str, Grid]
) -> dict[str, Float[Tensor, "b t y x"]]:
    """Follow the readout's attention back through all blocks to the tokens of each stream.

    `intermediates` come from a fusion with `return_intermediates=True`, `grids` maps streams to (t, y, x). A
    block counts half as residual, half as what it read, heads averaged. Maps of streams that share a readout
    sum to 1 together, so they also tell each stream's share; a stream with a readout of its own sums to 1 by
    itself. What ends in tokens that lie nowhere (the readout, fusion tokens) counts for no stream. Source: Abnar and
    Zuidema 2020, attention rollout, extended to blocks that read across two streams, or through fusion tokens.
    """
    shared = {name: w for name, w in intermediates.items() if re.fullmatch(r"(self\d+|mean)\.weights", name)}
    groups = [tuple(grids)] if shared else [(stream,) for stream in grids]
    maps = {}
    for streams in groups:
        suffix = "" if shared else f".{streams[0]}"
        maps |= _rollout(intermediates, {s: grids[s] for s in streams}, suffix)
    return maps


def _rollout(intermediates: dict[str, Tensor], grids: dict[str, Grid], suffix: str) -> dict[str, Tensor]:
    sizes = {s: int(np.prod(grid)) for s, grid in grids.items()}
    ends = dict(zip(sizes, np.cumsum(list(sizes.values())), strict=True))
    spans = {s: slice(ends[s] - sizes[s], ends[s]) for s in sizes}
    relevance = None
    for weights in reversed(numbered(intermediates, r"self(\d+)" + re.escape(suffix))):
        step = _half_residual(weights[""].mean(dim=1))
        if step.shape[-1] != 1 + sum(sizes.values()):
            raise ValueError(
                f"attention over {step.shape[-1] - 1} tokens, but the grids {grids} have "
                f"{sum(sizes.values())}"
            )
        relevance = step[:, 0] if relevance is None else torch.einsum("bn,bnm->bm", relevance, step)
    for name in (f"cross{suffix}.weights", f"mean{suffix}.weights"):
        # The query of an attentive probe reads the tokens alone, from outside, and so does a mean of them.
        if relevance is None and name in intermediates:
            relevance = F.pad(intermediates[name].mean(dim=1)[:, 0], (1, 0))
    if relevance is None:
        raise ValueError(
            f"no attention of {' and '.join(grids)} among the intermediates {sorted(intermediates)}"
        )
    relevance = relevance[:, 1:]  # the readout itself lies nowhere
    shared = intermediates[BOTTLENECK].shape[1] if BOTTLENECK in intermediates else 0
    relevance = F.pad(relevance, (0, shared))  # fusion tokens come last, as in the weights
    for weights in reversed(numbered(intermediates, r"block(\d+)\.(\w+)")):
        relevance = torch.einsum("bn,bnm->bm", relevance, _step_back(weights, relevance, spans, shared))
    mass = sum(relevance[:, spans[s]].sum(dim=1) for s in spans)
    return {s: (relevance[:, spans[s]] / mass[:, None]).unflatten(1, grids[s]) for s in spans}


def _step_back(
    weights: dict[str, Tensor], relevance: Float[Tensor, "b n"], spans: dict[str, slice], shared: int
) -> Float[Tensor, "b n n"]:
    """Return how the tokens after a block are made of those before it: of `shared` fusion tokens, each stream makes
    a copy, and their mean goes on."""
    count = relevance.shape[1]
    step, middle = torch.eye(count).to(relevance).repeat(len(relevance), 1, 1), count - shared
    for name, weight in weights.items():
        reader, _, read = name.partition("_from_")
        if reader not in spans and reader != JOINT:
            continue
        own = slice(0, middle) if reader == JOINT else spans[reader]
        mean, source = weight.mean(dim=1) / 2, spans[read] if read else own
        size = own.stop - own.start
        step[:, own] /= 2
        step[:, own, source] += mean[:, :size, : source.stop - source.start]
        if shared:
            step[:, own, middle:] += mean[:, :size, size:]
            step[:, middle:, middle:] += (mean[:, size:, size:] - torch.eye(shared).to(mean) / 2) / len(spans)
            step[:, middle:, own] += mean[:, size:, :size] / len(spans)
    return step


def numbered(intermediates: dict[str, Tensor], pattern: str) -> list[dict[str, Tensor]]:
    """Return weights block by block, first to last, each by the name that follows the block's number."""
    blocks: dict[int, dict[str, Tensor]] = {}
    for name, weights in intermediates.items():
        if found := re.fullmatch(pattern + r"\.weights", name):
            number, *rest = found.groups()
            blocks.setdefault(int(number), {})[rest[0] if rest else ""] = weights
    return [blocks[number] for number in sorted(blocks)]


def _half_residual(weights: Float[Tensor, "b n n"]) -> Float[Tensor, "b n n"]:
    return (weights + torch.eye(weights.shape[-1]).to(weights)) / 2
