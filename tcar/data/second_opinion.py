"""Where decord, with which others read videos, gives other frames than this library: a warning, never a quarantine."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av  # noqa: F401  before decord anywhere in the process: the other way round the VP9 encoder fails
import numpy as np
from jaxtyping import UInt8

from tcar.data.health import ClipHealth, limit_memory
from tcar.data.sampling import segment_indices
from tcar.data.ssv2 import Clip
from tcar.data.video import probe, read_segments, resize
from tcar.data.workers import Failure, isolated_map
from tcar.ground.log import progress

SEGMENTS = 8  # at whose middles pictures are compared
CELLS, TOLERANCE = (24, 32), 2.0  # rows and columns of a picture whose means are compared, and by how much, of 255
TIME_LIMIT = 60.0  # seconds for one clip


def second_opinion(
    clips: Sequence[Clip],
    health: Sequence[ClipHealth],
    count: int,
    seed: int,
    workers: int = 0,
    upright: bool = True,
) -> dict[str, int | list[dict[str, str]]]:
    """Read `count` healthy clips, drawn by `seed`, with decord as well, and all broken ones that hold anything.

    Returns how many healthy `clips` and `broken` ones were read, and what `differs`: id, what (`disagreements`,
    "crash" or "time-out") and detail. `health` belongs to the clips; `upright` says how they are read here. A clip
    costs a second and a third reading, 0.1 s of one core at the size of Something-Something-V2: 6 hours for all its
    220,847, or 25 minutes on 16 cores.
    """
    sound = [clip for clip, found in zip(clips, health, strict=True) if found.ok]
    broken = [clip for clip, found in zip(clips, health, strict=True) if not found.ok and found.bytes]
    drawn = np.random.default_rng(seed).choice(len(sound), min(count, len(sound)), replace=False)
    asked = [(sound[number], True) for number in sorted(drawn)] + ([(clip, False) for clip in broken] if count else [])
    rows: dict[int, dict[str, str]] = {}
    outcomes = isolated_map(Comparison(upright), asked, workers=workers, time_limit=TIME_LIMIT)
    for number, outcome in progress(outcomes, total=len(asked), description="second opinion", unit="clips"):
        if isinstance(outcome, Failure):
            what = {"crashed": "crash", "timed out": "time-out"}.get(outcome.kind, "no comparison")
            outcome = {what: outcome.detail.strip().splitlines()[-1]}
        if outcome:
            what, detail = ", ".join(outcome), "; ".join(outcome.values())
            rows[number] = {"id": asked[number][0].id, "what": what, "detail": detail}
    return {
        "clips": len(drawn), "broken": len(asked) - len(drawn), "differs": [rows[number] for number in sorted(rows)],
    }  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """`disagreements` of a clip and whether it is sound, in a worker process that decord may crash."""

    upright: bool

    def __call__(self, item: tuple[Clip, bool]) -> dict[str, str]:
        limit_memory()
        clip, sound = item
        return disagreements(clip.path, sound, self.upright)


def disagreements(path: Path, sound: bool = True, upright: bool = True) -> dict[str, str]:
    """Return what decord makes of a video that is not what is read here, and how; empty where there is nothing.

    "not opened"; "frames", another number of them; "orientation", pictures that are turned as the file asks, or are
    not, and should not be, or should; "pictures", at the middles of segments. Of a file that is not `sound`, and has no
    pictures here: "read all the same".
    """
    import decord

    decord.logging.set_level(decord.logging.QUIET)  # what it cannot read is said by what is returned
    try:
        reader = decord.VideoReader(str(path), num_threads=1)  # with more it fails on some valid files of VP9
        theirs = reader.get_batch(segment_indices(len(reader), SEGMENTS)).asnumpy()
    except (decord.DECORDError, RuntimeError, IndexError, ValueError) as error:
        # The time of day and the folder are left out: the same clip gives the same finding.
        said = re.sub(r"^\[[\d:]+\] \S+: ", "", str(error).strip().splitlines()[0]).replace(str(path), path.name)
        return {"not opened": said} if sound else {}
    if not sound:
        return {"read all the same": f"{len(reader)} frames"}
    found, ours = {}, read_segments(path, SEGMENTS, upright=upright)
    if (count := probe(path).frames) != len(reader):
        found["frames"] = f"{len(reader)} for {count}"
    if far := _far(ours, theirs):
        if not _far(read_segments(path, SEGMENTS, upright=not upright), theirs):
            return found | {"orientation": "as stored" if upright else "as shown"}
        found["pictures"] = far
    return found


def _far(ours: UInt8[np.ndarray, "t h w 3"], theirs: UInt8[np.ndarray, "t h2 w2 3"]) -> str:
    """How pictures differ beyond the rounding of colours, or nothing."""
    if ours.shape != theirs.shape:
        return "{2} x {1} for {5} x {4}".format(*theirs.shape[:3], *ours.shape[:3])
    apart = np.abs(resize(ours, CELLS).astype(int) - resize(theirs, CELLS)).max(axis=(1, 2, 3))
    other = int((apart > TOLERANCE).sum())
    return f"{other} of {len(apart)} at the middles of segments, by up to {apart.max()} of 255" if other else ""
