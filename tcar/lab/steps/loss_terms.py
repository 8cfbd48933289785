"""Measure which loss terms and regularisers earn their place in the recipe of the headline method.

    tcar terms params/demo.yaml

Each term is compared with its absence, all else as in the recipe: a term that the recipe has is taken away, one that it
lacks is added with the value in `loss_terms`. Every configuration is trained by the trainer on the stored tokens with
the same seeds, and scored on validation. Means have Student's interval over the seeds; with and without are compared by
the paired t-test over them, corrected for the number of terms (Holm 1979). The seeds share clips and streams, so the
intervals say nothing of others. What is there already, after a kill too, is not trained again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tcar.evaluate import holm, paired, student
from tcar.fusion.kinds import FusionConfig
from tcar.lab import params
from tcar.lab.measured import TERMS
from tcar.lab.params import ParameterError, Params
from tcar.lab.steps.apart import packaged_weights, publish
from tcar.lab.steps.fits import LEARNING, Job, fit_jobs, tokens_of
from tcar.lab.steps.fusion import fusion_config
from tcar.train.tokens import StoredTokens

# What cannot be measured on stored tokens, and why.
LEFT_OUT = {"order_weight": "needs clips that are played backwards, which stored tokens cannot be: off by default"}


def changed(run: Params, term: str) -> Params:
    """The parameters with a term taken away where the recipe has it, else added.

    Raises ParameterError: a term that this fusion cannot have.
    """
    values, added = run.as_dict(), run.ablations.loss_terms[term]
    made = params.from_values(values | {term: 0.0 if values[term] else added}, source="loss_terms")
    return replace(made, root=run.root)


def measure(
    run: Params, tokens: Mapping[str, StoredTokens], fusion: FusionConfig | None = None
) -> dict[str, list[dict]]:
    """Train the recipe and every change of it with every seed: those of a seed in one pass.

    `fusion` is the headline method's by default. Gives term -> for each seed `seed`, `validation_top1` (a fraction, of
    the best epoch), `best_epoch`; the recipe's own term is "". Raises TrainingError: a training failed (named).
    """
    variants = {"": run} | {term: changed(run, term) for term in run.ablations.loss_terms}
    seeds = run.ablations.loss_term_seeds
    jobs = [Job(variant, fusion or fusion_config(variant), seed) for variant in variants.values() for seed in seeds]
    fits = iter(fit_jobs(jobs, tokens, run.run_dir))
    rows = {term: [next(fits) for _ in seeds] for term in variants}
    return {
        term: [
            {"seed": fit.seed, "validation_top1": fit.best["validation_top1"], "best_epoch": fit.best_epoch}
            for fit in done
        ]
        for term, done in rows.items()
    }


def summary(run: Params, scores: Mapping[str, Sequence[Mapping]]) -> dict[str, Any]:
    """Put the scores of `measure` together.

    Gives `recipe` (its scores, mean and interval) and `terms`: for each `term`, `value` (that it has where it is on),
    `on_by_default`, `with` and `without` (mean and interval), and `difference` (with minus without; a fraction) with
    `low`, `high`, `p` and `holm`.
    """
    confidence = run.evaluation.confidence
    tops = {term: np.array([row["validation_top1"] for row in rows]) for term, rows in scores.items()}
    recipe, own = tops.pop(""), run.as_dict()
    rows = []
    for term, other in tops.items():
        on = bool(own[term])
        present, absent = (recipe, other) if on else (other, recipe)
        rows.append({
            "term": term, "value": own[term] or run.ablations.loss_terms[term], "on_by_default": on,
            "with": student(present, confidence), "without": student(absent, confidence),
            **paired(present, absent, confidence),
        })  # fmt: skip
    for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["holm"] = corrected
    return {"recipe": {"scores": list(scores[""]), **student(recipe, confidence)}, "terms": rows}


def verdict(row: Mapping[str, Any], alpha: float) -> str:
    """Say whether a term helps, harms, or neither can be told, by its corrected p; and what follows for the recipe."""
    told = row["holm"] < alpha and row["low"] * row["high"] > 0
    word = ("helps" if row["difference"] > 0 else "harms") if told else "makes no difference that can be told"
    if row["on_by_default"]:
        return f"{word}; the recipe has it"
    return f"{word}; the recipe does without"


def sentence(row: Mapping[str, Any], alpha: float) -> str:
    """Say in one line what a term did: `label_smoothing 0.1: +0.3 points [-0.5, +1.1], corrected p = 0.6: …`."""
    return (f"`{row['term']}` {row['value']:g}: {100 * row['difference']:+.1f} points "
            f"[{100 * row['low']:+.1f}, {100 * row['high']:+.1f}], corrected p = {row['holm']:.2g}: "
            f"{verdict(row, alpha)}")  # fmt: skip


def build(run: Params) -> Path:
    """Measure the terms and write `loss_terms.json`; gives its path.

    Raises ParameterError, TrainingError; FeatureError or ResultError where there are no tokens yet.
    """
    if not run.ablations.loss_terms:
        raise ParameterError("loss_terms is empty: name a term, with the value to add it with")
    scores = measure(run, tokens_of(run, *LEARNING))
    values = {
        "headline": run.fusion.fusion, "dataset": run.data.dataset, "seeds": run.ablations.loss_term_seeds,
        "alpha": round(1 - run.evaluation.confidence, 6), "scores": scores, **summary(run, scores),
        "left_out": LEFT_OUT,
    }  # fmt: skip
    return publish(run, TERMS, values, seeds=run.ablations.loss_term_seeds, inputs=packaged_weights(run))
