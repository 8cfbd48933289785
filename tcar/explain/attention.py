"""Where the model read: attention followed back from the readout to the tokens."""

import re

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tcar.fusion.exchange import BOTTLENECK, JOINT

Grid = tuple[int, int, int]


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
    for weights in reversed(_numbered(intermediates, r"self(\d+)" + re.escape(suffix))):
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
    for weights in reversed(_numbered(intermediates, r"block(\d+)\.(\w+)")):
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


def _numbered(intermediates: dict[str, Tensor], pattern: str) -> list[dict[str, Tensor]]:
    """Return weights block by block, each by the name that follows the block's number."""
    blocks: dict[int, dict[str, Tensor]] = {}
    for name, weights in intermediates.items():
        if found := re.fullmatch(pattern + r"\.weights", name):
            number, *rest = found.groups()
            blocks.setdefault(int(number), {})[rest[0] if rest else ""] = weights
    return [blocks[number] for number in sorted(blocks)]


def _half_residual(weights: Float[Tensor, "b n n"]) -> Float[Tensor, "b n n"]:
    return (weights + torch.eye(weights.shape[-1]).to(weights)) / 2
