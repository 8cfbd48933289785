"""Find the archives of Something-Something-V2 among downloads, in any form they come in.

The published archive is one gzip-compressed tar, cut into parts. Names and suffixes say little (bare parts are called
.zip, zips hold one part or many, or videos), so files are recognised by their first bytes; only the order of the parts
comes from the number at the end of their names.
"""

import io
import os
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tcar.data.dataset_files import SUFFIXES
from tcar.data.ssv2 import PREFIXES, SPLITS, DatasetError

ANNOTATIONS = ("labels.json", *(f"{split}.json" for split in SPLITS), "test-answers.csv")
NEWER = {f"{prefix}{name}": name for name in ANNOTATIONS for prefix in PREFIXES}  # name by that of either release
UNFINISHED = (".crdownload", ".part", ".partial", ".download", ".opdownload", ".aria2", ".tmp")
GZIP = b"\x1f\x8b\x08"
HEAD = 1 << 16  # bytes that tell what a file is
MEMBERS = 200  # of a zip; one with more is no zip of parts
READABLE_ZIP = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
OFFICIAL = "something-something-v2"  # in the names of the official files
VIDEO = re.compile(r"([0-9]+)\.webm", re.IGNORECASE)
FOREIGN = {
    b"PK\x03\x04": "a zip within a zip", b"7z\xbc\xaf": "an archive of 7-Zip", b"Rar!": "an archive of RAR",
    b"\xfd7zXZ\0": "packed by xz", b"BZh": "packed by bzip2", b"\x28\xb5\x2f\xfd": "packed by zstd",
}  # fmt: skip
NUMBERED = re.compile(r"(.*[-_. ])([0-9]{1,3})", re.DOTALL)
SUFFIX = re.compile(r"(\.(zip|gz|tgz|tar|bin)|\s*\([0-9]+\))$", re.IGNORECASE)  # "(1)": a browser's second copy


def last_component(name: str) -> str:
    """The name of a member of an archive without its folders, which Windows writes with backslashes."""
    return name.replace("\\", "/").rpartition("/")[2]


@dataclass(frozen=True)
class Source:
    """A file, or a file inside a zip; `size` in bytes, unpacked."""

    path: Path
    size: int
    member: str = ""

    def __str__(self) -> str:
        return f"{self.path} ({self.member})" if self.member else str(self.path)

    @property
    def name(self) -> str:
        """The last component of the name."""
        return last_component(self.member or self.path.name)

    def open(self) -> io.BufferedIOBase:
        """Open for reading from the beginning."""
        if not self.member:
            return self.path.open("rb")
        with zipfile.ZipFile(self.path) as archive:
            return archive.open(self.member)  # keeps the file of the zip open until it is closed itself

    def head(self, count: int = HEAD) -> bytes:
        """The first bytes; none where a zip holds them damaged."""
        try:
            with self.open() as file:
                return file.read(count)
        except (zipfile.BadZipFile, zlib.error, EOFError):
            return b""


@dataclass
class Archive:
    """One tar of videos: its parts by their number, or a single one that has none. Or a zip of videos.

    `problems` are those that can be seen before anything is unpacked; `zipped` are the sizes in bytes, by id, of the
    videos that a zip holds.
    """

    name: str
    parts: dict[int, Source]
    problems: list[str] = field(default_factory=list)
    zipped: dict[str, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """All parts, in bytes."""
        return sum(part.size for part in self.parts.values())

    def beginning(self) -> list[Source]:
        """The parts in their order up to the first that is missing or shortened: further, nothing fits on."""
        numbers, longest = sorted(self.parts), max(part.size for part in self.parts.values())
        found = []
        for number in numbers:
            if found and number - 1 not in self.parts:
                break
            found.append(self.parts[number])
            if self.parts[number].size < longest:
                break
        return found


@dataclass
class Downloads:
    """What lies in a folder of downloads."""

    videos: dict[str, Path] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)  # of the videos, in bytes
    annotations: dict[str, list[Source]] = field(default_factory=dict)  # by the file's newer name
    archives: list[Archive] = field(default_factory=list)  # the likeliest first
    remarks: list[str] = field(default_factory=list)  # on files that were to be of use, and are not
    files: int = 0


