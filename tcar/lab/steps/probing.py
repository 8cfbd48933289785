"""What a linear reader finds in the tokens of each stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int

from tcar.evaluate import Scoring, metrics
from tcar.ground import log
from tcar.lab.steps.clips import class_groups, ground_truth
from tcar.lab.steps.methods import bootstrap
from tcar.lab.steps.trainings import device_of
from tcar.train.linear import Features, Table, fit_linear

if TYPE_CHECKING:
    from tcar.data.ssv2 import Clip
    from tcar.features import FeatureStore
    from tcar.lab.params import Params

INVERSE_PENALTY = 0.01  # scikit-learn's C
BATCH = 2**26  # bytes of tokens that are read at once


def linear_probes(run: Params, opened: dict[str, FeatureStore], found: dict[str, list[Clip]]) -> list[dict]:
    """Score logistic regressions on pooled tokens, trained on the training clips, on the validation clips.

    One row a stream, pooling and target: `value` with its interval over clips (Tabletop: over twin sets), and
    `chance`, the share of the largest class. "averaged" pools all tokens, "in order" keeps the moments apart. A target
    of which training shows one kind alone is left out. Tokens are read once, and pooled to a table in the run's folder
    that ends with this function: 4 bytes a number and moment.
    """
    groups, rows, device = class_groups(run), [], device_of(run)
    targets = {"class": lambda clip: clip.label} | (
        {"group": lambda clip: groups[clip.label]} if groups else {}
    )
    for role, store in opened.items():
        train, rest = ([clip for clip in found[split] if clip.id in store.places] for split in ("train", "validation"))
        answers = {target: [np.array([of(clip) for clip in part]) for part in (train, rest)]
                   for target, of in targets.items()}  # fmt: skip
        with Table(run.run_dir, store.grid[0] * store.width) as table:
            for batch in _moments(store, [clip.id for clip in [*train, *rest]], device):
                table.append(batch)
            for pooling, blocks in (("averaged", store.grid[0]), ("in order", 1)):
                features = Features(table, device, run.common.workers, blocks)
                for target, (known, asked) in answers.items():
                    if len(set(known.tolist())) < 2:
                        continue
                    scored = _probe(run, features, known, asked, _sets(run, rest))
                    rows.append({"stream": role, "pooling": pooling, "target": target, **scored})
    return rows


def _sets(run: Params, found: list[Clip]) -> list[str] | None:
    index = ground_truth(run)
    return [index[clip.id]["set"] for clip in found] if index else None


def _moments(
    store: FeatureStore, ids: Sequence[str], device: torch.device
) -> Iterator[Float[np.ndarray, "clips md"]]:
    """Average over space and put the moments side by side; tokens are ordered by time, then place."""
    size = max(1, BATCH // (4 * len(store.coordinates) * store.width))
    starts = range(0, len(ids), size)
    for start in log.progress(starts, len(starts), f"pooling {store.stream}", "batches"):
        tokens = torch.from_numpy(store.load(ids[start : start + size])).to(device).float()
        yield tokens.unflatten(1, (store.grid[0], -1)).mean(2).flatten(1).cpu().numpy()


def _probe(run: Params, features: Features, known: Int[np.ndarray, " n"], asked: Int[np.ndarray, " m"],
           sets: list[str] | None) -> dict:  # fmt: skip
    """Fit on the first rows of the table, whose answers are known, and score the others."""
    shown, labels = np.unique(known, return_inverse=True)
    reader = fit_linear(features, range(len(known)), labels, INVERSE_PENALTY)
    every, asked = np.unique(np.concatenate([shown, asked]), return_inverse=True)
    asked = asked[len(shown) :]
    # A class that training never showed is never named.
    logits = np.full((len(asked), len(every)), -1e9)
    rows = range(len(known), len(known) + len(asked))
    logits[:, np.searchsorted(every, shown)] = reader.log_probabilities(features, rows)
    scores = metrics(logits, asked, Scoring(sets=sets, bootstrap=bootstrap(run)))
    return scores["top1"] | {"chance": float(np.bincount(asked).max() / len(asked))}
