"""The attentive probe as a rival: what one stream alone gives a published head under the same budget.

Source: Assran et al. 2025 (V-JEPA 2, arXiv:2506.09985); see `tcar.fusion.probe`.
"""

from torch import Tensor

from tcar.fusion.base import Fusion, FusionConfig
from tcar.fusion.blocks import Record
from tcar.fusion.probe import HEADS, AttentiveProbe, ProbeConfig, probe_width_within

MLP_RATIO = 4
# A probe as wide as this has its published number of heads; a narrower one has that of the configuration, or the
# heads of a small stream would have a handful of channels each.
FULL_WIDTH = 16 * HEADS
# kind -> the stream it reads, and how many blocks it has, that of the query among them.
PROBES = {f"{stream}_probe_{depth}": (stream, depth) for stream in ("motion", "semantic") for depth in (1, 4)}


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
            mlp_ratio=MLP_RATIO,
            bottleneck=0 if width == stream_width else width,
        )
        self.probe = AttentiveProbe(sizes, checkpointing=config.checkpointing)

    def _logits(
        self, tokens: dict[str, Tensor], xyz: dict[str, Tensor], kept: dict[str, Tensor], record: Record | None
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
