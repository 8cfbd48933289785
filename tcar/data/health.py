"""The health of one video file, and the journal of many."""

import hashlib
import json
import resource
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import numpy as np

from tcar.data.container import VideoError, varies
from tcar.data.machine import reason_of
from tcar.data.orientation import Orientation
from tcar.data.ssv2 import Clip, DatasetError
from tcar.data.video import Video

MEMORY = 8 * 2**30  # bytes of address space for one worker: a damaged header can ask for any number
_THUMBNAIL = (32, 24)  # width and height at which frames are compared, pixels


@dataclass(frozen=True)
class ClipHealth:
    """The findings on one clip: pixels, frames a second, seconds, bytes; zeros where the file does not tell.

    `reason` is empty for a healthy clip, else one of `container.REASONS`, "crashed the decoder", "timed out", or
    "altered" (`monitor`). `warnings` are what need not be wrong: "variable frame rate", "single frame"; "rotated",
    where the container has the stored picture turned or mirrored, "slanted", where by an angle that is not followed;
    and "pixels not square", which are not stretched. Width and height are those shown.
    `difference` is the mean change of a grey thumbnail from one frame to the next, of 255. `digest` is of the
    file, `content` of what is seen, so that copies in another container are found, and `trusted` the digest of
    the file when it was first found sound (`monitor`).
    """

    id: str
    ok: bool
    reason: str
    frames: int = 0
    width: int = 0
    height: int = 0
    rate: float = 0.0
    duration: float = 0.0
    bytes: int = 0
    detail: str = ""
    warnings: tuple[str, ...] = ()
    codec: str = ""
    difference: float = 0.0
    digest: str = ""
    content: str = ""
    trusted: str = ""


def check(clip: Clip) -> ClipHealth:
    """Open, demux and decode one video to its end, in this process."""
    size, digest = (clip.path.stat().st_size, _digest(clip.path)) if clip.path.is_file() else (0, "")
    try:
        with Video(clip.path) as video:
            held = video.orientation
            info, seen = video.info, _Seen(held)
            shape = video.stream.sample_aspect_ratio or 1
            for frame in video.frames():
                seen.add(frame)
            uneven = video.times is not None and varies(video.times, video.time_base, info.rate)
    except VideoError as error:
        return ClipHealth(clip.id, False, reason_of(error), bytes=size, detail=error.detail, digest=digest)
    ok = seen.frames == info.frames
    found = {
        "variable frame rate": uneven, "rotated": held.turned, "slanted": held.slanted, "pixels not square": shape != 1,
        "single frame": info.frames == 1,
    }  # fmt: skip
    detail = info.warning if ok else f"{info.frames} packets decode to {seen.frames} frames"
    warnings = tuple(name for name, present in found.items() if present)
    return ClipHealth(
        clip.id, ok, "" if ok else "undecodable", info.frames, info.width, info.height, info.rate, info.duration, size,
        detail, warnings, info.codec, seen.difference, digest, seen.content,
    )  # fmt: skip


class _Seen:
    """What the frames of a video look like from afar."""

    def __init__(self, orientation: Orientation):
        self.frames, self._orientation, self._hash = 0, orientation, hashlib.blake2b(digest_size=16)
        self._last, self._total = None, 0.0
        # One for all frames: each would set up a scaler of its own, which costs more than decoding.
        self._scaler = av.video.reformatter.VideoReformatter()

    def add(self, frame: av.VideoFrame) -> None:
        width, height = _THUMBNAIL
        grey = self._scaler.reformat(frame, width, height, "gray", interpolation="AREA").to_ndarray().astype(np.int16)
        if self._last is not None:
            self._total += float(np.abs(grey - self._last).mean())
        self._last = grey
        self._hash.update(self._orientation(grey.astype(np.uint8)).tobytes())
        self.frames += 1

    @property
    def difference(self) -> float:
        return round(self._total / max(1, self.frames - 1), 3)

    @property
    def content(self) -> str:
        return self._hash.hexdigest() if self.frames else ""


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except PermissionError:  # then nothing else of the file can be read either, and the clip is reported
        return ""


def check_within_limits(clip: Clip) -> ClipHealth:
    """`check`, in a worker process that may not take more than `MEMORY` from here on."""
    limit_memory()
    return check(clip)


def limit_memory() -> None:
    """Have this process take no more than `MEMORY`."""
    with suppress(ValueError, OSError):  # where the system sets a lower limit, or knows none
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def stamp(path: Path) -> list[int]:
    """What changes when a file is written: its size in bytes and the time in nanoseconds."""
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def note(journal: Path, finding: ClipHealth, written: Sequence[int] = ()) -> None:
    """Add one finding to a journal, as a line of JSON; written: the `stamp` of its file."""
    line = json.dumps({**asdict(finding), "stamp": list(written)}, ensure_ascii=False)
    with journal.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def read_journal(path: Path) -> dict[str, tuple[ClipHealth, list[int]]]:
    """Id to finding and stamp, the last of several; nothing where there is no journal.

    A last line that was cut off when an audit was killed is left out, and removed by `mend`. Raises DatasetError
    for any other line that is not a finding.
    """
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else [""]
    found = {}
    for number, line in enumerate(lines[:-1], start=1):
        try:
            entry = json.loads(line)
            written = entry.pop("stamp")
            finding = ClipHealth(**{**entry, "warnings": tuple(entry["warnings"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DatasetError(
                f"{path}, line {number}: not a finding of this audit ({error!r}); delete the file to begin anew"
            ) from error
        found[finding.id] = finding, written
    return found


def mend(journal: Path) -> None:
    """Remove a last line that was cut off, so that the next finding does not continue it."""
    if journal.is_file() and (content := journal.read_bytes()) and not content.endswith(b"\n"):
        with journal.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
