"""The attentive probe: a small transformer that classifies the tokens of one frozen stream.

Source: Assran et al. 2025 (V-JEPA 2, arXiv:2506.09985) and its released evaluation code. The probe of V-JEPA
(Bardes et al. 2024, arXiv:2404.08471) is another one: its single block has an output projection (12.8 M at 1024).
"""

from bisect import bisect_right
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tcar.fusion.blocks import FeedForward, Projection, Record, SelfBlock, attend

INIT_STD = 0.02
HEADS = 16  # of every published probe, whatever its width


@dataclass(frozen=True)
class ProbeConfig:
    """What an attentive probe is made of; raises ValueError naming the field that does not fit.

    `width` is that of the stream's tokens; `depth` counts the cross-attention block, so 1 has no self-attention.
    `bottleneck` above 0 is the width of all blocks, reached by a linear layer in front of them. The published
    probe has none: the bottleneck is this project's, so that four blocks fit a budget of trained parameters.
    """

    width: int
    num_classes: int = 174
    depth: int = 4
    heads: int = HEADS
    mlp_ratio: float | int = 4
    bottleneck: int = 0

    def __post_init__(self):
        for name, least in (("width", 1), ("num_classes", 1), ("depth", 1), ("heads", 1), ("bottleneck", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"ProbeConfig.{name} must be a whole number of at least {least}, got {value!r}")
        if self.mlp_ratio <= 0:
            raise ValueError(f"ProbeConfig.mlp_ratio must be above 0, got {self.mlp_ratio}")
        if self.bottleneck >= self.width:
            raise ValueError(
                f"ProbeConfig.bottleneck {self.bottleneck} must be below width {self.width}; 0 leaves it out"
            )
        if self.block_width % self.heads:
            field = "bottleneck" if self.bottleneck else "width"
            raise ValueError(f"ProbeConfig.{field} {self.block_width} does not divide into heads {self.heads}")

    @property
    def block_width(self) -> int:
        """The width of the blocks and of the readout."""
        return self.bottleneck or self.width


class QueryBlock(nn.Module):
    """One learned query reads all tokens, then a feed-forward layer; only the query leaves, as `[b d]`.

    The tokens are normalised, the query is not, and what it reads is added to it without an output projection.
    """

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.token = nn.Parameter(torch.empty(width))
        self.query, self.project = nn.Linear(width, width), Projection(width, "kv")
        self.feed_forward = FeedForward(width, hidden)

    def forward(self, tokens: Float[Tensor, "b n d"], record: Record | None = None) -> Float[Tensor, "b d"]:
        """Return the query after the block; with a `record`, "cross.weights" [b h 1 n] is written to it."""
        token = self.token.expand(tokens.shape[0], 1, -1)
        parts = self.project(tokens, None)
        read, weights = attend(self.query(token), **parts, heads=self.heads, weights=record is not None)
        if record is not None:
            record["cross.weights"] = weights
        x = token + read
        return (x + self.feed_forward(x))[:, 0]


class AttentiveProbe(nn.Module):
    """Self-attention blocks over all tokens, one learned query that reads them, and a linear classifier.

    As published (V-JEPA 2): `depth` - 1 pre-norm self-attention blocks, the block of the query, `Linear` with no
    norm before it; LayerNorm eps 1e-5, GELU, no positions (the tokens are a set), no dropout. Every linear layer
    has a bias. Weights are drawn from a truncated normal of 0.02 by torch's global generator (seed it first),
    biases are 0; as in the released code, what block i = 1, 2, ... adds to its residual is then divided by
    sqrt(2 i), the query's block counting as the last self-attention block, and the classifier keeps what torch gives a
    `Linear`: weights and biases uniform within 1 / sqrt(width).

    `checkpointing` stores no activations within a block and works them out again in the backward pass: the same
    gradients for less memory. It is left out where intermediates are asked for.
    """

    def __init__(self, config: ProbeConfig, checkpointing: bool = False):
        super().__init__()
        self.config, self.checkpointing = config, checkpointing
        width, hidden = config.block_width, round(config.mlp_ratio * config.block_width)
        self.reduce = nn.Linear(config.width, width) if config.bottleneck else nn.Identity()
        self.blocks = nn.ModuleList(SelfBlock(width, config.heads, hidden) for _ in range(config.depth - 1))
        self.cross = QueryBlock(width, config.heads, hidden)
        self.head = nn.Linear(width, config.num_classes)
        self._initialise()

    def forward(
        self, tokens: Float[Tensor, "b n d"], return_intermediates: bool = False
    ) -> Float[Tensor, "b c"] | tuple[Float[Tensor, "b c"], Record]:
        """Return logits of clips, and on request a dict of named intermediates.

        The tokens of several temporal clips of a video are joined along n, in any order. Intermediates are the
        attention weights "self<i>.weights" [b h n n] and "cross.weights" [b h 1 n], and "readout" [b d]; the
        former take b * heads * n * n numbers. Raises ValueError where the tokens are none, or not of the
        configured width.
        """
        if tokens.ndim != 3 or tokens.shape[1] == 0 or tokens.shape[2] != self.config.width:
            raise ValueError(f"tokens {list(tokens.shape)}: [batch, 1 or more, {self.config.width}] expected")
        record: Record | None = {} if return_intermediates else None
        x = self.reduce(tokens)
        for i, block in enumerate(self.blocks):
            x = self._run(block, x, record, name=f"self{i}")
        readout = self._run(self.cross, x, record)
        logits = self.head(readout)
        return logits if record is None else (logits, record | {"readout": readout})

    def _run(self, block: nn.Module, x: Tensor, record: Record | None, **name: str) -> Tensor:
        if self.checkpointing and record is None:
            return checkpoint(block, x, use_reentrant=False)
        return block(x, record=record, **name)

    @torch.no_grad()
    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.cross.token, std=INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module is not self.head:
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                nn.init.zeros_(module.bias)
        for i, block in enumerate(self.blocks, start=1):
            block.out.weight.div_((2 * i) ** 0.5)
            block.feed_forward[-1].weight.div_((2 * i) ** 0.5)
        self.cross.feed_forward[-1].weight.div_((2 * max(1, len(self.blocks))) ** 0.5)


def probe_width_within(
    budget: int, stream_width: int, num_classes: int = 174, depth: int = 4, heads: int = HEADS
) -> int:
    """Return the `bottleneck` of the largest probe with at most `budget` trained parameters.

    0 where the published probe, with no bottleneck, fits as it is: at width 1024 and 20 M, one block does (11.7
    M) and four do not (49.5 M). Widths are multiples of the heads, and a stream's that is none needs a bottleneck.
    The probe with a bottleneck is this project's variant, not the published one. Raises ValueError where none fits.
    """
    if stream_width % heads == 0 and _count(ProbeConfig(stream_width, num_classes, depth, heads)) <= budget:
        return 0
    widths = range(heads, stream_width, heads)

    def size(width: int) -> int:
        return _count(ProbeConfig(stream_width, num_classes, depth, heads, bottleneck=width))

    fitting = bisect_right(widths, budget, key=size)
    if fitting == 0:
        raise ValueError(
            f"no probe of depth {depth} on tokens of width {stream_width} has at most {budget:,} trained "
            "parameters; lower depth or raise the budget"
        )
    return widths[fitting - 1]


def _count(config: ProbeConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in AttentiveProbe(config).parameters())
