"""Measure the methods on other clips, with other streams and other trainings.

    python -m tcar.stages.replicates params/demo.yaml

A replicate draws everything anew: the clips of all splits, the weights of the small streams (in turn, of those that
come with the package), and the start and order of each training. The first replicate is the run itself. What is there
already, after a kill too, is not made again.
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from tcar import log, params, results
from tcar.data.ssv2 import SPLITS, DatasetError, load_labels, load_split
from tcar.data.tabletop import load_index
from tcar.evaluate import annotations, metrics
from tcar.features import FeatureError
from tcar.models.streams import SEEDS, packaged
from tcar.params import ParameterError, Params
from tcar.replicates import FILE, METRICS, recipe, summary
from tcar.stages.clips import dataset_folder
from tcar.stages.features import ROLES, extract
from tcar.stages.fusion import fusion_config
from tcar.tokens import TokenSet, TrainingError, token_set
from tcar.train import Job, fit_many, logits

LOG = log.get("replicates")


def replicate(run: Params, number: int) -> Params:
    """Give the parameters of a replicate; number 0 is the run itself."""
    if not number:
        return run
    common = replace(run.common, seed=run.common.seed + number, name=f"{run.common.name}-replicate{number}")
    seed = stream_seed(number)
    checkpoints = {
        f"{role}_checkpoint": str(packaged(getattr(run.streams, role), seed)) if seed else "" for role in ROLES
    }
    return replace(run, common=common, streams=replace(run.streams, **checkpoints))


def stream_seed(number: int) -> int:
    """Give the seed of the streams that a replicate uses."""
    return SEEDS[number % len(SEEDS)]


def measure(run: Params, number: int) -> dict[str, dict]:
    """Score every method, trained once, on the test clips of one replicate.

    Gives method -> `top1`, `twin_accuracy` (fractions) and `per_group` -> group -> the same, and `best_epoch` of
    `epochs`. Raises DatasetError, FeatureError, TrainingError.
    """
    here = replicate(run, number)
    folder = dataset_folder(here)
    found = {split: load_split(folder, split) for split in SPLITS}
    stores = {role: extract(here, role, found) for role in ROLES}
    tokens = {split: token_set(*stores.values(), found[split]) for split in SPLITS}
    names = list(load_labels(folder))
    widths = {f"{role}_width": store.width for role, store in stores.items()}
    methods = run.ablations.replicate_methods
    seed = run.training.seeds[0] + number
    jobs = [
        Job(f"{method}, replicate {number}", fusion_config(here, method, num_classes=len(names), **widths), seed)
        for method in methods
    ]
    fits = fit_many(jobs, tokens["train"], tokens["validation"], run.training, here.run_dir / "fits", run.workers)
    return {
        method: _scores(logits(fit, tokens["test"]), tokens["test"], folder, names)
        | {"best_epoch": fit.best_epoch, "epochs": len(fit.history)}
        for method, fit in zip(methods, fits, strict=True)
    }


def _scores(predicted: np.ndarray, tokens: TokenSet, folder: Path, names: list[str]) -> dict:
    scored = metrics(
        predicted, tokens.labels, names=names, bootstrap_samples=1, **annotations(tokens.ids, load_index(folder))
    )
    groups = {
        group: {metric: entry[metric]["value"] for metric in METRICS} for group, entry in scored["per_group"].items()
    }
    return {metric: scored[metric]["value"] for metric in METRICS} | {"per_group": groups}


def build(run: Params) -> Path:
    """Measure the methods over replicates and write `replicates.json`; gives its path.

    Raises ParameterError for another dataset than Tabletop, or streams that do not come with the package.
    """
    if run.data.dataset != "tabletop":
        raise ParameterError(f"dataset is {run.data.dataset!r}: only Tabletop can be drawn anew")
    for role in ROLES:
        if getattr(run.streams, f"{role}_checkpoint"):
            raise ParameterError(f"{role}_checkpoint is stated: replicates use the streams that come with the package")
        absent = [path for seed in SEEDS if not (path := packaged(getattr(run.streams, role), seed)).is_file()]
        if absent:
            raise ParameterError(f"{role} is {getattr(run.streams, role)!r}: {absent[0]} is missing, `make streams`")
    scores = []
    for number in range(run.ablations.replicates):
        LOG.info(f"replicate {number + 1} of {run.ablations.replicates}")
        scores.append(measure(run, number))
        LOG.info(", ".join(f"{method} {row['twin_accuracy']:.1%}" for method, row in scores[-1].items()))
    numbers = range(len(scores))
    values = {
        "recipe": recipe(run),
        "headline": run.fusion.fusion,
        "alpha": round(1 - run.evaluation.confidence, 6),
        "seeds": [
            {"data": run.common.seed + n, "streams": stream_seed(n), "head": run.training.seeds[0] + n} for n in numbers
        ],
        "replicates": scores,
        **summary(scores, run.fusion.fusion, run.evaluation.confidence),
    }
    inputs = [packaged(getattr(run.streams, role), seed) for role in ROLES for seed in SEEDS]
    for folder in (run.results_dir, run.root / "paper" / "results")[: 1 + run.common.publish]:
        written = results.save(folder / FILE, values, params=run, inputs=inputs)
    return written


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit status."""
    parser = argparse.ArgumentParser("python -m tcar.stages.replicates", description=build.__doc__.splitlines()[0])
    parser.add_argument("params", type=Path, help="parameter file, e.g. params/demo.yaml")
    chosen = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        run = params.load(chosen.params)
        log.configure(run.common.log_level, run.logs_dir / "replicates.log")
        print(f"written: {results.relative(build(run), run.root)}")
    except (ParameterError, DatasetError, FeatureError, TrainingError, results.ResultError) as error:
        print(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
