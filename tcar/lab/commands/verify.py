"""Read every byte of token stores again; 1 where one is not what was written."""

import argparse
import sys
from pathlib import Path

from tcar.features.store import verify

EXAMPLE = "tcar verify runs/ssv2/features/*"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The stores."""
    parser.add_argument("store", type=Path, nargs="+", help="the folder of a store")


def run(asked: argparse.Namespace) -> int:
    """Verify, and name every fault."""
    faults = [f"{folder}/{fault}" for folder in asked.store for fault in verify(folder)]
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{len(faults)} faults" if faults else "every byte is as it was written")
    return int(bool(faults))
