"""How the loader grows from one process to two, side by side in one run, and what its own process adds to the reading.

On two cores the second process has what the first and this one leave. So the ratio is also told from processor time
alone, which others on the machine do not change: reading over reading and loading, times two.
"""

import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from videos import write_video

from tcar.data.clip_views import ClipViews
from tcar.data.loader import Loader
from tcar.data.ssv2 import Clip
from tcar.data.views import AugmentConfig
from tcar.ground.processes import usable_cores

AUGMENTED = AugmentConfig(224, (0.5, 1.0), flip=0.5)
CASES = {  # frames, width, height, reader, first epoch (0: not varied), clips in a round
    "tabletop": (40, 160, 120, ClipViews((8,), 112, False, AUGMENTED, {}, 0), 0, 256),
    "ssv2": (48, 432, 240, ClipViews((16,), 224, False, AUGMENTED, {}, 0), 0, 64),
    "ssv2, both streams, augmented": (48, 432, 240, ClipViews((8, 16), 224, False, AUGMENTED, {}, 0), 1, 64),
}
ROUNDS, BATCH = 5, 16


def measure(folder: Path, name: str) -> str:
    """Rounds in turn of two loaders whose processes run already; one line to print."""
    frames, width, height, read, first, count = CASES[name]
    files = [write_video(folder / f"{n}.webm", frames, width=width, height=height) for n in range(8)]
    clips = [Clip(str(n), files[n % 8], 0, "", "", ()) for n in range(count)]
    groups = [clips[start : start + BATCH] for start in range(0, count, BATCH)]
    own, ratios, rates, shares, loads = psutil.Process(), [], {1: [], 2: []}, [], []
    with Loader(read, workers=1, ahead=2 * BATCH) as one, Loader(read, workers=2, ahead=2 * BATCH) as two:
        crews, known = {}, set()
        for workers, loader in ((1, one), (2, two)):
            list(loader.groups(groups[:2], epoch=first))
            crews[workers] = [psutil.Process(child.pid) for child in set(multiprocessing.active_children()) - known]
            known = set(multiprocessing.active_children())
        for number in range(ROUNDS):
            for workers, loader in ((1, one), (2, two))[:: 1 if number % 2 else -1]:
                crew = crews[workers]
                began, spent = time.perf_counter(), [seconds([own]), seconds(crew)]
                read_clips = sum(len(loaded.offsets) for loaded in loader.groups(groups, epoch=first * (number + 1)))
                assert read_clips == count, loader.broken
                rates[workers].append(count / (time.perf_counter() - began))
                loading, reading = seconds([own]) - spent[0], seconds(crew) - spent[1]
                if workers == 2:
                    shares.append(2 * reading / (reading + loading))
            ratios.append(rates[2][-1] / rates[1][-1])
            loads.append(os.getloadavg()[0])
    return (
        f"{name}: 2 processes give {statistics.median(ratios):.2f} times the clips per second of 1 "
        f"({min(ratios):.2f} to {max(ratios):.2f} in {ROUNDS} rounds; {statistics.median(rates[1]):.0f} and "
        f"{statistics.median(rates[2]):.0f} clips/s); by processor time {statistics.median(shares):.2f} can be had on "
        f"2 cores; load average {min(loads):.1f} to {max(loads):.1f} on {usable_cores()} cores"
    )


def seconds(processes: list[psutil.Process]) -> float:
    """The processor time of processes, in seconds."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


@pytest.mark.parametrize("name", CASES)
def test_scaling_from_one_process_to_two(name, tmp_path, capsys):
    """In a process without the type checker of the tests."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "support")}
    done = subprocess.run([sys.executable, __file__, str(tmp_path), name], env=environment, capture_output=True,
                          text=True, check=True)  # fmt: skip
    with capsys.disabled():
        print(f"\n{done.stdout.strip()}")


if __name__ == "__main__":
    print(measure(Path(sys.argv[1]), sys.argv[2]))
