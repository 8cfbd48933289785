"""Small fusions and the tokens of a few clips, for tests of any fusion kind."""

import torch

from tcar.fusion.kinds import Fusion, FusionConfig, create_fusion
from tcar.streams.grids import grid_coordinates

SMALL = FusionConfig(semantic_width=12, motion_width=10, num_classes=5, width=24, heads=4)
GRIDS = {"semantic": (4, 2, 2), "motion": (2, 2, 2)}
APART = {"semantic": (3, 2, 2), "motion": (2, 1, 3)}  # strides that share neither rows and columns nor moments


def batch(
    config: FusionConfig = SMALL, size: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64, grids: dict = GRIDS
) -> list[torch.Tensor]:
    """Return what a fusion takes: random tokens and the coordinates of both streams."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for stream, grid in grids.items():
        xyz = grid_coordinates(grid).flatten(0, 1).to(dtype)
        shape = (size, len(xyz), config.stream_width(stream))
        found += [torch.randn(shape, generator=generator, dtype=dtype), xyz]
    return found


def build(config: FusionConfig, seed: int = 0, shaken: bool = False) -> Fusion:
    """Return a fusion in float64; `shaken` moves every parameter, so that none is left at 0 or 1."""
    torch.manual_seed(seed)
    fusion = create_fusion(config).double()
    if shaken:
        with torch.no_grad():
            for parameter in fusion.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return fusion
