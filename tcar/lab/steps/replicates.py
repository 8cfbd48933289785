"""Measure the methods on other clips, with other streams and other trainings.

    tcar replicates params/demo.yaml

A replicate draws everything anew: the clips of all splits, the weights of the small streams (in turn, of those that
come with the package), and the start and order of each training. The first replicate is the run itself. What is there
already, after a kill too, is not made again.

Replicates are the unit of the statistics: means have Student's interval over replicates, and two methods are compared
by the paired t-test on the same replicates, corrected for the number of rivals (Holm 1979). Both take replicates as
independent; those whose streams are of the same training share that.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tcar.data.ssv2 import SPLITS, load_labels, load_split
from tcar.evaluate import Bootstrap, Scoring, annotations, holm, metrics, paired, student
from tcar.ground import locks, log
from tcar.lab.measured import FILE
from tcar.lab.params import ParameterError, Params
from tcar.lab.steps.apart import publish
from tcar.lab.steps.audit import dataset_folder
from tcar.lab.steps.fits import fit_all
from tcar.lab.steps.fusion import fusion_config
from tcar.lab.steps.methods import scored
from tcar.lab.steps.streams import ROLES, extract
from tcar.streams.packaged import SEEDS, packaged
from tcar.tabletop.dataset import load_index
from tcar.train.tokens import StoredTokens

METRICS = ("top1", "twin_accuracy")
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
    stores = extract(here, found)
    names = list(load_labels(folder))
    tokens = {split: StoredTokens.of(*stores.values(), found[split], names) for split in SPLITS}
    methods = run.ablations.replicate_methods
    configs = {
        method: fusion_config(here, method, num_classes=len(names), **tokens["train"].widths) for method in methods
    }
    fits = fit_all(here, configs, [run.training.seeds[0] + number], tokens)
    predicted = scored(here, fits, tokens["test"])
    return {
        method: _scores(predicted[method][0], tokens["test"], folder, names)
        | {"best_epoch": fit.best_epoch, "epochs": len(fit.history)}
        for method, (fit,) in fits.items()
    }


def _scores(predicted: np.ndarray, tokens: StoredTokens, folder: Path, names: list[str]) -> dict:
    known = annotations(tokens.ids, load_index(folder))
    scored = metrics(predicted, tokens.labels, Scoring(names, bootstrap=Bootstrap(samples=1), **known))
    groups = {
        group: {metric: entry[metric]["value"] for metric in METRICS} for group, entry in scored["per_group"].items()
    }
    return {metric: scored[metric]["value"] for metric in METRICS} | {"per_group": groups}


def summary(scores: Sequence[dict[str, dict]], headline: str, confidence: float) -> dict:
    """Put the scores of replicates together: means with intervals, and the headline method against each rival.

    scores: of each replicate, what `measure` gives. Gives `methods` (each metric {"value", "low", "high", "spread"},
    `per_group` likewise), `comparisons` (rows of a, b, metric, `difference`, `low`, `high`, `p`, and `holm`, the p
    corrected for the number of rivals) and `by_group` (twin accuracy; group -> rival -> the same, uncorrected; only
    groups that have pairs).
    """
    methods, groups = list(scores[0]), list(scores[0][headline]["per_group"])
    rivals = [method for method in methods if method != headline]

    def of(method: str, metric: str, group: str = "") -> np.ndarray:
        entries = [row[method]["per_group"][group] if group else row[method] for row in scores]
        return np.array([entry[metric] for entry in entries], float)  # None, where no pair counts, becomes NaN

    comparisons = []
    for metric in METRICS:
        rows = [
            {"a": headline, "b": b, "metric": metric} | paired(of(headline, metric), of(b, metric), confidence)
            for b in rivals
        ]
        for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
            row["holm"] = corrected
        comparisons += rows
    return {
        "methods": {
            method: {metric: student(of(method, metric), confidence) for metric in METRICS}
            | {
                "per_group": {
                    group: {metric: student(of(method, metric, group), confidence) for metric in METRICS}
                    for group in groups
                }
            }
            for method in methods
        },
        "comparisons": comparisons,
        "by_group": {
            group: {
                b: paired(of(headline, "twin_accuracy", group), of(b, "twin_accuracy", group), confidence)
                for b in rivals
            }
            for group in groups
            if not np.isnan(of(headline, "twin_accuracy", group)).any()
        },
    }


def build(run: Params) -> Path:
    """Measure the methods over replicates and write `replicates.json`; gives its path.

    Raises ParameterError for another dataset than Tabletop, or streams that do not come with the package.
    """
    if run.data.dataset != "tabletop":
        raise ParameterError(f"dataset is {run.data.dataset!r}: only Tabletop can be drawn anew")
    if run.fusion.fusion not in (methods := run.ablations.replicate_methods):
        raise ParameterError(f"replicate_methods is {methods}, without {run.fusion.fusion}, the headline: add it")
    for role in ROLES:
        if getattr(run.streams, f"{role}_checkpoint"):
            raise ParameterError(f"{role}_checkpoint is stated: replicates use the streams that come with the package")
        absent = [path for seed in SEEDS if not (path := packaged(getattr(run.streams, role), seed)).is_file()]
        if absent:
            raise ParameterError(f"{role} is {getattr(run.streams, role)!r}: {absent[0]} is missing, `make streams`")
    scores = []
    for number in range(run.ablations.replicates):
        LOG.info(f"replicate {number + 1} of {run.ablations.replicates}")
        with locks.of_run(replicate(run, number).run_dir, ParameterError):
            scores.append(measure(run, number))
        LOG.info(", ".join(f"{method} {row['twin_accuracy']:.1%}" for method, row in scores[-1].items()))
    numbers = range(len(scores))
    values = {
        "headline": run.fusion.fusion,
        "alpha": round(1 - run.evaluation.confidence, 6),
        "seeds": [
            {"data": run.common.seed + n, "streams": stream_seed(n), "head": run.training.seeds[0] + n} for n in numbers
        ],
        "replicates": scores,
        **summary(scores, run.fusion.fusion, run.evaluation.confidence),
    }
    inputs = [packaged(getattr(run.streams, role), seed) for role in ROLES for seed in SEEDS]
    return publish(run, FILE, values, inputs=inputs)
