"""Notebook 06: what a trained model looks at, over many clips at once, and how that compares with the ground truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torch.utils._pytree import tree_map_only

from tcar.data.ssv2 import Clip
from tcar.data.video import read_segments
from tcar.evaluate import mean_interval
from tcar.explain import attention_rollout, mass_inside, saliency, temporal_importance
from tcar.fusion.exchange import JOINT
from tcar.lab.params import ParameterError
from tcar.lab.steps.clips import ground_truth
from tcar.lab.steps.fits import device_of
from tcar.lab.steps.methods import bootstrap
from tcar.lab.steps.streams import stores

if TYPE_CHECKING:
    from tcar.lab.params import Params
    from tcar.models.tca import TCA
    from tcar.train.tokens import StoredTokens

_BATCH = 64  # the weights of a clip, all blocks and heads, are a few MB
_COARSE = 5  # masks and attributions are compared and shown at a fifth of the frame's size


@dataclass(frozen=True)
class AttentionMaps:
    """What the fusion did with each clip: readouts, and per stream that it reads maps over its grid that sum to one.

    `received` is the attention that the tokens of a stream get from the other one, over blocks, heads and queries; a
    stream that the other does not read has none. Among the tokens of both streams ("joint") that is the other stream's
    part, made to sum to one. `rollout` follows the readout's attention back to the tokens.
    """

    readout: Float[np.ndarray, "n d"]
    received: dict[str, Float[np.ndarray, "n t y x"]]
    rollout: dict[str, Float[np.ndarray, "n t y x"]]


def choose(run: Params, tokens: StoredTokens, count: int) -> list[int]:
    """Draw the places of up to `count` clips of a token set, in its order, by the seed of the run."""
    drawn = np.random.default_rng(run.common.seed).permutation(len(tokens))[:count]
    return sorted(drawn.tolist())


@torch.no_grad()
def attention_maps(run: Params, model: TCA, tokens: StoredTokens, places: list[int]) -> AttentionMaps:
    """Run the fusion on the cached tokens of some clips and keep what it looked at.

    Raises ParameterError for a kind of fusion without attention.
    """
    opened, parts = stores(run), []
    grids = {role: opened[role].grid for role in model.fusion.streams}
    for given, _ in _batches(run, model, tokens, places):
        _, steps = model.fusion(*given, return_intermediates=True)
        if not any(name.endswith(".weights") for name in steps):
            kind = model.config.fusion.kind
            raise ParameterError(f"fusion is {kind}, which has no attention to look at; train another kind as headline")
        received = {role: _received(steps, role, grids) for role in grids}
        found = steps["readout"], received, attention_rollout(steps, grids)
        parts.append(tree_map_only(Tensor, Tensor.cpu, found))
    return AttentionMaps(
        torch.cat([readout for readout, _, _ in parts]).numpy(),
        {r: torch.cat([part[r] for _, part, _ in parts]).numpy() for r in grids if parts[0][1][r] is not None},
        {r: torch.cat([part[r] for _, _, part in parts]).numpy() for r in grids},
    )


def _batches(
    run: Params, model: TCA, tokens: StoredTokens, places: Sequence[int]
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """The fusion's four inputs for some clips, a few at a time on the run's device, and their classes."""
    device = device_of(run)
    model.fusion.to(device)
    try:
        for start in range(0, len(places), _BATCH):
            chosen = places[start : start + _BATCH]
            labels = torch.from_numpy(tokens.labels[chosen])
            yield [given.to(device) for given in tokens.floats(chosen)], labels.to(device)
    finally:
        model.fusion.to("cpu")


def _received(steps: dict[str, Tensor], role: str, grids: dict[str, tuple[int, int, int]]) -> Tensor | None:
    maps = [step.mean(dim=(1, 2)) for name, step in steps.items() if name.endswith(f"_from_{role}.weights")]
    joint = [step for name, step in steps.items() if name.endswith(f".{JOINT}.weights")]
    if joint:
        count = int(np.prod(grids["semantic"]))  # whose tokens come first
        own, other = (slice(count), slice(count, None)) if role == "semantic" else (slice(count, None), slice(count))
        parts = [step[:, :, other, own].mean(dim=(1, 2)) for step in joint]
        maps = [part / part.sum(dim=1, keepdim=True) for part in parts]
    return torch.stack(maps).mean(dim=0).unflatten(1, grids[role]) if maps else None


def on_moving(run: Params, seen: AttentionMaps, ids: list[str]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Give, per stream, the share of each map that lies on what moves, and the share of the area that it covers.

    Shares are means over the clips in which something moves, with intervals over twin sets. `area` is what an even map
    would score; `gain` is attention received minus area, clip by clip.
    """
    masks = {place: mask for place, clip in enumerate(ids) if (mask := _moving(run, clip)).any()}
    sets = [ground_truth(run)[ids[place]]["set"] for place in masks]
    area = np.array([mask.mean() for mask in masks.values()])
    found = {}
    for role, rollout in seen.rollout.items():
        maps = {"received": seen.received.get(role), "rollout": rollout}
        shares = {
            name: np.array([mass_inside(values[place], mask) for place, mask in masks.items()])
            for name, values in maps.items()
            if values is not None
        }
        shares |= {"area": area} | {f"{name} gain": share - area for name, share in shares.items()}
        found[role] = {name: mean_interval(share, sets, bootstrap(run)) for name, share in shares.items()}
    return found


