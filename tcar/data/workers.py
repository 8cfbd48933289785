"""Worker processes in which one bad item can crash, hang or fail without ending the run.

What a machine does to an item is no fault of the item: one that died, hung or met a fault of the machine is tried once
more, alone, before it is judged.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import pickle
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, Literal

import psutil

from tcar.data.machine import MachineError, fault_of
from tcar.ground.processes import end_with_parent, usable_cores

# How the libraries that share their work out over all cores are told not to: there is a process for every core.
_ONE_THREAD = {"cv2": "setNumThreads", "torch": "set_num_threads"}
WAITING_BYTES = 2**15  # of an item that waits in the pipe of a busy process: beyond what a pipe takes, both would wait
PAUSE = 1.0  # seconds for the machine to recover before an item is tried again
_GRACE = 10.0  # seconds for a killed process to end; one that waits for a disk may not
# How a process that was kept from working stands there, and by what.
_KEPT = {
    psutil.STATUS_DISK_SLEEP: "it waits for a disk that does not answer", psutil.STATUS_STOPPED: "it was stopped",
    psutil.STATUS_RUNNING: "other processes have the cores",
}  # fmt: skip


@dataclass(frozen=True)
class Failure:
    """What became of an item without a result: its worker died, took too long, or raised.

    A fault of the machine is known to nobody but the crew, which tries again or raises MachineError.
    """

    kind: Literal["crashed", "timed out", "error", "machine"]
    detail: str


def worker_count(workers: int) -> int:
    """The number of processes meant: 0 stands for every core this process may use."""
    if workers < 0:
        raise ValueError(f"workers must be 0 (all cores) or more, got {workers}")
    return workers or usable_cores()


def isolated_map(
    function: Callable[[Any], Any], items: Iterable, *, workers: int = 0, time_limit: float | None = None
) -> Iterator[tuple[int, Any]]:
    """Yield (number of the item, result or Failure) as results arrive, from the processes of a `Crew`.

    A process ends as soon as nothing is left for it. Raises RuntimeError when a process cannot start at all, and
    MachineError as a crew does.
    """
    with Crew(function, workers=workers, time_limit=time_limit, early=True) as crew:
        for number, item in enumerate(items):
            crew.give(number, item)
        while crew.busy:
            yield from crew.collect()
            crew.dismiss()


class Crew:
    """Up to `workers` spawned processes (0: one for every core) that do one function for as long as the crew lives.

    A process does one item at a time, so a crash or a time-out (`time_limit` in seconds for one item) is that item's
    alone; the process is then replaced. Processes start when there is something for them, and compute on one thread
    each. An item without a result, but for an error of its own, is done once more with nothing beside it. `function`
    and the items must be picklable. For one thread at a time; `close`, or the end of `with`, ends all.

    early: while more items wait than there are processes, the next of a process waits in it already, so that it never
    waits for whoever collects; but behind a slow item, a quick one is late.
    """

    def __init__(
        self, function: Callable[[Any], Any], *, workers: int = 0, time_limit: float | None = None, early: bool = False
    ):
        self.size, self._function, self._limit, self._early = worker_count(workers), function, time_limit, early
        self._crew: list[_Worker] = []
        self._waiting: deque[tuple[int, Any]] = deque()
        self._doubted: deque[tuple[int, Any]] = deque()  # what is to be done a second time
        self._again: set[int] = set()  # the numbers of these, until they are judged

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @property
    def busy(self) -> bool:
        """Whether something was given whose outcome has not been collected."""
        held = (number for worker in self._crew for number, _ in worker.held)
        return bool(self._waiting or self._doubted) or any(number is not None for number in held)

    @property
    def processes(self) -> list[int]:
        """The ids of the processes that live, in no order that means anything."""
        return [worker.process.pid for worker in self._crew if not worker.stopped]

    def give(self, number: int, item: Any) -> None:
        """Add an item to those that wait for a process; `number` comes back with its outcome."""
        self._waiting.append((number, item))

    def collect(self, bell: Connection | None = None) -> list[tuple[int, Any]]:
        """Wait until something happens, and return the outcomes it brings: (number, result or Failure); maybe none.

        bell: what can be read from ends the wait too. Raises RuntimeError when a process cannot start at all, and
        MachineError where the machine keeps an item from being done at the second try too.
        """
        self._deal()
        living = [worker for worker in self._crew if not worker.stopped]
        watched = [worker.connection for worker in living] + ([bell] if bell is not None else [])
        if not watched:
            return []
        deadline = min((worker.deadline for worker in living), default=float("inf"))
        patience = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
        talking, outcomes = multiprocessing.connection.wait(watched, patience), []
        for worker in living:
            if worker.connection in talking:
                outcomes += worker.receive(self._limit)
            elif time.monotonic() > worker.deadline:
                outcomes += worker.outcome(worker.lateness(self._limit))
                worker.stop()
            if worker.stopped:  # what waited in it was never begun
                self._waiting.extendleft(reversed([held for held in worker.held if held[0] is not None]))
                worker.held.clear()
        outcomes = [(number, found) for number, item, found in outcomes if self._judged(number, item, found)]
        self._deal()  # what comes next is done while these outcomes are used
        return outcomes

    def _judged(self, number: int, item: Any, found: Any) -> bool:
        """Whether an outcome is final; else the item is tried again."""
        failed = isinstance(found, Failure) and found.kind != "error"
        if failed and number not in self._again:
            if found.kind == "machine":
                time.sleep(PAUSE)
            self._again.add(number)
            self._doubted.append((number, item))
            return False
        self._again.discard(number)
        if failed and found.kind == "machine":
            raise MachineError(f"{found.detail}; this is the machine's fault: mend it, and the same call goes on")
        return True

    def forget(self) -> None:
        """Drop what waits; what processes hold is done to its end, within its time, and its outcome thrown away."""
        self._waiting.clear()
        self._doubted.clear()
        self._again.clear()
        for worker in self._crew:
            worker.held = deque((None, None) for _ in worker.held)

    def dismiss(self) -> None:
        """End the processes for which nothing is left."""
        if not self._waiting and not self._doubted:
            for worker in self._crew:
                if not worker.stopped and not worker.held:
                    worker.stop()

    def close(self) -> None:
        """End all processes, whatever they hold; what is given afterwards starts new ones."""
        self.forget()
        for worker in self._crew:
            worker.stop()
        self._crew.clear()

    def _deal(self) -> None:
        waiting, most = (self._doubted, 1) if self._again else (self._waiting, self.size)
        for worker in self._crew:
            if waiting and worker.ready and not worker.held and sum(bool(other.held) for other in self._crew) < most:
                if worker.give(*waiting[0], self._limit):
                    waiting.popleft()
                else:
                    worker.stop()  # it died while it had nothing to do, which is no fault of the item
        for worker in self._crew if self._early and not self._again else ():
            # The last ones are kept for whoever has nothing to do first.
            if (
                len(waiting) > self.size
                and worker.ready
                and len(worker.held) == 1
                and worker.give(*waiting[0], self._limit)
            ):
                waiting.popleft()
        starting = sum(not worker.ready and not worker.stopped for worker in self._crew)
        free = most - sum(not worker.stopped for worker in self._crew)
        for _ in range(min(free, len(waiting) - starting)):
            stopped = next((worker for worker in self._crew if worker.stopped), None)
            if stopped is not None:
                self._crew.remove(stopped)
            self._crew.append(_Worker(self._function))


class _Worker:
    """One process and the items it holds, of which it does the first; the number of one that nobody wants is None."""

    def __init__(self, function: Callable):
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, function), daemon=True)
        self.process.start()
        self._seen = psutil.Process(self.process.pid)
        other.close()  # so that the death of the process reads as the end of the pipe
        self.stopped = self.ready = False
        self.held: deque[tuple[int | None, Any]] = deque()
        self.deadline, self._spent = float("inf"), 0.0

    def give(self, number: int, item: Any, limit: float | None) -> bool:
        """Hand an item over; False where the process has died meanwhile, or is busy and the item too large to wait."""
        content = ForkingPickler.dumps(item)
        if self.held and len(content) > WAITING_BYTES:
            return False
        try:
            self.connection.send_bytes(content)
        except OSError:
            return False
        self.held.append((number, item))
        if len(self.held) == 1:
            self._begin(limit)
        return True

    def _begin(self, limit: float | None) -> None:
        self._spent = self._processor_time()
        self.deadline = float("inf") if limit is None else time.monotonic() + limit

    def receive(self, limit: float | None) -> list[tuple[int, Any, Any]]:
        try:
            message = _received(self.connection)
        except (EOFError, OSError):  # the second, where it died in the middle of a message
            return self._death()
        if not self.ready:
            self.ready = True
            return []
        outcomes = self.outcome(message)
        if self.held:
            self._begin(limit)
        return outcomes

    def outcome(self, found: Any) -> list[tuple[int, Any, Any]]:
        """Number and item of the first that it holds, and what becomes of it, where somebody wants that."""
        self.deadline = float("inf")
        number, item = self.held.popleft() if self.held else (None, None)
        return [] if number is None else [(number, item, found)]

    def lateness(self, limit: float) -> Failure:
        """Why there is no result in time: the item's fault, but where the process was kept from working on it."""
        with contextlib.suppress(psutil.Error):
            status = self._seen.status()
            if status in _KEPT and self._processor_time() - self._spent < limit / 2:
                return Failure("machine", f"a process got no further in {limit:g} s: {_KEPT[status]}")
        return Failure("timed out", f"no result within {limit:g} s")

    def _processor_time(self) -> float:
        with contextlib.suppress(psutil.Error):
            spent = self._seen.cpu_times()
            return spent.user + spent.system
        return 0.0

    def _death(self) -> list[tuple[int, Any, Any]]:
        self.process.join()
        code = self.process.exitcode
        if not self.ready:
            raise RuntimeError(
                f"a worker process could not start (exit code {code}); its error stands above. In a script, "
                'call this under `if __name__ == "__main__":`'
            )
        outcomes = self.outcome(Failure("crashed", f"the process ended with exit code {code}"))
        self.stop()
        return outcomes

    def stop(self) -> None:
        self.stopped, self.ready, self.deadline = True, False, float("inf")
        self.connection.close()
        self.process.kill()
        self.process.join(_GRACE)


