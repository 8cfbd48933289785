"""Search for better parameters in a space, and compare the best with the run's own over several seeds.

It can be killed and started again, and several machines that reach its storage can take part.
"""

import argparse
from pathlib import Path

from tcar.ground import log
from tcar.ground.errors import ParameterError
from tcar.lab import results
from tcar.lab.search.space import load_settings

EXAMPLE = "tcar search params/search.yaml --workers 2 --trials 20"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is searched, and by how many."""
    parser.add_argument("file", type=Path, help="what to search, e.g. params/search.yaml")
    parser.add_argument("--workers", type=int, default=1, help="processes on this machine, of one thread each")
    parser.add_argument("--trials", type=int, help="instead of the file's number; more of them go on with the search")


def run(asked: argparse.Namespace) -> int:
    """Search, and say what was found and where it is written."""
    from tcar.lab.steps import search  # needs torch, which is not loaded for a wrong file

    if asked.workers < 1:
        raise ParameterError(f"--workers is {asked.workers}, expected at least 1")
    settings = load_settings(asked.file, trials=asked.trials)
    log.configure(settings.base.common.log_level, settings.base.logs_dir / "search.log")
    record = search.run_search(settings, asked.workers)
    published = search.publish(settings, record)
    print(search.sentence(record))
    print(f"written: {record['written']}, {results.relative(published, settings.base.root)}")
    return 0
