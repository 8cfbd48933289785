"""Compare each loss term and regulariser with its absence, over several seeds."""

import argparse
from pathlib import Path

from tcar.lab.steps.apart import write_result

EXAMPLE = "tcar terms params/demo.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run."""
    parser.add_argument("params", type=Path, help="a parameter file, e.g. params/demo.yaml")


def run(asked: argparse.Namespace) -> int:
    """Measure, and say where the result is."""
    from tcar.lab.steps import loss_terms

    return write_result("terms", asked.params, loss_terms.build)