def _moving(run: Params, clip: str) -> np.ndarray:
    from tcar.tabletop.dataset import load_truth

    truth, instances = load_truth(run.data_root, clip)
    return np.isin(instances[:, ::_COARSE, ::_COARSE], truth["moving"])


def importance_by_group(run: Params, model: TCA, tokens: StoredTokens, places: list[int]) -> dict[str, list[dict]]:
    """Give how far the true class's probability falls without each moment, a row a moment, by group of classes.

    A dataset without groups is one group, "all". `time` is the moment's middle in [0, 1] of the clip.
    """
    index, ids = ground_truth(run), [tokens.ids[place] for place in places]
    parts = [
        temporal_importance(model.fusion, *given, target)
        for given, target in _batches(run, model, tokens, places)
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


def pixel_saliency(run: Params, model: TCA, clip: Clip) -> dict[str, dict]:
    """Attribute the logit of a clip's class to the pixels that each stream saw, the other stream's frames as they are.

    Gives, per stream that the fusion reads, `map` [t y x] in coarse cells, and `error`, how far the attributions miss
    the logit's change from a grey clip (integrated gradients' completeness).
    """
    config = model.config
    counts = {"semantic": config.semantic_frames, "motion": config.motion_frames}
    clips = {role: read_segments(clip.path, count, upright=run.data.upright) for role, count in counts.items()}
    frames = {role: torch.from_numpy(one)[None] / 255 for role, one in clips.items()}
    paths = {"semantic": lambda x: model(x, frames["motion"]), "motion": lambda x: model(frames["semantic"], x)}
    found = {}
    for role in model.fusion.streams:
        made = saliency(
            paths[role], frames[role], clip.label, steps=run.interpretability.attribution_steps, reference=0.5
        )
        found[role] = {"map": avg_pool2d(made.map, _COARSE)[0].numpy(), "error": float(made.error.abs().max())}
    return found


def same_class_neighbours(features: Float[np.ndarray, "n d"], labels: np.ndarray, neighbours: int) -> float | None:
    """Give the mean share of a clip's nearest neighbours (cosine) that are of its class; None for no neighbours."""
    if not neighbours:
        return None
    from sklearn import config_context
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=neighbours + 1, metric="cosine").fit(features)
    with config_context(working_memory=64):  # MiB of distances at once, not those between all clips
        places = nearest.kneighbors(features, return_distance=False)[:, 1:]
    return float((labels[places] == labels[:, None]).mean())
