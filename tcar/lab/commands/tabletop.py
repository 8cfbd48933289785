"""Render Tabletop, the synthetic benchmark, to a folder, in any size, for use by other code.

A call that was cut off goes on where it ended. The folder holds a data sheet.
"""

import argparse
from pathlib import Path

from tcar.ground import log
from tcar.ground.errors import ParameterError
from tcar.tabletop.controls import CONTROLS
from tcar.tabletop.dataset import APPEARANCE, check, render_dataset
from tcar.tabletop.settings import TabletopSettings
from tcar.tabletop.sizes import plan, sets_for
from tcar.tabletop.stage import DIFFICULTY

EXAMPLE = "tcar tabletop FOLDER --clips 100000 --plan"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to, how much of it, and what the clips look like."""
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=2000, help="about how many, over all splits")
    parser.add_argument("--classes", type=int, nargs="*", default=[], help="of the real list; all 34 if left out")
    parser.add_argument("--width", type=int, default=160, help="pixels; the height follows (4:3)")
    parser.add_argument("--frame-rate", type=int, default=12)
    parser.add_argument("--lengths", type=int, nargs="+", default=TabletopSettings().lengths, help="frames, even")
    parser.add_argument("--difficulty", choices=DIFFICULTY, default="standard")
    parser.add_argument("--control", choices=CONTROLS, default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 = one for every core")
    parser.add_argument("--plan", action="store_true", help="render nothing, say what it takes")
    parser.add_argument("--limit", type=int, default=0, help="stop after so many clips; a later call goes on")


def run(asked: argparse.Namespace) -> int:
    """Render, or say what rendering takes."""
    log.configure()
    try:
        counts = {f"{split}_sets": count for split, count in sets_for(asked.clips, asked.classes).items()}
        drawn = TabletopSettings(
            classes=asked.classes, **counts, width=asked.width, height=asked.width * 3 // 4,
            frame_rate=asked.frame_rate, lengths=asked.lengths, difficulty=asked.difficulty, control=asked.control,
        )  # fmt: skip
        check(drawn)
        if asked.plan:
            print(plan(drawn, asked.seed, asked.workers))
            return 0
        render_dataset(asked.folder, drawn, seed=asked.seed, workers=asked.workers, limit=asked.limit)
    except ValueError as error:
        raise ParameterError(str(error)) from error
    done = sum(1 for _ in (asked.folder / "videos").glob("*.webm"))
    looks = ", ".join(f"{key} {getattr(drawn, key)}" for key in APPEARANCE)
    log.get(__name__).info(f"{asked.folder}: {done:,} clips, {looks}")
    return 0
