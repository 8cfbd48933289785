"""A cache of decoded frames on the disk, with a limit: a clip is decoded once, and read as an array afterwards.

It is worth its space where a training waits for decoding, and each epoch reads other frames of the same clips. Nothing
is dropped from the cache: an epoch reads every clip once, so that the oldest one is the next to be read. When the limit
is reached, all other clips are decoded as before.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TextIO

import numpy as np
from jaxtyping import UInt8

from tcar.data.video import Video
from tcar.ground import log
from tcar.ground.files import drafted, drop_drafts

USED = "used"  # the file with the bytes taken, under a lock: workers share one limit


@dataclass(frozen=True)
class FrameCache:
    """All frames of clips, in at most `limit` bytes of a folder.

    `upright` is that of `tcar.data.video.read_frames`. Picklable, and safe to use from several processes at once.
    A disk that does not take a clip is warned of, and the cache grows no more.
    """

    folder: Path
    limit: int
    upright: bool = True

    @classmethod
    def open(cls, folder: str | Path, limit: int, upright: bool = True) -> "FrameCache":
        """Open a folder, which may hold clips of earlier runs; raises ValueError for a limit below 1 byte."""
        if limit < 1:
            raise ValueError(f"a frame cache of {limit} bytes holds nothing: set its limit to at least 1, or use none")
        cache = cls(Path(folder), limit, upright)
        cache.folder.mkdir(parents=True, exist_ok=True)
        with cache._locked() as used:
            # Remove what an ended process left half written, and count what is really there.
            drop_drafts(cache.folder)
            _write(used, sum(path.stat().st_size for path in cache.folder.glob("*.npy")))
        return cache

    def read(self, path: Path, indices: list[int]) -> UInt8[np.ndarray, "t h w 3"]:
        """Return exactly those frames of a video, from the cache or by decoding it whole, and keep it if there is room.

        Raises what `tcar.data.video.Video` raises, and IndexError for a number the video does not have.
        """
        frames = self._kept(path)
        if frames is None:
            with Video(path, self.upright) as video:
                frames = video.read(list(range(video.info.frames)))
            self._keep(path, frames)
        if indices and not 0 <= min(indices) <= max(indices) < len(frames):
            raise IndexError(f"{path}: frames {min(indices)} to {max(indices)} asked of {len(frames)} frames")
        return frames[indices]

    def count(self, path: Path) -> int:
        """Return how many frames a video has."""
        frames = self._kept(path)
        if frames is not None:
            return len(frames)
        with Video(path) as video:
            return video.info.frames

    def _place(self, path: Path) -> Path:
        """Where a video's frames are: another place as soon as the file is another."""
        status = path.stat()
        name = f"{path.resolve()} {status.st_size} {status.st_mtime_ns} 0{' upright' * self.upright}"
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.npy"

    def _kept(self, path: Path) -> UInt8[np.ndarray, "t h w 3"] | None:
        try:
            return np.load(self._place(path), mmap_mode="r")
        except (OSError, ValueError):  # not there, or not whole: then it is decoded, and written again
            return None

    def _keep(self, path: Path, frames: UInt8[np.ndarray, "t h w 3"]) -> None:
        place, needed = self._place(path), frames.nbytes + 128  # np.save's header
        try:
            with self._locked() as used:
                if place.exists() or (taken := _read(used) + needed) > self.limit:
                    return
                _write(used, taken)  # before the lock is given up: others see the space as taken
            with drafted(place) as draft, draft.open("wb") as file:
                np.save(file, frames)
        except OSError as error:  # of our disk, and no fault of the clip
            _warn(f"{self.folder}: {error.strerror or error}; clips are decoded, and no more of them kept here: make "
                  "room, or set frame_cache_gb to what the disk has")  # fmt: skip
            with suppress(OSError), self._locked() as used:
                _write(used, self.limit)

    @contextmanager
    def _locked(self) -> Iterator[TextIO]:
        with open(os.open(self.folder / USED, os.O_RDWR | os.O_CREAT, 0o666), "r+", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file


@cache
def _warn(text: str) -> None:
    """Warn once in a process: the next clips would say the same."""
    log.get(__name__).warning(text)


def _read(used: TextIO) -> int:
    used.seek(0)
    return int(used.read() or 0)


def _write(used: TextIO, count: int) -> None:
    """Write the number of bytes, always as long as before: a disk that is full takes that, too."""
    used.seek(0)
    used.write(f"{count:020}")
    used.flush()
