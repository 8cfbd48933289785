"""The command `python -m tcar.features`: plan, extract, verify."""

import argparse
import sys
from pathlib import Path

from tcar import log, params
from tcar.data.ssv2 import DatasetError
from tcar.features import plan
from tcar.features.extraction import Ranks
from tcar.features.packing import FeatureError
from tcar.features.store import verify
from tcar.models import CheckpointError
from tcar.params import ParameterError
from tcar.processes import end_with_launcher
from tcar.results import ResultError
from tcar.stages.clips import healthy_clips
from tcar.stages.features import ROLES, extract


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 1 where a store is not what was written, 2 for a request that cannot be met."""
    asked = _parser().parse_args(arguments)
    end_with_launcher()
    # Every rank under torchrun has a terminal of its own: one speaks, the others warn.
    log.configure("INFO" if Ranks.here().rank == 0 else "WARNING")
    try:
        return {"plan": _plan, "extract": _extract, "verify": _verify}[asked.command](asked)
    except (FeatureError, DatasetError, ParameterError, ResultError, CheckpointError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tcar.features", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    planned = commands.add_parser("plan", help="bytes on disk and hours, before anything starts")
    planned.add_argument("params", type=Path)
    planned.add_argument("--gpu", default="", help="name of a GPU that was measured (tests/benchmarks/results)")
    planned.add_argument("--measure", action="store_true", help="decode a few clips of the dataset here")
    extracted = commands.add_parser("extract", help="make the stores of a run, or what is missing of them")
    extracted.add_argument("params", type=Path)
    extracted.add_argument("--role", choices=ROLES, action="append", help="one stream only")
    extracted.add_argument(
        "--remake", action="store_true", help="delete a store that comes out differently now, and make it again"
    )
    verified = commands.add_parser("verify", help="read every byte of a store again")
    verified.add_argument("store", type=Path, nargs="+")
    return parser


def _plan(asked: argparse.Namespace) -> int:
    print(plan.text(plan.plan(params.load(asked.params), asked.gpu, asked.measure)))
    return 0


def _extract(asked: argparse.Namespace) -> int:
    run = params.load(asked.params)
    clips = healthy_clips(run)
    for role, store in extract(run, clips, asked.role or ROLES, asked.remake).items():
        if Ranks.here().rank == 0:
            print(f"{role}: {len(store.ids):,} clips in {store.root}, {len(store.broken)} left out")
    return 0


def _verify(asked: argparse.Namespace) -> int:
    faults = [f"{folder}/{fault}" for folder in asked.store for fault in verify(folder)]
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{len(faults)} faults" if faults else "every byte is as it was written")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
