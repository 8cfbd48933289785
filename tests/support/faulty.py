"""What worker processes of tests do wrong, which they import: nothing heavy here."""

import errno
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

DYING = -1


def sent(number: int):
    """Give an array; of DYING one so large that the process is killed while it is on its way."""
    import numpy as np

    if number == DYING:
        threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return np.zeros(2 * 10**8 if number == DYING else 1, np.uint8)


@dataclass(frozen=True)
class Faulty:
    """Gives the name of an item in capitals, once it has done to its process what the item says, so many times.

    An item is "name", or "name what times", where what is the number of an error, "die", "stall" or "hang".
    """

    folder: Path

    def __call__(self, item: str) -> str:
        name, what, times = (*item.split(), "", "0")[:3]
        sign = self.folder / name
        before = len(sign.read_text()) if sign.exists() else 0
        sign.write_text("x" * (before + 1))
        beside = sum(path.suffix == ".now" for path in self.folder.iterdir())
        if before:
            (self.folder / "beside").write_text(str(beside))
        (now := self.folder / f"{name}.now").touch()
        if before < int(times):
            now.unlink()
            if what == "hang":
                time.sleep(60)
            if what in ("die", "stall"):
                os.kill(os.getpid(), signal.SIGKILL if what == "die" else signal.SIGSTOP)
            raise OSError(int(what), os.strerror(int(what)), f"/disk/of/{name}")
        time.sleep(0.05)
        now.unlink()
        return name.upper()


@dataclass(frozen=True)
class StaleClip:
    """Checks clips as the audit does; of this id the file handle is stale."""

    name: str

    def __call__(self, clip):
        from tcar.data.health import check_within_limits

        if clip.id == self.name:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(clip.path))
        return check_within_limits(clip)
