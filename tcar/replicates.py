"""Where the results of replicates are kept, and whether they belong to a run; `tcar.stages.replicates` measures them.

This is what the pipeline asks before it loads anything heavy.
"""

import dataclasses
from pathlib import Path

from tcar import results
from tcar.params import FIELDS, STAGES, Params

FILE = "replicates.json"
# The parameters that decide the numbers: results of others are not shown.
DECISIVE = (
    "seed", "replicates", "replicate_methods",
    *(f.name for stage in ("data", "streams", "fusion", "training") for f in dataclasses.fields(STAGES[stage])),
)  # fmt: skip


def find(run: Params) -> Path | None:
    """Find what was measured with the parameters and the streams of a run, by itself or as published.

    None where nothing was, or where the weights of the streams have changed since.
    """
    for path in (run.results_dir / FILE, run.root / "paper" / "results" / FILE):
        if path.is_file() and _same(results.load(path.with_suffix(".meta.json")), run):
            return path
    return None


def _same(made: dict, run: Params) -> bool:
    """Whether parameters and input files are those that the provenance of a result lists.

    A parameter that is younger than the result counts as at its default, which is to do nothing.
    """
    stated = run.as_dict()
    if any(made["parameters"].get(key, _default(key)) != stated[key] for key in DECISIVE):
        return False
    return all(
        (file := run.root / name).is_file() and results.digest(file) == digest
        for name, digest in made["inputs"].items()
    )


def _default(key: str) -> object:
    field = FIELDS[key]
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
