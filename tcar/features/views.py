"""Views of a clip: which frames a stream sees of it, once or several times."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from tcar.data.ssv2 import Clip
from tcar.data.video import probe, read_frames, read_segments


@runtime_checkable
class View(Protocol):
    """Makes the frames of view `number` of a clip, the same for the same `seed`; picklable, for worker processes.

    `key` says everything that decides the frames besides number and seed: it enters the key of a feature store.
    Raises VideoError for a clip that cannot be read.
    """

    @property
    def key(self) -> str: ...

    def __call__(self, clip: Clip, number: int, seed: int) -> UInt8[np.ndarray, "t _ _ 3"]: ...


@dataclass(frozen=True)
class SegmentView:
    """One frame of each of `frames` equal segments: the middle one in view 0, a random one in every other.

    The sampling of TSN (Wang et al., 2016), in testing and in training.
    """

    frames: int

    @property
    def key(self) -> str:
        """What enters the key of a store."""
        return "segment middles"

    def __call__(self, clip: Clip, number: int, seed: int) -> UInt8[np.ndarray, "t _ _ 3"]:
        """Read the frames of one view."""
        if number == 0:
            return read_segments(clip.path, self.frames)
        # The id is part of the seed: clips differ, and neither their order nor who reads them matters.
        draw = np.random.default_rng([seed, number, *clip.id.encode()]).random(self.frames)
        count = probe(clip.path).frames
        places = ((np.arange(self.frames) + draw) * count / self.frames).astype(int)
        return read_frames(clip.path, places.clip(max=count - 1).tolist())
