"""Attention, and pre-norm transformer blocks over the space-time tokens of one stream.

Source: Vaswani et al. 2017; pre-norm, Xiong et al. 2020.
"""

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tcar.fusion.positions import LEARNED_BINS, rotate, with_origin

STREAMS = ("semantic", "motion")
OTHER = {"semantic": "motion", "motion": "semantic"}

Record = dict[str, Tensor]
Rotary = Float[Tensor, "n pairs 2"]
Tokens = dict[str, Float[Tensor, "b _ _"]]  # by stream
Tables = dict[str, dict[str, Tensor | int | None]]  # what `Geometry` returns


def attend(
    q: Float[Tensor, "b n d"],
    k: Float[Tensor, "b m d"],
    v: Float[Tensor, "b m d"],
    heads: int,
    mask: Bool[Tensor, "n m"] | None = None,
    weights: bool = False,
    places: int = 0,
) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b h n m"] | None]:
    """Attend with scaled dot products in `heads` equal slices of the channels; return what is read and the weights.

    The mask says what may be read; a query that may read nothing reads 0. `places` above 0 says what the mask is:
    queries and keys lie on so many places, moment by moment, and read their own alone. The weights are worked out
    only when asked for, as the fused kernel never stores them. They have no dropout, which fused CPU kernels lack: it
    sits on the residual branches instead.
    """
    # The fused CPU kernel works through every masked score; plain products do not, but they keep every channel of
    # every moment. Which is the faster was measured: many places and narrow heads speak for products.
    few = places and k.shape[1] // places * (k.shape[2] // heads) <= 2 * places
    if few and not weights and q.device.type == "cpu":
        return _attend_in_place(q, k, v, heads, places), None
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    attention = None
    if weights:
        attention = attention_weights(q, k, mask)
        with _as_given(q.device):
            out = (attention @ v.to(attention.dtype)).to(v.dtype)
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).flatten(2), attention


def attention_weights(
    q: Float[Tensor, "*axes n c"], k: Float[Tensor, "*axes m c"], mask: Bool[Tensor, "n m"] | None = None
) -> Float[Tensor, "*axes n m"]:
    """Return the weights of scaled dot products, in float32 at least, whatever autocast says.

    Fused kernels keep scores in float32: in half precision a map that is shown would not be the one that is used.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    with _as_given(q.device):
        scores = (q.to(dtype) * q.shape[-1] ** -0.5) @ k.to(dtype).transpose(-1, -2)
        if mask is None:
            return scores.softmax(dim=-1)
        # The second fill is for queries without keys, which a softmax alone would make NaN.
        return scores.masked_fill(~mask, float("-inf")).softmax(dim=-1).masked_fill(~mask, 0)


def _as_given(device: torch.device) -> contextlib.AbstractContextManager:
    """Keep autocast away; a device that only knows shapes has none."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else contextlib.nullcontext()


