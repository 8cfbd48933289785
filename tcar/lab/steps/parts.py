"""The scores of trained methods on one set of clips, as a whole and part by part: groups, pairs of twins, variants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int
from scipy.special import log_softmax

from tcar.evaluate import Bootstrap, Scoring, annotations, metrics
from tcar.lab.steps.additive import ALL, emap_rows
from tcar.lab.steps.clips import ground_truth
from tcar.lab.steps.methods import scored

if TYPE_CHECKING:
    from tcar.lab.params import Params
    from tcar.lab.steps.fits import Fit
    from tcar.train.tokens import StoredTokens

METRICS = ("top1", "twin_accuracy")


def part_scores(
    run: Params, fits: Mapping[str, Sequence[Fit]], tokens: Mapping[str, StoredTokens], names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Score methods on the clips of the split that a run evaluates on; means over their trainings, without intervals.

    `names` are those of the classes, in the order of their indices.

    Gives method -> `top1` and `twin_accuracy` (fractions), `per_group` -> group -> the same, `per_variant` (of families
    that come in several, as by how many things move) -> variant -> `twin_accuracy`, and `per_pair` -> "class / class"
    -> `twin_accuracy`, `emap` (that of its additive projection) and `train_loss` (cross-entropy, nats, of the training
    clips of both classes).
    """
    asked, index = tokens[run.evaluation.evaluation_split], ground_truth(run)
    own = _scores(scored(run, fits, asked), asked, names, index)
    alone = replace(run, evaluation=replace(run.evaluation, bootstrap_samples=1))  # intervals are over replicates
    pairs = [row for row in emap_rows(alone, fits, asked, names) if row["pair"] != ALL]
    losses = {
        method: np.mean([clip_losses(one, tokens["train"].labels) for one in some], axis=0)
        for method, some in scored(run, fits, tokens["train"]).items()
    }
    for row in pairs:
        here = np.isin(tokens["train"].labels, [list(names).index(name) for name in row["pair"]])
        own[row["method"]].setdefault("per_pair", {})[" / ".join(row["pair"])] = {
            "twin_accuracy": row["twin_accuracy"]["value"],
            "emap": row["emap"]["value"],
            "train_loss": float(losses[row["method"]][here].mean()),
        }
    return own


def clip_losses(logits: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Give the cross-entropy of each clip, in nats."""
    return -log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]


def _mean(entries: Sequence[Mapping]) -> dict[str, float | None]:
    values = {metric: [entry[metric]["value"] for entry in entries] for metric in METRICS}
    return {metric: None if None in some else float(np.mean(some)) for metric, some in values.items()}


def _scores(
    predicted: Mapping[str, Sequence[np.ndarray]], asked: StoredTokens, names: Sequence[str],
    index: Mapping[str, Mapping],
) -> dict[str, dict[str, Any]]:  # fmt: skip
    known = annotations(asked.ids, index)
    variants = known | {"groups": [index[clip]["variant"] for clip in asked.ids]}

    def means(logits: Sequence[np.ndarray], known: Mapping) -> dict[str, Any]:
        settings = Scoring(names, bootstrap=Bootstrap(samples=1), **known)
        found = [metrics(one, asked.labels, settings) for one in logits]
        groups = {group: _mean([one["per_group"][group] for one in found]) for group in found[0]["per_group"]}
        return _mean(found) | {"per_group": groups}

    scores = {}
    for method, logits in predicted.items():
        several = means(logits, variants)["per_group"]
        told = {name: {"twin_accuracy": row["twin_accuracy"]} for name, row in several.items() if name}
        scores[method] = means(logits, known) | {"per_variant": told}
    return scores
