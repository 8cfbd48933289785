"""Notebook 04: what is left of the twin accuracy of each method where its two streams may only be added (EMAP).

A pair of classes whose clips are twins is looked at alone: every clip's semantic tokens are put together with every
clip's motion tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tcar.evaluate import Scoring, annotations, emap, metrics, over_seeds, paired_difference
from tcar.features import unpacked
from tcar.ground import log, processes
from tcar.lab.steps.clips import class_names, ground_truth
from tcar.lab.steps.fits import device_of
from tcar.lab.steps.methods import SCORED_AT_ONCE, bootstrap, lowered, token_model
from tcar.train.recipe import reproducible

if TYPE_CHECKING:
    from tcar.lab.params import Params
    from tcar.lab.steps.fits import Fit
    from tcar.train.tokens import StoredTokens

ALL = "all"  # pairs together
Pair = tuple[int, int]  # of classes, the smaller index first
Both = tuple[tuple[str, ...], list[Float[np.ndarray, "n c"]], list[Float[np.ndarray, "n c"]]]


def emap_rows(
    run: Params, fits: Mapping[str, Sequence[Fit]], tokens: StoredTokens, names: Sequence[str] | None = None
) -> list[dict]:
    """Give the twin accuracy of each method and of its additive projection, for each pair of twin classes and for all.

    A row has the `pair` (the names of its classes, or "all"), its `group`, the `method`, the `streams` that this reads,
    and how many `clips` were put together; the `twin_accuracy` of the model, `emap`, that of the projection, and
    `kept`, how much higher the second is: below 0 where the model needs an interaction of its streams. Each is a mean
    over seeds with its interval over sets and seeds. A method that reads one stream is its own projection, and none is
    made.

    `names` are those of the classes, which the audit of the run has found if they are not given. There are no rows
    without twins (the real dataset names none), or where `emap_clips` is 0.
    """
    facts = annotations(tokens.ids, ground_truth(run))
    chosen = twin_pairs(tokens.labels, facts["twins"], run.evaluation.emap_clips, run.common.seed) if facts else {}
    if not chosen:
        return []
    shown = log.progress(_each(run, fits, tokens, list(chosen.values())), len(fits), "additive projections", "methods")
    both = dict(zip(fits, shown, strict=True))
    names, places = names or class_names(run), np.concatenate(list(chosen.values()))
    where = {place: position for position, place in enumerate(places.tolist())}
    settings = Scoring(
        names=names,
        groups=[str(number) for number, some in enumerate(chosen.values()) for _ in some],
        twins=np.array([where[twin] for twin in facts["twins"][places].tolist()]),
        sets=[facts["sets"][place] for place in places],
        bootstrap=bootstrap(run),
    )
    rows = []
    for method, (streams, own, projected) in both.items():
        runs = [[metrics(one, tokens.labels[places], settings) for one in some] for some in (own, projected)]
        means = [over_seeds(some) for some in runs]
        for number, pair in enumerate([*chosen, ALL]):
            group = "" if pair == ALL else str(number)
            values = [(mean["per_group"][group] if group else mean)["twin_accuracy"] for mean in means]
            kept = paired_difference(*reversed(runs), "twin_accuracy", group, same_seeds=True)
            rows.append({
                "pair": ALL if pair == ALL else [names[k] for k in pair],
                "group": None if pair == ALL else facts["groups"][chosen[pair][0]],
                "method": method, "streams": list(streams),
                "clips": len(places) if pair == ALL else len(chosen[pair]),
                "twin_accuracy": values[0], "emap": values[1],
                "kept": {"value": kept["difference"], "low": kept["low"], "high": kept["high"]},
            })  # fmt: skip
    return rows


def twin_pairs(
    labels: Int[np.ndarray, " n"], twins: Int[np.ndarray, " n"], most: int, seed: int
) -> dict[Pair, Int[np.ndarray, " m"]]:
    """Give, for each pair of classes whose clips are twins, the places of their clips: those that have their twin.

    Of more than `most` clips a pair as many whole couples as fit are drawn by the seed; `most` 0 gives no pair.
    """
    couples: dict[Pair, list[tuple[int, int]]] = {}
    for clip, twin in enumerate(twins.tolist()):
        if twin >= 0 and (labels[clip], clip) < (labels[twin], twin):
            couples.setdefault((int(labels[clip]), int(labels[twin])), []).append((clip, twin))
    found = {}
    for number, pair in enumerate(sorted(couples)):
        some = couples[pair]
        drawn = np.random.default_rng([seed, number]).permutation(len(some))[: most // 2]
        if len(drawn):
            found[pair] = np.array([clip for place in sorted(drawn) for clip in some[place]])
    return found


def _each(
    run: Params, fits: Mapping[str, Sequence[Fit]], tokens: StoredTokens, pairs: Sequence[Int[np.ndarray, " m"]]
) -> Iterator[Both]:
    """Do `_both` for each method, in their order; on a CPU as many at a time as there are workers."""
    workers = min(run.workers, len(fits))
    if workers < 2 or device_of(run).type != "cpu":
        yield from (_both(run, done, tokens, pairs) for done in fits.values())
        return
    with processes.pool(workers) as pool:
        yield from pool.map(partial(_both, run, tokens=tokens, pairs=pairs), fits.values())


@torch.inference_mode()
def _both(
    run: Params, done: Sequence[Fit], tokens: StoredTokens, pairs: Sequence[Int[np.ndarray, " m"]]
) -> Both:
    """The streams that a method reads, and for each seed its logits and those of its projection, pair after pair."""
    device, own, projected = device_of(run), [], []
    with reproducible(run.common.seed), lowered(run, device):
        models = [token_model(fit, tokens).to(device).eval() for fit in done]
        found: list[list] = [[] for _ in models]
        for places in pairs:
            parts = tokens.read(places.tolist())
            streams = [unpacked(tuple(part.to(device) for part in stream)) for stream in parts]
            for model, rows in zip(models, found, strict=True):
                rows.append(_projected(model, *streams))
        for rows in found:
            for kept, values in zip((own, projected), zip(*rows, strict=True), strict=True):
                kept.append(np.concatenate(values))
    return models[0].fusion.streams, own, projected


def _projected(
    model: nn.Module, semantic: Float[Tensor, "m n d1"], motion: Float[Tensor, "m k d2"]
) -> tuple[Float[np.ndarray, "m c"], Float[np.ndarray, "m c"]]:
    """The logits of a model for clips, and those of its additive projection on them."""

    def row(first: Float[Tensor, "m n d1"]) -> Float[np.ndarray, "m c"]:
        parts = zip(first.split(SCORED_AT_ONCE), motion.split(SCORED_AT_ONCE), strict=True)
        return np.concatenate([model(*part).float().cpu().numpy() for part in parts])

    if len(model.fusion.streams) == 1:
        own = row(semantic)
        return own, own
    own = []

    def every() -> Iterator[Float[np.ndarray, "m c"]]:
        for place, one in enumerate(semantic):
            values = row(one.expand(len(motion), -1, -1))
            own.append(values[place])
            yield values

    projection = emap(every())
    return np.stack(own), projection
