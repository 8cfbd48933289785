"""A command that takes a known amount: memory, a file that passes, and one that stays."""

import multiprocessing
import time
from pathlib import Path

LEFT, PASSING = 3_000_000, 20_000_000  # bytes
SECONDS = 1


def hold(megabytes: int, seconds: float) -> None:
    """Hold so much, every page of it touched."""
    held = bytearray(b"\1") * (megabytes << 20)
    time.sleep(seconds)
    del held


def main(arguments: list[str]) -> int:
    """Hold half here and half in a child; a file of 20 MB is there meanwhile, one of 3 MB stays."""
    megabytes, folder, status = int(arguments[0]), Path(arguments[1]), int(arguments[2])
    child = multiprocessing.get_context("spawn").Process(target=hold, args=(megabytes // 2, SECONDS))
    child.start()
    (folder / "passing").write_bytes(b"\1" * PASSING)
    hold(megabytes // 2, SECONDS)
    child.join()
    (folder / "passing").unlink()
    (folder / "left").write_bytes(b"\1" * LEFT)
    return status


def forked(_: list[str]) -> int:
    """Share memory with a child, as a fork has it."""
    held = bytearray(b"\1") * (200 << 20)
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(SECONDS,))
    child.start()
    child.join()
    return len(held) == 0
