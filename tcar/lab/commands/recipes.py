"""Find for each method how long it trains and at which learning rate, on validation clips."""

import argparse
from pathlib import Path

from tcar.lab.steps.apart import write_result

EXAMPLE = "tcar recipes params/demo.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run."""
    parser.add_argument("params", type=Path, help="a parameter file, e.g. params/demo.yaml")


def run(asked: argparse.Namespace) -> int:
    """Measure, say what follows for the parameter file, and where the result is."""
    from tcar.lab.steps import recipes

    return write_result("recipes", asked.params, recipes.build)
