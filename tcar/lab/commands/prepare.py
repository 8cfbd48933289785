"""Make one dataset folder of what was downloaded: bare parts, zips or one file, label files included.

Goes on where it was cut off. 0: every listed video is there; 1: some are not; 2: it could not be done.
"""

import argparse
from pathlib import Path

from tcar.data.prepare import prepare, summary
from tcar.ground import log

EXAMPLE = "tcar prepare DOWNLOADS data/ssv2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Both folders, and whether a part will do."""
    parser.add_argument("downloads", type=Path, help="the folder of the downloaded files")
    parser.add_argument("dataset", type=Path, help="the folder to make")
    parser.add_argument("--allow-missing", action="store_true", help="take a part of the dataset for what it is")


def run(asked: argparse.Namespace) -> int:
    """Prepare the folder and say what is in it."""
    log.configure()
    report = prepare(asked.downloads, asked.dataset, asked.allow_missing)
    print(summary(report, asked.dataset))
    enough = report.complete or (asked.allow_missing and (not report.unread or report.cut_short))
    return 0 if enough else 1
