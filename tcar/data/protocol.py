"""The views of a clip in the published protocols of testing; light, as worker processes import it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt8
from torch import Tensor

from tcar.data.machine import reason_of
from tcar.data.sampling import segment_indices, segment_starts
from tcar.data.ssv2 import Clip
from tcar.data.video import Video, VideoError

# Samplings in time, and cuts of the frame, of which every pair is a view: the whole frame, or the squares at the
# beginning, middle and end of its longer side. 2 x 3 is that of VideoMAE (Tong et al. 2022) and CAST.
PROTOCOLS = {"1": ((segment_indices,), (None,)), "2x3": ((segment_starts, segment_indices), (0, 1, 2))}


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
