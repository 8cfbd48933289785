"""Worker processes in which one bad item can crash, hang or fail without ending the run."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Failure:
    """What became of an item without a result: its worker died, took too long, or raised."""

    kind: Literal["crashed", "timed out", "error"]
    detail: str


def worker_count(workers: int) -> int:
    """The number of processes meant: 0 stands for every core this process may use."""
    if workers < 0:
        raise ValueError(f"workers must be 0 (all cores) or more, got {workers}")
    return workers or len(os.sched_getaffinity(0))


def isolated_map(
    function: Callable[[Any], Any], items: Iterable, *, workers: int = 0, time_limit: float | None = None
) -> Iterator[tuple[int, Any]]:
    """Yield (number of the item, result or Failure) as results arrive, from spawned processes.

    A process holds one item at a time, so a crash or a time-out (`time_limit` in seconds for one item) is
    that item's alone; the process is then replaced. `function` and the items must be picklable. Raises
    RuntimeError when a process cannot start at all.
    """
    waiting = deque(enumerate(items))
    crew = [_Worker(function) for _ in range(min(worker_count(workers), len(waiting)))]
    try:
        while crew:
            for worker in list(crew):
                if worker.idle and not waiting:
                    worker.stop()
                    crew.remove(worker)
                elif worker.stopped:
                    worker.start()
                elif worker.idle:
                    worker.give(waiting.popleft(), time_limit)
            yield from _collect(crew)
    finally:
        for worker in crew:
            worker.stop()


def _collect(crew: list["_Worker"]) -> list[tuple[int, Any]]:
    """Wait for the next message, death or deadline, and return the outcomes it brings."""
    if not crew:
        return []
    deadline = min(worker.deadline for worker in crew)
    patience = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
    talking = multiprocessing.connection.wait([worker.connection for worker in crew], patience)
    outcomes = []
    for worker in crew:
        if worker.connection in talking:
            outcomes += worker.receive()
        elif time.monotonic() > worker.deadline:
            outcomes.append((worker.item, Failure("timed out", f"no result within {worker.limit:g} s")))
            worker.stop()
    return outcomes


class _Worker:
    """One process and the item it holds."""

    def __init__(self, function: Callable):
        self.function = function
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, self.function), daemon=True)
        self.process.start()
        other.close()  # so that the death of the process reads as the end of the pipe
        self.stopped, self.ready = False, False
        self.item, self.deadline, self.limit = None, float("inf"), None

    def give(self, numbered: tuple[int, Any], time_limit: float | None) -> None:
        self.item, self.limit = numbered[0], time_limit
        self.deadline = float("inf") if time_limit is None else time.monotonic() + time_limit
        # A process that died between two items has left a closed pipe, which is read next.
        with suppress(BrokenPipeError):
            self.connection.send(numbered[1])

    def receive(self) -> list[tuple[int, Any]]:
        try:
            message = self.connection.recv()
        except (EOFError, ConnectionResetError):
            return [self._death()]
        if not self.ready:
            self.ready = True
            return []
        outcome = (self.item, message)
        self.item, self.deadline = None, float("inf")
        return [outcome]

    def _death(self) -> tuple[int, Failure]:
        self.process.join()
        code = self.process.exitcode
        if not self.ready:
            raise RuntimeError(
                f"a worker process could not start (exit code {code}); its error stands above. In a script, "
                'call this under `if __name__ == "__main__":`'
            )
        outcome = (self.item, Failure("crashed", f"the process ended with exit code {code}"))
        self.stop()
        return outcome

    @property
    def idle(self) -> bool:
        return self.stopped or (self.ready and self.item is None)

    def stop(self) -> None:
        self.stopped = True
        self.connection.close()
        self.process.kill()
        self.process.join()


def _serve(connection, function: Callable) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers an interrupt, and stops its workers
    connection.send("ready")
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        try:
            outcome = function(item)
        except Exception:
            outcome = Failure("error", traceback.format_exc())
        connection.send(outcome)
