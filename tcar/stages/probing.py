"""What a linear reader finds in the tokens of each stream."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tcar.evaluate import metrics
from tcar.stages.clips import class_groups, ground_truth

if TYPE_CHECKING:
    from tcar.data.ssv2 import Clip
    from tcar.features import FeatureStore
    from tcar.params import Params

_SPLITS = ("train", "validation")


def linear_probes(run: Params, opened: dict[str, FeatureStore], found: dict[str, list[Clip]]) -> list[dict]:
    """Score logistic regressions on pooled tokens, trained on the training clips, on the validation clips.

    One row a stream, pooling and target: `value` with its interval over clips (Tabletop: over twin sets), and
    `chance`, the share of the largest class. "averaged" pools all tokens, "in order" keeps the moments apart. A target
    of which training shows one kind alone is left out.
    """
    groups, rows = class_groups(run), []
    targets = {"class": lambda clip: clip.label} | (
        {"group": lambda clip: groups[clip.label]} if groups else {}
    )
    for role, store in opened.items():
        parts = {split: [clip for clip in found[split] if clip.id in store.places] for split in _SPLITS}
        tokens = {
            split: store.load([clip.id for clip in part]).astype(np.float32) for split, part in parts.items()
        }
        for pooling, pool in (("averaged", _average), ("in order", partial(_moments, moments=store.grid[0]))):
            features = [pool(tokens[split]) for split in _SPLITS]
            for target, of in targets.items():
                answers = [np.array([of(clip) for clip in parts[split]]) for split in _SPLITS]
                if len(set(answers[0].tolist())) < 2:
                    continue
                scored = _probe(run, features, answers, _sets(run, parts["validation"]))
                rows.append({"stream": role, "pooling": pooling, "target": target, **scored})
    return rows


def _sets(run: Params, found: list[Clip]) -> list[str] | None:
    index = ground_truth(run)
    return [index[clip.id]["set"] for clip in found] if index else None


def _average(tokens: Float[np.ndarray, "clips n d"]) -> Float[np.ndarray, "clips d"]:
    return tokens.mean(axis=1)


def _moments(tokens: Float[np.ndarray, "clips n d"], moments: int) -> Float[np.ndarray, "clips md"]:
    """Average over space and put the moments side by side; tokens are ordered by time, then place."""
    return tokens.reshape(len(tokens), moments, -1, tokens.shape[-1]).mean(axis=2).reshape(len(tokens), -1)


def _probe(
    run: Params, features: list[np.ndarray], answers: list[np.ndarray], sets: list[str] | None
) -> dict:
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000, tol=1e-3))
    probe.fit(features[0], answers[0])
    known, labels = np.unique(np.concatenate(answers), return_inverse=True)
    labels = labels[len(answers[0]) :]
    # A class that training never showed is never named.
    logits = np.full((len(labels), len(known)), -1e9)
    logits[:, np.searchsorted(known, probe.classes_)] = probe.predict_log_proba(features[1])
    scores = metrics(
        logits,
        labels,
        sets=sets,
        bootstrap_samples=run.evaluation.bootstrap_samples,
        seed=run.common.seed,
        confidence=run.evaluation.confidence,
    )
    return scores["top1"] | {"chance": float(np.bincount(labels).max() / len(labels))}
