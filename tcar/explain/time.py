"""Which moments of a clip the decision depends on, by its tokens and by its pixels."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from tcar.explain.errors import ExplanationError
from tcar.explain.questions import undisturbed
from tcar.fusion.blocks import STREAMS
from tcar.ground import log
from tcar.ground.errors import unknown

Classes = int | Int[Tensor, " _"]
Frames = UInt8[Tensor, "_ _ _ _ 3"] | Float[Tensor, "_ _ _ _ 3"]
Clip = Frames | tuple[Frames, Frames]


@dataclass(frozen=True)
class Moments:
    """What each moment of clips is worth: `times`, the middles of the moments in [0, 1], and `values` in logits."""

    times: Float[Tensor, " t"]
    values: Float[Tensor, "b t"]


@dataclass(frozen=True)
class _Settings:
    samples: int = 25
    seed: int = 0
    progress: bool = False

    def __post_init__(self):
        if self.samples < 1:
            raise ExplanationError(f"Shapley values need at least one order of the moments, got samples={self.samples}")

    def orders(self, moments: int) -> list[list[int]]:
        """Return the orders in which moments enter: all of them if they are no more than the samples."""
        if math.factorial(moments) <= self.samples:
            return list(map(list, itertools.permutations(range(moments))))
        generator, found = torch.Generator().manual_seed(self.seed), []
        for number in range(self.samples):
            drawn = found[-1][::-1] if number % 2 else torch.randperm(moments, generator=generator).tolist()
            found.append(drawn)
        return found


def frame_importance(
    model: nn.Module,
    frames: Clip,
    target: Classes,
    against: Classes | None = None,
    *,
    method: str = "ablation",
    **running: int | bool,
) -> Moments:
    """Return what each moment adds to the logit of `target`, or to its lead over that of `against`.

    The moments are the equal segments of the read stream of fewest frames; a finer stream's frames go with the nearest
    one, and all streams lose a moment together. Streams that the fusion does not read stay as they are.

    "ablation": how far the logit falls when a moment's frames give way to the nearest frame of the moment before (the
    first: of the one after), so that the clip stays a video. Source: Zeiler and Fergus 2014, here over time.
    "shapley": Shapley values over `samples` orders of the moments; a moment that has not entered shows the stream's
    mean frame, so the clip where none has is one without time, which keeps the scene. The values sum to the logit of
    the clip less that of this one. All orders are taken once where there are no more than `samples` of them (four
    moments have 24): the values are exact then. Otherwise each random order is followed by its reverse. Sources: Castro
    et al. 2009; Mitchell et al. 2022 for the reverses.

    running: `samples` (25) and their `seed` (0), and `progress`, whether to show how far it is.
    Raises ExplanationError for clips of one moment, an unknown method, or classes that the model does not have.
    """
    methods = {"ablation": _neighbours, "shapley": _mean_frame}
    if method not in methods:
        raise ExplanationError(f"method {method!r} for moments: {unknown(method, methods)}")
    settings = _Settings(**running)
    given = frames_by_stream(model, frames)
    counts = {s: given[s].shape[1] for s in model.fusion.streams}
    moments = min(counts.values())
    if moments < 2:
        raise ExplanationError(
            f"a clip of one moment has no moments to compare: {', '.join(f'{s} has {n}' for s, n in counts.items())} "
            "frames, and two in every stream that the fusion reads are the least"
        )
    owner = {s: _nearest_moments(count, moments) for s, count in counts.items()}
    absent = {s: methods[method](given[s], owner[s]) for s in owner}

    orders = settings.orders(moments)
    evaluations = 1 + moments * (len(orders) if method == "shapley" else 1)
    bar = log.progress(range(evaluations), description="moments", unit="evaluations") if settings.progress else iter(())

    def logit(present: Float[Tensor, "b t"]) -> Float[Tensor, " b"]:
        """Return what is explained, with the moments that are present."""
        shown = {s: torch.where(present[:, owner[s], None, None, None] > 0, given[s], absent[s]) for s in owner}
        next(bar, None)
        return explained(model(*(given | shown).values()), target, against)

    everything = given["semantic"].new_ones(len(given["semantic"]), moments)
    with undisturbed(model), torch.no_grad():
        values = _ablated(logit, everything) if method == "ablation" else _shapley(logit, everything, orders)
    next(bar, None)  # what the last of them was
    times = (torch.arange(moments, dtype=torch.float32, device=values.device) + 0.5) / moments
    return Moments(times, values.float())


def frames_by_stream(model: nn.Module, frames: Clip) -> dict[str, Float[Tensor, "b _ _ _ 3"]]:
    """Return float frames as each stream sees them: those of a pair as they are, of one tensor as `model.pick` cuts it.

    Raises ExplanationError where the clip is too short, or the two streams have not as many clips.
    """
    try:
        pair = model.pick(frames) if isinstance(frames, Tensor) else frames
    except ValueError as error:
        raise ExplanationError(str(error)) from error
    given = {s: x if x.is_floating_point() else x.float() / 255 for s, x in zip(STREAMS, pair, strict=True)}
    counts = {s: len(x) for s, x in given.items()}
    if len(set(counts.values())) > 1:
        raise ExplanationError(f"each stream needs frames of every clip, got {counts}")
    return given


def explained(
    logits: Float[Tensor, "b c"], target: Classes, against: Classes | None = None
) -> Float[Tensor, " b"]:
    """Return the logit of `target` in each clip, or how far it leads that of `against`.

    Raises ExplanationError for a class that is not there, and for two that are the same.
    """
    chosen = [_classes(c, logits) for c in (target, against) if c is not None]
    if len(chosen) == 2 and (chosen[0] == chosen[1]).any():
        raise ExplanationError("target and against are the same class: there is no difference to explain")
    values = [logits.gather(1, c[:, None])[:, 0] for c in chosen]
    return values[0] - values[1] if against is not None else values[0]


def _classes(wanted: Classes, logits: Float[Tensor, "b c"]) -> Int[Tensor, " b"]:
    clips, classes = logits.shape
    wanted = torch.as_tensor(wanted, device=logits.device).long()
    if wanted.ndim > 1 or wanted.numel() not in (1, clips):
        raise ExplanationError(f"one class, or one for each of {clips} clips, expected; got {list(wanted.shape)}")
    if wanted.min() < 0 or wanted.max() >= classes:
        raise ExplanationError(
            f"classes are 0 to {classes - 1}, got {int(wanted.min())} to {int(wanted.max())}"
        )
    return wanted.expand(clips)


def _nearest_moments(frames: int, moments: int) -> list[int]:
    """Return the moment to whose middle each frame's is nearest, the earlier one of two."""
    return [
        min(range(moments), key=lambda m: abs((2 * frame + 1) * moments - (2 * m + 1) * frames))
        for frame in range(frames)
    ]


