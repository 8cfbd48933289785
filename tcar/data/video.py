"""Exact frames out of video files: decord where it is right, PyAV elsewhere, an error instead of a guess."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av  # before decord: the other way round PyAV's VP9 encoder fails with EINVAL
import cv2
import numpy as np
from jaxtyping import UInt8

REASONS = ("missing", "empty", "not a video", "no video stream", "truncated", "undecodable")

# Elsewhere decord is silently wrong: in AVI with B-frames it returns other frames than those asked for, and
# of damaged H.264 it returns concealed frames. In VP9 it is exact, and raises where PyAV raises.
DECORD_EXACT = {("matroska,webm", "vp9")}

_CONTAINER_STARTS = ((0, b"\x1aE\xdf\xa3"), (4, b"ftyp"), (8, b"AVI "))
_STILL_FORMATS = ("_pipe", "image2", "tty")


class VideoError(Exception):
    """A video file that cannot give the frames asked of it; `reason` is one of `REASONS`."""

    def __init__(self, path: str | Path, reason: str, detail: str = ""):
        super().__init__(str(path), reason, detail)
        self.path, self.reason, self.detail = Path(path), reason, detail

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.path}: {self.reason}{detail}; fetch the file again or quarantine its id"


@dataclass(frozen=True)
class VideoInfo:
    """What the container holds: frames in the file, pixels, frames a second, seconds.

    `warning` says when the packets do not fill the declared duration but the frame rate varies, so that a cut
    file cannot be told from an uneven one.
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
    path = Path(path)
    if not path.is_file():
        raise VideoError(path, "missing")
    if path.stat().st_size == 0:
        raise VideoError(path, "empty", "0 bytes")
    with _open(path) as container:
        stream = _video_stream(path, container)
        try:
            packets = [packet for packet in container.demux(stream) if packet.size]
        except av.FFmpegError as error:
            raise VideoError(path, "truncated", str(error)) from error
        warning = _check_complete(path, container, stream, packets)
        # Packets before the start of an edit list are decoded but never shown.
        frames = sum(not packet.is_discard for packet in packets)
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        duration = _declared_duration(container, stream) or (frames / rate if rate else 0.0)
        codec = stream.codec_context
        return VideoInfo(
            frames, codec.width, codec.height, rate, duration, codec.name, container.format.name, warning
        )


def _open(path: Path) -> av.container.InputContainer:
    try:
        container = av.open(str(path))
    except av.FFmpegError as error:
        head = path.open("rb").read(16)
        if any(head[at : at + len(mark)] == mark for at, mark in _CONTAINER_STARTS):
            raise VideoError(path, "truncated", "the container begins but has no index") from error
        raise VideoError(path, "not a video", error.strerror or str(error)) from error
    if container.format.name.endswith(_STILL_FORMATS):
        container.close()
        raise VideoError(path, "not a video", f"its content is {container.format.name}")
    return container


def _video_stream(path: Path, container: av.container.InputContainer) -> av.VideoStream:
    stream = container.streams.best("video")
    if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
        kinds = ", ".join(sorted({other.type for other in container.streams})) or "nothing"
        raise VideoError(path, "no video stream", f"the file holds {kinds}")
    if not stream.codec_context.width or not stream.codec_context.height:
        raise VideoError(path, "undecodable", "the size of the frames is not known")
    stream.codec_context.thread_count = 1
    # Without this libav hides damage in H.264 behind invented pixels.
    stream.codec_context.options = {"err_detect": "explode"}
    return stream


