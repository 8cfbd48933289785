"""Make the trainings that a parameter file describes, as the notebooks open them.

Killed at any moment, it goes on as if it had not been. Under torchrun, all processes train together.
"""

import argparse
from pathlib import Path

from tcar.features.ranks import Ranks
from tcar.ground import log
from tcar.lab import params
from tcar.lab.steps.training import all_trainings, outcome

EXAMPLE = """tcar train params/ssv2.yaml task=clips batch_size=8
  torchrun --nproc-per-node 8 -m tcar train params/ssv2.yaml"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, and what differs from its file."""
    parser.add_argument("params", type=Path, help="a parameter file, such as params/ssv2.yaml")
    parser.add_argument("changes", nargs="*", metavar="key=value", help="parameters that differ from the file's")
    parser.add_argument("--other-code", action="store_true", help="go on with a training that other code has begun")


def run(asked: argparse.Namespace) -> int:
    """Train, and say how each training ended."""
    first = Ranks.here().rank == 0
    log.configure("INFO" if first else "WARNING")
    changes = params.changes(asked.changes)
    params.refuse_secrets(changes, "the command line")
    for name, fit in all_trainings(params.load(asked.params, **changes), asked.other_code):
        if first:
            print(f"{name}, seed {fit.seed}: {outcome(fit)}; in {fit.folder}")
    return 0