def _neighbours(frames: Float[Tensor, "b n h w 3"], owner: list[int]) -> Float[Tensor, "b n h w 3"]:
    """Return for each frame the last one of the moment before its own; in the first moment the first one after it."""
    after = owner.index(1)
    return frames[:, [owner.index(moment) - 1 if moment else after for moment in owner]]


def _mean_frame(frames: Float[Tensor, "b n h w 3"], owner: list[int]) -> Float[Tensor, "b n h w 3"]:
    return frames.mean(dim=1, keepdim=True).expand_as(frames)


def _ablated(logit: Callable[[Tensor], Tensor], everything: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    from captum.attr import FeatureAblation

    return FeatureAblation(logit).attribute(everything)


def _shapley(
    logit: Callable[[Tensor], Tensor], everything: Float[Tensor, "b t"], orders: list[list[int]]
) -> Float[Tensor, "b t"]:
    from captum.attr import ShapleyValueSampling

    sampling = ShapleyValueSampling(logit)
    sampling.permutation_generator = lambda moments, samples: iter(orders)  # captum's own draws no reverses
    return sampling.attribute(everything, n_samples=len(orders))


@torch.no_grad()
def temporal_importance(
    fusion: nn.Module,
    semantic: Float[Tensor, "b n d1"],
    semantic_xyz: Float[Tensor, "n 3"],
    motion: Float[Tensor, "b m d2"],
    motion_xyz: Float[Tensor, "m 3"],
    target: Int[Tensor, " b"],
) -> tuple[Float[Tensor, " t"], Float[Tensor, "b t"]]:
    """Return the moments, in [0, 1] of the clip, and how far the target's probability falls without the tokens of each.

    The moments are those of the coarsest of the streams that the fusion reads; a finer stream's tokens count with the
    nearest one. Source: occlusion sensitivity, Zeiler and Fergus 2014, over time. Raises ValueError for grids
    of one moment.
    """
    tokens, xyz = {"semantic": semantic, "motion": motion}, {"semantic": semantic_xyz, "motion": motion_xyz}
    moments = min((xyz[s][:, 0].unique() for s in fusion.streams), key=len)
    if len(moments) < 2:
        raise ValueError("temporal importance needs at least two moments in every stream it looks at")

    def probability(left: dict[str, Tensor]) -> Float[Tensor, " b"]:
        """Return the target's probability with the tokens that are left of each stream."""
        given = [part for s in tokens for part in (tokens[s][:, left[s]], xyz[s][left[s]])]
        return fusion(*given).softmax(dim=-1).gather(1, target[:, None])[:, 0]

    everything = {s: torch.ones_like(xyz[s][:, 0], dtype=torch.bool) for s in tokens}
    nearest = {s: (xyz[s][:, :1] - moments).abs().argmin(dim=1) for s in fusion.streams}
    whole = probability(everything)
    falls = [
        whole - probability(everything | {s: nearest[s] != moment for s in nearest}) for moment in range(len(moments))
    ]
    return moments, torch.stack(falls, dim=1)
