"""The project's folder, where relative paths begin, and the commit it is at."""

import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from tcar.ground.errors import ParameterError
from tcar.ground.sources import PACKAGE


@cache
def find_root(start: Path) -> Path:
    """The project folder: the nearest one from `start` upward whose pyproject.toml belongs to tcar, else this
    package's own checkout. Raises ParameterError where there is neither."""
    for folder in (start, *start.parents, PACKAGE.parent):
        file = folder / "pyproject.toml"
        if file.is_file() and tomllib.loads(file.read_text()).get("project", {}).get("name") == "tcar":
            return folder
    raise ParameterError(
        f"{start} is not inside the tcar project: change into its folder, a clone of the repository; the installed "
        "package has no parameter files, notebooks, runs or models"
    )


def revision(root: Path) -> dict[str, Any]:
    """The `commit` of the project and whether tracked files differ from it (`dirty`); null outside git."""

    def git(*command: str) -> str | None:
        try:
            command = ["git", "-C", str(root), *command]
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(changes) if commit else None}
