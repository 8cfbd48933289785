"""STEP, an attentive probe of one frozen stream that knows the order of its frames, as a rival of fusions.

Source: Ponbagavathi and Roitberg 2025, Order Matters: On Parameter-Efficient Image-to-Video Probing for Recognizing
Nearly Symmetric Actions (arXiv:2503.24298).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tcar.fusion.base import Fusion
from tcar.fusion.blocks import Projection, Record, Tokens, attend, run_block
from tcar.fusion.config import FusionConfig
from tcar.fusion.positions import LEARNED_BINS, CoordinateCache, interpolation_weights
from tcar.fusion.probe import widest_within

STEPS = {"semantic_step": "semantic", "motion_step": "motion"}  # kind -> the stream it reads


class StepProbe(nn.Module):
    """A learned embedding of each frame, one class token for the whole clip, one self-attention layer.

    The paper's abstract states three changes to self-attentive probing, and all are here: a learned position for each
    frame, a single class token, and a simplified attention block, together with a third of the parameters that other
    probes train. What the block leaves out is read off that share, not taken from the authors' code: here it is the
    self-attention of a transformer block alone, four of its twelve squares of the width. There is no feed-forward layer
    and no skip connection, so the class token leaves as what it read; tokens of a frame have no place within it.

    This project's own are also the LayerNorms (of the tokens that come in, before the projections, and before the
    classifier), the table of frames, which is read at the frames' times (linear between `LEARNED_BINS` cells, so that
    up to that many evenly spread frames have an embedding each), and the linear layer in front where `width` is less
    than that of the stream.
    """

    def __init__(self, stream_width: int, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(stream_width)
        self.reduce = nn.Identity() if width == stream_width else nn.Linear(stream_width, width)
        self.position = nn.Linear(LEARNED_BINS, width, bias=False)
        self.token = nn.Parameter(torch.randn(width) * 0.02)
        self.project, self.out = Projection(width), nn.Linear(width, width)

    def forward(
        self,
        tokens: Float[Tensor, "b n f"],
        frames: Float[Tensor, "n bins"],
        *,
        record: Record | None = None,
        name: str = "self0",
    ) -> Float[Tensor, "b d"]:
        """Return the class token; with a `record`, "<name>.weights" [b h 1+n 1+n] are written to it.

        `frames` has the shares of the table's cells in the embedding of each token's frame.
        """
        x = self.reduce(self.norm(tokens)) + self.position(frames.to(tokens.dtype))
        x = torch.cat([self.token.to(x.dtype).expand(x.shape[0], 1, -1), x], dim=1)
        qkv = self.project.first_query(x, None) if record is None else self.project(x, None)
        read, weights = attend(**qkv, heads=self.heads, weights=record is not None)
        if record is not None:
            record[f"{name}.weights"] = weights
        return self.out(read[:, 0])


class StepFusion(Fusion):
    """STEP on the tokens of one stream, and a LayerNorm and a linear layer to the classes; the other stream is ignored.

    As with `ProbeFusion`, it is as wide as the stream where that takes no more trained parameters than
    `cross_attention` of the same configuration, and then smaller than its rivals; elsewhere a linear layer takes the
    tokens down to the largest width that fits. Of the configuration it takes widths, heads, classes, checkpointing and
    token drop; it has no dropout, and its positions are its own. Intermediates: of stream s, "self0.<s>.weights"
    [b h 1+n 1+n], and "readout" [b d].
    """

    def __init__(self, config: FusionConfig, hidden: int):
        super().__init__(config)
        self.stream = STEPS[config.kind]
        self.streams = (self.stream,)
        self.probe = StepProbe(config.stream_width(self.stream), hidden, config.heads)
        self.head = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, config.num_classes))
        self.frames = CoordinateCache(_frames)

    def _logits(
        self, tokens: Tokens, xyz: dict[str, Tensor], kept: dict[str, Tensor], record: Record | None
    ) -> Tensor:
        frames = self.frames(xyz[self.stream])
        if self.stream in kept:
            frames = frames[kept[self.stream]]
        name, again = f"self0.{self.stream}", self.config.checkpointing
        readout = run_block(self.probe, tokens[self.stream], frames, record=record, name=name, again=again)
        if record is not None:
            record["readout"] = readout
        return self.head(readout)


def step_width(config: FusionConfig, budget: int) -> int:
    """Return the width of the largest kind of `STEPS` with at most `budget` trained parameters.

    Raises ValueError where none fits.
    """
    stream_width = config.stream_width(STEPS[config.kind])

    def size(width: int) -> int:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in StepFusion(config, width).parameters())

    if found := widest_within(budget, stream_width, config.heads, size):
        return found
    raise ValueError(
        f"{config.kind} on tokens of width {stream_width} never has at most the {budget:,} trained parameters of "
        "cross_attention; raise width or mlp_ratio, or lower heads"
    )


def _frames(xyz: Float[Tensor, "n 3"]) -> Float[Tensor, "n bins"]:
    return interpolation_weights(xyz, LEARNED_BINS)[:, :LEARNED_BINS]  # the axis of time comes first
