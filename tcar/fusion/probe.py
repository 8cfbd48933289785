"""The attentive probe, a small transformer that classifies the tokens of one frozen stream, as a rival of fusions.

Source: Assran et al. 2025 (V-JEPA 2, arXiv:2506.09985) and its released evaluation code. The probe of V-JEPA
(Bardes et al. 2024, arXiv:2404.08471) is another one: its single block has an output projection (12.8 M at 1024).
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tcar.fusion.base import Fusion
from tcar.fusion.blocks import FeedForward, Projection, Record, SelfBlock, Tokens, attend, run_block
from tcar.fusion.config import FusionConfig
from tcar.ground.settings import check_whole

INIT_STD = 0.02
HEADS = 16  # of every published probe, whatever its width
MLP_RATIO = 4
# A probe as wide as this has its published number of heads; a narrower one has that of the configuration, or the
# heads of a small stream would have a handful of channels each.
FULL_WIDTH = 16 * HEADS
# kind -> the stream it reads, and how many blocks it has, that of the query among them.
PROBES = {f"{stream}_probe_{depth}": (stream, depth) for stream in ("motion", "semantic") for depth in (1, 4)}


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
    bottleneck: int = 0

    def __post_init__(self):
        check_whole(self, width=1, num_classes=1, depth=1, heads=1, bottleneck=0)
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
        width, hidden = config.block_width, MLP_RATIO * config.block_width
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
            x = run_block(block, x, record=record, name=f"self{i}", again=self.checkpointing)
        readout = run_block(self.cross, x, record=record, again=self.checkpointing)
        logits = self.head(readout)
        return logits if record is None else (logits, record | {"readout": readout})

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


class ProbeFusion(Fusion):
    """The attentive probe on the tokens of one stream; the other is ignored, and so are all coordinates.

    "motion_probe_1" is one learned query that reads the tokens of the motion stream, "motion_probe_4" has three
    self-attention blocks before it, and "semantic_probe_1" and "semantic_probe_4" read the other stream. Where the
    published probe has no more trained parameters than `cross_attention` of the same configuration, this is it, and
    smaller than its rivals; where it has more, a linear layer takes the tokens down to the largest width that fits.
    Of the configuration it takes widths, classes, checkpointing and token drop; the published probe has no dropout
    and no positions. Intermediates: of stream s, "block<i>.<s>.weights" [b h n n], "cross.<s>.weights" [b h 1 n], and
    "readout" [b d].
    """

    def __init__(self, config: FusionConfig, hidden: int):
        super().__init__(config)
        self.stream, depth = PROBES[config.kind]
        self.streams = (self.stream,)
        width, stream_width = hidden // MLP_RATIO, config.stream_width(self.stream)
        full = width >= FULL_WIDTH and width % HEADS == 0
        sizes = ProbeConfig(
            width=stream_width,
            num_classes=config.num_classes,
            depth=depth,
            heads=HEADS if full else config.heads,
            bottleneck=0 if width == stream_width else width,
        )
        self.probe = AttentiveProbe(sizes, checkpointing=config.checkpointing)

    def _logits(
        self, tokens: Tokens, xyz: dict[str, Tensor], kept: dict[str, Tensor], record: Record | None
    ) -> Tensor:
        if record is None:
            return self.probe(tokens[self.stream])
        logits, found = self.probe(tokens[self.stream], return_intermediates=True)
        for name, value in found.items():
            part, _, rest = name.replace("self", "block").partition(".")
            record[f"{part}.{self.stream}.{rest}" if rest else part] = value
        return logits


def probe_hidden(config: FusionConfig, budget: int) -> int:
    """Return the feed-forward width of a kind of `PROBES`: that of the largest probe of at most `budget` parameters.

    Raises ValueError where none fits.
    """
    stream, depth = PROBES[config.kind]
    given = budget, config.stream_width(stream), config.num_classes, depth

    def width(heads: int) -> int:
        return probe_width_within(*given, heads) or given[1]

    if given[1] >= FULL_WIDTH and (found := width(HEADS)) >= FULL_WIDTH:
        return MLP_RATIO * found
    return MLP_RATIO * width(config.heads)


def probe_width_within(
    budget: int, stream_width: int, num_classes: int = 174, depth: int = 4, heads: int = HEADS
) -> int:
    """Return the `bottleneck` of the largest probe with at most `budget` trained parameters.

    0 where the published probe, with no bottleneck, fits as it is: at width 1024 and 20 M, one block does (11.7
    M) and four do not (49.5 M). Widths are multiples of the heads, and a stream's that is none needs a bottleneck.
    The probe with a bottleneck is this project's variant, not the published one. Raises ValueError where none fits.
    """

    def size(width: int) -> int:
        return _count(ProbeConfig(stream_width, num_classes, depth, heads, bottleneck=width % stream_width))

    found = widest_within(budget, stream_width, heads, size)
    if not found:
        raise ValueError(
            f"no probe of depth {depth} on tokens of width {stream_width} has at most {budget:,} trained "
            "parameters; lower depth or raise the budget"
        )
    return found % stream_width


def widest_within(budget: int, stream_width: int, heads: int, size: Callable[[int], int]) -> int:
    """Return the largest width of a probe, a multiple of `heads` up to the stream's, whose `size` is within the budget.

    0 where none is. A probe as wide as the stream has no linear layer in front, so a narrower one can be larger.
    """
    if stream_width % heads == 0 and size(stream_width) <= budget:
        return stream_width
    widths = range(heads, stream_width, heads)
    fitting = bisect_right(widths, budget, key=size)
    return widths[fitting - 1] if fitting else 0


def _count(config: ProbeConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in AttentiveProbe(config).parameters())
