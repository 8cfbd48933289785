"""What a model sees of a clip: a few of its frames as squares; light, as worker processes import it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from tcar.data.frame_cache import FrameCache
from tcar.data.machine import reason_of
from tcar.data.sampling import segment_indices
from tcar.data.ssv2 import Clip
from tcar.data.video import VideoError, read_segments, resize


@dataclass(frozen=True)
class ClipReader:
    """Reads a clip as `frames` squares of `size` pixels a side, the middle frames of equal segments, in any epoch.

    The whole frame is squashed to the square, or with `crop` scaled by its shorter side and cut to its middle. With a
    `cache`, a clip is decoded once and its frames are kept there, while there is room. `upright` is that of
    `tcar.data.video.read_frames`; a cache has its own.
    """

    frames: int
    size: int
    crop: bool = False
    cache: FrameCache | None = None
    upright: bool = True

    def __call__(self, item: tuple[Clip, int]) -> tuple[UInt8[np.ndarray, "t s s 3"]] | str:
        """Return the frames, or the reason (`tcar.data.container.REASONS`) for which the file has none."""
        path = item[0].path
        try:
            if self.cache is None:
                frames = read_segments(path, self.frames, upright=self.upright)
            else:
                frames = self.cache.read(path, segment_indices(self.cache.count(path), self.frames))
        except VideoError as error:
            return reason_of(error)
        return (square(frames, self.size, self.crop),)


def square(frames: UInt8[np.ndarray, "t h w 3"], size: int, crop: bool) -> UInt8[np.ndarray, "t s s 3"]:
    """Return frames as squares of `size` pixels a side: squashed, or with `crop` the middle of the scaled frame."""
    if not crop:
        return resize(frames, size)
    height, width = frames.shape[1:3]
    scale = size / min(height, width)
    scaled = resize(frames, (max(size, round(height * scale)), max(size, round(width * scale))))
    top, left = (scaled.shape[1] - size) // 2, (scaled.shape[2] - size) // 2
    return scaled[:, top : top + size, left : left + size]


def fingerprint(clips: Sequence[Clip]) -> str:
    """Return a digest of ids, labels and file sizes in order: cheap, and another one for any repaired clip."""
    digest = hashlib.sha256()
    for clip in clips:
        size = clip.path.stat().st_size if clip.path.is_file() else -1
        digest.update(f"{clip.id} {clip.label} {size}\n".encode())
    return digest.hexdigest()
