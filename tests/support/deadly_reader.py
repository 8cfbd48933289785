"""A reader for worker processes, which import it: nothing heavy here."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Told:
    """Reads no file: gives the number that a clip's id is and the epoch, or does what is told of that id.

    What it can be told: "exit", "hang", "raise", "name" (a reason), "slow" and "wait" (until a file of that id is in
    `folder`). With a `folder`, a file of every clip that was begun is left there.
    """

    acts: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None

    def __call__(self, item):
        clip, epoch = item
        act = self.acts.get(clip.id)
        if self.folder is not None:
            with (self.folder / "begun").open("a") as file:
                file.write(f"{clip.id} {os.getpid()}\n")
        if act == "exit":
            os._exit(1)
        if act == "hang":
            time.sleep(600)
        if act == "raise":
            raise RuntimeError("a bug")
        if act == "name":
            return "truncated"
        if act == "slow":
            time.sleep(0.3)
        while act == "wait" and not (self.folder / clip.id).exists():
            time.sleep(0.01)
        return np.full((2, 3), int(clip.id) % 251, np.uint8), 10 * int(clip.id) + epoch


def same(item):
    """Give an item back, or what it makes."""
    return item() if callable(item) else item
