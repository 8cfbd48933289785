"""The names that parameters may have, and what of them decides whether parameters fit together.

Registries of streams, fusions and baselines import torch, which takes seconds; a parameter file is checked without.
tests/test_params_names.py compares these tables with the registries.
"""

import difflib
import sys
from collections.abc import Collection
from dataclasses import dataclass

FUSIONS = (
    "cross_attention", "semantic_from_motion", "motion_from_semantic", "late_concat", "late_concat_raw", "sum", "gated",
    "bottleneck", "cast", "semantic", "motion", "semantic_bag", "motion_probe_1", "motion_probe_4", "semantic_probe_1",
    "semantic_probe_4",
)  # fmt: skip
# Kinds whose streams exchange, and so have both embedded in one width and one readout: what the losses of the streams
# are of. All kinds but one have attention to look at.
EXCHANGING = (
    "cross_attention", "semantic_from_motion", "motion_from_semantic", "gated", "bottleneck", "cast",
)  # fmt: skip
WITHOUT_ATTENTION = ("late_concat_raw",)
HEADLINE = "cross_attention"  # which the paper compares all others with
WINDOWS = ("joint", "time", "space")
POSITIONS = ("rotary", "learned", "none")
VIEWS = ("1", "2x3")  # of a clip, in the protocols of tcar.data.protocol
TRACKERS = ("csv", "tensorboard", "wandb")
CONTROLS = ("reversed", "shuffled", "frozen", "background", "noise", "conflict")
# What `python -m tcar.stages.loss_terms` can take away from a training on stored tokens, or add to it.
LOSS_TERMS = (
    "label_smoothing", "weight_decay", "clip_norm", "dropout", "drop_path", "token_drop", "mixup", "cutmix",
    "contrastive_weight", "weight_averaging",
)  # fmt: skip
# Baselines, each with the checkpoints that it takes.
BASELINES = {
    "cast_b16": ("cast_b16.clip", "cast_b16.videomae"), "timesformer_vitb16": ("timesformer_vitb16",), "cast_tiny": (),
}  # fmt: skip
BASELINE_CHECKPOINTS = {key: name for name, keys in BASELINES.items() for key in keys}
# Families of Tabletop, each with its classes by the index of the real label list.
FAMILIES = {
    "push_pull": (93, 87, 94, 86), "up_down": (45, 43), "converge": (37, 36), "front_behind": (18, 17),
    "over_next": (20, 19), "closer_away": (42, 40), "cover_uncover": (6, 171), "collide_pass": (38, 39),
    "surface": (109, 47, 74, 68), "box": (106, 148, 72, 82), "turn_camera": (166, 167), "approach": (0, 32),
    "towards_camera": (44, 41),
}  # fmt: skip
TIMM = "timm:"  # begins the name of any image model of timm, which only timm knows


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
    registry = getattr(sys.modules.get("tcar.models.streams"), "_REGISTRY", {})
    roles = {name: spec.role for name, spec in registry.items()} | {name: s.role for name, s in STREAMS.items()}
    return sorted(name for name, of in roles.items() if role in ("", of))


def unknown(name: object, known: Collection) -> str:
    """What to say of a name that is none of those known: all of them, or the one that is meant."""
    close = difflib.get_close_matches(str(name), list(map(str, known)), n=1)
    return f"expected one of {', '.join(map(str, known))}" + (f"; did you mean {close[0]!r}?" if close else "")
