"""The decoded frames of a batch, and how they come from the process that reads them to the one that runs the stream."""

import itertools
import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from multiprocessing import reduction

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

Stacked = list[tuple[list[int], UInt8[Tensor, "_ _ _ _ 3"]]]


@dataclass(frozen=True)
class Frames:
    """The decoded clips of a batch, `videos[view][clip]`, and the reason for each broken one.

    A batch of frames is tens of megabytes. Where the system allows, pickling hands over memory that both processes
    see, without a name that could outlive them, instead of copying it through a pipe. Clips of one size lie side by
    side in it: the process that runs the stream has them together without a copy.
    """

    ids: list[str]
    videos: list[list[UInt8[np.ndarray, "t _ _ 3"]]]
    broken: dict[str, str]

    def stacked(self, device: str | torch.device = "cpu") -> Iterator[Stacked]:
        """View by view, the clips of one size together on a device, each time with their positions among the ids."""
        for view in self.videos:
            groups = alike([video.shape for video in view])
            yield [(places, torch.from_numpy(together([view[n] for n in places])).to(device)) for places in groups]

    def __reduce__(self):
        if not self.ids or not hasattr(os, "memfd_create"):
            return Frames, (self.ids, self.videos, self.broken)
        shapes = [[video.shape for video in view] for view in self.videos]
        with open(os.memfd_create("tcar-frames"), "wb") as memory:
            for view, places in zip(self.videos, map(alike, shapes), strict=True):
                for place in itertools.chain(*places):
                    memory.write(np.ascontiguousarray(view[place]).data)
            memory.flush()
            handle = reduction.DupFd(memory.fileno())
        return _received, (self.ids, handle, shapes, self.broken)


def _received(ids: list[str], handle, shapes: list[list[tuple]], broken: dict[str, str]) -> Frames:
    """The frames in the memory that a worker has handed over; it is freed with the last of them."""
    descriptor = handle.detach()
    try:
        memory, at, videos = np.frombuffer(mmap.mmap(descriptor, 0), np.uint8), 0, []
    finally:
        os.close(descriptor)
    for view in shapes:
        videos.append([np.empty(0, np.uint8)] * len(view))
        for place in itertools.chain(*alike(view)):
            end = at + prod(view[place])
            videos[-1][place], at = memory[at:end].reshape(view[place]), end
    return Frames(ids, videos, broken)


def alike(shapes: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """The positions of equal shapes, together."""
    found: dict[tuple[int, ...], list[int]] = {}
    for position, shape in enumerate(shapes):
        found.setdefault(shape, []).append(position)
    return list(found.values())


def together(videos: Sequence[UInt8[np.ndarray, "t h w 3"]]) -> UInt8[np.ndarray, "clips t h w 3"]:
    """Videos of one size as one array: a view where they lie side by side in one memory, else a copy."""
    first, size = videos[0], videos[0].nbytes
    start = _address(first)
    lie = all(video.base is first.base and video.flags.c_contiguous for video in videos)
    if first.base is None or not lie or any(_address(video) != start + n * size for n, video in enumerate(videos)):
        return np.stack(videos)
    return np.lib.stride_tricks.as_strided(first, (len(videos), *first.shape), (size, *first.strides))


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]
