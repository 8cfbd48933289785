"""Measure the methods on other clips, with other streams and other trainings.

    tcar replicates params/demo.yaml

A replicate draws everything anew: the clips of all splits, the weights of the small streams (in turn, of those that
come with the package), and the start and order of each training. The first replicate is the run itself. What is there
already, after a kill too, is not made again.

Replicates are the unit of the statistics: the scores of a replicate are means over its trainings, means over replicates
have Student's interval, and two methods are compared by the paired t-test on the same replicates, corrected for the
number of rivals (Holm 1979). Both take replicates as independent; those whose streams are of the same training share
that.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tcar.data.ssv2 import SPLITS, Clip, load_labels, load_split
from tcar.evaluate import holm, paired, student
from tcar.ground import locks, log
from tcar.lab import results
from tcar.lab.measured import FILE, published, same_parameters
from tcar.lab.params import ParameterError, Params
from tcar.lab.steps.apart import publish
from tcar.lab.steps.audit import dataset_folder
from tcar.lab.steps.fits import extracted, fit_all
from tcar.lab.steps.fusion import fusion_config
from tcar.lab.steps.parts import METRICS, part_scores
from tcar.lab.steps.streams import ROLES, with_packaged
from tcar.streams.packaged import SEEDS, packaged
from tcar.train.tokens import StoredTokens

# What is said of a replicate part by part: groups, pairs of twins, and the variants of those that come in several.
PARTS = {"per_group": METRICS, "per_pair": ("twin_accuracy", "emap", "train_loss"), "per_variant": ("twin_accuracy",)}
HYPOTHESES = "hypotheses.md"  # what was written down before, in paper/
LOG = log.get("replicates")
Scores = dict[str, Any]


def replicate(run: Params, number: int) -> Params:
    """Give the parameters of a replicate; number 0 is the run itself."""
    if not number:
        return run
    common = replace(run.common, seed=run.common.seed + number, name=f"{run.common.name}-replicate{number}")
    seed = stream_seed(number)
    return replace(with_packaged(run, seed) if seed else run, common=common)


def stream_seed(number: int) -> int:
    """Give the seed of the streams that a replicate uses."""
    return SEEDS[number % len(SEEDS)]


def head_seeds(run: Params, number: int) -> list[int]:
    """Give the seeds of the trainings of a replicate, which no other replicate has."""
    varied, first = run.ablations, run.training.seeds[0] + number
    return [first + varied.replicates * again for again in range(varied.replicate_seeds)]


def measure(run: Params, number: int) -> dict[str, Scores]:
    """Score every method on the clips of one replicate, those of the split that the run evaluates on.

    Gives method -> `top1`, `twin_accuracy` (fractions, means over the trainings), `per_group`, `per_pair` and
    `per_variant` (see `part_scores`), and `best_epoch` of `epochs` of the first training. Raises DatasetError,
    FeatureError, TrainingError.
    """
    here = replicate(run, number)
    tokens, names = drawn(here)
    methods = run.ablations.replicate_methods
    configs = {
        method: fusion_config(here, method, num_classes=len(names), **tokens["train"].widths) for method in methods
    }
    fits = fit_all(here, configs, head_seeds(run, number), tokens)
    scores = part_scores(here, fits, tokens, names)
    return {
        method: scores[method] | {"best_epoch": done[0].best_epoch, "epochs": len(done[0].history)}
        for method, done in fits.items()
    }


def drawn(run: Params) -> tuple[dict[str, StoredTokens], list[str]]:
    """Render the clips of a Tabletop run and extract their tokens, where they are not there yet, with no notebook run.

    Gives the tokens of each split, and the class names in the order of their indices. Raises DatasetError and
    FeatureError.
    """
    clips, names = rendered(run)
    return extracted(run, clips, names), names


def rendered(run: Params) -> tuple[dict[str, list[Clip]], list[str]]:
    """Render the clips of a Tabletop run where they are not there yet; gives those of each split, and the class names
    in the order of their indices. Raises DatasetError.
    """
    folder = dataset_folder(run)
    return {split: load_split(folder, split) for split in SPLITS}, list(load_labels(folder))


def summary(scores: Sequence[dict[str, Scores]], headline: str, confidence: float) -> dict:
    """Put the scores of replicates together: means with intervals, and the headline method against each rival.

    scores: of each replicate, what `measure` gives. Gives `methods` (each metric {"value", "low", "high", "spread"},
    and `per_group`, `per_pair`, `per_variant` likewise), `comparisons` (rows of a, b, metric, `difference`, `low`,
    `high`, `p`, and `holm`, the p corrected for the number of rivals), `by_part` (the same of the twin accuracy of each
    `part`: a group, a pair or a variant; only where pairs are counted).
    """
    methods = list(scores[0])
    parts = [(kind, part) for kind in PARTS for part in scores[0][headline].get(kind, {})]

    def of(method: str, metric: str, kind: str = "", part: str = "") -> np.ndarray:
        entries = [row[method][kind].get(part, {}) if kind else row[method] for row in scores]
        return np.array([entry.get(metric) for entry in entries], float)  # None, where nothing counts, becomes NaN

    def compared(metric: str, kind: str = "", part: str = "") -> list[dict]:
        rows = [
            {"a": headline, "b": b, "metric": metric}
            | paired(of(headline, metric, kind, part), of(b, metric, kind, part), confidence)
            for b in methods
            if b != headline
        ]
        corrected = holm([row["p"] for row in rows])
        return [row | {"holm": p} for row, p in zip(rows, corrected, strict=True)]

    comparisons = [row for metric in METRICS for row in compared(metric)]
    by_part = [{"part": part} | row for kind, part in parts for row in compared("twin_accuracy", kind, part)
               if row["difference"] is not None]  # fmt: skip
    return {
        "methods": {
            method: {metric: student(of(method, metric), confidence) for metric in METRICS}
            | {
                kind: {
                    part: {metric: student(of(method, metric, kind, part), confidence) for metric in PARTS[kind]}
                    for one, part in parts
                    if one == kind
                }
                for kind in PARTS
            }
            for method in methods
        },
        "comparisons": comparisons,
        "by_part": by_part,
    }


def build(run: Params, unseal: bool = False) -> Path:
    """Measure the methods over replicates and write `replicates.json`; gives its path.

    Where the run evaluates on validation, `unseal` scores its test clips instead, once: see `check_seal`. Raises
    ParameterError for another dataset than Tabletop, or streams that do not come with the package.
    """
    if unseal:
        run = check_seal(run)
    elif run.evaluation.evaluation_split == "validation" and (path := unsealed(run)):
        raise ParameterError(
            f"{results.relative(path, run.root)}: its test clips are opened, and scores of validation would take their "
            "place; delete it, or take another name and publish_as"
        )
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
        "split": run.evaluation.evaluation_split,
        "hypotheses": results.digest(path) if (path := run.root / "paper" / HYPOTHESES).is_file() else None,
        "seeds": [
            {"data": run.common.seed + n, "streams": stream_seed(n), "heads": head_seeds(run, n)} for n in numbers
        ],
        "replicates": scores,
        **summary(scores, run.fusion.fusion, run.evaluation.confidence),
    }
    inputs = [packaged(getattr(run.streams, role), seed) for role in ROLES for seed in SEEDS]
    return publish(run, FILE, values, inputs=inputs)


def check_seal(run: Params) -> Params:
    """Give the parameters that open the test clips of a run which evaluates on validation.

    What has been opened once is not opened with other parameters. Raises ParameterError.
    """
    if run.evaluation.evaluation_split != "validation":
        raise ParameterError("evaluation_split is 'test': there is no seal to open; it is for runs on validation")
    opened = replace(run, evaluation=replace(run.evaluation, evaluation_split="test"))
    if path := unsealed(run):
        made = results.load(path.with_suffix(".meta.json"))
        if not same_parameters(made, opened, FILE):
            raise ParameterError(
                f"{results.relative(path, run.root)}: the test clips of these seeds were opened with other parameters, "
                f"at commit {made['commit'] or 'unknown'}; another experiment needs another seed and another name"
            )
    return opened


def unsealed(run: Params) -> Path | None:
    """Give where the scores of a run's test clips are kept, or None while nobody has opened them."""
    return next((path for path in published(run, FILE) if results.load(path)["split"] == "test"), None)
