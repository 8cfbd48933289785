"""The stored tokens of both streams of a split, read batch by batch: nobody holds a split in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from tcar.data.ssv2 import flip_pairs, without_mirror_image
from tcar.features import unpacked
from tcar.ground import log, records
from tcar.train.watch import TrainingError

if TYPE_CHECKING:
    from tcar.data.ssv2 import Clip
    from tcar.features import FeatureStore

THREADS = 2  # that read them; they wait for the disk more than they compute

# What a store has of each stream's tokens, one after the other: values, and scales where they are integers.
Parts = tuple[Shaped[Tensor, "b ..."], ...]
Item, Read = TypeVar("Item"), TypeVar("Read")


@dataclass(frozen=True, eq=False)
class StoredTokens:
    """The tokens of a split that stay on the disk, for stores that no memory holds; a clip may have several views.

    Some of these may be mirrored, in both stores alike: `mirrored` maps the classes that this changes to what it makes
    of them, each way. Raises TrainingError naming both stores where they disagree about it.
    """

    semantic: FeatureStore
    motion: FeatureStore
    ids: list[str]
    labels: Int[np.ndarray, " n"]
    mirrored: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self):
        for view in range(self.views if self.semantic.flips or self.motion.flips else 0):
            differing = self.semantic.flipped(self.ids, view) != self.motion.flipped(self.ids, view)
            if differing.any():
                raise TrainingError(
                    f"{self.semantic.root} and {self.motion.root}: view {view} of clip {self.ids[differing.argmax()]} "
                    "is mirrored in one of them alone; extract both with the same views, view_seed and view_flip"
                )

    @classmethod
    def of(
        cls, semantic: FeatureStore, motion: FeatureStore, clips: Sequence[Clip], class_names: Sequence[str] = ()
    ) -> StoredTokens:
        """Take the clips that both stores hold; raises TrainingError where none is, or one has no label.

        `class_names`, in the order of the labels, tell which classes a mirror exchanges (`tcar.data.ssv2.flip_pairs`).
        Raises TrainingError where stores with mirrored views lack them, or a class whose mirror image is none of them.
        """
        kept = [clip for clip in clips if clip.id in semantic.places and clip.id in motion.places]
        if not kept:
            raise TrainingError(f"none of {len(clips)} clips is in both feature stores; extract their features")
        if missing := len(clips) - len(kept):
            log.get(__name__).warning(f"{missing} of {len(clips)} clips have no features (quarantined)")
        if unlabelled := [clip.id for clip in kept if clip.label is None]:
            raise TrainingError(f"{len(unlabelled)} clips have no label, the first of them {unlabelled[0]}")
        labels = np.array([clip.label for clip in kept], dtype=np.int64)
        if semantic.flips or motion.flips:
            _check_mirrors(semantic if semantic.flips else motion, labels, list(class_names))
        # The store's own strings: those of the clips lie among all that an annotation file holds, and whoever keeps
        # some of them keeps the memory of all.
        own = {name: name for name in semantic.places}
        ids = [own[clip.id] for clip in kept]
        return cls(semantic.only(ids), motion.only(ids), ids, labels, flip_pairs(list(class_names)))

    @property
    def views(self) -> int:
        """The views of each clip that both stores hold."""
        return min(self.semantic.views, self.motion.views)

    def labels_of(self, places: Sequence[int], views: Sequence[int]) -> Int[np.ndarray, " b"]:
        """The classes of these clips as these views show them: a mirrored one has that of its mirror image."""
        labels = self.labels[list(places)]
        flipped = self.semantic.flipped([self.ids[place] for place in places], views)
        labels[flipped] = [self.mirrored.get(label, label) for label in labels[flipped].tolist()]
        return labels

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def digest(self) -> str:
        """A digest of all tokens, ids and labels; the stores know that of their tokens since they were written."""
        content = {"stores": (self.semantic.content, self.motion.content), "ids": self.ids, "labels": self.labels}
        if self.semantic.flips or self.motion.flips:
            content["mirrored"] = sorted(self.mirrored.items())
        return records.digest(content)

    @property
    def coordinates(self) -> dict[str, Float[Tensor, "_ 3"]]:
        """The centres (t, y, x) in [0, 1] of each stream's tokens."""
        return {role: torch.from_numpy(store.coordinates).float() for role, store in self._stores.items()}

    @property
    def widths(self) -> dict[str, int]:
        """The width of each stream's tokens, by the names that a FusionConfig has for them."""
        return {f"{role}_width": store.width for role, store in self._stores.items()}

    def read(self, places: Sequence[int], views: int | Sequence[int] = 0) -> tuple[Parts, Parts]:
        """Read the tokens of clips, by their places in the split, as the stores have them."""
        ids = [self.ids[place] for place in places]
        return self.semantic.read(ids, views), self.motion.read(ids, views)

    def floats(self, places: Sequence[int]) -> list[Float[Tensor, ...]]:
        """Read view 0 of clips in single precision: each stream's tokens, followed by their coordinates.

        These are the four inputs of a fusion.
        """
        (semantic, motion), (semantic_xyz, motion_xyz) = self.read(places), self.coordinates.values()
        return [unpacked(semantic), semantic_xyz, unpacked(motion), motion_xyz]

    def batches(self, size: int) -> Iterator[tuple[list[int], tuple[Parts, Parts]]]:
        """Read view 0 of the whole split, `size` clips at a time, ahead of whoever asks: places and tokens."""
        starts = range(0, len(self), size)
        groups = (list(range(start, min(start + size, len(self)))) for start in starts)
        yield from ahead(lambda places: (places, self.read(places)), groups)

    @property
    def _stores(self) -> dict[str, FeatureStore]:
        return {"semantic": self.semantic, "motion": self.motion}


def _check_mirrors(store: FeatureStore, labels: Int[np.ndarray, " n"], class_names: list[str]) -> None:
    """Raise TrainingError where the classes that mirrored views show cannot be told from the names."""
    if labels.max() >= len(class_names):
        raise TrainingError(
            f"{store.root} keeps mirrored views, and {len(class_names)} class names cannot tell what a mirror makes of "
            f"classes up to {labels.max()}; give the name of every class"
        )
    if lonely := without_mirror_image(class_names):
        raise TrainingError(
            f"{store.root} keeps mirrored views, and {lonely[0]!r} in a mirror is none of the {len(class_names)} "
            "classes; extract with view_flip 0, or add that class"
        )


def ahead(read: Callable[[Item], Read], items: Iterable[Item], threads: int = 0) -> Iterator[Read]:
    """Do `read` of every item in threads (0: so many as wait for a disk), a few ahead of whoever asks, in order."""
    threads = threads or THREADS
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(read, item))
                if len(waiting) > threads + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def not_finite(store: Path | str, clip: str) -> str:
    """Say whose tokens are no numbers, and what to do about it."""
    return f"{store}: the tokens of clip {clip} are not finite; verify the store, delete it, and extract again"
