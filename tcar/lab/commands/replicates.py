"""Compare the methods on other clips, streams and trainings, each drawn anew several times."""

import argparse
from pathlib import Path

from tcar.lab.steps.apart import write_result

EXAMPLE = "tcar replicates params/demo.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run."""
    parser.add_argument("params", type=Path, help="a parameter file, e.g. params/demo.yaml")


def run(asked: argparse.Namespace) -> int:
    """Measure, and say where the result is."""
    from tcar.lab.steps import replicates

    return write_result("replicates", asked.params, replicates.build)
