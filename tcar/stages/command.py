"""The command line of what takes a parameter file and writes a result of its own."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from tcar import locks, log, params, results
from tcar.data.ssv2 import DatasetError
from tcar.features import FeatureError
from tcar.params import ParameterError, Params
from tcar.train.watch import TrainingError


def run_command(
    name: str, description: str, build: Callable[[Params], Path], arguments: Sequence[str] | None = None
) -> int:
    """Build a result for the parameter file that is named, say where it is, and give the exit status.

    `name` is that of the module in `tcar.stages`, and of the log. What is wrong with the input is one line, and 1.
    """
    parser = argparse.ArgumentParser(f"python -m tcar.stages.{name}", description=description)
    parser.add_argument("params", type=Path, help="parameter file, e.g. params/demo.yaml")
    chosen = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        run = params.load(chosen.params)
        log.configure(run.common.log_level, run.logs_dir / f"{name}.log")
        with locks.of_run(run.run_dir, ParameterError):
            print(f"written: {results.relative(build(run), run.root)}")
    except (ParameterError, DatasetError, FeatureError, TrainingError, results.ResultError) as error:
        print(f"error: {error}")
        return 1
    return 0
