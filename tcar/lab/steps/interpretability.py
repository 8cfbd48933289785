"""Notebook 06: through which stream, where and when a trained model decides, over many clips at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tcar.data.ssv2 import Clip
from tcar.data.video import read_segments
from tcar.evaluate import annotations, mean_interval
from tcar.explain.attention import frame_to_frame, named_attention
from tcar.explain.curves import growing_clip
from tcar.explain.heads import measure_heads
from tcar.explain.patching import Patched, exchange_streams
from tcar.explain.time import temporal_importance
from tcar.fusion.kinds import create_fusion
from tcar.ground import log
from tcar.lab.params import ParameterError
from tcar.lab.steps.additive import ALL, twin_pairs
from tcar.lab.steps.clips import class_names, ground_truth
from tcar.lab.steps.fits import device_of, fit_all, tokens_of
from tcar.lab.steps.fusion import fusion_config
from tcar.lab.steps.methods import bootstrap
from tcar.lab.steps.streams import stores

if TYPE_CHECKING:
    from torch import nn

    from tcar.lab.params import Params
    from tcar.models.tca import TCA
    from tcar.train.tokens import StoredTokens

HEADLINE, JOINT_WINDOW = "headline", "joint window"
GROWING_STEPS = 16
_BATCH = 64  # the weights of a clip, all blocks and heads, are a few MB


@dataclass(frozen=True)
class Looked:
    """What a fusion made of clips: readouts and mean tokens by stream; the measures of its heads, means over the clips;
    and how much the frames of one stream read of those of the other, by direction, means over clips and blocks."""

    features: dict[str, Float[np.ndarray, "n _"]]
    heads: list[dict]
    frames_read: dict[str, Float[np.ndarray, "_ _"]]


def choose(run: Params, tokens: StoredTokens, count: int) -> list[int]:
    """Draw the places of up to `count` clips of a token set, in its order, by the seed of the run."""
    drawn = np.random.default_rng(run.common.seed).permutation(len(tokens))[:count]
    return sorted(drawn.tolist())


def joint_window(run: Params) -> nn.Module:
    """Give the fusion of the headline method whose tokens may read any place, trained as the ablations train it."""
    config = {JOINT_WINDOW: replace(fusion_config(run), window="joint")}
    tokens = tokens_of(run, "train", "validation")
    (fit,) = fit_all(run, config, run.ablations.ablation_seeds[:1], tokens)[JOINT_WINDOW]
    fusion = create_fusion(fit.fusion)
    fusion.load_state_dict(fit.state_dict)
    return fusion.eval()


@torch.no_grad()
def look(run: Params, fusion: nn.Module, tokens: StoredTokens, places: list[int], name: str = HEADLINE) -> Looked:
    """Run a fusion on the cached tokens of some clips and keep what it did.

    Raises ParameterError for a kind of fusion without attention.
    """
    opened = stores(run)
    grids = {role: opened[role].grid for role in fusion.streams}
    features, heads, read = defaultdict(list), defaultdict(list), defaultdict(list)
    for given, _ in _batches(run, fusion, tokens, places):
        _, steps = fusion(*given, return_intermediates=True)
        weights = named_attention(steps)
        if not weights:
            kind = fusion.config.kind
            raise ParameterError(f"fusion is {kind}, which has no attention to look at; train another kind as headline")
        features["readout"].append(steps["readout"].cpu().numpy())
        for role, values in zip(("semantic", "motion"), given[::2], strict=True):
            features[role].append(values.mean(dim=1).cpu().numpy())
        xyz = {role: places for role, places in zip(("semantic", "motion"), given[1::2], strict=True) if role in grids}
        for block, measured in measure_heads(steps, xyz).items():
            heads[block].append(np.stack([getattr(measured, key) for key in _OF_HEADS]))
        for block, values in weights.items():
            reader, across, source = block.partition(".")[2].partition("_from_")
            if across:
                frames = frame_to_frame(values.mean(dim=1), grids[reader], grids[source])
                read[f"{reader}_from_{source}"].append(frames.mean(dim=0).cpu().numpy())
    rows = []
    for block, parts in heads.items():
        for head, values in enumerate(_mean(np.concatenate(parts, axis=1)).T):
            rows.append({"fusion": name, "block": block, "head": head, **dict(zip(_OF_HEADS, values, strict=True))})
    means = {direction: np.mean(parts, axis=0) for direction, parts in read.items()}
    return Looked({key: np.concatenate(parts) for key, parts in features.items()}, rows, means)


_OF_HEADS = ("relative_entropy", "time", "space", "specialisation")


def _mean(values: Float[np.ndarray, "k n h"]) -> Float[np.ndarray, "k h"]:
    """Means over clips; NaN where no clip has a value."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis=1) / known.sum(axis=1)


