"""One process at a time in a folder."""

import contextlib
import datetime
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tcar import log

LOG = log.get(__name__)


@contextmanager
def alone(path: Path, error: type[Exception], message: str) -> Iterator[None]:
    """Hold the lock of a file, which the system gives back when the process ends, however it ends.

    Raises `error` with the message, which is to name the folder and the fix, and with who holds the lock, where another
    process does. Where the disk knows no locks, a warning says so and the work goes on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise error(f"{message} ({_holder(path)})") from None
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
