"""What the decision loses with each tube of a clip: a part of the frame, for a part of the time."""

from collections.abc import Callable

import torch
from captum.attr import FeatureAblation
from jaxtyping import Float
from torch import Tensor

CELLS = (4, 5, 5)  # of time, rows and columns


def tube_shape(frames: Float[Tensor, "b t h w 3"]) -> tuple[int, int, int]:
    """Return how many tubes a clip is cut into, along time, rows and columns: `CELLS`, or what there is of pixels."""
    return tuple(min(most, size) for most, size in zip(CELLS, frames.shape[1:4], strict=True))


def tube_effects(
    decision: Callable[[Tensor], Tensor],
    frames: Float[Tensor, "1 t h w 3"],
    baseline: Float[Tensor, "1 t h w 3"],
    batch: int,
) -> Float[Tensor, "1 _ _ _"]:
    """Return by how much the decision falls where each tube of a clip in turn is replaced by the baseline.

    `decision` takes clips `[n t h w 3]` to `[n]`; `batch` clips are in memory at once. The cells are what Captum
    replaces, and not pixels: of these it would keep several copies. Source: occlusion, Zeiler and Fergus 2014, over
    space and time.
    """
    cells = tube_shape(frames)
    sizes = zip(cells, frames.shape[1:4], strict=True)
    t, y, x = (((torch.arange(size, device=frames.device) + 0.5) * n / size).long() for n, size in sizes)

    def ablated(kept: Float[Tensor, "n t y x"]) -> Float[Tensor, " n"]:
        spread = kept[:, t[:, None, None], y[:, None], x, None] > 0
        return decision(torch.where(spread, frames, baseline))

    everything = torch.ones(1, *cells, device=frames.device)
    return FeatureAblation(ablated).attribute(everything, baselines=0.0, perturbations_per_eval=batch)
