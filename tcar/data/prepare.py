"""Make a dataset folder of what Qualcomm's page hands out for Something-Something-V2.

The downloads may have any form: the parts of the archive, bare or in zips, the whole archive, zips of videos, or the
unpacked videos (these are linked, not copied), and the label files, in their zip or out of it. A call that was cut off
goes on where it ended when it is given again. prepare.json in the folder says what is there, missing and surplus.
"""

import hashlib
import json
import math
import os
import shutil
import stat
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tcar.data.archives import ANNOTATIONS, Archive, Downloads, Source, survey
from tcar.data.dataset_files import other_names
from tcar.data.ssv2 import SPLITS, DatasetError, find_annotation, load_labels, load_split
from tcar.data.unpack import DRAFT, MEGABYTE, ArchiveError, CutShortError, Joined, Zipped, store_videos, video_name
from tcar.ground import files, locks, log

LOG = log.get(__name__)
REPORT, LOCK = "prepare.json", ".prepare.lock"
LABELS_ZIP = "20bn-something-something-download-package-labels.zip"
FULL_SET = 220_000  # from so many listed videos on it is the published set, of which more is known:
FULL_BYTES = 19_400_000_000  # its size, packed as well as unpacked: videos do not shrink
SLACK = 0.99  # published sizes are rounded
ROOM = 1 << 28  # bytes that are to stay free
UNPRINTABLE = "backslashreplace"  # names of files need not be text


@dataclass
class Report:
    """What a dataset folder holds, against its annotation files.

    `unread`: the archive whose end, with its checksum, has not been reached yet; `problem`: why not.
    """

    listed: dict[str, int]  # videos by split
    videos: int = 0
    bytes: int = 0
    symbolic_links: int = 0
    missing: list[str] = field(default_factory=list)
    surplus: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # of what archives hold, by this call and those before
    left_out: list[str] = field(default_factory=list)  # of the downloads
    unread: str = ""
    problem: str = ""
    cut_short: bool = False

    @property
    def complete(self) -> bool:
        """Whether every listed video is there, and the archive they come from was sound to its end."""
        return not self.missing and not self.unread

    def write(self, dataset: Path) -> None:
        """Write prepare.json."""
        values = {"complete": self.complete, **vars(self)}
        del values["cut_short"]
        text = json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        files.replace_file(dataset / REPORT, text.encode(errors=UNPRINTABLE))


def prepare(downloads: str | Path, dataset: str | Path, allow_missing: bool = False) -> Report:
    """Make `dataset` a complete dataset folder of what lies in `downloads`, or say what it lacks.

    allow_missing: begin although a part or a split is missing, and take what comes before the gap. The report is also
    in prepare.json. Raises DatasetError, before anything is unpacked: no annotation files, no videos, a part that is
    missing or shortened, too little room on the disk, another call at work in the same folder.
    """
    downloads, dataset = Path(downloads), Path(dataset)
    if downloads.exists():
        dataset.mkdir(parents=True, exist_ok=True)
    found = survey(downloads, leave_out=dataset / "videos")
    busy = f"{dataset}: another call is at work in this folder; wait for it or end it"
    with locks.alone(dataset / LOCK, DatasetError, busy):
        files.drop_drafts(dataset)
        _install(found, dataset)
        ids = _listed(dataset, allow_missing)
        videos = dataset / "videos"
        videos.mkdir(exist_ok=True)
        for draft in videos.glob(f".*{DRAFT}"):
            draft.unlink()
        _link(found, videos)
        report = _take_stock(videos, ids)
        before = _before(dataset)
        report.unread, report.refused, report.left_out = before["unread"], before["refused"], found.remarks
        if not report.complete:
            _unpack(found, dataset, ids, report, allow_missing)
        report.write(dataset)
    return report


def inspect(dataset: str | Path) -> Report:
    """Compare the videos of a dataset folder, made here or by hand, with its annotation files; nothing is written.

    Raises DatasetError where the folder or an annotation file is missing.
    """
    dataset = Path(dataset)
    listed = {split: load_split(dataset, split) for split in SPLITS}
    (videos,) = {clip.path.parent for clips in listed.values() for clip in clips} or {dataset / "videos"}
    found = _take_stock(videos, {split: {clip.id for clip in clips} for split, clips in listed.items()})
    found.unread = _before(dataset)["unread"]
    return found


