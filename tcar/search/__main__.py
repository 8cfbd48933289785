"""The command `python -m tcar.search params/search.yaml [--workers 2] [--trials 20]`: search for better parameters."""

import argparse
import sys
from pathlib import Path

from tcar import log, results
from tcar.params import ParameterError
from tcar.search.space import load_settings
from tcar.search.study import SearchError


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit status."""
    from tcar.stages import search as stage  # needs torch, which the workers of another evaluation do not
    from tcar.train.watch import TrainingError

    parser = argparse.ArgumentParser("python -m tcar.search", description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, help="what to search, e.g. params/search.yaml")
    parser.add_argument("--workers", type=int, default=1, help="processes on this machine, of one thread each")
    parser.add_argument("--trials", type=int, help="instead of the file's number; more of them go on with the search")
    chosen = parser.parse_args(arguments)
    if chosen.workers < 1:
        parser.error("--workers must be at least 1")
    try:
        settings = load_settings(chosen.file, trials=chosen.trials)
        log.configure(settings.base.common.log_level, settings.base.logs_dir / "search.log")
        record = stage.run_search(settings, chosen.workers)
        published = stage.publish(settings, record)
    except (ParameterError, SearchError, TrainingError, results.ResultError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(stage.sentence(record))
    print(f"written: {record['written']}, {results.relative(published, settings.base.root)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
