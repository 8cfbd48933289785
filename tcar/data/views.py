"""What a clip looks like to a model: which frames a stream sees, how it is varied in training, squared and cut in the
published protocols. Views of trainings that read clips are in `tcar.data.clip_views`.

Light, as worker processes import it: what varies clips (`tcar.data.augment`) takes seconds to import.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Int, UInt8
from torch import Tensor

from tcar.data.machine import reason_of
from tcar.data.sampling import segment_indices, segment_starts
from tcar.data.ssv2 import Clip
from tcar.data.video import Video, VideoError, resize

# Samplings in time, and cuts of the frame, of which every pair is a view: the whole frame, or the squares at the
# beginning, middle and end of its longer side. 2 x 3 is that of VideoMAE (Tong et al. 2022) and CAST.
PROTOCOLS = {"1": ((segment_indices,), (None,)), "2x3": ((segment_starts, segment_indices), (0, 1, 2))}


@dataclass(frozen=True)
class AugmentConfig:
    """How clips are varied; raises ValueError naming the field that does not fit.

    First come `operations` of RandAugment (Cubuk et al. 2020) on whole frames, as CAST and the probes of V-JEPA 2 have
    it: each is drawn of timm's 15 that grow with the magnitude and left out half of the time; its magnitude, 0 to 10,
    is normal about `magnitude` with a deviation of `spread`. None where `operations` is 0. Then a crop takes a share of
    the frame between the two of `scale`, of an aspect (width over height) between those of `ratio`, and becomes a
    square of `size` pixels (Inception's random resized crop, Szegedy et al. 2015; with antialiasing, which those two
    leave out). `jitter` are the ranges of brightness, contrast, saturation and hue. `flip` and `erase` are
    probabilities, the second of one box in all frames (Zhong et al. 2020), filled with noise as the probes of V-JEPA 2
    fill it: each value of each frame is drawn from the normal distribution of ImageNet's colours (here cut off at 0
    and 255, as frames are bytes).
    """

    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    operations: int = 0
    magnitude: int = 7
    spread: float = 0.5
    erase: float = 0.0

    def __post_init__(self):
        for name, (low, high) in (("flip", (0, 1)), ("erase", (0, 1)), ("magnitude", (0, 10)), ("spread", (0, 10))):
            if not low <= (value := getattr(self, name)) <= high:
                raise ValueError(f"AugmentConfig.{name} must lie in [{low}, {high}], got {value}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(
                f"AugmentConfig.scale {self.scale} must ascend within (0, 1], ratio {self.ratio} ascend above 0"
            )
        if self.size < 1 or self.operations < 0 or min(self.jitter) < 0 or self.jitter[3] > 0.5:
            some = {field.name: getattr(self, field.name) for field in fields(self)}
            raise ValueError(
                f"AugmentConfig: size at least 1, operations and jitter at least 0, hue at most 0.5: {some}"
            )


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


def square(frames: UInt8[np.ndarray, "t h w 3"], size: int, crop: bool) -> UInt8[np.ndarray, "t s s 3"]:
    """Return frames as squares of `size` pixels a side: squashed, or with `crop` the middle of the scaled frame."""
    if not crop:
        return resize(frames, size)
    height, width = frames.shape[1:3]
    scale = size / min(height, width)
    scaled = resize(frames, (max(size, round(height * scale)), max(size, round(width * scale))))
    top, left = (scaled.shape[1] - size) // 2, (scaled.shape[2] - size) // 2
    return scaled[:, top : top + size, left : left + size]


@dataclass(frozen=True)
class ProtocolReader:
    """Decodes once, of a clip, the frames of all samplings of a protocol for readers that take `frames` frames each.

    `upright` is that of `tcar.data.video.read_frames`.
    """

    protocol: str
    frames: tuple[int, ...]
    upright: bool = True

    def __call__(self, item: tuple[Clip, int]) -> tuple[UInt8[np.ndarray, "t h w 3"], Int[np.ndarray, " n"]] | str:
        """Return the frames, and the places among them of each sampling for each reader, one after the other; or the
        reason for which the file has none.
        """
        try:
            with Video(item[0].path, self.upright) as video:
                samplings, count = PROTOCOLS[self.protocol][0], video.info.frames
                wanted = [index for sample in samplings for frames in self.frames for index in sample(count, frames)]
                different, places = np.unique(wanted, return_inverse=True)
                return video.read(different.tolist()), places
        except VideoError as error:
            return reason_of(error)

    def places(self, found: Int[Tensor, "b n"], reader: int) -> list[Int[Tensor, "b t"]]:
        """The places of a reader's frames in each sampling, of what was returned with the frames."""
        by_sampling = found.chunk(len(PROTOCOLS[self.protocol][0]), dim=1)
        return [places.split(self.frames, dim=1)[reader] for places in by_sampling]


def cut(frames: UInt8[Tensor, "b t h w 3"], place: int | None) -> UInt8[Tensor, "b t _ _ 3"]:
    """The square at the beginning (0), middle (1) or end (2) of the longer side, or with None the whole frame."""
    if place is None:
        return frames
    height, width = frames.shape[2:4]
    side = min(height, width)
    start = (0, (max(height, width) - side) // 2, max(height, width) - side)[place]
    return frames[:, :, start : start + side] if height > width else frames[:, :, :, start : start + side]
