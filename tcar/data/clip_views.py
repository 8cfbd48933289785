"""Views of a clip for trainings that read clips, in the epochs of a training."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8

from tcar.data.frame_cache import FrameCache
from tcar.data.machine import reason_of
from tcar.data.sampling import random_segment_indices, segment_indices, view_seed
from tcar.data.ssv2 import Clip
from tcar.data.video import Video, VideoError
from tcar.data.views import AugmentConfig, square


@dataclass(frozen=True)
class ClipViews:
    """Makes the view of a clip in an epoch, picklable for worker processes.

    `frames` are the numbers of frames wanted, one for each reader of the clip (a stream, a baseline); they come one
    after the other, squares of `size` pixels a side, of the whole frame or with `crop` of its middle. In epoch 0, that
    of scoring, they are the middles of equal segments; in others a random frame of each segment, varied as `augment`
    says, alike for all readers. With a `cache`, a clip is decoded once and its frames are kept there, while there is
    room. `upright` is that of `tcar.data.video.read_frames`; a cache has its own.
    """

    frames: tuple[int, ...]
    size: int
    crop: bool
    augment: AugmentConfig
    mirrored: Mapping[int, int]
    seed: int
    cache: FrameCache | None = None
    upright: bool = True

    def __call__(self, item: tuple[Clip, int]) -> tuple[UInt8[np.ndarray, "t s s 3"], int] | str:
        """Return the frames and the class of a view, or the reason for which the file has none."""
        clip, epoch = item
        try:
            if self.cache is not None:
                indices = self._indices(clip.id, epoch, self.cache.count(clip.path))
                return self._cut(self.cache.read(clip.path, indices), clip, epoch)
            with Video(clip.path, self.upright) as video:
                return self._cut(video.read(self._indices(clip.id, epoch, video.info.frames)), clip, epoch)
        except VideoError as error:
            return reason_of(error)

    def _indices(self, name: str, epoch: int, count: int) -> list[int]:
        if not epoch:
            return [index for wanted in self.frames for index in segment_indices(count, wanted)]
        draw = np.random.default_rng(view_seed(self.seed, "frames", name, epoch))
        return [index for wanted in self.frames for index in random_segment_indices(count, wanted, draw)]

    def _cut(self, frames: np.ndarray, clip: Clip, epoch: int) -> tuple[np.ndarray, int]:
        if not epoch:
            return square(frames, self.size, self.crop), clip.label
        from tcar.data.augment import Augment  # takes seconds to import, in the processes that vary alone

        vary = Augment(self.augment, self.mirrored, self.seed)
        varied, labels = vary([torch.from_numpy(frames)], torch.tensor([clip.label]), [clip.id], epoch)
        return varied[0].numpy(), int(labels[0])
