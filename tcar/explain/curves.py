"""What a model says while it is shown more and more of a clip: by time, and by the order that a map gives to pixels."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tcar.data.sampling import segment_indices
from tcar.explain.errors import ExplanationError
from tcar.explain.questions import undisturbed
from tcar.explain.time import Clip, Frames, explained, frames_by_stream
from tcar.fusion.blocks import STREAMS
from tcar.ground.errors import unknown

BASELINES = ("grey", "mean_frame")


@dataclass(frozen=True)
class _Reading:
    """How probabilities are read: the logits are divided by `temperature`, `batch` clips are in memory at once."""

    temperature: float = 1.0
    batch: int = 8

    def __post_init__(self):
        if self.batch < 1 or not self.temperature > 0:
            raise ExplanationError(
                f"batch and temperature must be above zero, got {self.batch} and {self.temperature}"
            )


@dataclass(frozen=True)
class Growing:
    """The probability of a class in a video that stops at each of `times`, shares of it in (0, 1].

    `moment` is the first of these times from which the probability stays above one half to the end; None if it never
    does.
    """

    times: Float[Tensor, " s"]
    probabilities: Float[Tensor, " s"]
    moment: float | None


@dataclass(frozen=True)
class Curves:
    """The probability of a class while the pixels that a map values most are inserted, and deleted.

    `shares` of the pixels run from 0 to 1, the areas are those under the curves: high for insertion and low for
    deletion where the map is right.
    """

    shares: Float[Tensor, " s"]
    insertion: Float[Tensor, " s"]
    deletion: Float[Tensor, " s"]
    insertion_area: float
    deletion_area: float


def growing_clip(
    model: nn.Module,
    video: Frames,
    target: int,
    *,
    steps: int | None = None,
    **reading: float,
) -> Growing:
    """Return the target's probability in a whole video [1 T h w 3] that stops early and holds the last frame seen.

    It stops at `steps` evenly spaced times, the last of which is its end; by default as often as the stream of most
    frames looks at it. Held frames keep its length, so that each stream's frames stay at their times. reading: the
    `temperature` (1) that divides the logits, and `batch`, how many clips are in memory at once (8). Raises
    ExplanationError for more than one video, one too short for the model, or steps that it does not have.
    """
    settings = _Reading(**reading)
    if len(video) != 1:
        raise ExplanationError(f"one video [1, time, height, width, 3] grows at a time, got {list(video.shape)}")
    frames_by_stream(model, video)  # says so where it is too short
    frames = video.shape[1]
    looks = {s: getattr(model.config, f"{s}_frames") for s in STREAMS}
    steps = min(frames, max(looks.values())) if steps is None else steps
    if not 1 <= steps <= frames:
        raise ExplanationError(f"a video of {frames} frames can stop at 1 to {frames} times, got steps={steps}")
    ends = torch.tensor([(step + 1) * frames // steps for step in range(steps)])
    seen = {s: torch.tensor(segment_indices(frames, count)).minimum(ends[:, None] - 1) for s, count in looks.items()}

    def made(numbers: slice) -> dict[str, Tensor]:
        shown = {s: video[0][seen[s][numbers].to(video.device)] for s in STREAMS}
        return frames_by_stream(model, tuple(shown.values()))

    probabilities = _probabilities(model, made, steps, target, settings)
    times = (ends / frames).to(probabilities)
    stays = (probabilities > 0.5).long().flip(0).cumprod(0).flip(0).bool()
    return Growing(times, probabilities, float(times[stays][0]) if stays.any() else None)


def insertion_deletion(
    model: nn.Module,
    frames: Clip,
    maps: Mapping[str, Float[Tensor, "_ _ _ _"]],
    target: int,
    *,
    baseline: str = "grey",
    steps: int = 16,
    **reading: float,
) -> Curves:
    """Return how the target's probability rises, and falls, as a map's best pixels are inserted and deleted.

    frames: one clip. maps: by stream that the fusion reads, `[1 t y x]` at any resolution, highest first; a pixel has
    the value of the cell that its centre lies in. Pixels are ranked in each stream apart, and at a share of `steps` + 1
    between 0 and 1 both streams show, or lose, that share of theirs. Pixels of equal value follow in a random order,
    always the same, so that an even map favours no place. What is not shown is "grey", or the "mean_frame" of the
    stream, which takes time away and leaves the scene. reading: as of `growing_clip`.
    Source: Petsiuk et al. 2018, RISE. Raises ExplanationError for more than one clip, an unknown baseline, or maps
    of other streams, empty or not finite.
    """
    settings, given = _Reading(**reading), frames_by_stream(model, frames)
    if baseline not in BASELINES:
        raise ExplanationError(f"baseline {baseline!r}: {unknown(baseline, BASELINES)}")
    if steps < 1:
        raise ExplanationError(f"curves need at least one step, got steps={steps}")
    if len(given["semantic"]) != 1:
        raise ExplanationError(f"curves are of one clip, got {len(given['semantic'])}")
    _check_maps(maps, model.fusion.streams)
    ranks = {s: _ranks(maps[s][0].to(given[s].device), given[s].shape[1:4]) for s in model.fusion.streams}
    hidden = {s: _hidden(given[s][0], baseline) for s in ranks}
    counts = torch.arange(steps + 1).repeat(2)  # inserted, then deleted

    def made(numbers: slice) -> dict[str, Tensor]:
        points = torch.arange(2 * (steps + 1))[numbers]
        return {s: torch.stack([clip(s, int(point)) for point in points]) for s in STREAMS}

    def clip(stream: str, point: int) -> Float[Tensor, "t h w 3"]:
        frames = given[stream][0]
        if stream not in ranks:
            return frames
        best = (ranks[stream] * steps < int(counts[point]) * ranks[stream].numel())[..., None]
        return torch.where(best if point <= steps else ~best, frames, hidden[stream])

    probabilities = _probabilities(model, made, 2 * (steps + 1), target, settings)
    insertion, deletion = probabilities.split(steps + 1)
    shares = torch.linspace(0, 1, steps + 1).to(probabilities)
    areas = [float(torch.trapezoid(curve, shares)) for curve in (insertion, deletion)]
    return Curves(shares, insertion, deletion, *areas)


def _probabilities(
    model: nn.Module, made: Callable[[slice], dict[str, Tensor]], count: int, target: int, reading: _Reading
) -> Float[Tensor, " s"]:
    """Return the target's probability in `count` clips, which are made a batch at a time."""
    found = []
    with undisturbed(model), torch.no_grad():
        for start in range(0, count, reading.batch):
            logits = model(*made(slice(start, min(start + reading.batch, count))).values())
            found.append(explained((logits / reading.temperature).softmax(dim=-1), target))
    return torch.cat(found)