def survey(folder: Path, leave_out: Path | None = None) -> Downloads:
    """Look through a folder and those in it for videos, annotation files and archives.

    leave_out: a folder that is not looked into. Nothing is written. Raises DatasetError where there is no such folder.
    """
    if not folder.exists():
        raise DatasetError(f"{folder}: no such folder; give the one that the downloads are in")
    found, groups = Downloads(), {}
    strange: list[Path] = []
    for path, size in _files(folder, leave_out, found.remarks):
        found.files += 1
        if video := VIDEO.fullmatch(path.name):
            if size > found.sizes.get(video[1], 0):
                found.videos[video[1]], found.sizes[video[1]] = path, size
        elif path.name.endswith(UNFINISHED):
            found.remarks.append(f"{path}: a download that has not ended")
        elif path.suffix.lower() in SUFFIXES:
            strange.append(path)
        else:
            try:
                for source in _sources(path, size, found):
                    if role := NEWER.get(source.name):
                        found.annotations.setdefault(role, []).append(source)
                    else:
                        groups.setdefault(_group(source)[0], []).append(source)
            except OSError as error:
                found.remarks.append(f"{path}: cannot be read ({error.strerror}); left out")
    if strange:
        found.remarks.append(
            f"{strange[0]}: one of {len(strange)} video(s) that the published set does not have, not called "
            "<number>.webm; left out: put those that are wanted into videos/ of the dataset folder"
        )
    for name, sources in sorted(groups.items()):
        if (archive := _archive(name, sources)) is not None:
            found.archives.append(archive)
        elif kind := next((kind for start, kind in FOREIGN.items() if sources[0].head(8).startswith(start)), ""):
            found.remarks.append(f"{sources[0]}: {kind}, which is not read here; unpack it by hand")
        elif OFFICIAL in sources[0].name.casefold():
            found.remarks.append(f"{sources[0]}: begins neither as a zip nor as a tar nor as gzip; download it again")
    found.archives.sort(key=lambda archive: (OFFICIAL not in archive.name, -archive.size))
    return found


def _files(folder: Path, leave_out: Path | None, remarks: list[str]) -> Iterator[tuple[Path, int]]:
    """Every file with its size, through linked folders too, each folder once.

    remarks: grows by a line for each entry that is neither file nor folder, cannot be looked at, or leads back out.
    """
    if folder.is_file():
        yield folder, folder.stat().st_size
        return
    above = {_identity(parent) for parent in folder.resolve().parents}
    waiting, seen = [folder], {_identity(leave_out)} if leave_out and leave_out.is_dir() else set()
    while waiting:
        current = waiting.pop()
        try:
            identity = _identity(current)
            if identity in above:
                remarks.append(f"{current}: a link to a folder that these downloads lie in; left out")
            elif identity in seen and current.is_symlink():
                remarks.append(f"{current}: a link to a folder that was looked into already; left out")
            if identity in seen | above:
                continue
            seen.add(identity)
            with os.scandir(current) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            remarks.append(f"{current}: cannot be listed ({error.strerror}); left out")
            continue
        for entry in listed:
            if entry.name.startswith((".", "__MACOSX")):
                continue
            try:
                if entry.is_dir():
                    waiting.append(Path(entry.path))
                elif entry.is_file():
                    yield Path(entry.path), entry.stat().st_size
                else:
                    link, pipe = "a link to nothing, or to no file", "no file, but a pipe, socket or device"
                    what = link if entry.is_symlink() else pipe
                    remarks.append(f"{entry.path}: {what}; left out")
            except OSError as error:  # a link to itself, or gone meanwhile
                remarks.append(f"{entry.path}: cannot be read ({error.strerror}); left out")


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _sources(path: Path, size: int, found: Downloads) -> Iterator[Source]:
    """The file itself, or what a zip holds, beside videos: a zip of these is an archive of its own."""
    source = Source(path, size)
    if not source.head(4).startswith(b"PK\x03\x04"):
        yield source
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        found.remarks.append(f"{path}: a zip that is damaged or cut short ({error}); download it again")
        return
    videos = Archive(str(path), {0: source})
    for info in members:
        name = last_component(info.filename)
        strange = info.flag_bits & 1 or info.compress_type not in READABLE_ZIP
        how = " (encrypted)" if info.flag_bits & 1 else ""
        problem = f"{path}: {info.filename} is packed in a way that is not read here{how}; unpack this zip by hand"
        if video := VIDEO.fullmatch(name):
            videos.zipped[video[1]] = info.file_size
            videos.problems += [problem] if strange and not videos.problems else []
        elif name in NEWER or (len(members) <= MEMBERS and name and not name.startswith(".")):
            if strange:
                found.remarks.append(problem)
            else:
                yield Source(path, info.file_size, info.filename)
    if videos.zipped:
        found.archives.append(videos)