def _install(found: Downloads, dataset: Path) -> None:
    """Copy the annotation files to the top of the dataset folder, under their newer names."""
    for name in ANNOTATIONS:
        sources = list(found.annotations.get(name, ()))
        if not sources:
            continue
        # Where both releases are there, the newer one is taken.
        sources = [source for source in sources if source.name == name] or sources
        target = dataset / name
        if target.is_file():
            sources.insert(0, Source(target, target.stat().st_size))
        contents = [Joined([source]).readall() for source in sources]
        digests = {hashlib.sha256(content).digest(): source for content, source in zip(contents, sources, strict=True)}
        if len(digests) > 1:
            first, second, *_ = digests.values()
            raise DatasetError(f"{first} and {second} differ; remove the one that is not of your release")
        if not target.is_file():
            files.replace_file(target, contents[0])


def _listed(dataset: Path, allow_missing: bool) -> dict[str, set[str]]:
    """The ids of each split; raises DatasetError where the annotation files are missing or do not fit together."""
    lacking = [name for name in ANNOTATIONS[:-1] if find_annotation(dataset, name) is None]
    if "labels.json" in lacking or len(lacking) == len(SPLITS) or (lacking and not allow_missing):
        raise DatasetError(
            f"{dataset}: no {', '.join(lacking)} in the downloads (nor under the older names, "
            f"something-something-v2-{lacking[0]}); put {LABELS_ZIP} there too, as it is or unpacked"
        )
    if find_annotation(dataset, "test-answers.csv") is None:
        LOG.info("there is no test-answers.csv: without it the classes of the test split are not known")
    load_labels(dataset)
    return {s: {clip.id for clip in load_split(dataset, s)} for s in SPLITS if f"{s}.json" not in lacking}


def _link(found: Downloads, videos: Path) -> None:
    """Give unpacked videos a second name in the dataset: a hard link on the same disk, a symbolic one elsewhere."""
    (present, _), count = _present(videos), {"hard": 0, "symbolic": 0}
    wanted = {video: path for video, path in found.videos.items() if found.sizes[video] > present.get(video, 0)}
    for video, path in log.progress(wanted.items(), description="linking", unit="videos") if wanted else ():
        draft = videos / f".{video_name(video)}{DRAFT}"
        draft.unlink(missing_ok=True)
        try:
            draft.hardlink_to(path.resolve())
            count["hard"] += 1
        except OSError:  # another disk, or one without hard links
            draft.symlink_to(path.resolve())
            count["symbolic"] += 1
        draft.replace(videos / video_name(video))
    if count["hard"]:
        LOG.info(f"{count['hard']:,} unpacked videos have hard links in {videos}: the first folder may be removed")
    if count["symbolic"]:
        LOG.info(f"{count['symbolic']:,} unpacked videos have symbolic links in {videos}: leave the first folder there")


def _present(videos: Path) -> tuple[dict[str, int], int]:
    """Return the bytes of each video in the folder by its id, and how many are symbolic links.

    Empty files and links to nothing do not count.
    """
    sizes, links = {}, 0
    for entry in os.scandir(videos):
        stem, suffix = os.path.splitext(entry.name)
        if suffix == ".webm" and stem[0] != "." and (size := _bytes(Path(entry.path))):
            sizes[stem] = size
            links += entry.is_symlink()
    return sizes, links


def _bytes(path: Path) -> int:
    """The size of a file; 0 where there is none."""
    with suppress(OSError):  # a link to nothing, or to itself
        status = path.stat()
        return status.st_size if stat.S_ISREG(status.st_mode) else 0
    return 0


def _take_stock(videos: Path, ids: dict[str, set[str]], before: Report | None = None) -> Report:
    """Compare the videos that are there with the annotation files; what `before` says of the archive stays."""
    (sizes, links), listed = _present(videos), set().union(*ids.values())
    named = {video: _bytes(videos / names[0]) for video, names in other_names(videos).items() if len(names) == 1}
    sizes |= {video: size for video, size in named.items() if size}
    report = before or Report({split: len(found) for split, found in ids.items()})
    report.videos, report.bytes, report.symbolic_links = len(sizes), sum(sizes.values()), links
    report.missing = sorted(listed - sizes.keys(), key=lambda video: (len(video), video))
    report.surplus = sorted(sizes.keys() - listed, key=lambda video: (len(video), video))
    return report


def _before(dataset: Path) -> dict[str, Any]:
    """What earlier calls noted: the archive that was not read to its end, and what was refused."""
    try:
        noted = json.loads((dataset / REPORT).read_text(encoding="utf-8"))
        return {"unread": str(noted["unread"]), "refused": [str(member) for member in noted.get("refused", [])]}
    except FileNotFoundError:
        return {"unread": "", "refused": []}
    except (ValueError, KeyError, TypeError, AttributeError):
        LOG.warning(f"{dataset / REPORT}: not readable; the archive is read again")
        return {"unread": REPORT, "refused": []}


