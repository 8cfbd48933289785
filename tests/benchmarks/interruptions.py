"""SIGKILL for a whole extraction, worker processes and all, at random times; then the bytes are compared.

    python tests/benchmarks/interruptions.py                   one process with two workers, killed ten times
    python tests/benchmarks/interruptions.py --ranks 2         under torchrun, one rank killed each time

The tests do the same at chosen moments without worker processes; this is the real thing, and takes minutes.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from bright import FRAMES, GRID, Brightness, clip, contents  # noqa: E402
from videos import write_video  # noqa: E402

from tcar.data.views import SegmentView  # noqa: E402
from tcar.features import ExtractionSettings, FeatureStore, TokenSpec, extract, making  # noqa: E402

CLIPS, BATCH = 4000, 4


def work(folder: Path, name: str) -> list[FeatureStore]:
    """Extract all clips by two streams into a folder of this name; under torchrun, this rank's share of them."""
    clips = [clip(path) for path in sorted((folder / "videos").iterdir())]
    view = SegmentView(FRAMES, flip=0.5)
    wanted = [TokenSpec(partial(Brightness, scale), GRID, view) for scale in (1.0, 0.5)]
    return extract(clips, wanted, folder / name, ExtractionSettings(batch_clips=BATCH, workers=2, views=2))


def command(folder: Path, name: str, ranks: int) -> list[str]:
    """The same in a process of its own, or in several."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    return [sys.executable, *launcher, __file__, "--ranks", str(ranks), "--work", str(folder), name]


def records(folder: Path) -> int:
    """How many batches are done."""
    return sum(len(making.records(made)) for made in folder.glob("*"))


def victims(process: subprocess.Popen, ranks: int, dice: random.Random) -> list[psutil.Process]:
    """The process itself, or one rank of torchrun; its workers die with it or as orphans."""
    if ranks == 1:
        return [psutil.Process(process.pid)]
    found = [child for child in psutil.Process(process.pid).children() if "--work" in child.cmdline()]
    return [dice.choice(found)] if found else []


def main() -> None:
    """Run it, and say what happened at each kill."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", nargs=2)
    asked = parser.parse_args()
    if asked.work:
        work(Path(asked.work[0]), asked.work[1])
        return
    dice = random.Random(asked.seed)
    with tempfile.TemporaryDirectory(prefix="tcar-interruptions-") as name:
        folder = Path(name)
        (folder / "videos").mkdir()
        files = [write_video(folder / f"{n}.webm", 9 + n % 16, width=64, height=48) for n in range(20)]
        for number in range(CLIPS):
            (folder / "videos" / f"{number:04}.webm").symlink_to(files[number % len(files)])
        whole = {one.root.name: contents(one) for one in work(folder, "whole")}
        for kill in range(asked.kills):
            before = records(folder / "killed")
            process = subprocess.Popen(command(folder, "killed", asked.ranks), stderr=subprocess.DEVNULL)
            while process.poll() is None and records(folder / "killed") == before:
                time.sleep(0.02)  # until it works: starting takes longer than a few batches
            time.sleep(dice.uniform(0, 0.6))
            for victim in victims(process, asked.ranks, dice) if process.poll() is None else []:
                os.kill(victim.pid, signal.SIGKILL)
            code = process.wait()
            print(f"kill {kill + 1}: {before} to {records(folder / 'killed')} batches, exit code {code}", flush=True)
        done = subprocess.run(command(folder, "killed", asked.ranks), check=True, stderr=subprocess.DEVNULL)
        same = {made.name: contents(FeatureStore.open(made)) for made in (folder / "killed").iterdir()} == whole
        print(f"resumed with exit code {done.returncode}: {len(whole)} stores, "
              f"{'byte for byte the same' if same else 'NOT THE SAME'}")  # fmt: skip
        sys.exit(not same)


if __name__ == "__main__":
    main()