def _group(source: Source) -> tuple[str, int | None]:
    """Split a name into what all parts of an archive share and the number of the part, None without one."""
    name = source.name.casefold()
    while (shorter := SUFFIX.sub("", name)) != name:
        name = shorter
    numbered = NUMBERED.fullmatch(name)
    return (numbered[1], int(numbered[2])) if numbered else (str(source), None)


def _archive(name: str, sources: Sequence[Source]) -> Archive | None:
    """Put the parts of one name together, and say what is wrong with them; None for what is no archive of videos."""
    parts: dict[int, Source] = {}
    for source in sorted(sources, key=lambda source: (-source.size, bool(source.member), str(source))):
        parts.setdefault(_group(source)[1] or 0, source)  # of two forms the longer one, bare rather than zipped
    first, last = min(parts), max(parts)
    head = parts[first].head()
    begins = kind_of(head) is not None
    official = OFFICIAL in name and _group(parts[first])[1] is not None
    if not official and not (begins and _holds_videos(head)):
        return None
    longest, problems = max(part.size for part in parts.values()), []
    for number, part in sorted(parts.items()):
        if number != last and part.size < longest:
            problems.append(f"{part}: cut short, {part.size:,} bytes where another part has {longest:,}")
        elif part.head(64).lstrip().lower().startswith((b"<!doctype", b"<html")):
            problems.append(f"{part}: a web page in place of the part")
    start = first if begins else 0
    missing = [number for number in range(start, last) if number not in parts]
    problems += [f"part {number:02d} is missing ({name}{number:02d})" for number in missing]
    if not begins and first == 0:
        problems.append(f"{parts[first]}: does not begin as an archive (gzip) does")
    return Archive(name, parts, problems)


def kind_of(head: bytes) -> str | None:
    """Tell a tar ("tar") and a compressed one ("gzip") from everything else, by the first bytes."""
    kind = "gzip" if head.startswith(GZIP) else "tar"
    try:
        tarfile.TarInfo.frombuf(_plain(head)[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except (zlib.error, tarfile.HeaderError):
        return None
    return kind


def _plain(head: bytes) -> bytes:
    """The first bytes, uncompressed."""
    return zlib.decompressobj(31).decompress(head, HEAD) if head.startswith(GZIP) else head


def _holds_videos(head: bytes) -> bool:
    """Whether a tar is one of videos, by the names at its beginning."""
    try:
        with tarfile.open(fileobj=io.BytesIO(_plain(head)), mode="r|") as archive:
            names = (member.name for member in archive)
            return any(OFFICIAL in name or VIDEO.fullmatch(last_component(name)) for name in names)
    except tarfile.TarError:  # where the first bytes end
        return False
