"""What sets the heads of an attention apart: how widely and how far they read, and how much they differ."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tcar.explain.attention import named_attention, streams_of
from tcar.explain.errors import ExplanationError
from tcar.fusion.exchange import BOTTLENECK


@dataclass(frozen=True)
class Heads:
    """Measures of the heads of one attention, [clip, head] each, so that groups of clips can be averaged.

    `entropy` is that of a query's weights, in nats, and `relative_entropy` its share of what even weights over all keys
    within reach would have (NaN where no query reaches two). `time` and `space` are the mean distance between query and
    key, in lengths of the clip and of a side of the frame, among those that lie somewhere (NaN where none do).
    `specialisation` is how far a head is from the mean of the heads, in nats: the Kullback-Leibler divergence, whose
    mean over the heads is their Jensen-Shannon divergence, which is the information between head and key at a given
    query: 0 where all heads are the same, log of their number where each reads what no other reads. All are means over
    the queries. Source of the divergence as a measure of heads: Correia, Niculae and Martins 2019, Adaptively Sparse
    Transformers.
    """

    entropy: Float[np.ndarray, "b h"]
    relative_entropy: Float[np.ndarray, "b h"]
    time: Float[np.ndarray, "b h"]
    space: Float[np.ndarray, "b h"]
    specialisation: Float[np.ndarray, "b h"]


def head_measures(
    weights: Float[Tensor, "b h n m"], query_xyz: Float[Tensor, "n 3"], key_xyz: Float[Tensor, "m 3"]
) -> Heads:
    """Measure the heads of one attention whose queries and keys lie at these (t, y, x), NaN for what lies nowhere.

    A key is within a query's reach where any head of any clip gives it weight: a mask leaves exactly 0.
    """
    if weights.shape[2:] != (len(query_xyz), len(key_xyz)):
        raise ExplanationError(
            f"attention from {weights.shape[2]} to {weights.shape[3]} tokens, but coordinates of {len(query_xyz)} and "
            f"{len(key_xyz)}"
        )
    shares = weights.detach().double()
    entropy = _entropy(shares)
    reach = (shares > 0).any(dim=0).any(dim=0).sum(dim=1)
    chooses = reach > 1
    relative = (entropy[..., chooses] / reach[chooses].double().log()).mean(dim=2)
    between = shares.mean(dim=1, keepdim=True)
    divergence = torch.special.xlogy(shares, shares / between.where(between > 0, 1)).sum(dim=3)
    time, space = _distances(shares, query_xyz.double(), key_xyz.double())
    found = entropy.mean(dim=2), relative, time, space, divergence.mean(dim=2)
    return Heads(*(values.cpu().numpy() for values in found))


def measure_heads(
    intermediates: dict[str, Tensor], xyz: dict[str, Float[Tensor, "_ 3"]]
) -> dict[str, Heads]:
    """Measure the heads of every attention of a fusion by its name (`named_attention`).

    `xyz` are the coordinates of the streams' tokens by stream. Raises ExplanationError where they are of another count.
    """
    found = {}
    for name, weights in named_attention(intermediates).items():
        shared = intermediates[BOTTLENECK].shape[1] if BOTTLENECK in intermediates and name.startswith("block") else 0
        found[name] = head_measures(weights, *coordinates_of(name, weights, xyz, shared))
    return found


def coordinates_of(
    name: str, weights: Float[Tensor, "b h n m"], xyz: dict[str, Float[Tensor, "_ 3"]], shared: int = 0
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "m 3"]]:
    """Return where queries and keys of the attention of this name lie, NaN for a readout and `shared` fusion tokens.

    Raises ExplanationError where the streams have another number of tokens.
    """
    ends = []
    for streams, count in zip(streams_of(name), weights.shape[2:], strict=True):
        if missing := [s for s in streams if s not in xyz]:
            raise ExplanationError(f"{name} needs the coordinates of the {missing[0]} stream, given: {sorted(xyz)}")
        nowhere = next(iter(xyz.values())).new_full((1, 3), torch.nan)
        first = 1 if name.startswith("self") or not streams else 0
        found = torch.cat([nowhere.expand(first, 3), *(xyz[s] for s in streams), nowhere.expand(shared, 3)])
        if len(found) != count:
            raise ExplanationError(f"{name} is among {count} tokens, but the coordinates given make {len(found)}")
        ends.append(found)
    return ends[0], ends[1]


def _entropy(shares: Float[Tensor, "*axes m"]) -> Float[Tensor, "*axes"]:
    return torch.special.entr(shares).sum(dim=-1)


def _distances(
    shares: Float[Tensor, "b h n m"], query_xyz: Float[Tensor, "n 3"], key_xyz: Float[Tensor, "m 3"]
) -> tuple[Float[Tensor, "b h"], Float[Tensor, "b h"]]:
    """Return the mean distance over time and over the frame between located queries and keys."""
    asks, holds = (~xyz.isnan().any(dim=1) for xyz in (query_xyz, key_xyz))
    if not asks.any() or not holds.any():
        nowhere = shares.new_full(shares.shape[:2], math.nan)
        return nowhere, nowhere
    shares, query_xyz, key_xyz = shares[:, :, asks][..., holds], query_xyz[asks], key_xyz[holds]
    mass = shares.sum(dim=3)
    found = []
    for axes in (slice(0, 1), slice(1, 3)):
        apart = torch.cdist(query_xyz[:, axes], key_xyz[:, axes], compute_mode="donot_use_mm_for_euclid_dist")
        far = (shares * apart).sum(dim=3) / mass.where(mass > 0, 1)
        found.append(far.mean(dim=2))
    return found[0], found[1]
