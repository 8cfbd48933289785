"""One process at a time in a folder."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tcar import log

LOG = log.get(__name__)


@contextmanager
def alone(path: Path, busy: Exception) -> Iterator[None]:
    """Hold the lock of a file, which the system gives back when the process ends, however it ends.

    Raises `busy`, which is to name the folder and the fix, where another process holds it. Where the disk knows no
    locks, a warning says so and the work goes on.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        except OSError as error:
            LOG.warning(f"{path.parent}: this disk knows no locks ({error.strerror}); start no second call meanwhile")
        yield
