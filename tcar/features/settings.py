"""What can be asked of an extraction: tokens of streams, and how they are computed and kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from tcar.data.views import SegmentView
from tcar.features.packing import FeatureError, TokenType

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class TokenSpec:
    """The tokens wanted of a stream: what `view` shows it of each clip, averaged to `grid` (t, h, w).

    `build` makes the stream, with the same weights each time; it is picklable, for worker processes.
    """

    build: Callable[[], nn.Module]
    grid: Sequence[int]
    view: SegmentView


@dataclass(frozen=True)
class ExtractionSettings:
    """How tokens are computed and kept.

    `workers` processes decode (0: all cores), `batch_clips` clips at a time; on "cpu" they run the streams too, on
    "cuda" (or "auto" where there is one) this process does. Of each clip there are `views`, drawn from `view_seed`.
    `precision` bf16 runs the streams under autocast. A store whose first clip the present code would give otherwise is
    deleted and made again only with `remake`. Raises FeatureError for views or types that there are not.
    """

    workers: int = 0
    batch_clips: int = 32
    device: str = "cpu"
    views: int = 1
    view_seed: int = 0
    token_type: TokenType = "fp16"
    precision: Precision = "fp32"
    remake: bool = False

    def __post_init__(self):
        types, precisions = get_args(TokenType), get_args(Precision)
        if self.views < 1 or self.token_type not in types or self.precision not in precisions:
            raise FeatureError(
                f"views={self.views}, token_type={self.token_type!r}, precision={self.precision!r}: at least 1 view, "
                f"tokens kept as {' or '.join(types)}, computed in {' or '.join(precisions)}"
            )
