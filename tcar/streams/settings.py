"""What can be set of the two streams, and what each stream gives.

The registry imports torch, which takes seconds; a parameter file is checked without. A test compares the two.
"""

import sys
from dataclasses import dataclass

from tcar.ground.settings import bounded

TIMM = "timm:"  # begins the name of any image model of timm, which only timm knows


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


@dataclass(frozen=True)
class StreamFacts:
    """What a stream gives: its role, the rows (and columns) of its grid, and the moments of so many frames.

    Frames are divided by `up` (rounding up), then by `down` (rounding down). `length` frames are read at a time,
    0 = any number. `blocks` can have adapters.
    """

    role: str
    side: int
    up: int = 1
    down: int = 1
    length: int = 0
    blocks: int = 0

    def grid(self, frames: int) -> tuple[int, int, int]:
        """The grid (time, rows, columns) of a clip of so many frames."""
        frames = max(frames, self.length)
        return max(1, -(-frames // self.up) // self.down), self.side, self.side


def _semantic() -> dict[str, StreamFacts]:
    found = {"dinov2_tiny": StreamFacts("semantic", 8, blocks=4)}
    for size, blocks in {"s": 12, "b": 12, "l": 24, "g": 40}.items():
        for registers in ("", "_reg"):
            found[f"dinov2_vit{size}14{registers}"] = StreamFacts("semantic", 16, blocks=blocks)
    for size, blocks in {"s16": 12, "s16plus": 12, "b16": 12, "l16": 24, "h16plus": 32, "7b16": 40}.items():
        found[f"dinov3_vit{size}"] = StreamFacts("semantic", 14, blocks=blocks)
    return found


def _motion() -> dict[str, StreamFacts]:
    halved = {"vjepa2_vitl16_256": 16, "vjepa2_vith16_256": 16, "vjepa2_vitg16_256": 16, "vjepa2_vitg16_384": 24}
    halved |= {f"vjepa2_1_vit{size}16_384": 24 for size in "blgG"}
    return {
        "i3d_tiny": StreamFacts("motion", 5, up=2),
        "i3d_r50": StreamFacts("motion", 7, down=2),
        "i3d_r50_inflated": StreamFacts("motion", 7, down=2),
        "i3d_r50_mmaction2": StreamFacts("motion", 7, up=2, down=4),
        "i3d_r50_tushar_n": StreamFacts("motion", 7, up=2, down=4),
        "videomae_vitb16": StreamFacts("motion", 14, up=2, length=16),
        "timesformer_vitb16": StreamFacts("motion", 14, length=8),
        **{name: StreamFacts("motion", side, up=2) for name, side in halved.items()},
    }


STREAMS = _semantic() | _motion()


def known_streams(role: str = "") -> list[str]:
    """The names of streams, of one role or of both, with those that this process has registered itself."""
    registry = getattr(sys.modules.get("tcar.streams.registry"), "_REGISTRY", {})
    roles = {name: spec.role for name, spec in registry.items()} | {name: s.role for name, s in STREAMS.items()}
    return sorted(name for name, of in roles.items() if role in ("", of))
