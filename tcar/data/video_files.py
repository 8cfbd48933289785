"""How the files of videos are called, beside the `<id>.webm` of the published set."""

import os
from pathlib import Path

from tcar.data.annotation_files import DatasetError

SUFFIXES = (
    ".webm", ".mp4", ".mkv", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".3gp", ".ts", ".flv", ".wmv", ".ogv",
)  # fmt: skip


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
