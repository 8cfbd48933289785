"""Read the videos of an archive as a stream, its parts one after the other: they are never joined on disk."""

import gzip
import io
import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tcar.data.archives import HEAD, VIDEO, Source, kind_of, last_component
from tcar.data.machine import refuse_fault
from tcar.data.ssv2 import DatasetError
from tcar.ground import log

LOG = log.get(__name__)
DRAFT = ".draft"  # ends the name of a file, hidden as well, that is not whole yet
MEGABYTE = 1_000_000
LARGEST_VIDEO = 1 << 28  # bytes; the real ones have some hundred thousand
AGAIN = "then run the same command again: it goes on from what is there"


class ArchiveError(DatasetError):
    """An archive is damaged; what was read before stays."""


class CutShortError(ArchiveError):
    """An archive ends before its end; what was read before is sound."""


class Joined(io.RawIOBase):
    """Parts read one after the other as if they were one file; `consumed` counts the bytes that were read."""

    def __init__(self, parts: Sequence[Source]):
        self.parts, self.consumed = tuple(parts), 0
        self._index, self._inside, self._file = 0, 0, None

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer) -> int:
        """Fill the buffer from the current part or, at its end, from the next; raises ArchiveError."""
        while self._index < len(self.parts):
            try:
                if self._file is None:
                    self._file = self.parts[self._index].open()
                data = self._file.read(len(buffer))
            except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
                refuse_fault(error, self.parts[self._index].path)
                raise ArchiveError(f"{self.where()}: damaged ({error}); download it again") from error
            if data:
                buffer[: len(data)] = data
                self._inside += len(data)
                self.consumed += len(data)
                return len(data)
            self._file.close()
            self._file = None
            self._index += 1
            self._inside = 0
        return 0

    @property
    def exhausted(self) -> bool:
        """Whether all parts were read to their end."""
        return self.consumed == sum(part.size for part in self.parts)

    def where(self) -> str:
        """The part and the byte in it that were read last."""
        if self._index == len(self.parts):
            return f"{self.parts[-1]}, byte {self.parts[-1].size:,}"
        return f"{self.parts[self._index]}, byte {self._inside:,}"

    def close(self) -> None:
        """Close the part that is open."""
        if self._file is not None:
            self._file.close()
            self._file = None
        super().close()


class _Inflated(gzip.GzipFile):
    """Gives all that stands before an error, where GzipFile drops what it has gathered for the same call."""

    def read(self, size: int | None = -1) -> bytes:
        return self.read1(-1 if size is None else size)


@dataclass(frozen=True)
class Member:
    """One file of an archive: a video with its bytes, or, with the reason, one that is refused."""

    id: str
    data: bytes
    refused: str = ""


