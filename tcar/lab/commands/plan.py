"""What the tokens of a run take of disk and hours, with where each number comes from."""

import argparse
from pathlib import Path

from tcar.lab import params
from tcar.lab.demand import hours

EXAMPLE = "tcar plan params/ssv2.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, and the machine it is planned for."""
    parser.add_argument("params", type=Path, help="a parameter file")
    parser.add_argument("--gpu", default="", help="name of a GPU that was measured (tests/benchmarks/results)")
    parser.add_argument("--measure", action="store_true", help="decode a few clips of the dataset here")


def run(asked: argparse.Namespace) -> int:
    """Print the plan."""
    planned = params.load(asked.params)
    print(hours.text(planned, hours.extraction(planned, asked.gpu, asked.measure)))
    return 0
