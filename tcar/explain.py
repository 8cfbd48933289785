"""Explanations of a model's decision, and their agreement with where the moving object truly is.

Attention maps say where the model read, temporal importance and saliency what the decision depends on; only
the last two are tied to the output. All maps are [t, y, x] over the clip and are scored against ground-truth
instance masks.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import IntegratedGradients, Saliency
from jaxtyping import Bool, Float, Int
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn

from tcar.fusion.exchange import BOTTLENECK

UMAP_CLIPS = 4  # the fewest that UMAP lays out: its spectral start needs more points than it takes eigenvectors
Grid = tuple[int, int, int]
Map = Float[np.ndarray, "t y x"] | Float[Tensor, "t y x"]
Mask = Bool[np.ndarray, "t2 h w"] | Bool[Tensor, "t2 h w"]


def attention_rollout(
    intermediates: dict[str, Tensor], grids: dict[str, Grid]
) -> dict[str, Float[Tensor, "b t y x"]]:
    """Follow the readout's attention back through all blocks to the tokens of each stream.

    `intermediates` come from a fusion with `return_intermediates=True`, `grids` maps streams to (t, y, x). A
    block counts half as residual, half as what it read, heads averaged. Maps of streams that share a readout
    sum to 1 together, so they also tell each stream's share; a stream with a readout of its own sums to 1 by
    itself. What ends in tokens that lie nowhere (the readout, fusion tokens) counts for no stream. Source: Abnar and
    Zuidema 2020, attention rollout, extended to blocks that read across two streams, or through fusion tokens.
    """
    shared = {name: w for name, w in intermediates.items() if re.fullmatch(r"self\d+\.weights", name)}
    groups = [tuple(grids)] if shared else [(stream,) for stream in grids]
    maps = {}
    for streams in groups:
        suffix = "" if shared else f".{streams[0]}"
        maps |= _rollout(intermediates, {s: grids[s] for s in streams}, suffix)
    return maps


def _rollout(intermediates: dict[str, Tensor], grids: dict[str, Grid], suffix: str) -> dict[str, Tensor]:
    sizes = {s: int(np.prod(grid)) for s, grid in grids.items()}
    ends = dict(zip(sizes, np.cumsum(list(sizes.values())), strict=True))
    spans = {s: slice(ends[s] - sizes[s], ends[s]) for s in sizes}
    relevance = None
    for weights in reversed(_numbered(intermediates, r"self(\d+)" + re.escape(suffix))):
        step = _half_residual(weights[""].mean(dim=1))
        if step.shape[-1] != 1 + sum(sizes.values()):
            raise ValueError(
                f"attention over {step.shape[-1] - 1} tokens, but the grids {grids} have "
                f"{sum(sizes.values())}"
            )
        relevance = step[:, 0] if relevance is None else torch.einsum("bn,bnm->bm", relevance, step)
    if relevance is None and f"cross{suffix}.weights" in intermediates:
        # The query of an attentive probe reads the tokens alone, from outside.
        relevance = F.pad(intermediates[f"cross{suffix}.weights"].mean(dim=1)[:, 0], (1, 0))
    if relevance is None:
        raise ValueError(
            f"no attention of {' and '.join(grids)} among the intermediates {sorted(intermediates)}"
        )
    relevance = relevance[:, 1:]  # the readout itself lies nowhere
    shared = intermediates[BOTTLENECK].shape[1] if BOTTLENECK in intermediates else 0
    relevance = F.pad(relevance, (0, shared))  # fusion tokens come last, as in the weights
    for weights in reversed(_numbered(intermediates, r"block(\d+)\.(\w+)")):
        relevance = torch.einsum("bn,bnm->bm", relevance, _step_back(weights, relevance, spans, shared))
    mass = sum(relevance[:, spans[s]].sum(dim=1) for s in spans)
    return {s: (relevance[:, spans[s]] / mass[:, None]).unflatten(1, grids[s]) for s in spans}


def _step_back(
    weights: dict[str, Tensor], relevance: Float[Tensor, "b n"], spans: dict[str, slice], shared: int
) -> Float[Tensor, "b n n"]:
    """Return how the tokens after a block are made of those before it: of `shared` fusion tokens, each stream makes
    a copy, and their mean goes on."""
    count = relevance.shape[1]
    step, middle = torch.eye(count).to(relevance).repeat(len(relevance), 1, 1), count - shared
    for name, weight in weights.items():
        reader, _, read = name.partition("_from_")
        if reader not in spans:
            continue
        mean, own, source = weight.mean(dim=1) / 2, spans[reader], spans[read or reader]
        size = own.stop - own.start
        step[:, own] /= 2
        step[:, own, source] += mean[:, :size, : source.stop - source.start]
        if shared:
            step[:, own, middle:] += mean[:, :size, size:]
            step[:, middle:, middle:] += (mean[:, size:, size:] - torch.eye(shared).to(mean) / 2) / len(spans)
            step[:, middle:, own] += mean[:, size:, :size] / len(spans)
    return step


def _numbered(intermediates: dict[str, Tensor], pattern: str) -> list[dict[str, Tensor]]:
    """Return weights block by block, each by the name that follows the block's number."""
    blocks: dict[int, dict[str, Tensor]] = {}
    for name, weights in intermediates.items():
        if found := re.fullmatch(pattern + r"\.weights", name):
            number, *rest = found.groups()
            blocks.setdefault(int(number), {})[rest[0] if rest else ""] = weights
    return [blocks[number] for number in sorted(blocks)]


