"""What can be set of the two streams, and the names of those there are; a parameter file is checked without torch."""

import sys
from dataclasses import dataclass

from tcar.ground.settings import bounded
from tcar.streams.catalogue import STREAMS


@dataclass(frozen=True)
class StreamSettings:
    """The two frozen backbones and the token grids they are pooled to."""

    semantic: str = "dinov2_tiny"
    motion: str = "i3d_tiny"
    semantic_checkpoint: str = ""  # "" = the weights in the package
    motion_checkpoint: str = ""
    semantic_frames: int = bounded(8, minimum=1)
    motion_frames: int = bounded(16, minimum=1)
    semantic_grid: list[int] = bounded([4, 4, 4], minimum=1, length=3)  # time, rows, columns
    motion_grid: list[int] = bounded([2, 4, 4], minimum=1, length=3)
    batch_clips: int = bounded(32, minimum=1)
    views: int = bounded(1, minimum=1)  # of each clip: 1 = the middles of equal segments, more = random frames of them
    view_seed: int = bounded(0, minimum=0)
    # Probability that a view but the first is mirrored; its class is then that of its mirror image.
    view_flip: float = bounded(0.0, minimum=0.0, maximum=1.0)
    token_type: str = bounded("fp16", choices=("fp16", "bf16", "int8"))  # of the stored tokens
    stream_precision: str = bounded("fp32", choices=("fp32", "bf16"))  # in which a stream computes
    # Trained adapters in so many last blocks of the semantic stream; tokens that change with them cannot be cached.
    semantic_adapters: int = bounded(0, minimum=0)
    adapter_width: int = bounded(64, minimum=1)


def known_streams(role: str = "") -> list[str]:
    """The names of streams, of one role or of both, with those that this process has registered itself."""
    registry = getattr(sys.modules.get("tcar.streams.registry"), "_REGISTRY", {})
    roles = {name: spec.role for name, spec in registry.items()} | {name: s.role for name, s in STREAMS.items()}
    return sorted(name for name, of in roles.items() if role in ("", of))
