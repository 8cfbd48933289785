"""How well a map agrees with the mask of what truly counts, what it would score without a model, and at the most.

A map is [t, y, x], spread over the whole clip. Scores take what is not negative: `strength` first for a signed map,
whose evidence against the class counts as much as that for it. A pixel of the mask has the value of the cell that its
middle lies in; where a map is finer than the mask, the mean of the cells that it covers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from tcar.explain.errors import ExplanationError

Map = Float[np.ndarray, "t y x"] | Float[Tensor, "t y x"]
Mask = Bool[np.ndarray, "t2 h w"] | Bool[Tensor, "t2 h w"]


class Limit(NamedTuple):
    """The most that maps of a grid reach."""

    mass_inside: float
    mass_gain: float


def strength(map: Map) -> Float[Tensor, "t y x"]:
    """Return how strong a signed map is, whichever way: its magnitude, as all scores take it."""
    return torch.as_tensor(map).detach().abs()


def mass_inside(map: Map, mask: Mask) -> float:
    """Return the share of the map's mass that lies on the mask; an even map scores the mask's share of the clip.

    The mass of a coarse cell spreads evenly over the pixels it covers. Source: energy-based pointing game,
    Wang et al. 2020 (Score-CAM). Raises ExplanationError for a map that is negative, not finite or all 0, or an empty
    mask.
    """
    values, mask = _scores(map), _mask(mask)
    spread = _spread(values, mask.shape)
    return float((spread * mask).sum() / spread.sum())


def mass_gain(map: Map, mask: Mask) -> float:
    """Return `mass_inside` less the mask's share of the clip: 0 for an even map, whatever the mask."""
    return mass_inside(map, mask) - float(_mask(mask).double().mean())


def pointing(map: Map, mask: Mask) -> float:
    """Return whether the map's maximum lies on the mask: 1 or 0, and for a cell in part on it the share that is.

    It is the chance that a point drawn in the strongest cell hits, so that coarse cells gain nothing by their size;
    of cells that are equally strong, one is drawn. Source: the pointing game, Zhang et al. 2018 (Excitation
    Backprop). Raises what `mass_inside` raises.
    """
    values = _scores(map)
    return mass_inside((values == values.max()).double(), mask)


def auc(map: Map, mask: Mask) -> float:
    """Return the chance that a pixel on the mask has more of the map than one beside it, ties being half: the area
    under the ROC curve, exact.

    Raises ExplanationError as `mass_inside` does, and for a mask of all pixels.
    """
    mask = _mask(mask)
    if mask.all():
        raise ExplanationError("a mask of the whole clip has no pixel beside it to compare with")
    values, inside = _spread(_scores(map), mask.shape).flatten(), mask.flatten()
    levels, place = values.unique(return_inverse=True)
    on, beside = (torch.bincount(place[chosen], minlength=len(levels)).double() for chosen in (inside, ~inside))
    below = beside.cumsum(0) - beside
    return float((on * (below + beside / 2)).sum() / (on.sum() * beside.sum()))


def grid_limit(mask: Mask, grid: tuple[int, int, int]) -> Limit:
    """Return the most that any map on a grid of (t, y, x) cells scores on this mask, with all mass in its best cell."""
    mask = _mask(mask)
    axes = _axes(grid, mask.shape)
    covered = torch.einsum("thw,tT,hY,wX->TYX", mask.double(), *axes)
    deep, high, wide = (axis.sum(dim=0) for axis in axes)
    best = float((covered / (deep[:, None, None] * high[:, None] * wide)).max())
    return Limit(best, best - float(mask.double().mean()))


def even(shape: tuple[int, int, int]) -> Float[Tensor, "t y x"]:
    """Return the map of one who knows nothing: everywhere the same."""
    return torch.ones(shape)


