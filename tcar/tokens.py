"""The cached tokens of a split, as a training reads them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from tcar import files, log, results

if TYPE_CHECKING:  # what these do shows in the tokens: their code is no part of what a fit depends on
    from tcar.data.ssv2 import Clip
    from tcar.features import FeatureStore

ARRAYS = ("semantic", "semantic_xyz", "motion", "motion_xyz", "labels")


class TrainingError(RuntimeError):
    """A fit that cannot start or go on; the message names the job and the cause."""


@dataclass(frozen=True, eq=False)
class TokenSet:
    """Both streams' cached tokens of one split's clips: half precision, coordinates (t, y, x) in [0, 1]."""

    semantic: Float[np.ndarray, "n s d1"]
    semantic_xyz: Float[np.ndarray, "s 3"]
    motion: Float[np.ndarray, "n m d2"]
    motion_xyz: Float[np.ndarray, "m 3"]
    labels: Int[np.ndarray, " n"]
    ids: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def digest(self) -> str:
        """A digest of all values (a store's key would not do: it stays when the store is made again)."""
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in ARRAYS}
        content = {name: [a.shape, str(a.dtype), hashlib.sha256(a).hexdigest()] for name, a in arrays.items()}
        return results.digest({"ids": self.ids} | content)

    def save(self, folder: Path) -> None:
        """Write `.npy` files that several processes can map into their memory together."""
        folder.mkdir(parents=True)
        for name in ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name))
        files.write_text(folder / "ids.json", json.dumps(self.ids))

    @classmethod
    def load(cls, folder: Path) -> TokenSet:
        """Map the files of `save` into memory, copy-on-write because torch warns of read-only arrays."""
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="c") for name in ARRAYS}
        return cls(**arrays, ids=json.loads((folder / "ids.json").read_text()))


def token_set(semantic: FeatureStore, motion: FeatureStore, clips: Sequence[Clip]) -> TokenSet:
    """Both streams' tokens of the clips that both stores hold (a quarantined one is missing), in clip order.

    Raises:
        TrainingError: a clip without label, or with tokens that are not finite, or no clip in both stores.
    """
    stored = set(semantic.ids) & set(motion.ids)
    kept = [clip for clip in clips if clip.id in stored]
    if not kept:
        raise TrainingError(f"none of {len(clips)} clips is in both feature stores; extract their features")
    if missing := len(clips) - len(kept):
        log.get(__name__).warning(f"{missing} of {len(clips)} clips have no features (quarantined)")
    unlabelled = [clip.id for clip in kept if clip.label is None]
    if unlabelled:
        raise TrainingError(f"{len(unlabelled)} clips have no label, the first of them {unlabelled[0]}")
    ids, labels = [clip.id for clip in kept], np.array([clip.label for clip in kept], dtype=np.int64)
    loaded = [store.load(ids) for store in (semantic, motion)]
    for store, tokens in zip((semantic, motion), loaded, strict=True):
        for clip, values in zip(ids, tokens, strict=True):
            if not np.isfinite(values).all():
                raise TrainingError(not_finite(store.root, clip))
    return TokenSet(loaded[0], semantic.coordinates, loaded[1], motion.coordinates, labels, ids)


def not_finite(store: Path | str, clip: str) -> str:
    """Say whose tokens are no numbers, and what to do about it."""
    return f"{store}: the tokens of clip {clip} are not finite; verify the store, delete it, and extract again"
