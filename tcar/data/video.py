"""Exact frames out of video files, decoded strictly with PyAV: the frames asked for, or an error that says why."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
from jaxtyping import UInt8

from tcar.data.container import VideoError, declared_duration, open_container, pauses, strict_decoder, video_stream
from tcar.data.orientation import Orientation, orientation
from tcar.data.sampling import segment_indices
from tcar.data.slices import pictures_of
from tcar.data.structure import SELF_CHECKED, check_structure

# A whole file up to this size is read once and kept while its frames are decoded; a larger one is read twice.
HELD_BYTES = 256 * 2**20

# These write down when each frame is shown; AVI and raw streams leave it to be guessed.
_TIMED_FORMATS = ("matroska", "mov,")
# Zero bytes in a row that are a hole in the file, as an incomplete download leaves it. H.264 forbids three of them in
# its data; VP9 can write dozens for a picture that stands still (48 in a clip of Tabletop), but no whole disk block.
_HOLES = {"h264": bytes(32), "vp9": bytes(512)}


@dataclass(frozen=True)
class VideoInfo:
    """What the file holds: frames and pixels as they are shown, frames a second, seconds from the first frame on.

    `warning` says what only might be a loss: the frames do not fill the declared duration, one stands longer than
    usual, their rate varies, or the file begins in the middle of a film.
    """

    frames: int
    width: int
    height: int
    rate: float
    duration: float
    codec: str
    warning: str = ""


def probe(path: str | Path) -> VideoInfo:
    """Count the frames that a video shows, decoding it only where its packets do not tell, and find missing bytes.

    Raises VideoError: missing, empty, not a video, no video stream, truncated or undecodable.
    """
    with Video(path) as video:
        return video.info


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
        with ExitStack() as opened:
            self.container = opened.enter_context(open_container(self.path))
            self.stream = video_stream(self.path, self.container)
            self.time_base = self.stream.time_base
            self.packets = self._demux()
            self.info = self._describe()
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_) -> None:
        self._opened.close()

    def _demux(self) -> list[av.Packet] | None:
        """Every packet in the file's order, or None where holding them would take too much memory."""
        size, self.place = self.path.stat().st_size, None  # where the first frame begins, in bytes
        codec = self.stream.codec_context
        self.pictures, self.marks, held, self.blanks = pictures_of(codec.name, codec.extradata), [], [], 0
        try:
            for packet in self.container.demux(self.stream):
                if packet.size:
                    self.place = self.place if self.marks else packet.pos
                    self.marks.append(_Mark(packet))
                    self.pictures.add(memoryview(packet))
                    if size <= HELD_BYTES:
                        held.append(packet)
                else:
                    self.blanks += packet.dts is not None  # the last one only empties the decoder
        except (av.FFmpegError, OSError) as error:
            raise VideoError(self.path, "truncated", error.strerror or str(error)) from error
        self.pictures.finish()
        return held if size <= HELD_BYTES else None

    def _describe(self) -> VideoInfo:
        stream, codec, name = self.stream, self.stream.codec_context, self.container.format.name
        if not self.marks:
            raise VideoError(self.path, "truncated", "the container holds no frame")
        if any(mark.corrupt for mark in self.marks):
            raise VideoError(self.path, "truncated", "a packet is cut short")
        check_structure(self.path, name, len(self.marks), stream.index)
        listed = len(stream.index_entries) if name.startswith("mov,") else 0
        if (lost := listed - len(self.marks) - self.blanks) > 0:
            raise VideoError(self.path, "truncated", f"{lost} of {listed} listed frames are not in the file")
        if self.pictures.lost:
            raise VideoError(self.path, "undecodable", self.pictures.lost)
        times = self._shown()
        timed = name.startswith(_TIMED_FORMATS) and None not in times and not self.pictures.packed
        self.times = times if timed else None
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        duration, warning = self._compare_times(times, rate)
        found = orientation(self.path, stream.index, self.place) if self.upright else Orientation()
        self.orientation, (width, height) = found, found.size(codec.width, codec.height)
        return VideoInfo(len(times), width, height, rate, duration, codec.name, warning)

    def _shown(self) -> list[int | None]:
        """The times of the frames that a player shows, in order, decoded where the packets do not tell."""
        self.first, self.begin = 0, None
        if self.pictures.cut:
            # Of what was cut in two, players show nothing that was predicted from the part before.
            self.first = next((number for number, mark in enumerate(self.marks) if mark.key), 0)
            self.begin = self.marks[self.first].time
        marks = list(zip(self.marks, self.pictures.shown, strict=True))[self.first :]
        # Packets before the start of an edit list are decoded but never shown.
        shown = [(mark.time, count) for mark, count in marks if not mark.discarded and count != 0]
        if self.begin is not None or any(count is None for _, count in shown):
            with open_container(self.path) as again:
                stream = again.streams[self.stream.index]
                times = [frame.pts for frame in self._decode(stream, self._demuxed(again))]
        else:
            times = [time for time, _ in shown]
        if not times:
            raise VideoError(self.path, "undecodable", "no frame is shown")
        return times if None in times else sorted(times)

    def _compare_times(self, times: list[int | None], rate: float) -> tuple[float, str]:
        """Seconds the film lasts, and a warning where it may lack frames: where it ends, or between two of them."""
        name, step = self.container.format.name, float(self.time_base)
        # AVI keeps no times, only the order of its chunks, of which those without content show nothing new.
        shown = [mark for mark in self.marks if not mark.discarded and mark.moment is not None]
        clock = sorted(mark.moment for mark in shown) if None in times else times
        declared = declared_duration(self.container, self.stream)
        if not shown or not rate:
            return declared or (len(times) / rate if rate else 0.0), ""
        last = max(shown, key=lambda mark: mark.moment)
        end = last.moment * step + max(last.duration * step, 1 / rate)
        lasts = end - clock[0] * step
        # Some declare how long the film lasts, others when it ends.
        lacking = min(declared - lasts, declared - end) * rate if declared else 0.0
        expected = len(times) + round(lacking)
        if expected > len(times):
            detail = f"{len(times)} of {expected} declared frames are in the file"
            if not name.startswith(SELF_CHECKED) and lacking > max(1.0, 0.02 * expected):
                raise VideoError(self.path, "truncated", detail)
            return lasts, detail
        if self.first:
            return lasts, f"the first {self.first} packets cannot be shown: those before them are missing"
        return lasts, pauses(clock, self.time_base)

    def frames(self) -> Iterator[av.VideoFrame]:
        """Decode from the first frame on, and check each frame against its place."""
        for number, frame in enumerate(self._decode(self.stream, self._held_or_read_again())):
            self._check_frame(frame, number)
            yield frame

    def _decode(self, stream: av.VideoStream, packets: Iterable[av.Packet]) -> Iterator[av.VideoFrame]:
        decoder = strict_decoder(stream, self.pictures.cut)
        hole = _HOLES.get(self.stream.codec_context.name)
        try:
            for number, packet in enumerate(packets):
                if number < self.first or None not in (self.begin, packet.pts) and packet.pts < self.begin:
                    continue
                if hole is not None and hole in bytes(packet):
                    raise VideoError(self.path, "undecodable", f"there is a hole of zeros in packet {number}")
                yield from decoder.decode(packet)
            yield from decoder.decode(None)  # which empties the decoder
        except (av.FFmpegError, OSError, MemoryError) as error:
            raise VideoError(self.path, "undecodable", getattr(error, "strerror", "") or str(error)) from error

    def _held_or_read_again(self) -> Iterator[av.Packet]:
        if self.packets is not None:
            yield from self.packets
            return
        with open_container(self.path) as again:
            yield from self._demuxed(again)

    def _demuxed(self, container: av.container.InputContainer) -> Iterator[av.Packet]:
        return (packet for packet in container.demux(container.streams[self.stream.index]) if packet.size)

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
    """What is kept of a packet: when it is shown, and for how long, in units of the stream, and its flags."""

    __slots__ = ("corrupt", "discarded", "duration", "key", "moment", "time")

    def __init__(self, packet: av.Packet):
        self.time, self.duration = packet.pts, packet.duration or 0
        self.moment = packet.dts if packet.pts is None else packet.pts
        self.corrupt, self.discarded, self.key = packet.is_corrupt, packet.is_discard, packet.is_keyframe


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
