"""Compare the methods on other clips, streams and trainings, each drawn anew several times."""

import argparse
from functools import partial
from pathlib import Path

from tcar.lab.steps.apart import write_result

EXAMPLE = "tcar replicates params/demo.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run."""
    parser.add_argument("params", type=Path, help="a parameter file, e.g. params/demo.yaml")
    parser.add_argument("--unseal", action="store_true",
                        help="score the test clips of a run that evaluates on validation: once, at the end")


def run(asked: argparse.Namespace) -> int:
    """Measure, and say where the result is."""
    from tcar.lab.steps import replicates

    return write_result("replicates", asked.params, partial(replicates.build, unseal=asked.unseal))
