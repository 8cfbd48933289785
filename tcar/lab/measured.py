"""Where results that take a command of their own are kept, and whether they belong to a run.

`tcar replicates`, `tcar recipes`, `tcar terms`, `tcar pairs`, `tcar search`, `tcar miniatures` and `tcar explanations`
measure them. This is what the pipeline asks before it loads anything heavy.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from tcar.lab import results
from tcar.lab.params import GROUPS, Params, load

FILE, RECIPES, TERMS, SEARCH = "replicates.json", "recipes.json", "loss_terms.json", "search.json"
MINIATURES, PAIRS, EXPLANATIONS = "miniatures.json", "pairs.json", "explanations.json"
MEASURED = FILE, RECIPES, TERMS, PAIRS, SEARCH, MINIATURES, EXPLANATIONS
# The parameters that decide the numbers of each, by the groups that they are of: results of others are not shown.
_GROUPS = ("data", "tabletop", "streams", "fusion", "training")
# What `tcar recipes` finds, and so does not depend on.
_FOUND = {"epochs", "epochs_by_method", "learning_rate", "learning_rate_by_method", "methods", "seeds"}
_DECISIVE = {
    FILE: (("seed", "confidence", "evaluation_split", "replicates", "replicate_seeds", "replicate_methods"), _GROUPS),
    RECIPES: (("seed", "replicate_methods", "recipe_learning_rates", "recipe_epochs", "recipe_seeds"), _GROUPS),
    TERMS: (("seed", "confidence", "loss_terms", "loss_term_seeds"), (*_GROUPS, "trainer")),
    PAIRS: (
        ("seed", "confidence", "bootstrap_samples", "evaluation_split", "ablation_streams", "pair_seeds"),
        (*_GROUPS, "trainer"),
    ),
    SEARCH: (("seed", "confidence"), _GROUPS),
    EXPLANATIONS: (
        ("seed", "confidence", "bootstrap_samples", "evaluation_split", "explanation_sets", "explanation_pixel_sets"),
        (*_GROUPS, "trainer"),
    ),
    MINIATURES: (
        ("seed", "confidence", "miniatures", "miniature_seeds", "baseline_epochs", "baseline_batch_size",
         "baseline_learning_rate", "evaluation_split"), (*_GROUPS, "trainer"),
    ),
}


def find(run: Params, file: str = FILE) -> Path | None:
    """Find what was measured with the parameters and the streams of a run, by itself or as published.

    file: one of `MEASURED`. None where nothing was, or where the weights of the streams have changed since.
    """
    for path in published(run, file):
        if _same(results.load(path.with_suffix(".meta.json")), run, decisive(file)):
            return path
    return None


def experiment(run: Params) -> dict[int, Path]:
    """Find what was measured of the deciding experiment (params/bound_*.yaml), by the number of training sets: of test
    clips where they are unsealed.

    Only results of the parameters that these files have today are given, and to a run on other clips than Tabletop's
    none: they would stand among numbers of real videos.
    """
    sizes = {}
    files = (run.root / "params").glob("bound_*.yaml") if run.data.dataset == "tabletop" else ()
    for file in files:
        plan = dataclasses.replace(load(file), root=run.root)
        opened = dataclasses.replace(plan, evaluation=dataclasses.replace(plan.evaluation, evaluation_split="test"))
        if path := find(opened) or find(plan):
            sizes[plan.tabletop.train_sets] = path
    return dict(sorted(sizes.items()))


def published(run: Params, file: str) -> list[Path]:
    """Where there is such a result, the run's own first, then what is published."""
    return [path for path in (run.results_dir / file, shared(run) / file) if path.is_file()]


def shared(run: Params) -> Path:
    """The folder of the paper in which a run publishes what is measured apart."""
    return run.root / "paper" / "results" / run.common.publish_as


def same_parameters(made: dict, run: Params, file: str) -> bool:
    """Whether a result of this provenance has the parameters of a run, as far as they decide its numbers."""
    return _alike(made, run, decisive(file))


def decisive(file: str) -> list[str]:
    """The parameters that decide what a result file holds."""
    own, groups = _DECISIVE[file]
    keys = [*own, *(f.name for group in groups for f in dataclasses.fields(GROUPS[group]))]
    return [key for key in keys if not (file == RECIPES and key in _FOUND)]


def _same(made: dict, run: Params, keys: Iterable[str]) -> bool:
    """Whether parameters and input files are those that the provenance of a result lists."""
    return _alike(made, run, keys) and all(
        (file := run.root / name).is_file() and results.digest(file) == digest
        for name, digest in made["inputs"].items()
    )


def _alike(made: dict, run: Params, keys: Iterable[str]) -> bool:
    """Whether parameters are those of a provenance; one that is younger counts as at its default, which is to do
    nothing."""
    stated, defaults = run.as_dict(), Params(root=run.root).as_dict()
    return all(made["parameters"].get(key, defaults[key]) == stated[key] for key in keys)
