"""Processes of every kind, whose parent is then killed; as a script, that parent: `orphans.py KIND FOLDER`."""

import os
import sys
import time
from pathlib import Path

from tcar.data.workers import isolated_map
from tcar.ground import processes

TIME = 120  # seconds that a child would live


def live(folder: Path) -> None:
    """Leave a sign of this process in the folder, and stay."""
    (folder / str(os.getpid())).touch()
    time.sleep(TIME)


def pool(folder: Path) -> None:
    """Have two workers of an executor: one busy, one that waits for work."""
    with processes.pool(2) as workers:
        assert workers.submit(os.getpid).result()
        workers.submit(live, folder).result()


def crew(folder: Path) -> None:
    """Have a process of a crew, which a thread started that has ended since."""
    list(isolated_map(live, [folder], workers=1))


def kernel(folder: Path) -> None:
    """Have a notebook that renders, as the pipeline runs it."""
    from notebook_files import write_notebook

    from tcar.lab import execution

    code = f"import sys\nsys.path[:0] = {sys.path!r}\nfrom pathlib import Path\nimport orphans\n"
    cell = code + f"Path({str(folder)!r}, str(orphans.os.getpid())).touch()\norphans.pool(Path({str(folder)!r}))"
    source = write_notebook(folder.parent / "x.ipynb", "epochs = 1", cell)
    execution.execute(source, folder.parent / "out.ipynb", {}, folder.parent / "x.log")


if __name__ == "__main__":
    {"pool": pool, "crew": crew, "kernel": kernel}[sys.argv[1]](Path(sys.argv[2]))
