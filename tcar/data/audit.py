"""The health of a dataset: every video decoded to its end before anything is trained on it."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tcar.data.ssv2 import Clip, DatasetError
from tcar.data.video import VideoError, iterate_frames, probe
from tcar.data.workers import Failure, isolated_map
from tcar.log import progress


@dataclass(frozen=True)
class ClipHealth:
    """The findings on one clip: pixels, frames a second, seconds, bytes; zeros where the file does not tell.

    `reason` is empty for a healthy clip, else one of `video.REASONS`, "crashed the decoder" or "timed out".
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


def check(clip: Clip) -> ClipHealth:
    """Open, demux and decode one video to its end, in this process."""
    size = clip.path.stat().st_size if clip.path.is_file() else 0
    try:
        info = probe(clip.path)
        decoded = sum(1 for _ in iterate_frames(clip.path))
    except VideoError as error:
        return ClipHealth(clip.id, False, error.reason, bytes=size, detail=error.detail)
    ok = decoded == info.frames
    detail = info.warning if ok else f"{info.frames} packets decode to {decoded} frames"
    return ClipHealth(
        clip.id,
        ok,
        "" if ok else "undecodable",
        info.frames,
        info.width,
        info.height,
        info.rate,
        info.duration,
        size,
        detail,
    )


def audit(clips: Sequence[Clip], workers: int = 0, time_limit: float = 60.0) -> list[ClipHealth]:
    """Check every clip in worker processes (0: all cores) and return the findings in the order of the clips.

    A file that crashes the decoder, or keeps it longer than `time_limit` seconds, is reported like any other.
    """
    found: dict[int, ClipHealth] = {}
    outcomes = isolated_map(check, clips, workers=workers, time_limit=time_limit)
    for number, outcome in progress(outcomes, total=len(clips), description="audit"):
        if isinstance(outcome, Failure):
            outcome = _unhealthy(clips[number], outcome)
        found[number] = outcome
    return [found[number] for number in range(len(clips))]


def _unhealthy(clip: Clip, failure: Failure) -> ClipHealth:
    reason = {"crashed": "crashed the decoder", "timed out": "timed out", "error": "undecodable"}[
        failure.kind
    ]
    size = clip.path.stat().st_size if clip.path.is_file() else 0
    return ClipHealth(clip.id, False, reason, bytes=size, detail=failure.detail.strip().splitlines()[-1])


def quarantine_list(health: Iterable[ClipHealth]) -> list[dict[str, str]]:
    """The clips to leave out, each with its reason and what was found."""
    return [{"id": clip.id, "reason": clip.reason, "detail": clip.detail} for clip in health if not clip.ok]


def save_quarantine(health: Iterable[ClipHealth], path: str | Path) -> None:
    """Write the quarantine list as JSON."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(json.dumps(quarantine_list(health), indent=1) + "\n", encoding="utf-8")
    os.replace(draft, path)


def load_quarantine(path: str | Path) -> dict[str, str]:
    """Id to reason of every quarantined clip in a list that `save_quarantine` wrote."""
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


def statistics(clips: Sequence[Clip], health: Sequence[ClipHealth]) -> dict:
    """Durations (s), frames, bytes and frame sizes of the healthy clips, and how even the classes are.

    Classes are counted over the healthy clips whose label is known, under their template text without brackets.
    """
    healthy = {found.id: found for found in health if found.ok}
    known = (clip for clip in clips if clip.id in healthy and clip.label is not None)
    # the answers of test come without the brackets that the other splits have
    counts = Counter(clip.template.replace("[", "").replace("]", "") for clip in known)
    sizes = Counter(f"{found.width}x{found.height}" for found in healthy.values())
    return {
        "clips": len(healthy),
        "durations": _summary([found.duration for found in healthy.values()]),
        "frames": _summary([found.frames for found in healthy.values()]),
        "bytes": _summary([found.bytes for found in healthy.values()]),
        "sizes": dict(sorted(sizes.items())),
        "classes": dict(sorted(counts.items())),
        "imbalance": max(counts.values()) / min(counts.values()) if counts else None,
    }


def _summary(values: list[float] | list[int]) -> dict[str, float] | None:
    if not values:
        return None
    low, median, high = np.quantile(values, (0.05, 0.5, 0.95))
    return {
        "minimum": float(min(values)),
        "percentile_5": float(low),
        "median": float(median),
        "mean": float(np.mean(values)),
        "percentile_95": float(high),
        "maximum": float(max(values)),
        "total": float(sum(values)),
    }
