"""Where the model read what counted: attention weighted by the gradient of a logit, followed back to the tokens."""

import contextlib
import re
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tcar.explain.attention import WEIGHTS, Grid, numbered
from tcar.explain.errors import ExplanationError
from tcar.fusion.base import Fusion
from tcar.fusion.blocks import OTHER, STREAMS, Readout
from tcar.fusion.exchange import BOTTLENECK, JOINT, GatedBlock
from tcar.fusion.siblings import Tower

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]  # semantic tokens, their coordinates, and those of the motion stream
Target = int | Int[Tensor, " _"]


def gradient_rollout(
    fusion: Fusion,
    inputs: Inputs,
    target: Target,
    against: Target | None = None,
    *,
    grids: dict[str, Grid] | None = None,
) -> dict[str, Float[Tensor, "b t y x"]]:
    """Follow what raised a logit from the readout back to the tokens of each stream, through attention.

    `inputs` are those of the fusion: tokens [b n d] and coordinates [n 3] of the semantic, then of the motion stream.
    Explained is the logit of `target`, or by how much it is above that of `against`. `grids` maps streams to (t, y, x);
    left out, they are read off the coordinates. Attention counts with its gradient, positive products alone, heads
    averaged. Maps are never negative and are not scaled: only how they compare, between tokens and between streams,
    means something, and all are 0 where no attention spoke for the target.

    Tokens that read one another follow the rules of self-attention, streams that read each other the bi-modal ones, in
    both directions from what was known before the block. Of the paper's making are neither fusion tokens, whose two
    copies are averaged here as the fusion averages them, nor gates and means, whose equal shares stand for attention;
    a probe's query and a mean read from outside, as the paper's decoder does. Source: Chefer, Gur and Wolf 2021,
    Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder Transformers, eqs. 5 to 11.

    Raises ExplanationError for a fusion without attention or in training mode, an unknown class, and `against` equal
    to `target`.
    """
    if fusion.training:
        raise ExplanationError("the fusion is in training mode, which drops what would be explained; call its eval()")
    weighted, shared = weighted_attention(fusion, inputs, target, against)
    if not weighted:
        raise ExplanationError(f"{fusion.config.kind} has no attention, so no rollout; explain its tokens or pixels")
    xyz = dict(zip(STREAMS, inputs[1::2], strict=True))
    grids = {s: (grids or {}).get(s) or grid_of(xyz[s]) for s in fusion.streams}
    sizes = {s: len(xyz[s]) for s in fusion.streams}
    together = any(re.fullmatch(r"(self\d+|mean)\.weights", name) for name in weighted)
    maps = {}
    for streams in [fusion.streams] if together else [(s,) for s in fusion.streams]:
        suffix = "" if together else f".{streams[0]}"
        row = _readout_row(weighted, {s: sizes[s] for s in streams}, suffix, shared)
        maps |= dict(zip(streams, row.split([sizes[s] for s in streams], dim=1), strict=True))
    return {s: values.unflatten(1, grids[s]) for s, values in maps.items()}


def grid_of(xyz: Float[Tensor, "n 3"]) -> Grid:
    """Return the grid (t, y, x) whose cells lie at these coordinates; raises ExplanationError where they are none."""
    grid = tuple(len(axis.round(decimals=5).unique()) for axis in xyz.double().unbind(dim=1))
    if grid[0] * grid[1] * grid[2] != len(xyz):
        raise ExplanationError(f"{len(xyz)} tokens at {grid} different times, rows and columns make no grid")
    return grid


def weighted_attention(
    fusion: Fusion, inputs: Inputs, target: Target, against: Target | None
) -> tuple[dict[str, Float[Tensor, "b _ _"]], int]:
    """Return attention times its gradient by name (eq. 5), and how many fusion tokens there are."""
    with torch.inference_mode(False), torch.enable_grad(), _means(fusion) as means:
        # Copies: what was made in inference mode takes no gradient.
        semantic, semantic_xyz, motion, motion_xyz = (x.detach().clone() for x in inputs)
        semantic.requires_grad_(), motion.requires_grad_()
        logits, record = fusion(semantic, semantic_xyz, motion, motion_xyz, return_intermediates=True)
        score = _score(logits, target, against).sum()  # clips do not meet, so each has the gradient of its own
        names = [name for name in record if name.endswith(WEIGHTS) and name not in means]
        sources = [record[name] for name in names] + [read for read, _ in means.values()]
        # What no later layer reads, such as the tokens beside the readout after the last block, has no gradient.
        slopes = torch.autograd.grad(score, sources, allow_unused=True, materialize_grads=True) if sources else ()
    with torch.no_grad():
        products = {name: slope * record[name] for name, slope in zip(names, slopes, strict=False)}
        for (name, (_, of)), slope in zip(means.items(), slopes[len(names) :], strict=True):
            products[name] = of(slope) * record[name]
        shared = record[BOTTLENECK].shape[1] if BOTTLENECK in record else 0
        # In the order of the record, in which a block's two directions stand together.
        return {n: products[n].clamp_min(0).mean(dim=1) for n in record if n in products}, shared


