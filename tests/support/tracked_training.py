"""A process that writes rows as a training does: `python tracked_training.py FOLDER ROWS [BYTES]`.

It says every row that it has written. BYTES: no file may become larger, as on a full disk.
"""

import resource
import sys
from pathlib import Path

from tcar.train.tracking import CsvTracker


def row(step: int) -> dict[str, float]:
    """A row whose every value tells its step."""
    return {"step": step, "epoch": step / 10, "loss": step / 7, "gradient_norm": step * 1e-9}


if __name__ == "__main__":
    tracker = CsvTracker(Path(sys.argv[1]))
    tracker.start({"name": "x", "parameters": {}, "step": 0})
    if len(sys.argv) > 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
    for number in range(1, int(sys.argv[2]) + 1):
        tracker.step(row(number))
        print(number, flush=True)
    tracker.end("finished")