def _half_residual(weights: Float[Tensor, "b n n"]) -> Float[Tensor, "b n n"]:
    return (weights + torch.eye(weights.shape[-1]).to(weights)) / 2


@torch.no_grad()
def temporal_importance(
    fusion: nn.Module,
    semantic: Float[Tensor, "b n d1"],
    semantic_xyz: Float[Tensor, "n 3"],
    motion: Float[Tensor, "b m d2"],
    motion_xyz: Float[Tensor, "m 3"],
    target: Int[Tensor, "b"],
    *,
    streams: tuple[str, ...] = ("semantic", "motion"),
    mode: str = "drop",
) -> tuple[Float[Tensor, "t"], Float[Tensor, "b t"]]:
    """Return the moments and how far the target's probability falls without the tokens of each.

    `mode` "drop" leaves the tokens out, "occlude" puts the mean of the clip's other moments in their place.
    The moments are those of the coarsest of the chosen streams; a finer stream's tokens count with the
    nearest one. Source: occlusion sensitivity, Zeiler and Fergus 2014, over time. Raises ValueError for grids
    of one moment.
    """
    tokens, xyz = {"semantic": semantic, "motion": motion}, {"semantic": semantic_xyz, "motion": motion_xyz}
    if mode not in ("drop", "occlude") or not streams or set(streams) - set(tokens):
        raise ValueError(
            f"mode must be 'drop' or 'occlude' and streams some of semantic, motion; got {mode!r}, {streams}"
        )
    moments = min((xyz[s][:, 0].unique() for s in streams), key=len)
    if len(moments) < 2:
        raise ValueError("temporal importance needs at least two moments in every stream it looks at")

    def probability(tokens: dict[str, Tensor], xyz: dict[str, Tensor]) -> Float[Tensor, "b"]:
        logits = fusion(tokens["semantic"], xyz["semantic"], tokens["motion"], xyz["motion"])
        return logits.softmax(dim=-1).gather(1, target[:, None])[:, 0]

    whole, falls = probability(tokens, xyz), []
    for moment in range(len(moments)):
        changed, places = dict(tokens), dict(xyz)
        for s in streams:
            gone = (xyz[s][:, :1] - moments).abs().argmin(dim=1) == moment
            if mode == "drop":
                changed[s], places[s] = tokens[s][:, ~gone], xyz[s][~gone]
            else:
                others = tokens[s][:, ~gone].mean(dim=1, keepdim=True)
                changed[s] = torch.where(gone[:, None], others, tokens[s])
        falls.append(whole - probability(changed, places))
    return moments, torch.stack(falls, dim=1)


@dataclass(frozen=True)
class Attribution:
    """Attribution of a logit to pixels: signed values, their magnitude per pixel, and the completeness error.

    `error` is how far the values miss the difference between the logit of the clip and that of the baseline
    (integrated gradients only, else None).
    """

    values: Float[Tensor, "b t h w 3"]
    map: Float[Tensor, "b t h w"]
    error: Float[Tensor, "b"] | None


