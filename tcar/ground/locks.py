"""One process at a time in a folder, and in a run."""

import contextlib
import datetime
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tcar.ground import log

LOG = log.get(__name__)
FILE = ".lock"  # the name of the lock of a folder, in it; empty, it stays behind
POLL = 0.2  # seconds between two tries
WRITING = 5.0  # seconds that another process may take to write a result
_runs: set[Path] = set()  # the locks of runs that this process holds


@contextmanager
def of_run(run_dir: Path, error: type[Exception], patience: float = 0.0) -> Iterator[None]:
    """Hold the lock of the run in a folder: only one process at a time writes its results.

    A process takes it once, however often it asks, and a notebook of the pipeline is inside the pipeline's. Raises
    `error` where another process holds it for longer than `patience` seconds.
    """
    path = (run_dir / "pipeline" / "lock").resolve()
    if path in _runs or "TCAR_NOTEBOOK" in os.environ:
        yield
        return
    busy = f"{run_dir}: another run of this name is going on; wait for it to end, or give this one another `name`"
    with alone(path, error, busy, patience):
        _runs.add(path)
        try:
            yield
        finally:
            _runs.discard(path)


@contextmanager
def alone(path: Path, error: type[Exception], message: str, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock of a file, which the system gives back when the process ends, however it ends.

    Raises `error` with the message, which is to name the folder and the fix, and with who holds the lock, where another
    process does, for longer than `patience` seconds. Where the disk knows no locks, a warning says so and the work goes
    on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        began, told = time.monotonic(), not patience
        try:
            while not _taken(file):
                if time.monotonic() - began >= patience:
                    raise error(f"{message} ({_holder(path)})")
                if not told:
                    LOG.info(f"waiting: {message} ({_holder(path)})")
                told = True
                time.sleep(POLL)
        except OSError as problem:
            LOG.warning(f"{path.parent}: this disk knows no locks ({problem.strerror}); start no second call meanwhile")
        file.truncate(0)
        file.write(_self())
        file.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                file.truncate(0)


def _taken(file) -> bool:
    """Whether the lock is this process's by now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _self() -> str:
    """Who this process is, for whoever finds the lock held."""
    began = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    # Its arguments stay out: parameters may hold what no file is to keep.
    program = "/".join(Path(sys.argv[0]).parts[-2:]) or "python"
    return f"held by process {os.getpid()} on {socket.gethostname()} since {began}: {program}"


def _holder(path: Path) -> str:
    """What the holder wrote of itself; it may not have come to it yet."""
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").strip() or "held by another process"
    return "held by another process"
