"""How well a map agrees with the mask of what truly moves."""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

Map = Float[np.ndarray, "t y x"] | Float[Tensor, "t y x"]
Mask = Bool[np.ndarray, "t2 h w"] | Bool[Tensor, "t2 h w"]


def mass_inside(map: Map, mask: Mask) -> float:
    """Return the share of the map's mass that lies on the mask; an even map scores the mask's share of the clip.

    The mass of a coarse cell spreads evenly over the pixels it covers. Source: energy-based pointing game,
    Wang et al. 2020 (Score-CAM). Raises ValueError for a map that is negative, not finite or all 0, or an empty mask.
    """
    values, mask = _scores(map), _mask(mask)
    sizes = zip(values.shape, mask.shape, strict=True)
    spread = [(torch.arange(large) + 0.5) * small // large for small, large in sizes]
    values = values[torch.meshgrid(*(axis.long() for axis in spread), indexing="ij")]
    return float((values * mask).sum() / values.sum())


def _scores(map: Map) -> Float[Tensor, "t y x"]:
    values = torch.as_tensor(map).detach().cpu().double()
    if values.ndim != 3 or not torch.isfinite(values).all() or (values < 0).any() or not values.sum() > 0:
        raise ValueError(
            "a map must be [t, y, x], finite, not negative and not all zero; "
            f"got {list(values.shape)}, {values.min():.3g} to {values.max():.3g}"
        )
    return values


def _mask(mask: Mask) -> Bool[Tensor, "t h w"]:
    mask = torch.as_tensor(mask).cpu() != 0
    if mask.ndim != 3 or not mask.any():
        raise ValueError(
            f"a mask must be [t, h, w] with at least one pixel set; got {list(mask.shape)}, "
            f"{int(mask.sum())} set"
        )
    return mask
