"""The audit of a whole dataset, kept from one time to the next: a report, a quarantine list, and what has changed.

Four files are kept, in `audit/` of the dataset or run: `findings.jsonl` (every clip), `quarantine.json`,
`health.json` (the report), and `history.jsonl` (one line an audit). An interrupted audit leaves `unfinished.jsonl`,
from which the next one goes on. An audit of some splits keeps in all of them what was known of the others.
"""

import datetime
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tcar.data import census
from tcar.data.audit import audit, quarantine_list
from tcar.data.dataset_files import SUFFIXES
from tcar.data.health import ClipHealth, note, read_journal
from tcar.data.ssv2 import SPLITS, Clip, DatasetError, load_split
from tcar.ground import files, locks, log

LOG = log.get(__name__)
THRESHOLD = 0.02  # share of broken clips that is borne with, where no parameter file says another
CHANGES = ("new", "repaired", "newly broken", "altered", "vanished")


def monitor(
    splits: Mapping[str, Sequence[Clip]],
    folder: str | Path,
    *,
    others: Mapping[str, Sequence[Clip]] | None = None,
    workers: int = 0,
    time_limit: float = 60.0,
    accept: bool = False,
) -> dict[str, Any]:
    """Audit every clip, compare with the audit before, and write the four files of `folder`; return the report.

    A file that was sound and whose bytes are others now is quarantined as "altered", even where it still decodes:
    damage to a compressed frame is often a valid stream. `accept` takes the bytes of today for the right ones.
    others: splits that are not audited this time. What is known of their clips stays, in all four files; so it does of
    every clip that is in none of the lists while one of `SPLITS` is missing: it may be of that one.
    time_limit: seconds for one file. Raises DatasetError where another audit of this folder is running, or a
    file in it is not of this format.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Two audits at once would write into each other's journal.
    busy = f"{folder}: another audit is at work there; wait or choose another --into"
    with locks.alone(folder / ".lock", DatasetError, busy):
        files.drop_drafts(folder)
        clips = list({clip.id: clip for listed in splits.values() for clip in listed}.values())
        before = {name: found for name, (found, _) in read_journal(folder / "findings.jsonl").items()}
        journal = folder / "unfinished.jsonl"
        health = audit(clips, workers, time_limit, journal)
        health = [compare_bytes(found, before.get(found.id), accept) for found in health]
        listed = {**splits, **(others or {})}
        kept = _known_of_others(listed, health, before)
        health += kept
        report = describe(listed, health, compare(before, health)) | {"audited": sorted(splits), "kept": len(kept)}
        files.write_text(folder / "health.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
        files.write_text(folder / "quarantine.json", json.dumps(quarantine_list(health), indent=1) + "\n")
        with (folder / "history.jsonl").open("a", encoding="utf-8") as file:
            line = {key: report[key] for key in ("when", "audited", "checked", "broken", "reasons")}
            counts = {kind: len(ids) for kind, ids in report["changes"].items()}
            file.write(json.dumps({**line, "changes": counts}) + "\n")
        # Last, and in one step: until then a killed audit can be repeated from its journal.
        with files.drafted(folder / "findings.jsonl") as draft:
            draft.touch()
            for found in health:
                note(draft, found)
        _drop_from_journal(journal, clips)
    return report


def _known_of_others(
    listed: Mapping[str, Sequence[Clip]], health: Sequence[ClipHealth], before: Mapping[str, ClipHealth]
) -> list[ClipHealth]:
    """What the audit before found of clips that this one left out, unless every split is known and none lists them."""
    audited, ids = {found.id for found in health}, {clip.id for clips in listed.values() for clip in clips}
    whole = listed.keys() >= set(SPLITS)
    return [found for name, found in before.items() if name not in audited and (name in ids or not whole)]


def _drop_from_journal(journal: Path, clips: Sequence[Clip]) -> None:
    """Take out what has come to its end; an interrupted audit of other splits can still go on from the rest."""
    left, done = read_journal(journal), {clip.id for clip in clips}
    journal.unlink(missing_ok=True)
    for name in left.keys() - done:
        note(journal, *left[name])


def compare_bytes(found: ClipHealth, before: ClipHealth | None, accept: bool = False) -> ClipHealth:
    """The finding, broken as "altered" where a sound file has other bytes than when it was first found sound."""
    trusted = before.trusted if before is not None else ""
    if not found.ok:
        return replace(found, trusted=trusted)
    if not trusted or accept or trusted == found.digest:
        return replace(found, trusted=found.digest)
    detail = "it decodes, but its bytes are not those found sound before; if that is intended, audit with --accept"
    return replace(found, ok=False, reason="altered", detail=detail, trusted=trusted)


def compare(before: Mapping[str, ClipHealth], health: Sequence[ClipHealth]) -> dict[str, list[str]]:
    """Ids by what has become of them since the audit before, of `CHANGES`; after a first audit all are "new".

    A clip whose file is gone, or that is no longer listed, has "vanished".
    """
    changes: dict[str, list[str]] = {kind: [] for kind in CHANGES}
    for found in health:
        known = before.get(found.id)
        if known is None:
            changes["new"].append(found.id)
        elif found.ok and not known.ok:
            changes["repaired"].append(found.id)
        elif known.ok and not found.ok:
            kind = {"missing": "vanished", "altered": "altered"}.get(found.reason, "newly broken")
            changes[kind].append(found.id)
    changes["vanished"] += sorted(before.keys() - {found.id for found in health})
    return changes


def describe(
    splits: Mapping[str, Sequence[Clip]], health: Sequence[ClipHealth], changes: Mapping[str, list[str]]
) -> dict[str, Any]:
    """The report: counts, reasons, warnings, repetitions, files that no list names, changes and statistics."""
    reasons = Counter(found.reason for found in health if not found.ok)
    warnings: dict[str, list[str]] = {}
    for found in health:
        for warning in found.warnings:
            warnings.setdefault(warning, []).append(found.id)
    warnings |= {f"unusual {name}": ids for name, ids in census.unusual(health).items()}
    split_of: dict[str, list[str]] = {}
    for split, clips in splits.items():
        for clip in clips:
            split_of.setdefault(clip.id, []).append(split)
    same = census.duplicates(health)
    by_id = {found.id: found for found in health}
    return {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "clips": {split: len(clips) for split, clips in splits.items()},
        "checked": len(health),
        "broken": sum(reasons.values()),
        "reasons": dict(sorted(reasons.items())),
        "warnings": warnings,
        "duplicates": same,
        "across splits": [ids for ids in same if len({split_of[name][0] for name in ids if name in split_of}) > 1],
        "listed twice": sorted(name for name, of in split_of.items() if len(of) > 1),
        "unlisted": _unlisted(splits),
        "changes": dict(changes),
        "statistics": {
            split: {
                **census.statistics(clips, [by_id[clip.id] for clip in clips if clip.id in by_id]),
                "differences": census.differences(health, {clip.id: split for clip in clips}).get(split),
                "template words": census.template_words(clips),
                "object words": census.object_words(clips),
            }
            for split, clips in splits.items()
        },
    }


def _unlisted(splits: Mapping[str, Sequence[Clip]]) -> list[str]:
    """Names of files beside the videos that belong to no clip."""
    paths = {clip.path for clips in splits.values() for clip in clips}
    folders = {path.parent for path in paths if path.parent.is_dir()}
    there = {entry for folder in folders for entry in folder.iterdir() if entry.is_file()}
    names = sorted(entry.name for entry in there - paths if entry.suffix.lower() in SUFFIXES)
    return [name.encode(errors="backslashreplace").decode() for name in names]  # a file's name need not be text


def summary(report: Mapping[str, Any]) -> str:
    """The report in a few lines for people."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in report["reasons"].items())
    lines = [f"{report['checked']} clips, {report['broken']} quarantined" + (f" ({reasons})" if reasons else "")]
    if report["kept"]:
        lines.append(f"audited: {', '.join(report['audited'])}; of {report['kept']} other clips what was known is kept")
    for kind, ids in [*report["changes"].items(), *report["warnings"].items()]:
        if ids:
            lines.append(f"{kind}: {len(ids)} ({', '.join(ids[:5])}{', ...' if len(ids) > 5 else ''})")
    for kind in ("duplicates", "across splits", "listed twice", "unlisted"):
        if report[kind]:
            lines.append(f"{kind}: {len(report[kind])}")
    return "\n".join(lines)


def readable(root: Path, names: Collection[str]) -> dict[str, list[Clip]]:
    """The splits that nobody has asked for, where there are lists of them."""
    found = {}
    for split in sorted(names):
        try:
            found[split] = load_split(root, split)
        except DatasetError as error:
            LOG.info(f"{split} is not looked at: {error}")
    return found
