"""Exact frames out of video files, decoded strictly with PyAV: the frames asked for, or an error that says why."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
from jaxtyping import UInt8

from tcar.data.container import (
    VideoError,
    declared_duration,
    open_container,
    strict_decoder,
    varies,
    video_stream,
)
from tcar.data.orientation import Orientation, orientation
from tcar.data.sampling import segment_indices

# A whole file up to this size is read once and kept while its frames are decoded; a larger one is read twice.
HELD_BYTES = 256 * 2**20

# These write down when each frame is shown; AVI and raw streams leave it to be guessed.
_TIMED_FORMATS = ("matroska", "mov,")
_BLOCK_HEADER = 64  # bytes that Matroska needs at most between two frames, a new cluster's beginning included
# Zero bytes in a row that are a hole in the file, as an incomplete download leaves it. H.264 forbids three of them in
# its data; VP9 can write dozens for a picture that stands still (48 in a clip of Tabletop), but no whole disk block.
_HOLES = {"h264": bytes(32), "vp9": bytes(512)}


@dataclass(frozen=True)
class VideoInfo:
    """What the container holds: frames in the file, pixels as they are shown, frames a second, seconds.

    `warning` says when the packets do not fill the declared duration, but a frame is all that lacks, or the frame
    rate varies, so that a cut file cannot be told from a sound one.
    """

    frames: int
    width: int
    height: int
    rate: float
    duration: float
    codec: str
    container: str
    warning: str = ""


def probe(path: str | Path) -> VideoInfo:
    """Count the packets of a video without decoding it and compare them with what the container declares.

    Raises VideoError: missing, empty, not a video, no video stream or truncated.
    """
    with Video(path) as video:
        return video.info


def iterate_frames(path: str | Path) -> Iterator[av.VideoFrame]:
    """Decode a video from its first frame to its last, strictly; the frames are as they are stored, not turned.

    Raises VideoError, undecodable and out of order among its reasons, at the first packet or frame that is
    damaged, has another size than the rest, or is not the one that should be shown next.
    """
    with Video(path) as video:
        yield from video.frames()


def read_frames(
    path: str | Path, indices: Sequence[int], size: int | tuple[int, int] | None = None, *, upright: bool = True
) -> UInt8[np.ndarray, "t h w 3"]:
    """Exactly the frames asked for, by their number in the order of showing, in the order asked for, as RGB.

    size: (height, width) or one number for a square; every frame is then resized (`resize`) as it is decoded.
    A video is decoded from its first frame to the last one wanted, whatever its container promises about
    seeking. Frames come as a player shows them, turned and mirrored where the file says so; with `upright` False, as
    they are stored. Pixels that are not square stay as they are.
    Raises VideoError for a file that cannot give them and IndexError for a number the file does not have.
    Damage that still decodes as a valid stream cannot be seen here; the audit keeps digests against it.
    """
    with Video(path, upright) as video:
        return video.read([int(index) for index in indices], size)


def read_segments(
    path: str | Path, segments: int, size: int | tuple[int, int] | None = None, *, upright: bool = True
) -> UInt8[np.ndarray, "t h w 3"]:
    """The middle frame of each of `segments` equal parts of a video; raises as `read_frames` does."""
    with Video(path, upright) as video:
        return video.read(segment_indices(video.info.frames, segments), size)


class Video:
    """A file opened, demuxed to its end and found complete; a context manager, which raises as `probe` does.

    `info` is what `probe` returns; `times` are those at which frames are shown, in units of `time_base` seconds,
    or None for a container that does not write them down. `orientation` is what is done to a frame that is read:
    nothing where `upright` is False.
    """

    def __init__(self, path: str | Path, upright: bool = True):
        self.path, self.upright = Path(path), upright

    def __enter__(self) -> "Video":
        self.container = open_container(self.path)
        try:
            self.stream = video_stream(self.path, self.container)
            self.time_base = self.stream.time_base
            self.packets = self._demux()
            self.info = self._describe()
        except BaseException:
            self.container.close()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.container.close()

    def _demux(self) -> list[av.Packet] | None:
        """Every packet in the file's order, or None where holding them would take too much memory."""
        size = self.path.stat().st_size
        self.marks, held = [], []
        try:
            for packet in self.container.demux(self.stream):
                if packet.size:
                    self.marks.append(_Mark(packet))
                    if size <= HELD_BYTES:
                        held.append(packet)
        except av.FFmpegError as error:
            raise VideoError(self.path, "truncated", error.strerror or str(error)) from error
        return held if size <= HELD_BYTES else None

    def _describe(self) -> VideoInfo:
        stream, codec, marks = self.stream, self.stream.codec_context, self.marks
        if not marks:
            raise VideoError(self.path, "truncated", "the container holds no frame")
        if any(mark.corrupt for mark in marks):
            raise VideoError(self.path, "truncated", "a packet is cut short")
        declared = declared_duration(self.container, stream)
        # Packets before the start of an edit list are decoded but never shown.
        shown = [mark for mark in marks if not mark.discarded]
        times = sorted(mark.time for mark in shown if mark.time is not None)
        timed = len(times) == len(shown) and self.container.format.name.startswith(_TIMED_FORMATS)
        self.times = times if timed else None
        warning = self._check_complete(declared)
        self._check_gaps()
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        duration = declared or (len(shown) / rate if rate else 0.0)
        name = self.container.format.name
        found = orientation(self.path, stream.index, marks[0].place) if self.upright else Orientation()
        self.orientation, (width, height) = found, found.size(codec.width, codec.height)
        return VideoInfo(len(shown), width, height, rate, duration, codec.name, name, warning)

    def _check_complete(self, duration: float | None) -> str:
        stream, rate = self.stream, float(self.stream.average_rate or 0)
        expected = stream.frames or (round(duration * rate) if duration and rate else 0)
        if expected <= len(self.marks):
            return ""
        detail = f"{len(self.marks)} of {expected} declared frames are in the file"
        # A count is exact; with a duration, one frame and 2% are left to muxers that end the last frame elsewhere.
        if not stream.frames and expected - len(self.marks) <= max(1.0, 0.02 * expected):
            return detail
        times = [mark.time for mark in self.marks if mark.time is not None]
        if not stream.frames and varies(times, stream.time_base, rate):
            return detail + ", at a variable frame rate"
        raise VideoError(self.path, "truncated", detail)

    def _check_gaps(self) -> None:
        """Find frames that Matroska's reader has stepped over: bytes of the file, and a time, that no frame claims."""
        if not self.container.format.name.startswith("matroska") or len(self.container.streams) > 1:
            return
        size = self.path.stat().st_size
        unclaimed = size - sum(mark.size + _BLOCK_HEADER for mark in self.marks)
        if unclaimed > max(4096, 0.05 * size):
            raise VideoError(self.path, "truncated", f"{unclaimed} of its {size} bytes belong to no frame")
        if self.times is None or len(self.marks) < 3:
            return
        steps = [after.time - before.time for before, after in zip(self.marks, self.marks[1:], strict=False)]
        usual = sorted(steps)[len(steps) // 2]
        for number, step in enumerate(steps):
            before, after = self.marks[number], self.marks[number + 1]
            if step <= 1.5 * usual or before.place is None or after.place is None:
                continue
            unclaimed = after.place - before.place - before.size
            if unclaimed > _BLOCK_HEADER:
                detail = f"{unclaimed} bytes between frames {number} and {number + 1} belong to no frame"
                raise VideoError(self.path, "truncated", detail)

    def frames(self) -> Iterator[av.VideoFrame]:
        """Decode from the first frame on, and check each frame against its place."""
        decoder, number = strict_decoder(self.stream), 0
        try:
            for packet in self._packets():
                for frame in decoder.decode(packet):
                    self._check_frame(frame, number)
                    yield frame
                    number += 1
        except (av.FFmpegError, MemoryError) as error:
            raise VideoError(self.path, "undecodable", getattr(error, "strerror", "") or str(error)) from error

    def _packets(self) -> Iterator[av.Packet | None]:
        """The packets, and None, which empties the decoder."""
        hole = _HOLES.get(self.info.codec)
        for number, packet in enumerate(self._held_or_read_again()):
            if hole is not None and hole in bytes(packet):
                raise VideoError(self.path, "undecodable", f"there is a hole of zeros in packet {number}")
            yield packet
        yield None

    def _held_or_read_again(self) -> Iterator[av.Packet]:
        if self.packets is not None:
            yield from self.packets
            return
        with open_container(self.path) as again:
            yield from (packet for packet in again.demux(again.streams[self.stream.index]) if packet.size)

    def _check_frame(self, frame: av.VideoFrame, number: int) -> None:
        if frame.is_corrupt:
            raise VideoError(self.path, "undecodable", f"frame {number} is damaged")
        width, height = self.orientation.size(frame.width, frame.height)
        if (width, height) != (self.info.width, self.info.height):
            detail = f"frame {number} is {width}x{height}, not {self.info.width}x{self.info.height}"
            raise VideoError(self.path, "undecodable", detail)
        if self.times is None or frame.pts is None:
            return
        if number >= len(self.times) or frame.pts != self.times[number]:
            detail = f"frame {number} is not the one that its time says is shown there"
            raise VideoError(self.path, "out of order", detail)

    def read(self, indices: list[int], size: int | tuple[int, int] | None = None) -> UInt8[np.ndarray, "t h w 3"]:
        """What `read_frames` returns."""
        count = self.info.frames
        if not indices:
            shape = (self.info.height, self.info.width) if size is None else _shape(size)
            return np.empty((0, *shape, 3), np.uint8)
        if min(indices) < 0 or max(indices) >= count:
            raise IndexError(
                f"{self.path}: frames {min(indices)} to {max(indices)} asked of a video whose frames are "
                f"0 to {count - 1}"
            )
        wanted, last, found = set(indices), max(indices), {}
        reformatter = av.video.reformatter.VideoReformatter()
        for number, frame in enumerate(self.frames()):
            if number in wanted:
                image = self.orientation(reformatter.reformat(frame, format="rgb24").to_ndarray())
                found[number] = image if size is None else resize(image[None], size)[0]
            if number == last:
                return np.stack([found[index] for index in indices])
        raise VideoError(self.path, "undecodable", f"decoding ends before frame {last}")


class _Mark:
    """What is kept of a packet: when it is shown, where it lies in the file, its bytes, and its flags."""

    __slots__ = ("corrupt", "discarded", "place", "size", "time")

    def __init__(self, packet: av.Packet):
        self.time, self.place, self.size = packet.pts, packet.pos, packet.size
        self.corrupt, self.discarded = packet.is_corrupt, packet.is_discard


def _shape(size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"frames can be resized to 1 pixel and more, not to size={size}")
    return height, width


def resize(frames: UInt8[np.ndarray, "t h w 3"], size: int | tuple[int, int]) -> UInt8[np.ndarray, "t H W 3"]:
    """Frames at another size, (height, width) or one number for a square; shrinking averages areas."""
    height, width = _shape(size)
    if frames.shape[1:3] == (height, width):
        return frames
    shrinks = height * width < frames.shape[1] * frames.shape[2]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = np.empty((len(frames), height, width, 3), np.uint8)
    for source, target in zip(frames, resized, strict=True):
        cv2.resize(source, (width, height), dst=target, interpolation=method)
    return resized
