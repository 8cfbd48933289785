"""The ways in which two streams exchange, each a step of `CrossFusion`.

Every step takes the tokens by stream and the tables of their grids, and returns the tokens after it; with a `record` it
writes its attention weights there, under its `name`. Source of reading across streams: Lu et al. 2019 (ViLBERT).
"""

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
    Tokens,
    attend,
    joined_rotary,
)
from tcar.fusion.positions import with_origin

BOTTLENECK = "bottleneck"  # the name under which fusion tokens travel beside the streams
JOINT = "joint"  # in the names of weights among the tokens of both streams


def read_across(
    stream: str,
    parts: dict[str, Tokens],
    heads: int,
    tables: Tables,
    record: Record | None,
    name: str,
) -> Float[Tensor, "b _ d"]:
    """Return what a stream's queries read of the other one's keys and values, through the mask in the tables.

    With a `record`, "<name>.<stream>_from_<other>.weights" [b h n m] is written to it.
    """
    source = parts[OTHER[stream]]
    read, weights = attend(
        parts[stream]["q"],
        source["k"],
        source["v"],
        heads,
        tables["other"][stream],
        record is not None,
        tables["common"][stream],
    )
    if record is not None:
        record[f"{name}.{stream}_from_{OTHER[stream]}.weights"] = weights
    return read


class CrossBlock(nn.Module):
    """Two streams read each other, or one reads the other: both from the tokens before the block.

    Each stream has one LayerNorm and one fused projection: its queries read the other stream, its keys and
    values are read by it, in `cross_width` channels (0: all). A stream that reads also has a feed-forward
    layer; one that does not leaves as it came.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        dropout: float | int = 0,
        drop_path: float | int = 0,
        readers: tuple[str, ...] = STREAMS,
        cross_width: int = 0,
    ):
        super().__init__()
        self.heads, self.readers = heads, readers
        roles = {s: ("q" if s in readers else "") + ("kv" if OTHER[s] in readers else "") for s in STREAMS}
        self.project = nn.ModuleDict({s: Projection(width, roles[s], cross_width) for s in STREAMS})
        self.out = nn.ModuleDict({s: nn.Linear(cross_width or width, width) for s in readers})
        self.feed_forward = nn.ModuleDict({s: FeedForward(width, hidden) for s in readers})
        self.residual = Residual(dropout, drop_path)

    def forward(self, tokens: Tokens, tables: Tables, *, record: Record | None = None, name: str = "cross") -> Tokens:
        """Return both streams' tokens after the block; for the record see `read_across`."""
        parts = {s: self.project[s](tokens[s], tables["rotary_across"][s]) for s in STREAMS}
        after = dict(tokens)
        for s in self.readers:
            x = self.residual(tokens[s], self.out[s](read_across(s, parts, self.heads, tables, record, name)))
            after[s] = self.residual(x, self.feed_forward[s](x))
        return after


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

    def forward(self, tokens: Tokens, tables: Tables, *, record: Record | None = None, name: str = "gated") -> Tokens:
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
        self, tokens: Tokens, tables: Tables, *, record: Record | None = None, name: str = "exchange"
    ) -> Tokens:
        """Return both streams' tokens after the exchange; for the record see `read_across`."""
        parts = {s: self.project[s](self.down[s](tokens[s]), tables["rotary_across"][s]) for s in STREAMS}
        read = {s: read_across(s, parts, self.heads, tables, record, name) for s in STREAMS}
        return {s: self.residual(tokens[s], self.up[s](F.gelu(self.out[s](read[s])))) for s in STREAMS}


class StreamBlocks(nn.Module):
    """A transformer block on each stream by itself."""

    def __init__(self, **sizes: float | int):
        super().__init__()
        self.blocks = nn.ModuleDict({s: SelfBlock(**sizes) for s in STREAMS})

    def forward(self, tokens: Tokens, tables: Tables, *, record: Record | None = None, name: str = "within") -> Tokens:
        """Return both streams' tokens after the block; with a `record`, "<name>.<stream>.weights" [b h n n] are
        written to it."""
        return {
            s: self.blocks[s](tokens[s], tables["rotary"][s], record=record, name=f"{name}.{s}") for s in STREAMS
        }


class JointBlock(nn.Module):
    """A transformer block on the tokens of both streams together: each reads all of them, those of its own stream
    included."""

    def __init__(self, **sizes: float | int):
        super().__init__()
        self.block = SelfBlock(**sizes)

    def forward(self, tokens: Tokens, tables: Tables, *, record: Record | None = None, name: str = "joint") -> Tokens:
        """Return both streams' tokens after the block; with a `record`, "<name>.joint.weights" [b h n+m n+m], semantic
        tokens first, are written to it."""
        x = torch.cat([tokens[s] for s in STREAMS], dim=1)
        x = self.block(x, joined_rotary(tables), record=record, name=f"{name}.{JOINT}")
        return dict(zip(STREAMS, x.split([tokens[s].shape[1] for s in STREAMS], dim=1), strict=True))


class BottleneckBlock(StreamBlocks):
    """A transformer block on each stream and the fusion tokens, whose two copies are averaged afterwards.

    Whatever goes from stream to stream has to pass through the few fusion tokens. They sit at the origin of space and
    time. Source: Nagrani et al. 2021, Attention bottlenecks for multimodal fusion.
    """

    def forward(
        self, tokens: Tokens, tables: Tables, *, record: Record | None = None, name: str = "bottleneck"
    ) -> Tokens:
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
