"""Files that are written whole or not at all: whatever is later taken for done goes through here.

Nothing carries its final name before all of it is written, so a process that is killed leaves the old file or the new
one, never half of one. Drafts carry machine and process in their name: two processes on the same file cannot get in
each other's way, and what a process left behind can be told from the work of one that lives.

Nothing is deleted but by the names that we give: what else lies in a folder is somebody's.
"""

import hashlib
import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

import psutil


@contextmanager
def drafted(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A path beside the target to write the whole file to; it takes the target's name when the block ends.

    Where the block raises, the draft is deleted and the target stays as it was. durable: the content is on the disk
    before it has the name, as a power cut demands; a killed process does not. The draft keeps the target's suffixes.
    """
    draft = path.with_name(f"{_draft_prefix()}{os.getpid()}~{path.name}")
    try:
        yield draft
        if durable:
            with draft.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        if error.errno is not None:
            error.filename = error.filename or str(path)  # a disk that is full says so of no file
        raise
    finally:
        draft.unlink(missing_ok=True)


def replace_file(path: Path, *content: bytes | memoryview, durable: bool = True) -> dict:
    """Write a file in one step; returns the SHA-256 and the bytes of the content, which may come in parts."""
    digest = hashlib.sha256()
    with drafted(path, durable=durable) as draft, draft.open("wb") as file:
        for part in content:
            file.write(part)
            digest.update(part)
    return {"sha256": digest.hexdigest(), "bytes": sum(map(len, content))}


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step, in UTF-8 and with the line ends that the text has."""
    replace_file(path, text.encode(), durable=False)


def sync_folder(folder: Path) -> None:
    """Make the renames in a folder survive a power cut; where a file system cannot, nothing is lost by trying."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def drop_drafts(folder: Path) -> None:
    """Delete what processes of this machine left behind that are gone."""
    prefix = _draft_prefix()
    for draft in folder.glob(f"{prefix}*"):
        process = draft.name.removeprefix(prefix).partition("~")[0]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            draft.unlink(missing_ok=True)


def foreign(folder: Path, names: Sequence[str]) -> list[str]:
    """The names in a folder that are none of these (patterns of the shell) and no draft of one; folders always are."""
    return sorted(entry.name for entry in os.scandir(folder) if not _ours(entry, names))


def remove_folder(folder: Path, names: Sequence[str]) -> None:
    """Delete the files of these names (patterns of the shell) and their drafts, and the folder if that empties it.

    What is `foreign` stays, and so does all that lies behind a link.
    """
    if folder.is_symlink() or not folder.is_dir():
        return
    for entry in list(os.scandir(folder)):
        if _ours(entry, names):
            Path(entry).unlink(missing_ok=True)
    with suppress(OSError):  # something foreign is in it
        folder.rmdir()


def _ours(entry: os.DirEntry, names: Sequence[str]) -> bool:
    name = re.sub(r"^\.[^~]+~\d+~", "", entry.name)
    return not entry.is_dir(follow_symlinks=False) and any(fnmatchcase(name, pattern) for pattern in names)


def _draft_prefix() -> str:
    return f".{socket.gethostname()}~"
