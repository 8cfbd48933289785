"""Make the tokens of both streams of a run, or what is missing of them; killed at any moment, it goes on there.

Under torchrun, and on several machines that share the folder, the processes share the work.
"""

import argparse
from pathlib import Path

from tcar.features.ranks import Ranks
from tcar.ground import log
from tcar.ground.processes import end_with_launcher
from tcar.lab import params
from tcar.lab.steps.clips import healthy_clips
from tcar.lab.steps.streams import ROLES, extract

EXAMPLE = "torchrun --nproc-per-node 2 -m tcar extract params/ssv2.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, and what of it."""
    parser.add_argument("params", type=Path, help="a parameter file")
    parser.add_argument("--role", choices=ROLES, action="append", help="one stream only")
    parser.add_argument(
        "--remake", action="store_true", help="delete a store that comes out differently now, and make it again"
    )


def run(asked: argparse.Namespace) -> int:
    """Extract, and say where the stores are."""
    end_with_launcher()
    # Every rank under torchrun has a terminal of its own: one speaks, the others warn.
    first = Ranks.here().rank == 0
    log.configure("INFO" if first else "WARNING")
    of = params.load(asked.params)
    for role, store in extract(of, healthy_clips(of), asked.role or ROLES, asked.remake).items():
        if first:
            print(f"{role}: {len(store.ids):,} clips in {store.root}, {len(store.broken)} left out")
    return 0