def _batches(
    run: Params, fusion: nn.Module, tokens: StoredTokens, places: Sequence[int]
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """The fusion's four inputs for some clips, a few at a time on the run's device, and their classes."""
    device = device_of(run)
    fusion.to(device)
    try:
        for start in range(0, len(places), _BATCH):
            chosen = places[start : start + _BATCH]
            labels = torch.from_numpy(tokens.labels[chosen])
            yield [given.to(device) for given in tokens.floats(chosen)], labels.to(device)
    finally:
        fusion.to("cpu")


def exchanged(run: Params, fusion: nn.Module, tokens: StoredTokens) -> dict[str, list[dict]]:
    """Take one stream at a time from a clip's twin: `exchange`, what that changes by pair of classes and stream, and
    `interaction`, what is left to the streams together.

    A row of `exchange` has the `pair` (the names of its classes, or "all"), its `group`, the `stream`, the `clips` of
    twins that are told apart, and two means over these with intervals over sets: `flips`, how often the answer between
    the twins changes, and `moved`, the share of the margin that moves. A dataset without twins has no rows.
    """
    facts, names = annotations(tokens.ids, ground_truth(run)), class_names(run)
    pairs = twin_pairs(tokens.labels, facts["twins"], len(tokens), run.common.seed) if facts else {}
    exchange, interaction, everything = [], [], []
    for pair, places in pairs.items():
        found = [row for one in _exchanges(run, fusion, tokens, places, facts) for row in one]
        everything += found
        about = {"pair": [names[k] for k in pair], "group": facts["groups"][int(places[0])]}
        exchange += _of_streams(run, fusion, found, about)
        interaction += _left(run, found, about)
    if pairs:
        about = {"pair": ALL, "group": None}
        exchange += _of_streams(run, fusion, everything, about)
        interaction += _left(run, everything, about)
    return {"exchange": exchange, "interaction": interaction}


def _exchanges(
    run: Params, fusion: nn.Module, tokens: StoredTokens, places: np.ndarray, facts: dict
) -> Iterator[Iterator[dict]]:
    twins = [int(facts["twins"][place]) for place in places]
    own, others = (_batches(run, fusion, tokens, some) for some in (places.tolist(), twins))
    sets = iter([facts["sets"][place] for place in places])
    for (given, target), (taken, against) in zip(own, others, strict=True):
        fusion.to(target.device)  # the other iteration may have put it away
        yield _told_apart(exchange_streams(fusion, tuple(given), tuple(taken)), target, against, sets)


def _told_apart(patched: Patched, target: Tensor, against: Tensor, sets: Iterator[str]) -> Iterator[dict]:
    """A row for each clip that the model tells from its twin, and the twin from it."""
    margins, flips = patched.margins(target, against), patched.flips(target, against)
    moved, left = patched.moved(target, against), patched.interaction(target, against)
    told = (margins["neither"] > 0) & (margins["both"] < 0)
    for clip in range(len(target)):
        row = {"set": next(sets)} | {f"{s} flips": float(flips[s][clip]) for s in patched.streams}
        row |= {f"{s} moved": float(moved[s][clip]) for s in patched.streams} | {"left": float(left[clip])}
        if told[clip]:
            yield row


def _of_streams(run: Params, fusion: nn.Module, found: Sequence[dict], about: dict) -> list[dict]:
    return [
        about | {"stream": stream, "clips": len(found)}
        | {name: _interval(run, found, f"{stream} {name}") for name in ("flips", "moved")}
        for stream in fusion.streams
    ]  # fmt: skip


def _left(run: Params, found: Sequence[dict], about: dict) -> list[dict]:
    return [about | {"clips": len(found), **_interval(run, found, "left")}]


def _interval(run: Params, found: Sequence[dict], key: str) -> dict[str, float | None]:
    return mean_interval(np.array([row[key] for row in found], float), [row["set"] for row in found], bootstrap(run))


def importance_by_group(run: Params, fusion: nn.Module, tokens: StoredTokens, places: list[int]) -> dict[str, list]:
    """Give how far the true class's probability falls without each moment, a row a moment, by group of classes.

    A dataset without groups is one group, "all". `time` is the moment's middle in [0, 1] of the clip.
    """
    index, ids = ground_truth(run), [tokens.ids[place] for place in places]
    parts = [
        temporal_importance(fusion, *given, target) for given, target in _batches(run, fusion, tokens, places)
    ]
    moments, falls = parts[0][0], torch.cat([found.cpu() for _, found in parts])
    groups = np.array([index[clip]["group"] if index else "all" for clip in ids])
    sets = np.array([index[clip]["set"] if index else clip for clip in ids])
    return {
        group: [
            {
                "time": float(moment),
                **mean_interval(falls[groups == group, number].double().numpy(), sets[groups == group], bootstrap(run)),
            }
            for number, moment in enumerate(moments)
        ]
        for group in sorted(set(groups))
    }


def growing(run: Params, model: TCA, clips: Sequence[Clip], temperature: float) -> tuple[list[dict], dict[str, dict]]:
    """Let the model see clips that stop early: rows by group and of all, and the mean curves by group.

    A row has the `group`, how many `clips`, `decided` (the share whose true class has more than one half from some
    moment on), and of those the `moment` and `event_end`, when the last event ends: both in [0, 1] of the clip. A
    curve has `times` and `values` with `low` and `high`, the probability of the true class, and `event_end`.
    """
    index, found = ground_truth(run), []
    for clip in log.progress(clips, len(clips), "growing clips", "clips"):
        told = index.get(clip.id, {})
        video = torch.from_numpy(read_segments(clip.path, _frames(model), upright=run.data.upright))[None] / 255
        grown = growing_clip(model, video, clip.label, steps=GROWING_STEPS, temperature=temperature)
        found.append({
            "group": told.get("group", "all"), "set": told.get("set", clip.id), "moment": grown.moment,
            "times": grown.times.tolist(), "values": grown.probabilities.tolist(),
            "event_end": _last_event(run, clip.id) if index else None,
        })  # fmt: skip
    groups = sorted({row["group"] for row in found})
    rows = [_decided(run, found, group) for group in dict.fromkeys((*groups, ALL))]
    return rows, {group: _curve(run, [row for row in found if row["group"] == group]) for group in groups}


def _frames(model: TCA) -> int:
    return max(2 * GROWING_STEPS, model.config.semantic_frames, model.config.motion_frames)


def _last_event(run: Params, clip: str) -> float | None:
    from tcar.tabletop.dataset import load_truth

    truth, instances = load_truth(run.data_root, clip)
    ends = [event["end"] + 1 for event in truth["events"]]
    return min(1.0, max(ends) / len(instances)) if ends else None


def _decided(run: Params, found: Sequence[dict], group: str) -> dict[str, Any]:
    own = [row for row in found if group in (ALL, row["group"])]
    sure = [row for row in own if row["moment"] is not None]
    shares = [row | {"decided": row["moment"] is not None} for row in own]
    timed = [row for row in sure if row["event_end"] is not None]
    return {
        "group": group, "clips": len(own), "decided": _interval(run, shares, "decided"),
        "moment": _interval(run, sure, "moment"), "event_end": _interval(run, timed, "event_end"),
    }  # fmt: skip


def _curve(run: Params, own: Sequence[dict]) -> dict[str, Any]:
    sets = [row["set"] for row in own]
    values = np.array([row["values"] for row in own])
    intervals = [mean_interval(column, sets, bootstrap(run)) for column in values.T]
    ends = [row["event_end"] for row in own if row["event_end"] is not None]
    return {"times": own[0]["times"], "event_end": float(np.mean(ends)) if ends else None} | {
        {"value": "values"}.get(key, key): [row[key] for row in intervals] for key in ("value", "low", "high")
    }
