"""A feature store in memory, for tests that need tokens and no files."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from tcar.lab import results
from tcar.train.tokens import StoredTokens


@dataclass
class MemoryStore:
    """What a training asks of a store, of tokens [clips, n, d], one view of each."""

    tokens: Float[np.ndarray, "clips n d"]
    coordinates: Float[np.ndarray, "n 3"]
    ids: list[str]
    root: Path = Path("memory")
    views: int = 1
    flips: dict = field(default_factory=dict)

    @property
    def places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.ids)}

    @property
    def width(self) -> int:
        return self.tokens.shape[2]

    @property
    def content(self) -> str:
        return results.digest([self.ids, self.tokens.tolist()])

    def read(self, ids, view=0) -> tuple[torch.Tensor, ...]:
        places = self.places
        return (torch.from_numpy(self.tokens[[places[name] for name in ids]]),)

    def flipped(self, ids, view=0):
        return np.zeros(len(ids), bool)


def in_memory(semantic, semantic_xyz, motion, motion_xyz, labels, ids) -> StoredTokens:
    """The tokens of a split that are in memory: those of each stream, and their places."""
    semantic, motion = MemoryStore(semantic, semantic_xyz, ids), MemoryStore(motion, motion_xyz, ids)
    return StoredTokens(semantic, motion, list(ids), np.asarray(labels, np.int64))
