"""Processes: how many there is room for, and that they end with the one that started them, however that ends.

A process that waits for work on a pipe or a queue does not learn that nobody is left to give it any.
"""

import multiprocessing
import multiprocessing.connection
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection

POLL = 0.5  # seconds between two looks for a parent of which there is no pipe


def usable_cores() -> int:
    """The cores that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def end_with_parent(*lifelines: Connection) -> None:
    """Have this process end as soon as its parent has, or as one of these pipes is closed at the parent's end.

    A thread waits for that: the signal that Linux sends (PR_SET_PDEATHSIG) comes with the end of the parent's thread,
    and some workers are started by threads that end before them.
    """
    threading.Thread(target=_watch, args=(lifelines,), daemon=True, name="end-with-parent").start()


def pool(workers: int, *lifelines: Connection) -> ProcessPoolExecutor:
    """Return an executor of spawned processes that end with this one: a fork of one that has threads may hang.

    They end with `lifelines` too (`end_with_parent`). Raises OSError, with the fix, where the system has no semaphores.
    """
    try:
        return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), end_with_parent, lifelines)
    except OSError as error:
        why = f"{error.strerror}: worker processes need semaphores, so this has to be writable (docker: --shm-size=64m)"
        raise OSError(error.errno, why, "/dev/shm") from error


def end_with_launcher() -> None:
    """Have a process that torchrun or accelerate has started end with it; one started from a shell may outlive that."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()


def _watch(lifelines: tuple[Connection, ...]) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:  # its sentinel is a pipe that the system closes with it
        multiprocessing.connection.wait([parent.sentinel, *lifelines])
    else:
        started_by = os.getppid()
        while os.getppid() == started_by:
            time.sleep(POLL)
    os._exit(1)
