"""What can be set of the fusion, and the names of its kinds.

The kinds import torch, which takes seconds; a parameter file is checked without. A test compares the two.
"""

from dataclasses import asdict, dataclass
from typing import Any

from tcar.ground.settings import bounded

FUSIONS = (
    "cross_attention", "semantic_from_motion", "motion_from_semantic", "late_concat", "late_concat_raw", "sum", "gated",
    "bottleneck", "cast", "joint", "semantic", "motion", "semantic_bag", "motion_probe_1", "motion_probe_4",
    "semantic_probe_1", "semantic_probe_4", "semantic_step", "motion_step",
)  # fmt: skip
# Kinds whose streams exchange, and so have both embedded in one width and one readout: what the losses of the streams
# are of. All kinds but one have attention to look at.
EXCHANGING = (
    "cross_attention", "semantic_from_motion", "motion_from_semantic", "gated", "bottleneck", "cast", "joint",
)  # fmt: skip
WITHOUT_ATTENTION = ("late_concat_raw",)
MOTION_ALONE = ("motion", "motion_probe_1", "motion_probe_4", "motion_step")
WINDOWS = ("joint", "time", "space")
POSITIONS = ("rotary", "learned", "none")
APPEARANCES = ("ordered", "averaged")
# A method is a kind, or a kind with this behind its name, which is the kind with an `appearance` that is averaged.
AVERAGED = "_averaged"
METHODS = (*FUSIONS, *(kind + AVERAGED for kind in FUSIONS if kind not in MOTION_ALONE))


def method_settings(method: str) -> dict[str, str]:
    """Return the fields of a FusionConfig that the name of a method stands for.

    A kind by itself leaves `appearance` as the run has it.
    """
    kind = method.removesuffix(AVERAGED)
    return {"kind": kind} if kind == method else {"kind": kind, "appearance": "averaged"}


@dataclass(frozen=True)
class FusionSettings:
    """The trained part: how the two token grids are brought together."""

    fusion: str = bounded("cross_attention", choices=FUSIONS)
    fusion_width: int = bounded(64, minimum=1)
    heads: int = bounded(4, minimum=1)
    fusion_blocks: int = bounded(2, minimum=1)
    self_blocks: int = bounded(1, minimum=0)  # over the tokens of both streams, after the others; 0 = their mean
    mlp_ratio: float = bounded(2.0, minimum=0.1)  # hidden width of the feed-forward layers over `fusion_width`
    window: str = bounded("time", choices=WINDOWS)
    positions: str = bounded("rotary", choices=POSITIONS)
    appearance: str = bounded("ordered", choices=APPEARANCES)  # averaged: semantic tokens are their means over time
    cross_width: int = bounded(0, minimum=0)  # in which a stream reads the other; 0 = `fusion_width`
    bottleneck_tokens: int = bounded(4, minimum=1)  # of the fusion "bottleneck"
    dropout: float = bounded(0.0, minimum=0.0, maximum=0.95)
    drop_path: float = bounded(0.0, minimum=0.0, maximum=0.95)
    token_drop: float = bounded(0.0, minimum=0.0, maximum=0.95)  # share of tokens a training step leaves out
    fusion_checkpointing: bool = False  # less memory in training, the same numbers
    max_trained_parameters: int = bounded(20_000_000, minimum=1)

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of a FusionConfig that these parameters set, by the names that they have there."""
        named = {
            "fusion": "kind",
            "fusion_width": "width",
            "fusion_blocks": "blocks",
            "fusion_checkpointing": "checkpointing",
        }
        values = asdict(self)
        del values["max_trained_parameters"]
        return {named.get(key, key): value for key, value in values.items()}
