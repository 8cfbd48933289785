"""Grids of tokens in one space-time coordinate system, whatever stream they come from."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """A grid of tokens: values `[b t n d]`, centres (t, y, x) in [0, 1] `[t n 3]`, grid (t, h, w), n = h * w.

    `class_token` `[b t d]` is the summary of each frame where the backbone has one, else None.
    """

    values: Float[Tensor, "b t n d"]
    coordinates: Float[Tensor, "t n 3"]
    class_token: Float[Tensor, "b t d"] | None
    grid: tuple[int, int, int]


def grid_coordinates(grid: tuple[int, int, int], device=None) -> Float[Tensor, "t n 3"]:
    """Return the cell centres (t, y, x) in [0, 1] of a grid (t, h, w), in row-major order."""
    axes = [(torch.arange(cells, device=device) + 0.5) / cells for cells in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(1, 2)


def pool_tokens(tokens: Tokens, grid: tuple[int, int, int]) -> Tokens:
    """Average tokens to a grid (t, h, w), values and coordinates alike; class tokens average over time.

    Raises ValueError where the grid asks for more cells than there are tokens along an axis.
    """
    grid = tuple(grid)
    if len(grid) != 3 or any(not 1 <= new <= old for new, old in zip(grid, tokens.grid, strict=True)):
        raise ValueError(f"cannot pool a token grid {tokens.grid} to {grid}: each axis needs 1 to that many cells")
    if grid == tokens.grid:
        return tokens

    def pool(x: Tensor) -> Tensor:  # [b t n d] -> [b t' n' d]
        volume = x.unflatten(2, tokens.grid[1:]).movedim(-1, 1)
        return F.adaptive_avg_pool3d(volume, grid).movedim(1, -1).flatten(2, 3)

    class_token = tokens.class_token
    if class_token is not None:
        class_token = F.adaptive_avg_pool1d(class_token.transpose(1, 2), grid[0]).transpose(1, 2)
    return Tokens(pool(tokens.values), pool(tokens.coordinates[None])[0], class_token, grid)
