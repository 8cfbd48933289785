"""The project's folder, where relative paths begin."""

import tomllib
from functools import cache
from pathlib import Path

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
