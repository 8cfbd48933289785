"""What a fusion is made of, as the config.json of a kept model has it; `FusionSettings` is what a run may set of it."""

from dataclasses import dataclass

from tcar.fusion.settings import APPEARANCES, AVERAGED, FUSIONS, MOTION_ALONE, POSITIONS, WINDOWS
from tcar.ground.errors import unknown
from tcar.ground.settings import check_whole


@dataclass(frozen=True)
class FusionConfig:
    """What a fusion is made of; raises ValueError naming the field that does not fit.

    `window` says what the streams may read of each other: all ("joint"), the same place ("time") or the same
    moment ("space"); "cast" has windows of its own. Within a stream, with the fusion tokens of "bottleneck", and
    among the tokens of the kind "joint", attention is always joint. `cross_width` is the width in which one stream
    reads the other (0: see `reading_width`), `bottleneck_tokens` counts the fusion tokens. `self_blocks` of 0 makes
    the readout the mean of the normalised tokens. `appearance` "averaged" takes time from the semantic stream: each of
    its tokens becomes the mean of those at its place, at the mean of their times; as many parameters are trained.
    `token_drop` is the share of each stream's tokens that a training step leaves out (PatchDropout, Liu et al. 2023).
    `checkpointing` computes blocks a second time in the backward pass instead of keeping what is inside them (Chen et
    al. 2016): the same numbers, less memory.
    """

    kind: str = "cross_attention"
    semantic_width: int = 384
    motion_width: int = 2048
    num_classes: int = 174
    width: int = 512
    heads: int = 8
    blocks: int = 2
    self_blocks: int = 1
    mlp_ratio: float | int = 4
    dropout: float | int = 0.1
    drop_path: float | int = 0.1
    window: str = "joint"
    positions: str = "rotary"
    appearance: str = "ordered"
    cross_width: int = 0
    bottleneck_tokens: int = 4
    token_drop: float | int = 0
    checkpointing: bool = False

    def __post_init__(self):
        check_whole(self, semantic_width=1, motion_width=1, num_classes=1, width=1, heads=1, blocks=1)
        check_whole(self, self_blocks=0, bottleneck_tokens=1, cross_width=0)
        for name in ("width", "cross_width"):
            if (value := getattr(self, name)) % (2 * self.heads):
                raise ValueError(
                    f"FusionConfig.{name} {value} over heads {self.heads}: each head needs an even, whole number of "
                    "channels"
                )
        if self.mlp_ratio <= 0:
            raise ValueError(f"FusionConfig.mlp_ratio must be above 0, got {self.mlp_ratio}")
        for name in ("dropout", "drop_path", "token_drop"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"FusionConfig.{name} must lie in [0, 1), got {getattr(self, name)}")
        choices = {"kind": FUSIONS, "window": WINDOWS, "positions": POSITIONS, "appearance": APPEARANCES}
        for name, known in choices.items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"FusionConfig.{name} {value!r}: {unknown(value, known)}")

    @property
    def method(self) -> str:
        """The name of the method, as `methods` of a run has it: one that reads motion alone has no appearance."""
        averaged = self.appearance == "averaged" and self.kind not in MOTION_ALONE
        return self.kind + AVERAGED if averaged else self.kind

    @property
    def reading_width(self) -> int:
        """The width in which one stream reads the other: `cross_width`, or `width` where that is 0.

        In "cast" 0 means half of `width`, as published, rounded up to whole heads of an even size.
        """
        unit = 2 * self.heads
        return self.cross_width or (unit * -(-self.width // (2 * unit)) if self.kind == "cast" else self.width)

    def stream_width(self, stream: str) -> int:
        """Return the token width of a stream, "semantic" or "motion"."""
        return self.semantic_width if stream == "semantic" else self.motion_width
