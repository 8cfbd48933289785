"""Train the headline method and late concatenation on other pairs of frozen streams, and compare."""

import argparse
from pathlib import Path

from tcar.lab.steps.apart import write_result

EXAMPLE = "tcar pairs params/demo.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run."""
    parser.add_argument("params", type=Path, help="a parameter file, e.g. params/demo.yaml")


def run(asked: argparse.Namespace) -> int:
    """Measure, and say where the result is."""
    from tcar.lab.steps import pairs

    return write_result("pairs", asked.params, pairs.build)