@contextlib.contextmanager
def _means(fusion: Fusion) -> Iterator[dict[str, tuple[Tensor, Callable[[Tensor], Tensor]]]]:
    """Watch the means of a fusion, whose equal shares are constants and have no gradient of their own.

    Yields by name of the shares, filled while the fusion runs, a tensor of the graph and how the gradient by the shares
    [b 1 n m] follows from the gradient by it.
    """
    found: dict[str, tuple[Tensor, Callable[[Tensor], Tensor]]] = {}
    with contextlib.ExitStack() as stack:
        for i, block in enumerate(getattr(fusion, "blocks", ())):
            if not isinstance(block, GatedBlock):
                continue
            normed: dict[str, Tensor] = {}
            for s in STREAMS:
                stack.callback(block.norm[s].register_forward_hook(_keep(normed, s)).remove)
                name = f"block{i}.{s}_from_{OTHER[s]}{WEIGHTS}"
                stack.callback(block.value[s].register_forward_pre_hook(_watch_gated(found, name, normed, s)).remove)
        towers = {m.readout: f".{m.stream}" for m in fusion.modules() if isinstance(m, Tower)}
        for module in fusion.modules():
            if isinstance(module, Readout) and module.norm is not None:
                name = f"mean{towers.get(module, '')}{WEIGHTS}"
                stack.callback(module.norm.register_forward_hook(_watch_mean(found, name)).remove)
        yield found


def _keep(into: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(_module, _inputs, output: Tensor) -> None:
        into[name] = output

    return hook


def _watch_gated(found: dict, name: str, normed: dict[str, Tensor], stream: str) -> Callable[..., None]:
    """Return a hook on what takes the mean: it is the shares times what is read, so its gradient gives theirs."""

    def hook(_module, inputs: tuple[Tensor]) -> None:
        read = normed[OTHER[stream]]
        found[name] = inputs[0], lambda slope: (slope @ read.transpose(1, 2))[:, None]

    return hook


def _watch_mean(found: dict, name: str) -> Callable[..., None]:
    """Return a hook on the normalised tokens: each one's gradient is its share of the mean's, which all have alike."""

    def hook(_module, _inputs, output: Tensor) -> None:
        found[name] = output, lambda slope: ((slope * output).sum(dim=2) * output.shape[1])[:, None, None]

    return hook


def _score(logits: Float[Tensor, "b c"], target: Target, against: Target | None) -> Float[Tensor, " b"]:
    chosen = _classes(target, logits)
    score = logits.gather(1, chosen[:, None])[:, 0]
    if against is None:
        return score
    other = _classes(against, logits)
    if (chosen == other).any():
        raise ExplanationError("against is the target itself: a logit less itself has nothing to explain")
    return score - logits.gather(1, other[:, None])[:, 0]


def _classes(given: Target, logits: Float[Tensor, "b c"]) -> Int[Tensor, " b"]:
    classes = torch.as_tensor(given, device=logits.device)
    if classes.ndim and len(classes) != len(logits):
        raise ExplanationError(f"{len(classes)} targets for {len(logits)} clips; give one for each, or one for all")
    if (classes < 0).any() or (classes >= logits.shape[1]).any():
        raise ExplanationError(f"no class {classes.tolist()}: the model has classes 0 to {logits.shape[1] - 1}")
    return classes.long().expand(len(logits))


def _readout_row(
    weighted: dict[str, Tensor], sizes: dict[str, int], suffix: str, shared: int
) -> Float[Tensor, "b n"]:
    """Return what the readout of these streams has of each of their tokens, stream after stream."""
    streams, count = list(sizes), sum(sizes.values())
    starts = [sum(list(sizes.values())[:i]) for i in range(len(streams))]
    spans = {s: slice(start, start + sizes[s]) for s, start in zip(streams, starts, strict=True)}
    some = next(iter(weighted.values()))
    relevance = torch.eye(count + shared).to(some).repeat(len(some), 1, 1)  # fusion tokens come last
    for block in numbered(weighted, r"block(\d+)\.(\w+)"):
        relevance = relevance + _gain(block, relevance, spans, count)
    blocks = numbered(weighted, r"self(\d+)" + re.escape(suffix))
    if not blocks:
        reading = [weighted[n] for n in (f"cross{suffix}{WEIGHTS}", f"mean{suffix}{WEIGHTS}") if n in weighted][0]
        return torch.einsum("bn,bnm->bm", reading[:, 0], _normalised(relevance)[:, :count])[:, :count]
    relevance = F.pad(relevance, (1, 0, 1, 0))  # the readout comes first
    relevance[:, 0, 0] = 1
    for block in blocks:
        read = torch.einsum("bnm,bmk->bnk", block[""], relevance[:, : 1 + count])
        relevance = relevance + F.pad(read, (0, 0, 0, shared))
    return relevance[:, 0, 1 : 1 + count]


def _gain(
    block: dict[str, Tensor], relevance: Float[Tensor, "b n n"], spans: dict[str, slice], count: int
) -> Float[Tensor, "b n n"]:
    """Return what a block adds to the relevance of all tokens to all; the first `count` have a place."""
    gain = torch.zeros_like(relevance)
    for name, weights in block.items():
        reader, _, read = name.partition("_from_")
        if read:
            own, other = spans[reader], spans[read]
            # Equations 10 and 11; the transposition is the paper's.
            before, behind = _normalised(relevance[:, own, own]), _normalised(relevance[:, other, other])
            gain[:, own, other] += before.transpose(1, 2) @ weights @ behind
            gain[:, own, own] += weights @ relevance[:, other, own]
        elif reader in spans or reader == JOINT:
            own = slice(0, count) if reader == JOINT else spans[reader]
            size, rows = own.stop - own.start, torch.arange(relevance.shape[1], device=relevance.device)
            read = weights @ relevance[:, torch.cat([rows[own], rows[count:]])]  # equations 6 and 7
            gain[:, own] += read[:, :size]
            gain[:, count:] += read[:, size:] / len(spans)
    return gain


def _normalised(relevance: Float[Tensor, "b n m"]) -> Float[Tensor, "b n m"]:
    """Weigh each token's own relevance as much as all that it read (eqs. 8 and 9); what read nothing is itself."""
    itself = torch.eye(relevance.shape[1]).to(relevance)
    gathered = relevance - itself
    total = gathered.sum(dim=2, keepdim=True)
    return gathered / torch.where(total > 0, total, 1) + itself
