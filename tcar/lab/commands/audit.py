"""Look at every video of a dataset, and say what has changed since the last audit.

0: no more is broken than the threshold allows; 1: more is; 2: the audit could not be made.
"""

import argparse
import sys
from pathlib import Path

from tcar.data.audit import require_healthy
from tcar.data.health import read_journal
from tcar.data.monitor import THRESHOLD, monitor, readable, summary
from tcar.data.ssv2 import SPLITS, DatasetError, load_split
from tcar.ground import log
from tcar.ground.errors import ParameterError
from tcar.lab.params import load
from tcar.lab.steps.audit import monitored

EXAMPLE = "tcar audit params/ssv2.yaml --splits validation"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is looked at, and what counts as broken."""
    parser.add_argument("dataset", type=Path, help="the folder of a dataset, or a parameter file")
    parser.add_argument("--threshold", type=float, help="share of broken clips beyond which the exit status is 1")
    parser.add_argument("--workers", type=int, help="processes; 0 = one for every core")
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds for one file")
    parser.add_argument("--splits", nargs="+", default=list(SPLITS), choices=SPLITS)
    parser.add_argument("--into", type=Path, help="where to keep the findings; left out: audit/ of the dataset or run")
    parser.add_argument("--accept", action="store_true", help="take altered files that decode for sound")


def run(asked: argparse.Namespace) -> int:
    """Make the audit and print its summary."""
    log.configure()
    root, folder, workers, threshold = asked.dataset, asked.dataset / "audit", 0, THRESHOLD
    if root.suffix in (".yaml", ".yml") and not root.is_dir():
        of = load(root)
        root, folder = of.data_root, monitored(of)
        workers, threshold = of.common.workers, of.data.quarantine_threshold
    workers = workers if asked.workers is None else asked.workers
    threshold = threshold if asked.threshold is None else asked.threshold
    if not 0 <= threshold <= 1:
        raise ParameterError(f"--threshold is {threshold:g}; it is a share, from 0 to 1")
    folder = asked.into or folder
    splits = {split: load_split(root, split) for split in asked.splits}
    others = readable(root, set(SPLITS) - set(splits))
    report = monitor(
        splits, folder, others=others, workers=workers, time_limit=asked.time_limit, accept=asked.accept
    )  # fmt: skip
    print(summary(report))
    print(f"kept in {folder}")
    try:
        require_healthy([found for found, _ in read_journal(folder / "findings.jsonl").values()], threshold)
    except DatasetError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
