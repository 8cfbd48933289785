"""What a process and all that it starts take: time, memory of the whole tree, disk."""

import importlib
import multiprocessing
import os
import sys
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


@dataclass(frozen=True)
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


class Watch:
    """Looks at a process tree, and at a folder where one is given, until the process ends.

    `peak` is the most memory seen. That of a process is its share of what it holds together with others (PSS) where the
    system tells it, else what is resident (RSS), which counts shared pages once for each.
    """

    def __init__(self, folder: Path | None = None):
        self.folder, self.began, self.peak = folder, time.monotonic(), 0
        self.at_first = self.disk = self.largest = occupied(folder) if folder else 0

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began

    def follow(self, process, interval: float | None = None, note: Callable[[], None] = lambda: None) -> None:
        """Look every `interval` seconds until a process of multiprocessing ends; `note` is told now and then."""
        tree, looks = psutil.Process(process.pid), 0
        while process.exitcode is None:
            self.peak, looks = max(self.peak, memory(tree)), looks + 1
            if looks % LOOKS == 0:
                self.look_at_disk()
                note()
            process.join(interval or INTERVAL)

    def look_at_disk(self) -> None:
        """Count what the folder takes."""
        if self.folder:
            self.disk = occupied(self.folder)
            self.largest = max(self.largest, self.disk)

    def added_to(self, before: Taken, finished: bool = False) -> Taken:
        """What earlier attempts have taken, and this one with them."""
        return Taken(
            seconds=before.seconds + self.seconds,
            last=self.seconds,
            memory=max(before.memory, self.peak),
            disk=before.disk + self.disk - self.at_first,
            most=max(before.most, before.disk + self.largest - self.at_first),
            attempts=before.attempts + 1,
            finished=finished,
        )


def memory(root: psutil.Process) -> int:
    """The bytes of a process and of all that it has started; what ends meanwhile counts nothing."""
    total, tree = 0, [root]
    with suppress(psutil.Error):
        tree += root.children(recursive=True)
    for process in tree:
        with suppress(psutil.Error):
            held = process.memory_full_info()
            total += getattr(held, "pss", held.rss)
    return total


def memory_kind() -> str:
    """What `memory` adds up here: "PSS" or "RSS"."""
    return "PSS" if hasattr(psutil.Process().memory_full_info(), "pss") else "RSS"


def occupied(folder: Path) -> int:
    """The bytes that a folder takes of the disk: a file with two names once, holes not at all."""
    blocks: dict[tuple[int, int], int] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                about = os.lstat(Path(parent, name))
                blocks[about.st_dev, about.st_ino] = about.st_blocks
    return 512 * sum(blocks.values())


def taken(file: Path) -> Taken:
    """What was noted of a step; nothing where there is no such file."""
    return Taken(**results.load(file)) if file.is_file() else Taken()


def run_measured(module: str, arguments: list[str], folder: Path, file: Path) -> int:
    """Run the command of a module in a process of its own, which ends with this one, and note what it takes.

    folder: whose bytes on the disk count. file: where the notes are kept, to which those of this attempt are added.
    Returns the exit status.
    """
    before, watch = taken(file), Watch(folder)
    process = multiprocessing.get_context("spawn").Process(target=_command, args=(module, arguments))
    process.start()
    try:
        watch.follow(process, note=lambda: results.write(file, asdict(watch.added_to(before))))
    finally:
        watch.look_at_disk()
        results.write(file, asdict(watch.added_to(before, finished=process.exitcode == 0)))
    return process.exitcode


def _command(module: str, arguments: list[str]) -> None:
    end_with_parent()
    sys.exit(importlib.import_module(module).main(arguments))
