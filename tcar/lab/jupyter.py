"""JupyterLab on the project's folder, with copies of the notebooks to run and change: `make lab`.

JupyterLab keeps what a notebook has shown in its file, and those in `notebooks/` are tracked. So it opens on
`runs/lab/`, which git ignores; figures, executed notebooks, parameters and clips are in the same tree.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tcar.ground import files
from tcar.ground.project import find_root
from tcar.lab import results

FOLDER, COPIED = Path("runs", "lab"), ".copied.json"


def copy_notebooks(root: Path) -> list[Path]:
    """Copy the project's notebooks to `runs/lab/`, and give those copies that are older than their original.

    A copy that was changed or run is its user's and stays; one that is as it was copied follows the original.
    """
    folder, older = root / FOLDER, []
    made = results.load(folder / COPIED) if (folder / COPIED).is_file() else {}
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted((root / "notebooks").glob("*.ipynb")):
        copy, now, before = folder / source.name, results.digest(source), made.get(source.name)
        if not copy.is_file() or (before != now and results.digest(copy) == before):
            files.replace_file(copy, source.read_bytes())
            made[source.name] = now
        elif before != now:
            older.append(copy)
    results.write(folder / COPIED, made)
    return older


def open_lab(given: Sequence[str]) -> None:
    """Become JupyterLab, with options of its own."""
    root = find_root(Path.cwd()).resolve()
    for copy in copy_notebooks(root):
        print(f"{copy.relative_to(root)}: its original has changed since; rename or delete yours to have the new one")
    options = [f"--ServerApp.root_dir={root}", f"--LabApp.default_url=/lab/tree/{FOLDER.as_posix()}"]
    options += ["--allow-root"] if os.geteuid() == 0 else []  # as in a container; Jupyter refuses it unasked
    os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", *options, *given])
