"""What takes a parameter file and writes a result of its own."""

import os
from collections.abc import Callable
from pathlib import Path

from tcar.ground import locks, log
from tcar.lab import params, results
from tcar.lab.params import ParameterError, Params


def write_result(name: str, file: Path, build: Callable[[Params], Path]) -> int:
    """Build a result for a parameter file and say where it is; gives the exit status. `name` is that of the log."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    run = params.load(file)
    log.configure(run.common.log_level, run.logs_dir / f"{name}.log")
    with locks.of_run(run.run_dir, ParameterError):
        print(f"written: {results.relative(build(run), run.root)}")
    return 0
