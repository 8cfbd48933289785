"""Fetch the published weights that a parameter file needs, each to where the file looks for it.

What cannot be fetched is listed with its address, its size and the path to put it at, and the exit status is 1.
"""

import argparse
from pathlib import Path

from tcar.ground import log
from tcar.ground.errors import ParameterError
from tcar.ground.project import find_root
from tcar.lab.fetch import Need, by_hand, named, served, usual_place
from tcar.streams.published import CHECKPOINTS

EXAMPLE = "tcar fetch params/ssv2.yaml --list"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is fetched, and whether it is."""
    parser.add_argument("wanted", nargs="*", help="a parameter file, or names of streams or checkpoints")
    parser.add_argument("--list", action="store_true", help="show what is wanted and where it is, fetch nothing")
    parser.add_argument("--all", action="store_true", help="every published checkpoint that is known")
    parser.add_argument("--verify", action="store_true", help="compare digests of what is there, where they are known")


def run(asked: argparse.Namespace) -> int:
    """Fetch what is missing and print where everything is; 1 where something could not be had."""
    if not asked.wanted and not asked.all:
        raise ParameterError(f"name a parameter file, a stream or a checkpoint: {', '.join(CHECKPOINTS)}; or --all")
    try:
        root = find_root(Path.cwd())
    except ParameterError:  # the package is installed: streams and checkpoints by name, to checkpoints/ right here
        root = Path.cwd()
    try:
        needs = [need for name in asked.wanted for need in named(name, root)]
    except ValueError as error:
        raise ParameterError(str(error)) from error
    if asked.all:
        needs += [Need(c.layout, c, usual_place(c, root)) for c in CHECKPOINTS.values()]
    if not needs:
        print("nothing to fetch: the weights of these streams come with the package")
    log.configure()
    missing = [need for need in needs if not served(need, root, only_list=asked.list, verify=asked.verify)]
    if missing:
        print("\nfetch by hand:")
        for need in missing:
            print(f"  {by_hand(need, root)}")
    return 1 if missing else 0
