"""The health of a dataset: every video decoded to its end before anything is trained on it.

`tcar audit DATASET` (a folder, or a parameter file) does it for a whole dataset, keeps what it
found, and says what has changed since the last time (`tcar.data.monitor`).
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tcar.data.health import ClipHealth, check_within_limits, mend, note, read_journal, stamp
from tcar.data.ssv2 import Clip, DatasetError
from tcar.data.workers import Failure, isolated_map
from tcar.ground.log import progress


def audit(
    clips: Sequence[Clip], workers: int = 0, time_limit: float = 60.0, journal: Path | None = None
) -> list[ClipHealth]:
    """Check every clip in worker processes (0: all cores) and return the findings in the order of the clips.

    A file that crashes the decoder, or keeps it longer than `time_limit` seconds, is reported like any other.
    journal: a file that every finding is added to as it is made; an audit that was interrupted goes on from it,
    except for files whose size or time of change is another.
    """
    found: dict[int, ClipHealth] = {}
    if journal is not None:
        mend(journal)
        noted = read_journal(journal)
        stamps = [stamp(clip.path) for clip in clips]
        for number, clip in enumerate(clips):
            if clip.id in noted and noted[clip.id][1] == stamps[number]:
                found[number] = noted[clip.id][0]
    waiting = [number for number in range(len(clips)) if number not in found]
    outcomes = isolated_map(
        check_within_limits, [clips[number] for number in waiting], workers=workers, time_limit=time_limit
    )
    for place, outcome in progress(outcomes, total=len(waiting), description="audit", unit="clips"):
        number = waiting[place]
        found[number] = _unhealthy(clips[number], outcome) if isinstance(outcome, Failure) else outcome
        if journal is not None:
            note(journal, found[number], stamps[number])
    return [found[number] for number in range(len(clips))]


def _unhealthy(clip: Clip, failure: Failure) -> ClipHealth:
    reason = {"crashed": "crashed the decoder", "timed out": "timed out", "error": "undecodable"}[failure.kind]
    size = clip.path.stat().st_size if clip.path.is_file() else 0
    return ClipHealth(clip.id, False, reason, bytes=size, detail=failure.detail.strip().splitlines()[-1])


def quarantine_list(health: Iterable[ClipHealth]) -> list[dict[str, str]]:
    """The clips to leave out, each with its reason and what was found."""
    return [{"id": clip.id, "reason": clip.reason, "detail": clip.detail} for clip in health if not clip.ok]


def load_quarantine(path: str | Path) -> dict[str, str]:
    """Id to reason of every quarantined clip in a list that `monitor` wrote; raises DatasetError for anything else."""
    try:
        return {entry["id"]: entry["reason"] for entry in json.loads(Path(path).read_text(encoding="utf-8"))}
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: no quarantine list; run the audit (notebook 00) first") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DatasetError(f"{path}: not a quarantine list ({error!r}); run the audit again") from error


def require_healthy(health: Sequence[ClipHealth], threshold: float) -> None:
    """Raise DatasetError when a larger share of the clips than `threshold` is broken; then the copy is."""
    broken = [clip for clip in health if not clip.ok]
    if len(broken) > threshold * len(health):
        counts = Counter(clip.reason for clip in broken).most_common()
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts)
        raise DatasetError(
            f"{len(broken)} of {len(health)} clips are broken ({reasons}), more than "
            f"quarantine_threshold={threshold:g} allows; first: {broken[0].id}. Check data_root and whether "
            "the videos were unpacked completely, or raise the threshold"
        )
