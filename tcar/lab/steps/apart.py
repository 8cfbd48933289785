"""What is measured apart from the notebooks, by commands of their own (`tcar.lab.measured` has them all)."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tcar.ground import locks, log
from tcar.lab import params, results
from tcar.lab.measured import shared
from tcar.lab.params import ParameterError, Params


def write_result(name: str, file: Path, build: Callable[[Params], Path]) -> int:
    """Build a result for a parameter file and say where it is; gives the exit status. `name` is that of the log."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    run = params.load(file)
    log.configure(run.common.log_level, run.logs_dir / f"{name}.log")
    with locks.of_run(run.run_dir, ParameterError):
        print(f"written: {results.relative(build(run), run.root)}")
    return 0


def publish(run: Params, file: str, values: dict[str, Any], **provenance) -> Path:
    """Write a result where notebooks and paper look for it, in the run's results and, if it publishes, in the paper's.

    provenance: `seeds`, `inputs` and `extra`, as `tcar.lab.results.save` takes them; the seconds of the trainings that
    it took are added. Gives the path.
    """
    from tcar.lab.steps.fits import seconds_asked_for  # takes seconds

    provenance["extra"] = {"training_seconds": seconds_asked_for()} | provenance.get("extra", {})
    publishes = run.common.publish or bool(run.common.publish_as)
    for folder in (run.results_dir, shared(run))[: 1 + publishes]:
        written = results.save(folder / file, values, params=run, **provenance)
    return written


def packaged_weights(run: Params) -> list[Path]:
    """Give the weights of the run's streams that come with the package, which a result depends on."""
    from tcar.lab.steps.streams import ROLES
    from tcar.streams.packaged import packaged

    stated = [role for role in ROLES if getattr(run.streams, f"{role}_checkpoint")]
    weights = [packaged(getattr(run.streams, role)) for role in ROLES if role not in stated]
    return [path for path in weights if path.is_file()]
