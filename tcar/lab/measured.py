"""Where results that take a command of their own are kept, and whether they belong to a run.

`tcar replicates`, `tcar terms` and `tcar search` measure them. This is what the pipeline asks before it loads anything
heavy.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from tcar.lab import results
from tcar.lab.params import FIELDS, GROUPS, Params

MEASURED = FILE, TERMS, SEARCH = "replicates.json", "loss_terms.json", "search.json"
# The parameters that decide the numbers of each, by the groups that they are of: results of others are not shown.
_GROUPS = ("data", "tabletop", "streams", "fusion", "training")
_DECISIVE = {
    FILE: (("seed", "confidence", "replicates", "replicate_methods"), _GROUPS),
    TERMS: (("seed", "confidence", "loss_terms", "loss_term_seeds"), (*_GROUPS, "trainer")),
    SEARCH: (("seed", "confidence"), _GROUPS),
}


def find(run: Params, file: str = FILE) -> Path | None:
    """Find what was measured with the parameters and the streams of a run, by itself or as published.

    file: `FILE`, `TERMS` or `SEARCH`. None where nothing was, or where the weights of the streams have changed since.
    """
    for path in (run.results_dir / file, run.root / "paper" / "results" / file):
        if path.is_file() and _same(results.load(path.with_suffix(".meta.json")), run, decisive(file)):
            return path
    return None


def decisive(file: str) -> list[str]:
    """The parameters that decide what a result file holds."""
    own, groups = _DECISIVE[file]
    return [*own, *(f.name for group in groups for f in dataclasses.fields(GROUPS[group]))]


def _same(made: dict, run: Params, keys: Iterable[str]) -> bool:
    """Whether parameters and input files are those that the provenance of a result lists.

    A parameter that is younger than the result counts as at its default, which is to do nothing.
    """
    stated = run.as_dict()
    if any(made["parameters"].get(key, _default(key)) != stated[key] for key in keys):
        return False
    return all(
        (file := run.root / name).is_file() and results.digest(file) == digest
        for name, digest in made["inputs"].items()
    )


def _default(key: str) -> object:
    field = FIELDS[key]
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
