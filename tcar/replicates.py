"""Where the results of replicates are kept, and whether they belong to a run; `tcar.stages.replicates` measures them.

This is what the pipeline asks before it loads anything heavy.
"""

from pathlib import Path

from tcar import results
from tcar.params import Params

FILE = "replicates.json"


def recipe(run: Params) -> str:
    """Give the digest of all parameters that decide the numbers: results of another recipe are not shown."""
    chosen = ("data", "streams", "fusion", "training")
    values = {name: results.digest(vars(getattr(run, name))) for name in chosen}
    ablations = run.ablations
    return results.digest([values, run.common.seed, ablations.replicates, ablations.replicate_methods])


def find(run: Params) -> Path | None:
    """Find what was measured with the parameters and the streams of a run, by itself or as published.

    None where nothing was, or where the weights of the streams have changed since.
    """
    for path in (run.results_dir / FILE, run.root / "paper" / "results" / FILE):
        if path.is_file() and results.load(path)["recipe"] == recipe(run) and _same_inputs(path, run):
            return path
    return None


def _same_inputs(path: Path, run: Params) -> bool:
    """Whether the files it was made from are still those that its provenance lists."""
    made_from = results.load(path.with_suffix(".meta.json"))["inputs"]
    return all(
        (file := run.root / name).is_file() and results.digest(file) == digest for name, digest in made_from.items()
    )