def saliency(
    model: Callable[[Tensor], Tensor],
    frames: Float[Tensor, "b t h w 3"],
    target: int | Int[Tensor, "b"],
    *,
    method: str = "integrated_gradients",
    steps: int = 32,
    baseline: float | int | Tensor = 0,
) -> Attribution:
    """Attribute the target's logit to the pixels of clips in [0, 1], through the frozen streams.

    `method` is "integrated_gradients" (Sundararajan et al. 2017, `steps` points from `baseline`) or
    "gradient" (Simonyan et al. 2014). One interpolated batch is in memory at a time. Raises ValueError for
    frames not float.
    """
    if not frames.is_floating_point():
        raise ValueError(f"saliency needs float frames in [0, 1], got {frames.dtype}; divide uint8 by 255")
    frames = frames.detach().clone().requires_grad_()  # captum marks its input, which is the caller's
    if method == "gradient":
        values, error = Saliency(model).attribute(frames, target=target, abs=False), None
    elif method == "integrated_gradients":
        values, error = IntegratedGradients(model).attribute(
            frames,
            baselines=baseline,
            target=target,
            n_steps=steps,
            internal_batch_size=len(frames),
            return_convergence_delta=True,
        )
    else:
        raise ValueError(f"unknown attribution method {method!r}; use integrated_gradients or gradient")
    values = values.detach()
    return Attribution(values, values.abs().sum(dim=-1), error)


def pointing_game(map: Map, mask: Mask, tolerance: float | int = 0) -> float:
    """Return 1.0 where the map's peak is on the mask, or within `tolerance` pixels in its frame, else 0.0.

    A coarse map is first stretched to the mask's size, so that a peak lies at the middle of its cell. Where
    several places tie, the share of them that hit. Source: Zhang et al. 2016, excitation backprop.
    """
    values, mask = _scores(map), _mask(mask)
    if values.shape != mask.shape:
        values = F.interpolate(values[None, None], mask.shape, mode="trilinear", align_corners=False)[0, 0]
    peaks = (values >= values.max() * (1 - 1e-9)).numpy()
    hits = []
    for frame, peak in zip(mask.numpy(), peaks, strict=True):
        distance = distance_transform_edt(~frame) if frame.any() else np.full(frame.shape, np.inf)
        hits.append(distance[peak] <= tolerance)
    return float(np.concatenate(hits).mean())


def mass_inside(map: Map, mask: Mask) -> float:
    """Return the share of the map's mass that lies on the mask; an even map scores the mask's share of the
    clip.

    The mass of a coarse cell spreads evenly over the pixels it covers. Source: energy-based pointing game,
    Wang et al. 2020 (Score-CAM).
    """
    values, mask = _scores(map), _mask(mask)
    sizes = zip(values.shape, mask.shape, strict=True)
    spread = [(torch.arange(large) + 0.5) * small // large for small, large in sizes]
    values = values[torch.meshgrid(*(axis.long() for axis in spread), indexing="ij")]
    return float((values * mask).sum() / values.sum())


def _scores(map: Map) -> Float[Tensor, "t y x"]:
    values = torch.as_tensor(map).detach().cpu().double()
    if values.ndim != 3 or not torch.isfinite(values).all() or (values < 0).any() or not values.sum() > 0:
        raise ValueError(
            "a map must be [t, y, x], finite, not negative and not all zero; "
            f"got {list(values.shape)}, {values.min():.3g} to {values.max():.3g}"
        )
    return values


def _mask(mask: Mask) -> Bool[Tensor, "t h w"]:
    mask = torch.as_tensor(mask).cpu() != 0
    if mask.ndim != 3 or not mask.any():
        raise ValueError(
            f"a mask must be [t, h, w] with at least one pixel set; got {list(mask.shape)}, "
            f"{int(mask.sum())} set"
        )
    return mask


def umap_embedding(
    features: Float[np.ndarray, "n d"], seed: int, *, neighbours: int = 15, min_distance: float = 0.1
) -> Float[np.ndarray, "n 2"]:
    """Return a 2-D UMAP of features; the same seed gives the same points (McInnes et al. 2018).

    Raises ValueError for fewer than `UMAP_CLIPS` clips, and for no more than `neighbours`.
    """
    features = np.asarray(features, dtype=np.float32)
    if features.ndim != 2 or len(features) <= max(neighbours, UMAP_CLIPS - 1):
        raise ValueError(
            f"UMAP needs [n, d] features of at least {UMAP_CLIPS} clips, and more than neighbours={neighbours}, "
            f"got {list(features.shape)}"
        )
    try:
        import umap  # numba compiles at import, which nothing else here should wait for
    except RuntimeError as error:
        raise RuntimeError(f"{error}; set NUMBA_CACHE_DIR to a folder that can be written") from error

    # One job: UMAP gives up parallel layout for a fixed seed anyway, and says so in a warning otherwise.
    reducer = umap.UMAP(n_neighbors=neighbours, min_dist=min_distance, random_state=seed, n_jobs=1)
    return reducer.fit_transform(features)
