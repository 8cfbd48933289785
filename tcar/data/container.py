"""The container of a video: opening a file that may be anything, and what it declares about its frames."""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np

from tcar.ground.errors import TcarError

REASONS = ("missing", "empty", "not a video", "no video stream", "truncated", "undecodable", "out of order")

# libav's own decoder of VP9 invents pixels where bytes are damaged, and says nothing; libvpx notices when the
# damage leaves the arithmetic decoder out of step with the end of its data, which it nearly always does.
STRICT_DECODERS = {"vp9": "libvpx-vp9"}
# Without these libav hides damage in the other codecs behind invented pixels, too.
STRICT_FLAGS = "explode+crccheck+bitstream+buffer+careful"

_CONTAINER_STARTS = ((0, b"\x1aE\xdf\xa3"), (4, b"ftyp"), (8, b"AVI "))
_STILL_FORMATS = ("_pipe", "image2", "tty")


class VideoError(TcarError):
    """A video file that cannot give the frames asked of it; `reason` is one of `REASONS`."""

    def __init__(self, path: str | Path, reason: str, detail: str = ""):
        super().__init__(str(path), reason, detail)
        self.path, self.reason, self.detail = Path(path), reason, detail

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.path}: {self.reason}{detail}; fetch the file again or quarantine its id"


@contextmanager
def open_container(path: Path) -> Iterator[av.container.InputContainer]:
    """Open a file that may be anything; raises VideoError: missing, empty, truncated or not a video.

    libav gets the bytes and not the name, which it would take for a URL, or for a pattern of names.
    """
    if not path.is_file():
        raise VideoError(path, "missing")
    if path.stat().st_size == 0:
        raise VideoError(path, "empty", "0 bytes")
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        reason = "its permissions do not let it be read" if isinstance(error, PermissionError) else error.strerror
        raise VideoError(path, "missing", reason) from error
    with file, _demuxer(path, file) as container:
        if container.format.name.endswith(_STILL_FORMATS):
            raise VideoError(path, "not a video", f"its content is {container.format.name}")
        yield container


def _demuxer(path: Path, file: io.FileIO) -> av.container.InputContainer:
    nameless = SimpleNamespace(read=file.read, seek=file.seek, tell=file.tell)
    try:
        # Tags are free text, and a damaged one is no reason to fail. A list of other files may not open them.
        return av.open(nameless, metadata_errors="replace", options={"protocol_whitelist": "none"})
    except (av.FFmpegError, OSError, MemoryError) as error:
        head = os.pread(file.fileno(), 16, 0)
        if any(head[at : at + len(mark)] == mark for at, mark in _CONTAINER_STARTS):
            raise VideoError(path, "truncated", "the container begins but cannot be read on") from error
        raise VideoError(path, "not a video", getattr(error, "strerror", "") or str(error)) from error


def video_stream(path: Path, container: av.container.InputContainer) -> av.VideoStream:
    """The stream to show; raises VideoError: no video stream, or undecodable."""
    stream = container.streams.best("video")
    if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
        kinds = ", ".join(sorted({other.type for other in container.streams})) or "nothing"
        raise VideoError(path, "no video stream", f"the file holds {kinds}")
    if stream.codec_context is None:
        raise VideoError(path, "undecodable", "no decoder knows its codec")
    if not stream.codec_context.width or not stream.codec_context.height:
        raise VideoError(path, "undecodable", "the size of the frames is not known")
    return stream


def strict_decoder(stream: av.VideoStream, cut: bool = False) -> av.VideoCodecContext:
    """A decoder that raises av.FFmpegError at damage instead of painting over it, in one thread.

    cut: the stream was cut out of another one, and may name pictures that are not there; then damage only marks frames.
    Raises RuntimeError where this build of PyAV lacks it.
    """
    strict, pixels = STRICT_DECODERS.get(stream.codec_context.name), stream.codec_context.format
    if pixels is not None and pixels.components[0].bits > 8:
        strict = None  # PyAV's libvpx is built without deeper pixels
    try:
        decoder = av.CodecContext.create(strict, "r") if strict else stream.codec_context
    except av.codec.codec.UnknownCodecError as error:
        raise RuntimeError(f"this build of PyAV has no {strict}; install the one pinned in pyproject.toml") from error
    # Slices and frames decoded side by side would report their damage late, or on another frame.
    decoder.thread_count = 1
    decoder.options = {"err_detect": STRICT_FLAGS.removeprefix("explode+") if cut else STRICT_FLAGS}
    return decoder


def declared_duration(container: av.container.InputContainer, stream: av.VideoStream) -> float | None:
    """Seconds the stream itself claims; those of the container count only if nothing else is in it."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if (seconds := _seconds(stream.metadata.get("DURATION", ""))) is not None:
        return seconds
    if container.duration is not None and len(container.streams) == 1:
        return container.duration / av.time_base
    return None


def _seconds(clock: str) -> float | None:
    """The seconds of a tag such as 00:00:04.083000000, or None where it is not one (it is free text)."""
    try:
        hours, minutes, seconds = clock.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None


def varies(times: Sequence[int], time_base: Fraction, rate: float) -> bool:
    """Whether the times of frames, in units of `time_base` seconds, disagree with a constant rate (frames a second).

    A few gaps are losses, not a rhythm.
    """
    steps = np.diff(np.sort(np.asarray(times, np.int64))) * float(time_base) * rate
    uneven = int((np.abs(steps - 1) > 0.5).sum())
    return uneven > max(3.0, 0.05 * len(steps))


def pauses(times: Sequence[int], time_base: Fraction) -> str:
    """Say which frame stands much longer than usual, or that the rate `varies`; empty for an even rhythm."""
    steps = np.diff(np.asarray(times, np.int64))
    usual = np.sort(steps)[len(steps) // 2] * time_base if len(steps) else 0
    if not usual:
        return ""
    if varies(times, time_base, float(1 / usual)):
        return "the frames are at a variable frame rate, so that missing ones leave no trace"
    if steps.max() * time_base <= 1.5 * float(usual):
        return ""
    return f"frame {steps.argmax()} stands for {float(steps.max() * time_base):.3g} s: frames may be missing after it"
