"""Views of a clip: which frames a stream sees of it, once or several times, and which of these times in a mirror."""

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
    `flipped` says whether these frames are mirrored left to right, which may change the class of the clip. It knows the
    id of the clip and not the stream, so that the stores of two streams agree; view 0, which is scored, never is.
    Raises VideoError for a clip that cannot be read.
    """

    @property
    def key(self) -> str: ...

    def flipped(self, name: str, number: int, seed: int) -> bool: ...

    def __call__(self, clip: Clip, number: int, seed: int) -> UInt8[np.ndarray, "t _ _ 3"]: ...


@dataclass(frozen=True)
class SegmentView:
    """One frame of each of `frames` equal segments: the middle one in view 0, a random one in every other.

    The sampling of TSN (Wang et al., 2016), in testing and in training. `flip` is the probability that a view other
    than 0 is mirrored; raises ValueError where it is none. `upright` is that of `tcar.data.video.read_frames`; `turned`
    says that it changes some of the clips, which gives their store a key of its own.
    """

    frames: int
    flip: float = 0.0
    upright: bool = True
    turned: bool = False

    def __post_init__(self):
        if not 0 <= self.flip <= 1:
            raise ValueError(f"SegmentView.flip must lie in [0, 1], got {self.flip}")

    @property
    def key(self) -> str:
        """What enters the key of a store."""
        flip = f", flip {self.flip}" if self.flip else ""
        held = ", as stored" if not self.upright else ", turned upright" if self.turned else ""
        return f"segment middles{flip}{held}"

    def flipped(self, name: str, number: int, seed: int) -> bool:
        """Whether view `number` of the clip of this id is mirrored."""
        if not number or not self.flip:
            return False
        # A draw of its own: no other setting changes which views are mirrored. No byte of an id is 256, so that it is
        # never the draw of the frames of another clip.
        return bool(np.random.default_rng([seed, number, 256, *name.encode()]).random() < self.flip)

    def __call__(self, clip: Clip, number: int, seed: int) -> UInt8[np.ndarray, "t _ _ 3"]:
        """Read the frames of one view."""
        if number == 0:
            return read_segments(clip.path, self.frames, upright=self.upright)
        # The id is part of the seed: clips differ, and neither their order nor who reads them matters.
        draw = np.random.default_rng([seed, number, *clip.id.encode()]).random(self.frames)
        count = probe(clip.path).frames
        places = ((np.arange(self.frames) + draw) * count / self.frames).astype(int)
        frames = read_frames(clip.path, places.clip(max=count - 1).tolist(), upright=self.upright)
        return np.ascontiguousarray(frames[:, :, ::-1]) if self.flipped(clip.id, number, seed) else frames
