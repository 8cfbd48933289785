"""Train published designs in miniature on the clips of a run, and measure them beside its headline method."""

import argparse
from pathlib import Path

from tcar.lab.steps.apart import write_result

EXAMPLE = "tcar miniatures params/demo.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run."""
    parser.add_argument("params", type=Path, help="a parameter file, e.g. params/demo.yaml")


def run(asked: argparse.Namespace) -> int:
    """Measure, and say where the result is."""
    from tcar.lab.steps import miniatures

    return write_result("miniatures", asked.params, miniatures.build)
