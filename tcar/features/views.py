"""Views of a clip: which frames a stream sees of it, once or several times, and which of these times in a mirror."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from tcar.data.sampling import segment_indices
from tcar.data.ssv2 import Clip
from tcar.data.video import Video


@dataclass(frozen=True)
class SegmentView:
    """One frame of each of `frames` equal segments: the middle one in view 0, a random one in every other.

    The sampling of TSN (Wang et al., 2016), in testing and in training. `flip` is the probability that a view other
    than 0, which is scored, is mirrored; raises ValueError where it is none. `upright` is that of
    `tcar.data.video.read_frames`; `turned` says that it changes some of the clips, which gives their store a key of
    its own.
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
        """What enters the key of a store: all that decides the frames besides their number, view and seed."""
        flip = f", flip {self.flip}" if self.flip else ""
        held = ", as stored" if not self.upright else ", turned upright" if self.turned else ""
        return f"segment middles{flip}{held}"

    def flipped(self, name: str, number: int, seed: int) -> bool:
        """Whether view `number` of the clip of this id is mirrored, which may change its class.

        The stream plays no part in it, so the stores of two streams agree.
        """
        if not number or not self.flip:
            return False
        # A draw of its own: no other setting changes which views are mirrored. No byte of an id is 256, so that it is
        # never the draw of the frames of another clip.
        return bool(np.random.default_rng([seed, number, 256, *name.encode()]).random() < self.flip)

    def places(self, name: str, count: int, number: int, seed: int) -> list[int]:
        """Which of the `count` frames of the clip of this id view `number` shows, in order."""
        if number == 0:
            return segment_indices(count, self.frames)
        # The id is part of the seed: clips differ, and neither their order nor who reads them matters.
        draw = np.random.default_rng([seed, number, *name.encode()]).random(self.frames)
        places = ((np.arange(self.frames) + draw) * count / self.frames).astype(int)
        return places.clip(max=count - 1).tolist()

    def __call__(self, clip: Clip, number: int, seed: int) -> UInt8[np.ndarray, "t _ _ 3"]:
        """Read the frames of one view; raises VideoError for a clip that cannot be read."""
        return read_views(clip, [(self, number, seed)])[0]


def read_views(clip: Clip, asked: Sequence[tuple[SegmentView, int, int]]) -> list[UInt8[np.ndarray, "t _ _ 3"]]:
    """Read the frames of several views (view, number, seed) of a clip, which is decoded once for all of them.

    Raises VideoError for a clip that cannot be read, and ValueError for views that are not all upright or all as
    stored.
    """
    upright = {view.upright for view, _, _ in asked}
    if len(upright) != 1:
        raise ValueError("views of a clip that are read together are all upright, or all as stored")
    with Video(clip.path, upright.pop()) as video:
        places = [view.places(clip.id, video.info.frames, number, seed) for view, number, seed in asked]
        wanted = sorted({place for chosen in places for place in chosen})
        frames, row = video.read(wanted), {place: row for row, place in enumerate(wanted)}
    seen = [frames if chosen == wanted else frames[[row[place] for place in chosen]] for chosen in places]
    return [
        np.ascontiguousarray(part[:, :, ::-1]) if view.flipped(clip.id, number, seed) else part
        for (view, number, seed), part in zip(asked, seen, strict=True)
    ]
