"""A TCA of the two small streams, for tests that need a whole model."""

from dataclasses import replace

from tcar.fusion.kinds import FusionConfig
from tcar.models.tca import TCAConfig
from tcar.streams.registry import create_stream

GRIDS = {"semantic": (4, 2, 2), "motion": (2, 2, 2)}


def config(
    fusion: FusionConfig, names: tuple[str, ...], frames: dict[str, int], grids: dict[str, tuple] = GRIDS
) -> TCAConfig:
    """Return the configuration of a TCA of the small streams; the fusion takes their widths."""
    streams = {"semantic": "dinov2_tiny", "motion": "i3d_tiny"}
    widths = {f"{role}_width": create_stream(name).width for role, name in streams.items()}
    return TCAConfig(
        **streams,
        **{f"{role}_frames": count for role, count in frames.items()},
        **{f"{role}_grid": grid for role, grid in grids.items()},
        class_names=names,
        fusion=replace(fusion, **widths),
    )
