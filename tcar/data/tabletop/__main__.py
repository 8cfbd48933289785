"""Tabletop of any size, written to a folder for use by other code.

    python -m tcar.data.tabletop FOLDER --clips 2000
    python -m tcar.data.tabletop FOLDER --clips 100000 --plan      what it takes, measured on a few sets
    python -m tcar.data.tabletop FOLDER --clips 100000 --limit 1000

A call that was cut off goes on where it ended. The folder holds a data sheet.
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from pathlib import Path

from ... import log
from ..workers import worker_count
from .controls import CONTROLS
from .dataset import SPLITS, Look, chosen_families, plan_sets, render_dataset
from .stage import DIFFICULTY

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
MEASURED_CLIPS = 128


def sets_for(clips: int, classes: list[int]) -> dict[str, int]:
    """How many sets of each twin family make about `clips` clips, 80 : 10 : 10; at least one in each split."""
    a_set = sum(len(family.classes) for family in chosen_families(classes))
    return {split: max(1, round(clips * share / a_set)) for split, share in SHARES.items()}


def plan(counts: dict[str, int], classes: list[int], look: Look, seed: int, workers: int) -> str:
    """Say how many clips, bytes and minutes a rendering takes, from a few sets that are rendered for it."""
    families = chosen_families(classes)
    clips = sum(len(p.ids) for p in plan_sets(families, counts, seed))
    a_set = sum(len(family.classes) for family in families)
    sample = {"train_sets": max(1, MEASURED_CLIPS // a_set), "validation_sets": 1, "test_sets": 1}
    with tempfile.TemporaryDirectory(prefix="tcar-tabletop-") as folder:
        began = time.perf_counter()
        render_dataset(folder, **sample, classes=classes, look=look, seed=seed, workers=workers)
        seconds = time.perf_counter() - began
        videos = [path.stat().st_size for path in Path(folder, "videos").iterdir()]
        whole = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    rate, count = len(videos) / seconds, len(videos)
    lines = {
        "clips": f"{clips:,} ({', '.join(f'{counts[s]:,} sets of each family in {s}' for s in SPLITS)})",
        "measured": f"{count} clips in {seconds:.1f} s with {worker_count(workers)} processes: {rate:.1f} clips/s",
        "videos": f"{sum(videos) / count * clips / 1e9:.2f} GB ({sum(videos) / count / 1e3:.1f} kB each)",
        "with ground truth": f"{whole / count * clips / 1e9:.2f} GB",
        "time": f"{clips / rate / 60:.0f} minutes",
    }
    return "\n".join(f"{name:<18}{text}" for name, text in lines.items())


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 2 for a request that cannot be met."""
    parser = argparse.ArgumentParser(prog="python -m tcar.data.tabletop", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=2000, help="about how many, over all splits")
    parser.add_argument("--classes", type=int, nargs="*", default=[], help="of the real list; all 32 if left out")
    parser.add_argument("--width", type=int, default=160, help="pixels; the height follows (4:3)")
    parser.add_argument("--frame-rate", type=int, default=12)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(Look().lengths), help="frames, even")
    parser.add_argument("--difficulty", choices=DIFFICULTY, default="standard")
    parser.add_argument("--control", choices=CONTROLS, default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 = one for every core")
    parser.add_argument("--plan", action="store_true", help="render nothing, say what it takes")
    parser.add_argument("--limit", type=int, default=0, help="stop after so many clips; a later call goes on")
    asked = parser.parse_args(arguments)
    log.configure()
    try:
        height = asked.width * 3 // 4
        look = Look(asked.width, height, asked.frame_rate, tuple(asked.lengths), asked.difficulty, asked.control)
        counts = sets_for(asked.clips, asked.classes)
        if asked.plan:
            print(plan(counts, asked.classes, look, asked.seed, asked.workers))
            return 0
        given = {f"{split}_sets": count for split, count in counts.items()} | {"classes": asked.classes, "look": look}
        render_dataset(asked.folder, **given, seed=asked.seed, workers=asked.workers, limit=asked.limit)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    done = sum(1 for _ in (asked.folder / "videos").glob("*.webm"))
    log.get(__name__).info(f"{asked.folder}: {done:,} clips, {dataclasses.asdict(look)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
