"""The tokens of a store on a coarser grid, pooled while they are read: no extraction, and nothing on the disk."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tcar.features.packing import FeatureError, unpacked
from tcar.features.store import FeatureStore, canonical
from tcar.streams.grids import Tokens, pool_tokens


@dataclass(frozen=True)
class PooledStore:
    """A feature store averaged to a grid (time, rows, columns), for who reads tokens as `FeatureStore` gives them.

    Raises FeatureError where the grid is not coarser, or as coarse, along every axis.
    """

    source: FeatureStore = field(repr=False)
    grid: tuple[int, int, int]

    def __post_init__(self):
        if any(not 1 <= new <= old for new, old in zip(self.grid, self.source.grid, strict=True)):
            raise FeatureError(f"{self.root} has a grid of {self.source.grid}, which pools to none of {self.grid}")

    @property
    def root(self) -> Path:
        """The folder of the tokens."""
        return self.source.root

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.source.width

    @property
    def views(self) -> int:
        """Views of each clip."""
        return self.source.views

    @property
    def flips(self) -> dict[str, list[int]]:
        """The mirrored views of each clip that has any."""
        return self.source.flips

    @property
    def ids(self) -> list[str]:
        """The clips that have tokens."""
        return self.source.ids

    @property
    def places(self) -> dict[str, int]:
        """The row of each clip's first view."""
        return self.source.places

    @cached_property
    def coordinates(self) -> Float[np.ndarray, "n 3"]:
        """The centres (t, y, x) in [0, 1] of the pooled tokens."""
        return self._pooled(torch.zeros(1, len(self.source.coordinates), 1)).coordinates.flatten(0, 1).numpy()

    @property
    def content(self) -> str:
        """A digest of all tokens: of those that are stored, and of the grid."""
        made = {"content": self.source.content, "grid": list(self.grid)}
        return hashlib.sha256(canonical(made)).hexdigest()

    def only(self, ids: list[str]) -> "PooledStore":
        """The same store of these clips alone."""
        return replace(self, source=self.source.only(ids))

    def flipped(self, ids: Sequence[str] | None = None, view: int | Sequence[int] = 0) -> Bool[np.ndarray, " clips"]:
        """Which of these views are mirrored, as `FeatureStore.flipped` says."""
        return self.source.flipped(ids, view)

    def read(
        self, ids: Sequence[str] | None = None, view: int | Sequence[int] = 0
    ) -> tuple[Float[Tensor, "clips n d"]]:
        """The tokens of these clips in single precision, as one part for `unpacked`; see `FeatureStore.read`."""
        return (self._pooled(unpacked(self.source.read(ids, view))).values.flatten(1, 2),)

    def _pooled(self, values: Float[Tensor, "b n d"]) -> Tokens:
        grid = self.source.grid
        places = torch.from_numpy(self.source.coordinates).float().unflatten(0, (grid[0], -1))
        return pool_tokens(Tokens(values.unflatten(1, (grid[0], -1)), places, None, grid), self.grid)
