"""Open JupyterLab on the project, at copies of the notebooks in runs/lab/ that are yours."""

import argparse

from tcar.lab import jupyter

EXAMPLE = "tcar notebooks -- --no-browser"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """JupyterLab's own."""
    parser.add_argument("options", nargs="*", help="options of JupyterLab, after --")


def run(asked: argparse.Namespace) -> int:
    """Become JupyterLab."""
    jupyter.open_lab(asked.options)
    return 0
