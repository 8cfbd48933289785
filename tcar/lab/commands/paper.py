"""Run the stale notebooks of a run, draw every figure and table, compile the paper."""

import argparse
from pathlib import Path

from tcar.lab import pipeline

EXAMPLE = "tcar paper params/demo.yaml --list"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, and what of it."""
    parser.add_argument("params", type=Path, help="parameter file, e.g. params/demo.yaml")
    parser.add_argument("--list", action="store_true", help="only say what is stale, and why")
    parser.add_argument("--only", action="append", default=[], metavar="STEP", help="this step alone; repeatable")
    parser.add_argument("--force", action="store_true", help="run also what is up to date")


def run(asked: argparse.Namespace) -> int:
    """Run what is stale, or say what is."""
    pipeline.perform(asked.params, only=asked.only, listed=asked.list, force=asked.force)
    return 0
