"""What is installed, found and missing for a parameter file, and what it takes; each fault with its fix."""

import argparse

from tcar.lab import doctor, params

EXAMPLE = "tcar doctor params/ssv2.yaml --measure"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The parameter file, and whether speeds are measured."""
    parser.add_argument("params", nargs="?", help="parameter file; left out, the defaults")
    parser.add_argument("--measure", action="store_true", help="time a few steps of training here, for the hours")


def run(asked: argparse.Namespace) -> int:
    """Print the report; 1 where a fault was found."""
    found = params.load(asked.params) if asked.params else params.Params()
    print(f"of {asked.params or 'the default parameters'}:")
    return doctor.report(found, asked.measure)