def read_videos(stream: Joined) -> Iterator[Member]:
    """Give the videos of an archive in its order, reading it once from its beginning to its end.

    A member counts as sound only when the next one, or the end, has been reached: where a part is shortened, what comes
    after is read at the wrong place, and shows there at the latest. Names are never used as paths; links, devices and
    names that lead out of the folder come as refused. Raises CutShortError and ArchiveError, naming part and byte.
    """
    kind = kind_of(stream.parts[0].head())
    if kind is None:
        raise ArchiveError(f"{stream.parts[0]}: does not begin as an archive (gzip) does; download it again")
    try:
        content = _Inflated(fileobj=stream) if kind == "gzip" else stream
        with tarfile.open(fileobj=content, mode="r|", bufsize=HEAD) as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # tarfile keeps them all, hundreds of megabytes of them
                if (found := _member(archive, member)) is not None:
                    yield found
            # The checksum stands after the end of the tar. tarfile takes an unreadable header for the end, too.
            while rest := archive.fileobj.read(HEAD):
                if rest.strip(b"\0"):
                    raise _damaged(stream, "unreadable header")
    except ArchiveError:
        raise
    except (EOFError, tarfile.ReadError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        # Within compressed data a missing rest is an EOFError; a plain tar just stops.
        if isinstance(error, EOFError) or (kind == "tar" and stream.exhausted):
            raise CutShortError(
                f"{stream.where()}: the archive goes on here, but there is no more of it: download this part again and "
                f"those that come after it, {AGAIN}"
            ) from error
        raise _damaged(stream, error) from error


def _damaged(stream: Joined, cause: Exception | str) -> ArchiveError:
    return ArchiveError(
        f"{stream.where()}: damaged here or before ({cause}); a part is not as it was published: compare sizes, "
        f"download the parts up to this one again, {AGAIN}"
    )


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Member | None:
    """The video that a member is, or why it is refused; None for what is of no interest."""
    if member.isdir():
        return None
    found = _judged(member.name, member.size, member.type in (tarfile.REGTYPE, tarfile.AREGTYPE))
    wanted = found is not None and not found.refused
    return replace(found, data=archive.extractfile(member).read()) if wanted else found


def _judged(name: str, size: int, is_file: bool) -> Member | None:
    """What a member is by its name, without its bytes yet; None for what is of no interest."""
    if not is_file:
        return Member("", b"", f"{name}: a link or a device, not a file")
    path = name.replace("\\", "/")  # as Windows separates folders
    if path.startswith("/") or ".." in path.split("/") or re.match("[A-Za-z]:", path):
        return Member("", b"", f"{name}: the name leads out of the folder")
    video = VIDEO.fullmatch(last_component(name))
    if video is None:
        return None
    if size > LARGEST_VIDEO:
        return Member("", b"", f"{name}: {size:,} bytes, no video of the dataset has so many")
    return Member(video[1], b"")


class Zipped:
    """A zip of videos, read one after the other; `consumed` counts the bytes of it that were read."""

    def __init__(self, source: Source):
        self.source, self.consumed = source, 0

    def videos(self) -> Iterator[Member]:
        """Give the videos in the order of the zip, each compared with its checksum.

        What is refused is what `read_videos` refuses. Raises ArchiveError, naming the member.
        """
        name = ""
        try:
            with zipfile.ZipFile(self.source.path) as archive:
                for info in archive.infolist():
                    if info.is_dir():
                        continue
                    name = f" ({info.filename})"
                    kind = stat.S_IFMT(info.external_attr >> 16)  # as Unix has it; 0 where another system packed
                    found = _judged(info.filename, info.file_size, kind in (0, stat.S_IFREG))
                    if found is not None:
                        yield found if found.refused else replace(found, data=archive.read(info))
                    self.consumed += info.compress_size
        except (RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
            refuse_fault(error, self.source.path)
            where = f"{self.source.path}{name}"
            raise ArchiveError(f"{where}: damaged ({error}); download this zip again, {AGAIN}") from error
        self.consumed = self.source.size


def video_name(identifier: str) -> str:
    """The file name of a video."""
    return f"{identifier}.webm"


def store_videos(
    stream: Joined | Zipped, folder: Path, present: Mapping[str, int], refused: list[str]
) -> Iterator[None]:
    """Write the videos of an archive that are not in the folder yet; yields once for each megabyte that was read.

    present: the size in bytes by id of those that are there; they are compared with the archive, and written only where
    they differ. refused: grows by what `read_videos` refuses. A video is written under another name and gets its own
    when the one after it has been read. Raises what `read_videos` and `Zipped.videos` raise, and OSError.
    """
    told, kept, known, draft = 0, 0, set(refused), None
    if present:
        LOG.info(
            f"{len(present):,} videos are there: the archive is read from its beginning again and compared with them; "
            "only what is missing or differs is written"
        )
    try:
        for member in stream.videos() if isinstance(stream, Zipped) else read_videos(stream):
            draft = _settle(draft)
            path = folder / video_name(member.id)
            if member.refused:
                if member.refused not in known:
                    refused.append(member.refused)
                known.add(member.refused)
            elif present.get(member.id) == len(member.data) and path.read_bytes() == member.data:
                kept += 1
            else:
                draft = path.with_name(f".{path.name}{DRAFT}")
                draft.write_bytes(member.data)
            while told < stream.consumed // MEGABYTE:
                told += 1
                yield
        draft = _settle(draft)
    finally:
        if draft is not None:
            draft.unlink(missing_ok=True)
    if present:
        LOG.info(f"{kept:,} videos were there as the archive has them")
    while told * MEGABYTE < stream.consumed:
        told += 1
        yield


def _settle(draft: Path | None) -> None:
    """Give a written video its name."""
    if draft is not None:
        draft.replace(draft.with_name(draft.name[1:].removesuffix(DRAFT)))