def _check_maps(maps: Mapping[str, Tensor], streams: tuple[str, ...]) -> None:
    if set(maps) != set(streams):
        raise ExplanationError(f"maps of {', '.join(streams)} expected, as the fusion reads them; got {list(maps)}")
    for stream, values in maps.items():
        if len(values) != 1 or not values.numel():
            raise ExplanationError(f"the {stream} map must be [1, t, y, x] and not empty, got {list(values.shape)}")
        if not values.isfinite().all():
            raise ExplanationError(f"the {stream} map has values that are not finite, which have no rank")


def _ranks(values: Float[Tensor, "t y x"], size: torch.Size) -> Int[Tensor, "_ _ _"]:
    """Return the rank of each pixel of `size` in a map over the same clip, 0 the highest."""
    for axis, (cells, pixels) in enumerate(zip(values.shape, size, strict=True)):
        nearest = torch.tensor(segment_indices(cells, pixels), device=values.device)
        values = values.index_select(axis, nearest)
    shuffled = torch.randperm(values.numel(), generator=torch.Generator().manual_seed(0)).to(values.device)
    order = shuffled[values.flatten()[shuffled].argsort(descending=True, stable=True)]
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device)).view(size)


def _hidden(frames: Float[Tensor, "t h w 3"], baseline: str) -> Float[Tensor, "t h w 3"]:
    return torch.full_like(frames, 0.5) if baseline == "grey" else frames.mean(dim=0, keepdim=True).expand_as(frames)
