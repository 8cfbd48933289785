"""The files of a dataset: its texts, in whatever encoding they were saved, and the names of its videos."""

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

from tcar.ground.errors import TcarError

# How the files of videos may end; those of the published set are called <id>.webm.
SUFFIXES = (
    ".webm", ".mp4", ".mkv", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".3gp", ".ts", ".flv", ".wmv", ".ogv",
)  # fmt: skip
_INSTEAD = {
    b"<!doctype": "a web page, saved in its place; sign in and fetch the file again",
    b"<html": "a web page, saved in its place; sign in and fetch the file again",
    b"version https://git-lfs": "a pointer of Git LFS, not the file; `git lfs pull` fetches it",
    b"pk\x03\x04": "a zip under this name; unpack it",
    b"\x1f\x8b": "a gzip file under this name; unpack it",
    b"7z\xbc\xaf": "a 7-Zip archive under this name; unpack it",
}


class DatasetError(TcarError, ValueError):
    """A dataset folder or one of its files is not what the reader needs."""


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, UTF-16 or UTF-32, with a byte-order mark or without.

    Raises DatasetError, naming line and byte, for any other encoding: it would be guessed; and for what is no text.
    """
    content = path.read_bytes()
    begins = content[:256].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for start, what in _INSTEAD.items():
        if begins.startswith(start):
            raise DatasetError(f"{path}: {what}")
    encoding = json.detect_encoding(content)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DatasetError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not {encoding.upper()}; save the file as UTF-8 "
            "(it may be in Latin-1 or Windows-1252)"
        ) from error


def read_json(path: Path, kind: type) -> list | dict:
    """The content of a JSON file, a list or a dict; raises DatasetError for anything else."""
    text = read_text(path)
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        found = str(error) if text.strip() else "it is empty"
        if getattr(error, "msg", "") == "Extra data" and text.lstrip().startswith("{"):
            found = "it has one object a line: put them between [ and ], with commas"
        raise DatasetError(f"{path}: not valid JSON ({found}); fetch or write the file again") from error
    if not isinstance(content, kind):
        raise DatasetError(f"{path}: holds a {type(content).__name__}, expected a {kind.__name__}")
    return content


def read_rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The number of the line and the cells of each row, two where no more are filled; blank rows are left out.

    Spaces around a cell and quotes are no part of it. Raises DatasetError for what is no such table.
    """
    rows = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    try:
        for row in rows:
            cells = [cell.strip() for cell in row]
            if len(cells) > 2 and not any(cells[2:]):
                del cells[2:]
            if any(cells):
                yield rows.line_num, cells
    except csv.Error as error:
        raise DatasetError(f"{path}, line {rows.line_num}: {error}; fetch or write the file again") from error


def other_names(folder: Path) -> dict[str, list[str]]:
    """The names of videos by id, for each id without a `<id>.webm`: another suffix, or capitals.

    One listing, of which names alone are looked at. Raises DatasetError where the folder cannot be listed.
    """
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be listed ({error.strerror}); mend this or move it") from error
    found: dict[str, list[str]] = {}
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix != ".webm" and suffix.lower() in SUFFIXES and not stem.startswith("."):
            found.setdefault(stem, []).append(name)
    usual = set(names) if found else set()
    return {stem: sorted(others) for stem, others in found.items() if f"{stem}.webm" not in usual}
