"""Worker processes in which one bad item can crash, hang or fail without ending the run.

An item whose process died, hung or met a fault of the machine is tried once more, alone, before it is judged. Each
process has a pipe of its own: where one dies while it sends, the pools of pebble (5.2.3), concurrent.futures and torch,
whose processes share a pipe, lose the results of the others or wait for ever.
"""

import atexit
import contextlib
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from queue import SimpleQueue
from typing import Any

from tcar.data.machine import MachineError
from tcar.data.worker_process import Failure, WorkerProcess
from tcar.ground.processes import usable_cores

PAUSE = 1.0  # seconds for the machine to recover before an item is tried again


def worker_count(workers: int) -> int:
    """The number of processes meant: 0 stands for every core this process may use."""
    if workers < 0:
        raise ValueError(f"workers must be 0 (all cores) or more, got {workers}")
    return workers or usable_cores()


def isolated_map(
    function: Callable[[Any], Any], items: Iterable, *, workers: int = 0, time_limit: float | None = None
) -> Iterator[tuple[int, Any]]:
    """Yield (number of the item, result or Failure) as results arrive, from the processes of a `Crew`.

    At most one item more than there are processes is in work or done and not yet yielded. Raises RuntimeError when a
    process cannot start at all, and MachineError as a crew does.
    """
    with Crew(function, workers=workers, time_limit=time_limit) as crew:
        numbered, left = enumerate(items), 0
        for number, item in islice(numbered, crew.size + 1):
            crew.give(number, item)
            left += 1
        while left:
            outcome = crew.collect()
            for number, item in islice(numbered, 1):
                crew.give(number, item)
                left += 1
            left -= 1
            yield outcome


class Crew:
    """Up to `workers` spawned processes (0: one for every core) that apply one function to items.

    A process does one item at a time, so a crash or a time-out (`time_limit` in seconds for one item) is that item's
    alone; the process is then replaced. Processes start when there is an item for them, and compute on one thread
    each. An item that crashed, timed out or met a fault of the machine is done once more with nothing beside it.
    `function` and the items must be picklable. A thread here serves each process. `close` or leaving `with` ends all.
    """

    def __init__(self, function: Callable[[Any], Any], *, workers: int = 0, time_limit: float | None = None):
        self.size, self._function, self._limit = worker_count(workers), function, time_limit
        self._change = threading.Condition()  # of all that follows
        self._waiting: deque[tuple[int, Any]] = deque()
        self._outcomes: SimpleQueue = SimpleQueue()  # another one after each `forget`
        self._workers: dict[WorkerProcess, threading.Thread] = {}
        self._idle = self._running = self._doubted = 0  # threads without an item, items being done, and to be alone
        self._closed = False
        _CREWS.add(self)

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def give(self, number: int, item: Any) -> None:
        """Add an item to those that wait for a process; `number` comes back with its outcome."""
        with self._change:
            self._closed = False
            self._waiting.append((number, item))
            if len(self._waiting) > self._idle and len(self._workers) < self.size:
                worker = WorkerProcess(self._function, self._limit)
                self._workers[worker] = threading.Thread(target=self._serve, args=(worker,), daemon=True, name="crew")
                self._workers[worker].start()
                self._idle += 1
            self._change.notify_all()

    def collect(self) -> tuple[int, Any] | None:
        """Wait for an outcome: the number of its item and the result or Failure; None once all was forgotten.

        Raises RuntimeError when a process cannot start at all, and MachineError where the machine keeps an item from
        being done at the second try too.
        """
        outcome = self._outcomes.get()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def forget(self) -> None:
        """Drop the items that wait; those in work are finished, and their outcomes thrown away."""
        with self._change:
            self._waiting.clear()
            self._outcomes.put(None)  # for whoever waits there
            self._outcomes = SimpleQueue()

    def close(self) -> None:
        """Kill all processes; an item given afterwards starts new ones."""
        with self._change:
            self.forget()
            self._closed = True
            workers, self._workers = self._workers, {}
            self._change.notify_all()
        for worker in workers:
            worker.end()
        for thread in workers.values():
            if thread is not threading.current_thread():  # the garbage collector may call this there
                thread.join()
        self._idle = 0

    # --- in the threads ----------------------------------------------------------------------------------

    def _serve(self, worker: WorkerProcess) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    break
                (number, item), outcomes = self._waiting.popleft(), self._outcomes
                self._idle -= 1
            try:
                outcome = number, self._judged(worker, item, outcomes)
            except BaseException as error:  # for whoever collects, in his thread
                outcome = error
            with self._change:
                self._idle += 1
            outcomes.put(outcome)
        worker.stop()

    def _judged(self, worker: WorkerProcess, item: Any, outcomes: SimpleQueue) -> Any:
        """Return the outcome of an item, at a second try where the first failed and it is still asked for."""
        with self._turn(alone=False):
            found = worker.do(item)
        if not isinstance(found, Failure) or found.kind == "error" or outcomes is not self._outcomes:
            return found
        if found.kind == "machine":
            time.sleep(PAUSE)
        with self._turn(alone=True):
            found = worker.do(item)
        if isinstance(found, Failure) and found.kind == "machine":
            raise MachineError(f"{found.detail}; this is the machine's fault: mend it, and the same call goes on")
        return found

    @contextlib.contextmanager
    def _turn(self, alone: bool) -> Iterator[None]:
        """Wait until an item may be done: beside others, or with nothing beside it."""
        with self._change:
            self._doubted += alone
            self._change.wait_for(lambda: not (self._running if alone else self._doubted))
            self._running += 1
        try:
            yield
        finally:
            with self._change:
                self._running -= 1
                self._doubted -= alone
                self._change.notify_all()


_CREWS: weakref.WeakSet[Crew] = weakref.WeakSet()


@atexit.register  # before multiprocessing kills the processes, which the threads would replace
def _close_all() -> None:
    for crew in list(_CREWS):
        crew.close()