def random(shape: tuple[int, int, int], seed: int) -> Float[Tensor, "t y x"]:
    """Return a map of independent numbers in [0, 1)."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def centre(shape: tuple[int, int, int], width: float = 0.25) -> Float[Tensor, "t y x"]:
    """Return the map of one who looks at the middle of every frame: a Gaussian, `width` of the frame's sides in
    standard deviation."""
    down, across = (((2 * torch.arange(n) + 1 - n) / (2 * n * width)).square() for n in shape[1:])
    return torch.exp(-(down[:, None] + across) / 2).expand(shape).clone()


def frame_difference(
    frames: UInt8[np.ndarray, "t h w 3"] | Float[np.ndarray, "t h w 3"] | UInt8[Tensor, "t h w 3"]
    | Float[Tensor, "t h w 3"],
) -> Float[Tensor, "t h w"]:  # fmt: skip
    """Return the map of one who sees change and knows nothing of actions: a pixel's mean absolute difference from the
    frames before and after, over colours; the first and the last frame have one neighbour.

    A clip in which nothing changes has a map of zeros. Raises ExplanationError for fewer than two frames.
    """
    if len(frames) < 2:
        raise ExplanationError(f"frames differ from their neighbours, so at least 2 are needed, not {len(frames)}")
    frames = torch.as_tensor(frames).detach().cpu()
    frames = frames.float() / (1 if frames.is_floating_point() else 255)
    steps = frames.diff(dim=0).abs().mean(dim=-1)
    return (torch.cat([steps[:1], steps]) + torch.cat([steps, steps[-1:]])) / 2


def moment_inside(
    times: Float[np.ndarray, " t"] | Float[Tensor, " t"],
    values: Float[np.ndarray, " t"] | Float[Tensor, " t"],
    events: Sequence[tuple[float, float]],
) -> float:
    """Return the share of the importance of moments that lies inside the events, less the share of time they cover.

    Times and events (begin, end) are in [0, 1] of the clip. A moment stands for the time up to half way to its
    neighbours, evenly; only what is above 0 counts, for a moment below 0 speaks against the class. Raises
    ExplanationError where no moment is above 0, times do not rise, or no event covers any time.
    """
    times, values = (torch.as_tensor(given).detach().cpu().double() for given in (times, values))
    if not ((times >= 0) & (times <= 1)).all() or not (times.diff() > 0).all():
        raise ExplanationError(f"times must rise within [0, 1] of the clip; got {times.tolist()}")
    values = values.clamp(min=0)
    if not torch.isfinite(values).all() or not values.sum() > 0:
        raise ExplanationError("no moment speaks for the class, so none lies inside an event or outside")
    events = _united(events)
    if not events:
        raise ExplanationError("no event covers any time of the clip")
    middles = (times[1:] + times[:-1]) / 2
    begin, end = torch.cat([times.new_zeros(1), middles]), torch.cat([middles, times.new_ones(1)])
    covered = sum((end.clamp(max=last) - begin.clamp(min=first)).clamp(min=0) for first, last in events)
    inside = float((values * covered / (end - begin)).sum() / values.sum())
    return inside - sum(last - first for first, last in events)


def _united(events: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The times that any of the events covers, as stretches apart from each other."""
    found: list[tuple[float, float]] = []
    for first, last in sorted((max(first, 0.0), min(last, 1.0)) for first, last in events):
        if found and first <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], last)
        elif first < last:
            found.append((first, last))
    return found


def _axes(small: Sequence[int], large: Sequence[int]) -> list[Float[Tensor, "m n"]]:
    """For time, rows and columns, how much of each cell's value each pixel has."""
    return [_axis(one, other) for one, other in zip(small, large, strict=True)]


def _axis(cells: int, pixels: int) -> Float[Tensor, "m n"]:
    if cells <= pixels:
        place = ((torch.arange(pixels) + 0.5) * cells // pixels).long()
        return torch.nn.functional.one_hot(place, cells).double()
    begin, end = (torch.arange(pixels, dtype=torch.double) + step for step in (0, 1))
    lines = torch.arange(cells + 1, dtype=torch.double) * pixels / cells
    overlap = torch.minimum(end[:, None], lines[1:]) - torch.maximum(begin[:, None], lines[:-1])
    return overlap.clamp(min=0)


def _spread(values: Float[Tensor, "t y x"], shape: Sequence[int]) -> Float[Tensor, "t2 h w"]:
    """The map at the resolution of the mask."""
    return torch.einsum("TYX,tT,hY,wX->thw", values, *_axes(values.shape, shape))


def _scores(map: Map) -> Float[Tensor, "t y x"]:
    values = torch.as_tensor(map).detach().cpu().double()
    if values.ndim != 3 or not torch.isfinite(values).all() or (values < 0).any() or not values.sum() > 0:
        raise ExplanationError(
            "a map must be [t, y, x], finite, not negative (`strength` of a signed one) and not all zero; "
            f"got {list(values.shape)}, {values.min():.3g} to {values.max():.3g}"
        )
    return values


def _mask(mask: Mask) -> Bool[Tensor, "t h w"]:
    mask = torch.as_tensor(mask).cpu() != 0
    if mask.ndim != 3 or not mask.any():
        raise ExplanationError(
            f"a mask must be [t, h, w] with at least one pixel set; got {list(mask.shape)}, "
            f"{int(mask.sum())} set"
        )
    return mask
