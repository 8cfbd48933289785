"""One worker process: what it is given, what comes back, and how it ends."""

import contextlib
import multiprocessing
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, Literal

import psutil

from tcar.data.machine import fault_of
from tcar.ground.processes import end_with_parent

# How libraries are told to compute on one core: there is a process for every core.
_ONE_THREAD = {"cv2": "setNumThreads", "torch": "set_num_threads"}
_GRACE = 10.0  # seconds for a killed process to end; one that waits for a disk may not
# The states of a process that is kept from working, and by what.
_KEPT = {
    psutil.STATUS_DISK_SLEEP: "it waits for a disk that does not answer", psutil.STATUS_STOPPED: "it was stopped",
    psutil.STATUS_RUNNING: "other processes have the cores",
}  # fmt: skip


@dataclass(frozen=True)
class Failure:
    """What became of an item without a result: its worker died, took too long, or raised.

    Callers never see the kind "machine": the crew tries the item again, or raises MachineError.
    """

    kind: Literal["crashed", "timed out", "error", "machine"]
    detail: str


class WorkerProcess:
    """A process that does one item at a time; it is started by the first item, and anew by the next once it is dead."""

    _children = threading.Lock()  # multiprocessing keeps its list of them without one

    def __init__(self, function: Callable, limit: float | None):
        self._function, self._limit, self._process, self._ended = function, limit, None, False

    def do(self, item: Any) -> Any:
        """Return the result or a Failure; raises RuntimeError where the process cannot start."""
        content = ForkingPickler.dumps(item)
        while True:
            if self._process is None:
                self._start()
            try:
                self._connection.send_bytes(content)
                break
            except OSError:  # it died while it was idle, which is no fault of the item
                self.stop()
        spent = self._processor_time()
        try:
            if self._connection.poll(self._limit):
                return _received(self._connection)
        except (EOFError, OSError):  # the second, where it died in the middle of a message
            return Failure("crashed", f"the process ended with exit code {self.stop()}")
        failure = self._lateness(self._processor_time() - spent)
        self.stop()
        return failure

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        with self._children:
            if self._ended:
                raise RuntimeError("the crew was closed")
            process = context.Process(target=_serve, args=(other, self._function), daemon=True)
            process.start()
            self._process, self._seen = process, psutil.Process(process.pid)
        other.close()  # so that the death of the process reads as the end of the pipe
        try:
            _received(self._connection)
        except (EOFError, OSError):
            raise RuntimeError(
                f"a worker process could not start (exit code {self.stop()}); its error stands above. In a script, "
                'call this under `if __name__ == "__main__":`'
            ) from None

    def _lateness(self, spent: float) -> Failure:
        """Say whose fault a time-out is, the item's or the machine's, by the `spent` seconds of processor time."""
        with contextlib.suppress(psutil.Error):
            status = self._seen.status()
            if status in _KEPT and spent < self._limit / 2:
                return Failure("machine", f"a process got no further in {self._limit:g} s: {_KEPT[status]}")
        return Failure("timed out", f"no result within {self._limit:g} s")

    def _processor_time(self) -> float:
        with contextlib.suppress(psutil.Error):
            return sum(self._seen.cpu_times()[:2])
        return 0.0

    def end(self) -> None:
        """Kill the process, from any thread, and start no other."""
        with self._children:
            self._ended = True
            if self._process is not None:
                self._process.kill()

    def stop(self) -> int | None:
        """End the process, and return its exit code; one that died by itself has its own."""
        if (process := self._process) is None:
            return None
        self._connection.close()
        process.join(0.5)  # its pipe ends a little before it does
        with self._children:
            process.kill()
            self._process = None
        process.join(_GRACE)
        return process.exitcode


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