def _unpack(found: Downloads, dataset: Path, ids: dict[str, set[str]], report: Report, allow_missing: bool) -> None:
    """Read archives until nothing is missing; brings the report up to date."""
    for remark in found.remarks:
        LOG.warning(_printable(remark))
    sound = _sound(found, report, dataset, allow_missing)
    # What could not be read to its end is still to be read while videos are missing, whatever else is read.
    failed, earlier = [], report.unread
    if earlier not in {"", REPORT, *(archive.name for archive in sound)}:
        advice = f"put it back, or, to do without it, remove {dataset / REPORT}"
        failed.append((earlier, f"{earlier}: not read to its end by an earlier call; {advice}", False))
    for archive in sound:
        _check_disk(dataset, report, archive)
        report.unread, report.problem, report.cut_short = archive.name, "", False
        report.write(dataset)  # whatever happens now, the next call knows
        parts = archive.beginning() if archive.problems else [archive.parts[n] for n in sorted(archive.parts)]
        try:
            with nullcontext(Zipped(parts[0])) if archive.zipped else Joined(parts) as stream:
                ticks = store_videos(stream, dataset / "videos", _present(dataset / "videos")[0], report.refused)
                total = math.ceil(sum(part.size for part in parts) / MEGABYTE)
                for _ in log.progress(ticks, total, "unpacking", "MB"):
                    pass
            report.unread = ""
        except ArchiveError as error:
            report.problem, report.cut_short = str(error), isinstance(error, CutShortError)
            failed.append((archive.name, report.problem, report.cut_short))
        _take_stock(dataset / "videos", ids, report)
        if report.complete:
            return
        if report.problem:
            LOG.warning(_printable(report.problem))
    if failed and report.missing:
        report.unread, report.problem, report.cut_short = failed[-1]


def _sound(found: Downloads, report: Report, dataset: Path, allow_missing: bool) -> list[Archive]:
    """The archives to read, in their order; raises DatasetError where none is sound."""
    full = sum(report.listed.values()) >= FULL_SET
    for archive in found.archives:
        if full and not archive.zipped and not archive.problems and archive.size < SLACK * FULL_BYTES:
            archive.problems.append(
                f"{archive.name}…: {archive.size / 1e9:.2f} GB in {len(archive.parts)} file(s), of the "
                f"{FULL_BYTES / 1e9:.1f} GB that were published: the last part is missing or cut short"
            )
    sound = [archive for archive in found.archives if not archive.problems]
    if sound or (allow_missing and found.archives):
        for archive in found.archives:
            for problem in archive.problems:
                LOG.warning(_printable(problem))
        return sound or found.archives[:1]
    if allow_missing and found.videos and not report.unread:
        return []
    lacks = f"{len(report.missing):,} of {sum(report.listed.values()):,} listed videos are not in {dataset}"
    if report.unread and not report.missing:
        lacks = (
            f"{dataset}: {report.unread} was not read to its end: its videos are not known to be sound (to take them "
            f"for sound, remove {REPORT} there)"
        )
    problems = [problem for archive in found.archives[:1] for problem in archive.problems]
    problems = problems or [f"there is no archive among the {found.files:,} files of the downloads"]
    raise DatasetError(
        f"{lacks}, and the archive cannot be unpacked whole:\n  "
        + "\n  ".join(problems + found.remarks)
        + "\nDownload what is missing or shortened again; --allow-missing takes what comes before it"
    )


def _check_disk(dataset: Path, report: Report, archive: Archive) -> None:
    published = FULL_BYTES if sum(report.listed.values()) >= FULL_SET else 0
    needed = max(0, max(archive.size, published) - report.bytes)
    if archive.zipped:
        needed = sum(archive.zipped.get(video, 0) for video in report.missing)
    free = shutil.disk_usage(dataset).free
    if free < needed + ROOM:
        raise DatasetError(
            f"{dataset}: the videos take {needed / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are free; free some, or "
            "give a folder on another disk"
        )


def _printable(text: str) -> str:
    return text.encode(errors=UNPRINTABLE).decode()


def summary(report: Report, dataset: Path) -> str:
    """What a dataset folder holds and lacks, in lines that any terminal can print."""
    listed = sum(report.listed.values())
    lines = [f"{dataset}: {report.videos:,} videos, {report.bytes / 1e9:.2f} GB; {listed:,} are listed"]
    kinds = {"missing": report.missing, "surplus": report.surplus, "refused": report.refused}
    for name, ids in (kinds | {"left out": report.left_out}).items():
        if ids:
            more = f", … (all in {REPORT})" if len(ids) > 5 else ""
            lines.append(f"{len(ids):,} {name}: {', '.join(ids[:5])}{more}")
    if report.problem and not report.complete:
        lines.append(report.problem)
    return _printable("\n".join([*lines, "complete" if report.complete else "not complete"]))
