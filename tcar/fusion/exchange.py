"""Other ways than plain cross-attention for two streams to exchange, each a step of `CrossFusion`."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tcar.fusion.blocks import (
    OTHER,
    STREAMS,
    FeedForward,
    Projection,
    Record,
    Residual,
    SelfBlock,
    Tables,
    read_across,
)
from tcar.fusion.positions import with_origin

BOTTLENECK = "bottleneck"  # the name under which fusion tokens travel beside the streams


class GatedBlock(nn.Module):
    """Each stream adds the mean of what it may read of the other one, through a gate of its own.

    The gate, one value a token and channel, is worked out from the token and that mean; nothing is chosen by content
    among the tokens of the other stream. Source: Arevalo et al. 2017, Gated multimodal units, here in a residual
    branch.
    """

    def __init__(self, width: int, hidden: int, dropout: float | int = 0, drop_path: float | int = 0):
        super().__init__()
        self.norm = nn.ModuleDict({s: nn.LayerNorm(width) for s in STREAMS})
        self.value = nn.ModuleDict({s: nn.Linear(width, width) for s in STREAMS})
        self.gate = nn.ModuleDict({s: nn.Linear(2 * width, width) for s in STREAMS})
        self.feed_forward = nn.ModuleDict({s: FeedForward(width, hidden) for s in STREAMS})
        self.residual = Residual(dropout, drop_path)

    def forward(
        self,
        tokens: dict[str, Float[Tensor, "b _ d"]],
        tables: Tables,
        *,
        record: Record | None = None,
        name: str = "gated",
    ) -> dict[str, Float[Tensor, "b _ d"]]:
        """Return both streams' tokens after the block.

        With a `record`, "<name>.<stream>_from_<other>.weights" [b 1 n m], the shares in the mean, and "….gate"
        [b n d] are written to it.
        """
        normed, after = {s: self.norm[s](tokens[s]) for s in STREAMS}, {}
        for s in STREAMS:
            own, other = normed[s], normed[OTHER[s]]
            shares = _equal_shares(tables["other"][s], other)
            mean = (shares @ other).expand_as(own)
            gate = self.gate[s](torch.cat([own, mean], dim=-1)).sigmoid()
            if record is not None:
                path = f"{name}.{s}_from_{OTHER[s]}"
                record |= {f"{path}.weights": shares.expand(len(own), 1, own.shape[1], -1), f"{path}.gate": gate}
            x = self.residual(tokens[s], gate * self.value[s](mean))
            after[s] = self.residual(x, self.feed_forward[s](x))
        return after


def _equal_shares(mask: Bool[Tensor, "n m"] | None, read: Float[Tensor, "b m d"]) -> Float[Tensor, "_ m"]:
    """Return the shares of a mean over what the mask lets through, 0 where that is nothing."""
    kept = read.new_ones(1, read.shape[1]) if mask is None else mask.to(read.dtype)
    return kept / kept.sum(dim=-1, keepdim=True).clamp_min(1)


class NarrowExchange(nn.Module):
    """The exchange of CAST: both streams read each other in fewer channels, and come back through a GELU.

    Down-projections come before the LayerNorm, as published; rotary coordinates take the place of learned positions,
    and up-projections start like other layers: no pretrained expert has to be kept whole at first. Source: Lee et
    al. 2023, CAST, bottleneck cross-attention.
    """

    def __init__(
        self, width: int, heads: int, cross_width: int, dropout: float | int = 0, drop_path: float | int = 0
    ):
        super().__init__()
        self.heads = heads
        self.down = nn.ModuleDict({s: nn.Linear(width, cross_width) for s in STREAMS})
        self.project = nn.ModuleDict({s: Projection(cross_width) for s in STREAMS})
        self.out = nn.ModuleDict({s: nn.Linear(cross_width, cross_width) for s in STREAMS})
        self.up = nn.ModuleDict({s: nn.Linear(cross_width, width) for s in STREAMS})
        self.residual = Residual(dropout, drop_path)

    def forward(
        self,
        tokens: dict[str, Float[Tensor, "b _ d"]],
        tables: Tables,
        *,
        record: Record | None = None,
        name: str = "exchange",
    ) -> dict[str, Float[Tensor, "b _ d"]]:
        """Return both streams' tokens after the exchange; for the record see `read_across`."""
        parts = {s: self.project[s](self.down[s](tokens[s]), tables["rotary_across"][s]) for s in STREAMS}
        read = {s: read_across(s, parts, self.heads, tables, record, name) for s in STREAMS}
        return {s: self.residual(tokens[s], self.up[s](F.gelu(self.out[s](read[s])))) for s in STREAMS}


class StreamBlocks(nn.Module):
    """A transformer block on each stream by itself."""

    def __init__(self, **sizes: float | int):
        super().__init__()
        self.blocks = nn.ModuleDict({s: SelfBlock(**sizes) for s in STREAMS})

    def forward(
        self,
        tokens: dict[str, Float[Tensor, "b _ d"]],
        tables: Tables,
        *,
        record: Record | None = None,
        name: str = "within",
    ) -> dict[str, Float[Tensor, "b _ d"]]:
        """Return both streams' tokens after the block; with a `record`, "<name>.<stream>.weights" [b h n n] are
        written to it."""
        return {
            s: self.blocks[s](tokens[s], tables["rotary"][s], record=record, name=f"{name}.{s}") for s in STREAMS
        }


class BottleneckBlock(nn.Module):
    """A transformer block on each stream and the fusion tokens, whose two copies are averaged afterwards.

    Whatever goes from stream to stream has to pass through the few fusion tokens. They sit at the origin of space and
    time. Source: Nagrani et al. 2021, Attention bottlenecks for multimodal fusion.
    """

    def __init__(self, **sizes: float | int):
        super().__init__()
        self.blocks = nn.ModuleDict({s: SelfBlock(**sizes) for s in STREAMS})

    def forward(
        self,
        tokens: dict[str, Float[Tensor, "b _ d"]],
        tables: Tables,
        *,
        record: Record | None = None,
        name: str = "bottleneck",
    ) -> dict[str, Float[Tensor, "b _ d"]]:
        """Return the tokens of both streams and the k fusion tokens (`BOTTLENECK`) after the block.

        With a `record`, "<name>.<stream>.weights" [b h n+k n+k] are written to it, fusion tokens last.
        """
        shared, after, copies = tokens[BOTTLENECK], {}, []
        for s in STREAMS:
            rotary = with_origin(tables["rotary"][s], shared.shape[1], last=True)
            x = torch.cat([tokens[s], shared], dim=1)
            x = self.blocks[s](x, rotary, record=record, name=f"{name}.{s}")
            after[s], copy = x.tensor_split([tokens[s].shape[1]], dim=1)
            copies.append(copy)
        return after | {BOTTLENECK: torch.stack(copies).mean(dim=0)}