def _declared_duration(container: av.container.InputContainer, stream: av.VideoStream) -> float | None:
    """Seconds the stream itself claims; those of the container count only if nothing else is in it."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if "DURATION" in stream.metadata:
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    if container.duration is not None and len(container.streams) == 1:
        return container.duration / av.time_base
    return None


def _check_complete(path: Path, container, stream: av.VideoStream, packets: list[av.Packet]) -> str:
    if not packets:
        raise VideoError(path, "truncated", "the container holds no frame")
    if any(packet.is_corrupt for packet in packets):
        raise VideoError(path, "truncated", "a packet is cut short")
    duration, rate = _declared_duration(container, stream), float(stream.average_rate or 0)
    expected = stream.frames or (round(duration * rate) if duration and rate else 0)
    # One frame and 2% are left to muxers that count the last frame's duration differently.
    if expected - len(packets) <= max(1.0, 0.02 * expected):
        return ""
    detail = f"{len(packets)} of {expected} declared frames are in the file"
    if not stream.frames and _varies(stream, packets, rate):
        return detail + ", at a variable frame rate"
    raise VideoError(path, "truncated", detail)


def _varies(stream: av.VideoStream, packets: list[av.Packet], rate: float) -> bool:
    """Whether the times of the packets disagree with a constant rate; a few gaps are losses, not a rhythm."""
    times = sorted(packet.pts for packet in packets if packet.pts is not None)
    steps = np.diff(times) * float(stream.time_base) * rate
    uneven = int((np.abs(steps - 1) > 0.5).sum())
    return uneven > max(3.0, 0.05 * len(steps))


def iterate_frames(path: str | Path) -> Iterator[av.VideoFrame]:
    """Decode a video from its first frame to its last with PyAV, strictly.

    Raises VideoError, undecodable among its reasons, at the first packet or frame that is damaged.
    """
    path = Path(path)
    with _open(path) as container:
        stream = _video_stream(path, container)
        try:
            for number, frame in enumerate(container.decode(stream)):
                if frame.is_corrupt:
                    raise VideoError(path, "undecodable", f"frame {number} is damaged")
                yield frame
        except av.FFmpegError as error:
            raise VideoError(path, "undecodable", error.strerror or str(error)) from error


def read_frames(path: str | Path, indices: Sequence[int]) -> UInt8[np.ndarray, "t h w 3"]:
    """Exactly the frames asked for, by their number in the order of showing, in the order asked for, as RGB.

    The container is checked first (`probe`), and decord's frame count against it. Raises VideoError for a
    file that cannot give them and IndexError for a number the file does not have.
    """
    return _read(Path(path), probe(path), [int(index) for index in indices])


def read_segments(path: str | Path, segments: int) -> UInt8[np.ndarray, "t h w 3"]:
    """The middle frame of each of `segments` equal parts of a video; raises as `read_frames` does."""
    info = probe(path)
    return _read(Path(path), info, segment_indices(info.frames, segments))


def _read(path: Path, info: VideoInfo, indices: list[int]) -> UInt8[np.ndarray, "t h w 3"]:
    if not indices:
        return np.empty((0, info.height, info.width, 3), np.uint8)
    if min(indices) < 0 or max(indices) >= info.frames:
        raise IndexError(
            f"{path}: frames {min(indices)} to {max(indices)} asked of a video whose frames are "
            f"0 to {info.frames - 1}"
        )
    frames = None
    if (info.container, info.codec) in DECORD_EXACT:
        frames = _read_decord(path, info, indices)
    return _read_pyav(path, indices) if frames is None else frames


def _read_decord(path: Path, info: VideoInfo, indices: list[int]) -> UInt8[np.ndarray, "t h w 3"] | None:
    """The frames, or None when decord fails or counts other frames than the container holds."""
    # Its default of 10240 attempts turns a file whose end is damaged into a hang.
    os.environ.setdefault("DECORD_EOF_RETRY_MAX", "128")
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    try:
        # With more than one thread decord fails on some valid VP9 files.
        reader = decord.VideoReader(str(path), num_threads=1)
        if len(reader) != info.frames:
            return None
        return reader.get_batch(indices).asnumpy()
    except (decord.DECORDError, RuntimeError):
        return None


def _read_pyav(path: Path, indices: list[int]) -> UInt8[np.ndarray, "t h w 3"]:
    wanted, last, found = set(indices), max(indices), {}
    reformatter = av.video.reformatter.VideoReformatter()
    for number, frame in enumerate(iterate_frames(path)):
        if number in wanted:
            found[number] = reformatter.reformat(frame, format="rgb24").to_ndarray()
        if number == last:
            return np.stack([found[index] for index in indices])
    raise VideoError(path, "undecodable", f"decoding ends before frame {last}")


def segment_indices(frame_count: int, segments: int) -> list[int]:
    """The middle frame of each of `segments` equal parts; a video shorter than that repeats frames.

    The uniform sampling of TSN (Wang et al., 2016), as VideoMAE and CAST use it in testing.
    """
    if frame_count < 1 or segments < 1:
        raise ValueError(f"segments need at least one frame and one part, got {frame_count} and {segments}")
    return [(2 * part + 1) * frame_count // (2 * segments) for part in range(segments)]


def resize(frames: UInt8[np.ndarray, "t h w 3"], size: int | tuple[int, int]) -> UInt8[np.ndarray, "t H W 3"]:
    """Frames at another size, (height, width) or one number for a square; shrinking averages areas."""
    height, width = (size, size) if isinstance(size, int) else size
    if frames.shape[1:3] == (height, width):
        return frames
    shrinks = height * width < frames.shape[1] * frames.shape[2]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = np.empty((len(frames), height, width, 3), np.uint8)
    for source, target in zip(frames, resized, strict=True):
        cv2.resize(source, (width, height), dst=target, interpolation=method)
    return resized
