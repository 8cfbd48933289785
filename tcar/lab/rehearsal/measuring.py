"""What a process and all that it starts take: time, memory of the whole tree, disk."""

import importlib
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from tcar.ground.processes import end_with_parent
from tcar.lab import results

INTERVAL = 1.0  # seconds between two looks at the memory
LOOKS = 10  # of these between two looks at the disk, which has more to count


@dataclass
class Taken:
    """What a step has taken so far, over all attempts at it; a killed attempt counts up to the last look.

    `memory` is the most bytes that its processes held at one moment, `disk` the bytes that it left, `most` the most
    that were there of it at one moment. `last` are the seconds of the last attempt.
    """

    seconds: float = 0.0
    last: float = 0.0
    memory: int = 0
    disk: int = 0
    most: int = 0
    attempts: int = 0
    finished: bool = False

    def and_of(self, watch: "Watch", finished: bool = False) -> "Taken":
        """Return this with what one more attempt has taken, as it is watched."""
        grown = watch.disk - watch.at_first
        return Taken(
            seconds=self.seconds + watch.seconds,
            last=watch.seconds,
            memory=max(self.memory, watch.peak),
            disk=self.disk + grown,
            most=max(self.most, self.disk + watch.largest - watch.at_first),
            attempts=self.attempts + 1,
            finished=finished,
        )


class Watch(threading.Thread):
    """Looks at a process tree every `interval` seconds, and at a folder where one is given, until it is stopped; `note`
    is told now and then.

    The memory of a process is its share of what it holds together with others (PSS) where the system tells it, else
    what is resident (RSS), which counts shared pages once for each.
    """

    def __init__(
        self, process: int, folder: Path | None = None, note: Callable[["Watch"], None] = lambda _: None,
        interval: float = INTERVAL,
    ):  # fmt: skip
        super().__init__(daemon=True, name="watch")
        self.interval = interval
        self.process, self.folder, self.note = psutil.Process(process), folder, note
        self.began, self.peak = time.monotonic(), 0
        self.at_first = self.disk = self.largest = occupied(folder) if folder else 0
        self._ended = threading.Event()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began

    def run(self) -> None:
        """Look until `stop`."""
        look = 0
        while True:
            self.peak, look = max(self.peak, memory(self.process)), look + 1
            if look % LOOKS == 0:
                self._disk()
                self.note(self)
            if self._ended.wait(self.interval):
                return

    def stop(self) -> "Watch":
        """Look at the disk for the last time, and end."""
        self._ended.set()
        self.join()
        self._disk()
        return self

    def _disk(self) -> None:
        if self.folder:
            self.disk = occupied(self.folder)
            self.largest = max(self.largest, self.disk)


def memory(root: psutil.Process) -> int:
    """Return the bytes of a process and of all that it has started; what ends meanwhile counts nothing."""
    total, tree = 0, [root]
    with suppress(psutil.Error):
        tree += root.children(recursive=True)
    for process in tree:
        with suppress(psutil.Error):
            held = process.memory_full_info()
            total += getattr(held, "pss", held.rss)
    return total


def memory_kind() -> str:
    """Return what `memory` adds up here: "PSS" or "RSS"."""
    return "PSS" if hasattr(psutil.Process().memory_full_info(), "pss") else "RSS"


def occupied(folder: Path) -> int:
    """Return the bytes that a folder takes of the disk: a file with two names once, holes not at all."""
    blocks: dict[tuple[int, int], int] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                about = os.lstat(Path(parent, name))
                blocks[about.st_dev, about.st_ino] = about.st_blocks
    return 512 * sum(blocks.values())


def taken(file: Path) -> Taken:
    """Return what was noted of a step; nothing where there is no such file."""
    return Taken(**results.load(file)) if file.is_file() else Taken()


def measured(module: str, arguments: list[str], folder: Path, file: Path) -> int:
    """Run the command of a module in a process of its own, which ends with this one, and note what it takes.

    folder: whose bytes on the disk count. file: where the notes are kept, to which those of this attempt are added.
    Returns the exit status.
    """
    before = taken(file)
    process = multiprocessing.get_context("spawn").Process(target=_command, args=(module, arguments))
    process.start()
    watch = Watch(process.pid, folder, lambda watch: results.write(file, asdict(before.and_of(watch))))
    watch.start()
    try:
        process.join()
    finally:
        watch.stop()
        results.write(file, asdict(before.and_of(watch, finished=process.exitcode == 0)))
    return process.exitcode


def _command(module: str, arguments: list[str]) -> None:
    end_with_parent()
    sys.exit(importlib.import_module(module).main(arguments))
