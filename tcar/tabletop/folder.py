"""What of a folder is Tabletop's: its marker says how many clips, and nothing but their files is ever deleted."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from tcar.data.ssv2 import DatasetError
from tcar.ground import files, locks, log

MARKER, DATASHEET, INDEX = "fingerprint.json", "DATASHEET.md", "index.json"
ANNOTATIONS = ("labels.json", "train.json", "validation.json", "test.json", "test-answers.csv", DATASHEET)
VIDEOS, TRUTH = "videos", "ground_truth"
_OPENING = '{"fingerprint": "'


def refuse_foreign(root: Path) -> None:
    """Raise DatasetError where a folder has no marker and is not empty, naming some of what lies there."""
    if root.exists() and not root.is_dir():
        raise DatasetError(f"{root}: is a file, and Tabletop needs a folder")
    if not root.exists() or _marker(root) is not None:
        return
    there = files.foreign(root, [MARKER, locks.FILE]) + [MARKER] * (root / MARKER).exists()
    if there:
        raise DatasetError(
            f"{root}: holds {_some(there)} and was not made by Tabletop, so nothing there is deleted or overwritten; "
            "give a folder that is empty or not there yet"
        )


def holds(root: Path, fingerprint: str) -> bool:
    """Whether the marker of a folder names this recipe."""
    return (_marker(root) or {}).get("fingerprint") == fingerprint


def take(root: Path, fingerprint: str, clips: int) -> None:
    """Make a folder ready for the clips 1 to `clips` of a recipe: those of another recipe are deleted.

    Raises DatasetError, before anything is deleted, where `refuse_foreign` does, or where something that is not
    Tabletop's has the name of a file to be written.
    """
    refuse_foreign(root)
    root.mkdir(parents=True, exist_ok=True)
    files.drop_drafts(root)
    before = _marker(root)
    if before == {}:
        log.get(__name__).warning(f"{root / MARKER} was cut off, so all clips are rendered again")
    if before is not None and before.get("fingerprint") != fingerprint:
        _clear(root, before.get("clips"), clips)
    if before is None or before.get("fingerprint") != fingerprint:
        _mark(root, fingerprint, clips)
    for folder in (VIDEOS, TRUTH):
        (root / folder).mkdir(exist_ok=True)
        files.drop_drafts(root / folder)


def missing(root: Path, ids: Iterable[str]) -> bool:
    """Whether a file of one of these clips is not there."""
    names = _names(ids)
    return any(not (root / folder / name).is_file() for folder in (VIDEOS, TRUTH) for name in names[folder] - {INDEX})


def annotated(root: Path) -> bool:
    """Whether the files that are written when all clips are there, are there."""
    return all((root / name).is_file() for name in (*ANNOTATIONS, f"{TRUTH}/{INDEX}"))


def _marker(root: Path) -> dict | None:
    """What the marker says: None without one of ours, and nothing where it was cut off."""
    try:
        text = (root / MARKER).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return {} if _OPENING.startswith(text.strip("\0")[: len(_OPENING)]) else None
    return found if isinstance(found, dict) and "fingerprint" in found else None


def _mark(root: Path, fingerprint: str, clips: int | None) -> None:
    files.write_text(root / MARKER, json.dumps({"fingerprint": fingerprint, "clips": clips}))


def _names(ids: Iterable[str]) -> dict[str, set[str]]:
    """The names of all files of these clips by folder, in the order in which they are deleted; none without a clip."""
    ids = list(ids)
    truth = {f"{clip}.{suffix}" for clip in ids for suffix in ("npz", "json")} | ({INDEX} if ids else set())
    return {"": set(ANNOTATIONS if ids else ()), VIDEOS: {f"{clip}.webm" for clip in ids}, TRUTH: truth}


def _clear(root: Path, before: int | None, clips: int) -> None:
    """Delete the clips of a marker; where it does not say how many, those whose ground truth is there."""
    truths = {path.stem for suffix in ("npz", "json") for path in (root / TRUTH).glob(f"*.{suffix}")}
    truths = {stem for stem in truths if stem.isdecimal()}
    ids = map(str, range(1, before + 1)) if before else truths
    ours, wanted, doomed = _names(ids), _names(map(str, range(1, clips + 1))), []
    for folder, names in ours.items():
        place = root / folder
        there = {entry.name: entry for entry in os.scandir(place)} if place.is_dir() else {}
        mine = {name for name in names & there.keys() if not there[name].is_dir(follow_symlinks=False)}
        if clash := sorted((wanted[folder] & there.keys()) - mine):
            raise DatasetError(f"{place}: {_some(clash)}, not made by Tabletop, would be overwritten; move it away")
        if mine and folder and place.is_symlink():
            raise DatasetError(f"{place}: is a link, and nothing is deleted behind one; remove it yourself")
        doomed += [place / name for name in mine]
    _mark(root, "", before)  # a call that is killed from here on leaves the rest to the next
    for path in doomed:
        path.unlink(missing_ok=True)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