def _serve(connection: Connection, function: Callable) -> None:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers an interrupt, and stops its workers
    for module, limit in _ONE_THREAD.items():
        if module in sys.modules:  # with the function, whatever it needs has come in
            getattr(sys.modules[module], limit)(1)
    _send(connection, "ready")
    while True:
        try:
            item = connection.recv()
        except (EOFError, OSError):  # nobody is there any more
            return
        try:
            outcome = function(item)
        except Exception as error:
            fault = fault_of(error)
            outcome = Failure("machine", str(fault)) if fault else Failure("error", traceback.format_exc())
        _send(connection, outcome)


def _send(connection: Connection, outcome: Any) -> None:
    """Arrays come after the rest, as they lie in memory (PEP 574): within it, frames would be copied at both ends."""
    arrays: list[pickle.PickleBuffer] = []
    rest = pickle.dumps(outcome, 5, buffer_callback=arrays.append)
    views = [array.raw() for array in arrays]
    connection.send((rest, [view.nbytes for view in views]))
    for view in views:
        connection.send_bytes(view)


def _received(connection: Connection) -> Any:
    rest, sizes = connection.recv()
    arrays = [bytearray(size) for size in sizes]
    for array in arrays:
        connection.recv_bytes_into(array)
    return pickle.loads(rest, buffers=arrays)
