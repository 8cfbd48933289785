"""Run a parameter file of the real dataset from the downloads to the paper in small, before a cluster is asked for.

FOLDER gets an imitation of the dataset as it is downloaded (rendered pictures, most labels arbitrary), weights of
random values in the published layouts, and the parameter file with few epochs (on a CPU in fp32) and all else
untouched. With it every step runs: prepare, doctor, the notebooks, the paper. What each takes of time, memory and disk
is measured and projected to the 220,847 published clips, in FOLDER/rehearsal.json. The scores mean nothing.
"""

import argparse
from pathlib import Path

from tcar.ground import log
from tcar.lab import params
from tcar.lab.rehearsal.projection import STEPS
from tcar.lab.rehearsal.rehearse import rehearse

EXAMPLE = "tcar rehearse params/ssv2.yaml FOLDER --clips 400 --set device=cuda --until 01_extractors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is rehearsed, where, and how much of it."""
    parser.add_argument("params", type=Path, help="a parameter file, such as params/ssv2.yaml")
    parser.add_argument("folder", type=Path, help="everything is written there")
    parser.add_argument("--clips", type=int, default=400, help="of all splits together; 230 show every class")
    parser.add_argument("--seed", type=int, default=0, help="of the imitation")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="another parameter; repeatable")
    parser.add_argument("--until", choices=STEPS, default=STEPS[-1], help="the last step to run")


def run(asked: argparse.Namespace) -> int:
    """Rehearse, or go on with a rehearsal that was cut off."""
    log.configure()
    changes = params.changes(asked.set)
    return rehearse(
        asked.params, asked.folder, clips=asked.clips, seed=asked.seed, changes=changes, until=asked.until
    )
