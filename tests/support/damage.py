"""Damaged videos: every way a file is broken here, and what the reader and the audit make of it."""

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from videos import write_video

from tcar.data.health import ClipHealth, check
from tcar.data.monitor import compare_bytes
from tcar.data.ssv2 import Clip
from tcar.data.video import VideoError, probe, read_frames
from tcar.data.workers import Failure

# The kinds of file that are damaged: suffix and what `write_video` needs.
FORMATS = {
    "VP9 in WebM": (".webm", {}),
    "VP9 in WebM, hidden frames": (
        ".webm",
        {"crf": "40", "b": "0", "cpu-used": "4", "g": "8", "auto-alt-ref": "1", "lag-in-frames": "16"},
    ),
    "VP9 in MP4": (".mp4", {"codec": "libvpx-vp9"}),
    "H.264 in MP4": (".mp4", {"codec": "libx264", "rate": 25, "bf": "2"}),
    "H.264 in Matroska": (".mkv", {"codec": "libx264", "rate": 25, "bf": "2"}),
    "MPEG-4 in AVI": (".avi", {"codec": "mpeg4", "rate": 25, "bf": "2", "qscale": "4"}),
    "MPEG-4 in MP4": (".mp4", {"codec": "mpeg4", "rate": 25, "qscale": "4"}),
}


def write_format(folder: Path, name: str, frames: int = 24) -> Path:
    """A sound file of one of `FORMATS`."""
    suffix, options = FORMATS[name]
    return write_video(folder / f"{name.replace(' ', '_')}{suffix}", frames, **options)


# How files are damaged: each takes the bytes of a file and a generator, and returns others.
def _flip(count: int, end: int | None = None):
    def damage(content: bytes, generator: np.random.Generator) -> bytes:
        damaged = bytearray(content)
        for place in generator.integers(0, min(len(content), end or len(content)), count):
            damaged[place] ^= int(generator.integers(1, 256))
        return bytes(damaged)

    return damage


def _block(content: bytes, generator: np.random.Generator, longest: int = 400) -> tuple[int, int]:
    start = int(generator.integers(0, len(content) - 1))
    return start, min(len(content), start + int(generator.integers(1, longest)))


def _zero(content: bytes, generator: np.random.Generator) -> bytes:
    start, end = _block(content, generator, len(content) // 4)
    return content[:start] + bytes(end - start) + content[end:]


def _zero_middle(content: bytes, generator: np.random.Generator) -> bytes:
    third = len(content) // 3
    return content[:third] + bytes(third) + content[2 * third :]


def _delete(content: bytes, generator: np.random.Generator) -> bytes:
    start, end = _block(content, generator)
    return content[:start] + content[end:]


def _insert(content: bytes, generator: np.random.Generator) -> bytes:
    start, end = _block(content, generator)
    return content[:start] + generator.bytes(end - start) + content[start:]


def _repeat(content: bytes, generator: np.random.Generator) -> bytes:
    start, end = _block(content, generator)
    return content[:end] + content[start:]


def _swap(content: bytes, generator: np.random.Generator) -> bytes:
    a, b, c = np.sort(generator.integers(0, len(content), 3)).tolist()
    return content[:a] + content[b:c] + content[a:b] + content[c:]


def _cut(content: bytes, generator: np.random.Generator) -> bytes:
    return content[: int(generator.integers(1, 10)) * len(content) // 10]


DAMAGE = {
    "one byte flipped": _flip(1),
    "four bytes flipped": _flip(4),
    "sixteen bytes flipped": _flip(16),
    "header flipped": _flip(2, end=512),
    "a block zeroed": _zero,
    "the middle zeroed": _zero_middle,
    "a block deleted": _delete,
    "noise inserted": _insert,
    "a block repeated": _repeat,
    "blocks swapped": _swap,
    "cut at a tenth": _cut,
}

SUFFIXES = (".webm", ".mp4", ".mkv", ".avi", ".bin")


@dataclass(frozen=True)
class Case:
    """One damaged file to be: what it is made of and how."""

    intact: Path
    format: str
    damage: str
    seed: int


def reference(path: Path) -> np.ndarray:
    """Every frame of an intact file, decoded by libav's own decoder from first to last."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def attempt(case: Case) -> dict[str, str]:
    """Write the damaged file and read all of it: what the reader gives, and what the audit says."""
    av.logging.set_libav_level(av.logging.PANIC)
    generator = np.random.default_rng(case.seed)
    content = case.intact.read_bytes()
    damaged = DAMAGE[case.damage](content, generator)
    # Every tenth file also carries the name of another format.
    suffix = str(generator.choice(SUFFIXES)) if case.seed % 10 == 0 else case.intact.suffix
    path = case.intact.parent / f"damaged-{case.seed}{suffix}"
    path.write_bytes(damaged)
    try:
        frames = np.load(case.intact.parent / f"{case.intact.stem}.npy", mmap_mode="r")
        before = check(Clip("clip", case.intact, None, "", "", ()))
        now = check(Clip("clip", path, None, "", "", ()))
        trusted = compare_bytes(now, compare_bytes(before, None))
        return {
            "reader": read_all(path, frames),
            "audit": _verdict(now),
            "audit with digests": _verdict(trusted),
        }
    finally:
        path.unlink()


def read_all(path: Path, frames: np.ndarray) -> str:
    """Compare every frame the reader gives with the intact one of its number."""
    try:
        count = probe(path).frames
        found = read_frames(path, range(count))
    except VideoError as error:
        return f"error: {error.reason}"
    same = min(count, len(frames))
    if found.shape[1:] != frames.shape[1:] or not np.array_equal(found[:same], frames[:same]) or count > len(frames):
        return "wrong"
    return "exact" if count == len(frames) else "exact, but fewer"


def judge(outcome: dict[str, str] | Failure) -> str:
    """What became of a damaged file, in a few words; UNACCEPTABLE where nobody was told."""
    if isinstance(outcome, Failure):
        return f"UNACCEPTABLE: the reader {outcome.kind}"
    if outcome["reader"] != "wrong":
        missed = outcome["reader"].startswith("error") and outcome["audit"] == "sound"
        return "UNACCEPTABLE: unreadable but sound" if missed else outcome["reader"]
    if outcome["audit"] != "sound":
        return "wrong, but quarantined"
    noticed = outcome["audit with digests"] == "altered"
    return "wrong, seen by its digest only" if noticed else "UNACCEPTABLE: silently wrong"


def _verdict(health: ClipHealth) -> str:
    return "sound" if health.ok else health.reason