def _attend_in_place(
    q: Float[Tensor, "b n d"], k: Float[Tensor, "b m d"], v: Float[Tensor, "b m d"], heads: int, places: int
) -> Float[Tensor, "b n d"]:
    """Attend within each place alone, over time: tensors are [batch, query time, key time, place, channels]."""
    dtype = torch.promote_types(q.dtype, torch.float32)  # of scores and weights, as in fused kernels
    q = q.to(dtype).unflatten(1, (-1, 1, places)) * (q.shape[-1] // heads) ** -0.5
    k, v = (x.unflatten(1, (1, -1, places)) for x in (k, v))
    attention = (q * k).unflatten(-1, (heads, -1)).sum(-1).softmax(dim=2)
    read = attention[..., None] * v.unflatten(-1, (heads, -1))
    return read.sum(dim=2).flatten(-2).flatten(1, 2).to(v.dtype)


class Residual(nn.Module):
    """Add a branch to its trunk, in training with dropout and drop-path (Huang et al. 2016, per sample).

    Both are one scaled 0/1 factor, applied in the same pass as the sum: random numbers dominate small models
    on a CPU.
    """

    def __init__(self, dropout: float | int, drop_path: float | int):
        super().__init__()
        self.dropout, self.drop_path = dropout, drop_path

    def forward(
        self, trunk: Float[Tensor, "b n d"], branch: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b n d"]:
        if not self.training or self.dropout == self.drop_path == 0:
            return trunk + branch
        factor = None
        for rate, shape in ((self.dropout, branch.shape), (self.drop_path, (branch.shape[0], 1, 1))):
            if rate > 0:
                keep = torch.empty(shape, dtype=branch.dtype, device=branch.device).bernoulli_(1 - rate)
                keep = keep.div_(1 - rate)
                factor = keep if factor is None else factor.mul_(keep)
        return torch.addcmul(trunk, branch, factor)


class Projection(nn.Module):
    """LayerNorm and one fused linear layer to those of query, key and value that `roles` names, `out` wide (0: as
    wide as what comes in)."""

    def __init__(self, width: int, roles: str = "qkv", out: int = 0):
        super().__init__()
        self.width, self.roles = out or width, roles
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, len(roles) * self.width)

    def forward(self, x: Float[Tensor, "b n d"], rotary: Rotary | None) -> dict[str, Float[Tensor, "b n e"]]:
        """Return the tensors by role, queries and keys rotated to their coordinates."""
        h, turning = self.norm(x), len(self.roles.replace("v", ""))
        # Values are not rotated: to cut the weights apart is cheaper than to cut what they make of all tokens.
        weight, bias = (p.tensor_split([turning * self.width]) for p in (self.linear.weight, self.linear.bias))
        turned = rotate(F.linear(h, weight[0], bias[0]).unflatten(-1, (turning, self.width)), rotary).unbind(2)
        still = (F.linear(h, weight[1], bias[1]),) if "v" in self.roles else ()
        return dict(zip(self.roles, (*turned, *still), strict=True))

    def first_query(
        self, x: Float[Tensor, "b n d"], rotary: Rotary | None
    ) -> dict[str, Float[Tensor, "b _ d"]]:
        """Return all keys and values but only the first query, for a block that is read there alone."""
        h = self.norm(x)
        wq, wkv = self.linear.weight.split((self.width, 2 * self.width))
        bq, bkv = self.linear.bias.split((self.width, 2 * self.width))
        keys, values = F.linear(h, wkv, bkv).unflatten(-1, (2, self.width)).split(1, dim=2)
        query = F.linear(h[:, :1], wq, bq)[:, :, None]
        return {
            "q": rotate(query, None if rotary is None else rotary[:1])[:, :, 0],
            "k": rotate(keys, rotary)[:, :, 0],
            "v": values[:, :, 0],
        }


class FeedForward(nn.Sequential):
    """LayerNorm, a hidden layer with GELU, and back to the width."""

    def __init__(self, width: int, hidden: int):
        super().__init__(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class Embedding(nn.Module):
    """Normalise a stream's raw tokens, project them to the model's width, add the stream embedding."""

    def __init__(self, features: int, width: int, learned_positions: bool = False):
        super().__init__()
        self.norm = nn.LayerNorm(features)
        # The stream embedding takes the place of the projection's bias.
        self.project = nn.Linear(features, width, bias=False)
        self.stream = nn.Parameter(torch.zeros(width))
        self.position = nn.Linear(3 * LEARNED_BINS, width, bias=False) if learned_positions else None

    def forward(
        self, x: Float[Tensor, "b n f"], places: Float[Tensor, "n bins"] | None
    ) -> Float[Tensor, "b n d"]:
        shift = self.stream if self.position is None else self.stream + self.position(places.to(x.dtype))
        return self.project(self.norm(x)) + shift


class SelfBlock(nn.Module):
    """A pre-norm transformer block: tokens read one another, then a feed-forward layer."""

    def __init__(
        self, width: int, heads: int, hidden: int, dropout: float | int = 0, drop_path: float | int = 0
    ):
        super().__init__()
        self.heads = heads
        self.project, self.out = Projection(width), nn.Linear(width, width)
        self.feed_forward = FeedForward(width, hidden)
        self.residual = Residual(dropout, drop_path)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        rotary: Rotary | None = None,
        *,
        first_only: bool = False,
        record: Record | None = None,
        name: str = "self",
    ) -> Float[Tensor, "b _ d"]:
        """Return the tokens after the block, or only the first one (`first_only`), which costs a fraction.

        With a `record`, "<name>.weights" [b h n n] is written to it, for all tokens either way.
        """
        prune = first_only and record is None
        qkv = self.project.first_query(x, rotary) if prune else self.project(x, rotary)
        read, weights = attend(**qkv, heads=self.heads, weights=record is not None)
        if record is not None:
            record[f"{name}.weights"] = weights
        x, read = (x[:, :1], read[:, :1]) if first_only else (x, read)
        x = self.residual(x, self.out(read))
        return self.residual(x, self.feed_forward(x))


def joined_rotary(tables: Tables) -> Rotary | None:
    """Return the rotary table of the tokens of both streams one behind the other, None where nothing is turned."""
    parts = [tables["rotary"][s] for s in STREAMS]
    return None if parts[0] is None else torch.cat(parts)


def run_block(
    block: nn.Module, *inputs: Any, again: bool, record: Record | None, **options: Any
) -> Tensor | dict[str, Tensor]:
    """Run a block; where `again` is set, the backward pass runs it again instead of keeping what is inside.

    The second run draws the same random numbers. Nothing is run again that has a record to fill. Source: Chen et
    al. 2016, Training deep nets with sublinear memory cost.
    """
    if again and record is None and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False, **options)
    return block(*inputs, record=record, **options)


class Readout(nn.Module):
    """The last blocks: all tokens and a learned readout token read one another; only the readout leaves.

    The readout sits at the origin of space and time, so places are absolute to it. Without `blocks` there is none, and
    the mean of the normalised tokens leaves.
    """

    def __init__(self, blocks: int, width: int, *, checkpointing: bool = False, **block):
        super().__init__()
        self.checkpointing = checkpointing
        self.token = nn.Parameter(torch.randn(width) * 0.02) if blocks else None
        self.norm = None if blocks else nn.LayerNorm(width)
        self.blocks = nn.ModuleList(SelfBlock(width, **block) for _ in range(blocks))

    def forward(
        self,
        tokens: Float[Tensor, "b n d"],
        rotary: Rotary | None,
        record: Record | None = None,
        suffix: str = "",
    ) -> Float[Tensor, "b d"]:
        """Return the readout; with a `record`, "self<i><suffix>.weights" [b h 1+n 1+n] are written to it.

        Without blocks those are the shares in the mean, "mean<suffix>.weights" [b 1 1 n].
        """
        if self.norm is not None:
            if record is not None:
                shares = tokens.new_full((tokens.shape[0], 1, 1, tokens.shape[1]), 1 / tokens.shape[1])
                record[f"mean{suffix}.weights"] = shares
            return self.norm(tokens).mean(dim=1)
        x = torch.cat([self.token.expand(tokens.shape[0], 1, -1), tokens], dim=1)
        rotary = with_origin(rotary, 1)
        for i, block in enumerate(self.blocks):
            # Nothing but the readout is read after the last block, so the rest of its output is never
            # computed.
            last = i == len(self.blocks) - 1
            name = f"self{i}{suffix}"
            x = run_block(block, x, rotary, first_only=last, record=record, name=name, again=self.checkpointing)
        return x[:, 0]
