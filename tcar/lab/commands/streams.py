"""Train the small streams and baselines that come with the package again."""

import argparse
from pathlib import Path

from tcar.streams import packaged
from tcar.tabletop.pretrain import TASKS, train_streams

EXAMPLE = "tcar streams i3d_tiny --output runs/streams --scale 0.1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which, from which seeds, and where to."""
    parser.add_argument("streams", nargs="*", help=f"of {', '.join(TASKS)}; all of them by default")
    parser.add_argument("--output", type=Path, default=packaged.WEIGHTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help="those of the package by default")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the stand-in scenes and epochs to use")


def run(asked: argparse.Namespace) -> int:
    """Train them."""
    train_streams(asked.streams, asked.output, asked.seeds, asked.scale)
    return 0
