"""Batches of decoded clips in a given order, read ahead by worker processes that a bad file cannot take along."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from tcar.data.ssv2 import Clip
from tcar.data.video import VideoError, read_segments, resize
from tcar.data.workers import Failure, isolated_map

CLIP_LIMIT = 60.0  # seconds; reading a clip takes a hundredth of one


@dataclass(frozen=True)
class ClipReader:
    """Reads a clip as `frames` squares of `size` pixels a side, the middle frames of equal segments.

    The whole frame is squashed to the square, or with `crop` scaled by its shorter side and cut to its middle.
    """

    frames: int
    size: int
    crop: bool = False

    def __call__(self, path: Path) -> UInt8[np.ndarray, "t s s 3"] | str:
        """Return the frames, or the reason (`tcar.data.video.REASONS`) for which the file has none."""
        try:
            frames = read_segments(path, self.frames)
        except VideoError as error:
            return error.reason
        return square(frames, self.size, self.crop)


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
class Batch:
    """The readable clips of a batch by their places in the list of clips, and why the others could not be read."""

    places: list[int]
    frames: UInt8[np.ndarray, "b t s s 3"]
    broken: dict[int, str]


def read_batches(
    clips: Sequence[Clip], batches: Sequence[Sequence[int]], reader: ClipReader, workers: int = 0
) -> Iterator[Batch]:
    """Yield each batch of places in `clips`, in order, decoded by `workers` processes (0: one for every core).

    A clip that cannot be read, kills its process or takes too long is missing from its batch, with the reason; what
    the others are does not depend on it, nor on the number of workers. A batch may come out empty.
    """
    order = [place for batch in batches for place in batch]
    arrived: dict[int, UInt8[np.ndarray, "t s s 3"] | str] = {}
    outcomes = isolated_map(reader, [clips[place].path for place in order], workers=workers, time_limit=CLIP_LIMIT)
    with closing(outcomes):
        start = 0
        for batch in batches:
            wanted = range(start, start + len(batch))
            while not all(position in arrived for position in wanted):
                position, outcome = next(outcomes)
                arrived[position] = _reason(outcome) if isinstance(outcome, Failure) else outcome
            start += len(batch)
            read = {place: arrived.pop(position) for place, position in zip(batch, wanted, strict=True)}
            broken = {place: outcome for place, outcome in read.items() if isinstance(outcome, str)}
            places = [place for place in read if place not in broken]
            frames = np.empty((len(places), reader.frames, reader.size, reader.size, 3), np.uint8)
            for target, place in zip(frames, places, strict=True):
                target[:] = read[place]
            yield Batch(places, frames, broken)


def _reason(failure: Failure) -> str:
    if failure.kind == "error":
        return f"reading it failed: {failure.detail.strip().splitlines()[-1]}"
    return f"reading it {failure.kind}"


def fingerprint(clips: Sequence[Clip]) -> str:
    """Return a digest of ids, labels and file sizes in order: cheap, and another one for any repaired clip."""
    digest = hashlib.sha256()
    for clip in clips:
        size = clip.path.stat().st_size if clip.path.is_file() else -1
        digest.update(f"{clip.id} {clip.label} {size}\n".encode())
    return digest.hexdigest()
