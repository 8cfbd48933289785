"""The work behind feature stores: a batch of clips decoded once, run through streams, and written to their stores.

Where the tokens of a clip lie follows from the order of the clips alone, so the bytes of a store do not depend on who
made it or on how often the work was cut off.
"""

import hashlib
import io
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn

from tcar.data.machine import reason_of
from tcar.data.ssv2 import Clip
from tcar.data.video import VideoError
from tcar.features.frames import Frames, Stacked
from tcar.features.packing import FeatureError, TokenType, packed, parts_of, row_type, unpacked, untyped
from tcar.features.store import COORDINATES, TOKENS, header
from tcar.features.views import View, read_views
from tcar.ground.files import replace_file
from tcar.streams import grids, registry

Precision = Literal["fp32", "bf16"]
SAME_PLACE = 1e-4  # of the frame: devices differ by less in a coordinate, frames of another shape by more


@dataclass(frozen=True)
class Builder:
    """How a worker process comes by its stream."""

    stream: str | nn.Module | Callable[[], nn.Module]
    checkpoint: str

    def __call__(self) -> nn.Module:
        if isinstance(self.stream, str):
            return registry.create_stream(self.stream, pretrained=True, checkpoint=self.checkpoint or None)
        if self.checkpoint:
            raise FeatureError("checkpoint= goes with the name of a stream; others bring their weights")
        return self.stream if isinstance(self.stream, nn.Module) else self.stream()


@dataclass(frozen=True)
class Job:
    """What every batch of a store has in common; `weights` is the digest of the stream's weights.

    The store has `clips` clips, of each of which `views` rows of tokens of this `grid` and `width`.
    """

    folder: Path
    clips: int
    grid: tuple[int, int, int]
    width: int
    weights: str
    view: View
    views: int = 1
    view_seed: int = 0
    token_type: TokenType = "fp16"
    precision: Precision = "fp32"

    @property
    def kind(self) -> np.dtype:
        """A row of the store."""
        return row_type(self.token_type, prod(self.grid), self.width)


@dataclass(frozen=True)
class Batch:
    """What is done at once: clips, the first of them at `start` among those of the store, for the jobs of `wanted`.

    `broken` are those among them already known to be.
    """

    number: int
    start: int
    clips: Sequence[Clip]
    broken: dict[str, str]
    wanted: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Decoded:
    """The frames that each of the wanted jobs sees of a batch, and the seconds that it took to read them."""

    frames: list[Frames]
    seconds: float


class Reader:
    """Decodes each readable clip of a batch once, for all views of all jobs; jobs with the same views share frames."""

    def __init__(self, jobs: Sequence[Job]):
        self.jobs = jobs

    def __call__(self, batch: Batch) -> Decoded:
        began = time.perf_counter()
        asked = [[(self.jobs[n].view, v, self.jobs[n].view_seed) for v in range(self.jobs[n].views)]
                 for n in batch.wanted]  # fmt: skip
        kinds = [views for place, views in enumerate(asked) if views not in asked[:place]]
        found = [Frames([], [[] for _ in views], dict(batch.broken)) for views in kinds]
        for clip in batch.clips:
            if clip.id in batch.broken:
                continue
            for frames, seen in zip(found, _seen(clip, kinds), strict=True):
                if isinstance(seen, str):
                    frames.broken[clip.id] = seen
                    continue
                frames.ids.append(clip.id)
                for videos, video in zip(frames.videos, seen, strict=True):
                    videos.append(video)
        return Decoded([found[kinds.index(views)] for views in asked], time.perf_counter() - began)


def _seen(clip: Clip, kinds: list[list[tuple[View, int, int]]]) -> list[list[np.ndarray] | str]:
    """The frames of each list of views, or why there are none."""
    try:
        frames = iter(read_views(clip, [view for views in kinds for view in views]))
    except VideoError as error:
        if len(kinds) == 1:
            return [reason_of(error)]
        # The damage may lie among the frames of one of them alone.
        return [seen for views in kinds for seen in _seen(clip, [views])]
    return [[next(frames) for _ in views] for views in kinds]


class Extractor:
    """Reads a batch, runs the streams and writes their tokens, in a worker process; gives a record by job and the
    seconds of each step.
    """

    def __init__(self, jobs: Sequence[Job], builders: Sequence[Builder]):
        self.jobs, self.builders, self.models = jobs, builders, {}

    def __call__(self, batch: Batch) -> tuple[dict[int, dict], Counter]:
        decoded, records = Reader(self.jobs)(batch), {}
        spent = Counter({"decoding": decoded.seconds})
        for number, frames in zip(batch.wanted, decoded.frames, strict=True):
            model, began = self._model(number), time.perf_counter()
            pieces = compute(self.jobs[number], model, batch, frames.ids, frames.stacked())
            computed = time.perf_counter()
            records[number] = write(self.jobs[number], batch, frames.broken, pieces)
            spent += Counter({"model": computed - began, "writing": time.perf_counter() - computed})
        return records, spent

    def _model(self, number: int) -> nn.Module:
        if number not in self.models:
            torch.set_num_threads(1)
            self.models[number] = model = self.builders[number]()
            if registry.weights_digest(model) != self.jobs[number].weights:
                raise FeatureError(f"{model.name}: its factory gives other weights each time; seed it")
        return self.models[number]


@dataclass(frozen=True)
class Piece:
    """Tokens of frames of one size: the rows of the batch they belong to, parts as they are kept, their places [n 3].

    `error` [3 rows n] of int8: of each token the squares of the error and of its numbers, and the largest error.
    """

    name: str
    rows: list[int]
    parts: tuple[Shaped[Tensor, "rows n ..."], ...]
    coordinates: Float[Tensor, "n 3"]
    error: Float[Tensor, "3 rows n"] | None

    def sent(self) -> "Piece":
        """The same on its way to the memory of the processor, where it is once the device has done all before."""
        early = self.coordinates.is_cuda  # where an event tells when
        parts = tuple(part.to("cpu", non_blocking=early) for part in self.parts)
        error = None if self.error is None else self.error.to("cpu", non_blocking=early)
        return Piece(self.name, self.rows, parts, self.coordinates.to("cpu", non_blocking=early), error)


def compute(job: Job, model: nn.Module, batch: Batch, ids: Sequence[str], views: Iterable[Stacked]) -> list[Piece]:
    """Run the stream over the frames of each view of the clips of these ids, together where they have one size."""
    rows = {clip.id: row * job.views for row, clip in enumerate(batch.clips)}
    return [
        pooled_tokens(model, clips, [rows[ids[position]] + view for position in positions], job).sent()
        for view, groups in enumerate(views)
        for positions, clips in groups
    ]


def pooled_tokens(model: nn.Module, clips: UInt8[Tensor, "b t h w 3"], rows: list[int], job: Job) -> Piece:
    """The pooled tokens of clips as they are kept; raises FeatureError for tokens of another shape than the job's."""
    lower = torch.autocast(clips.device.type, torch.bfloat16) if job.precision == "bf16" else nullcontext()
    with torch.inference_mode():
        with lower:
            pooled = grids.pool_tokens(model(clips), job.grid)
        tokens = pooled.values.flatten(1, 2)
        if tokens.shape[1:] != (prod(job.grid), job.width):
            raise FeatureError(
                f"{model.name} gives {tokens.shape[1]} tokens of {tokens.shape[2]} numbers a clip, not "
                f"{prod(job.grid)} of {job.width}"
            )
        parts = packed(tokens, job.token_type)
        error = _error(tokens, parts) if job.token_type == "int8" else None
    return Piece(model.name, rows, parts, pooled.coordinates.flatten(0, 1).float(), error)


def _error(tokens: Float[Tensor, "b n d"], parts: tuple[Tensor, ...]) -> Float[Tensor, "3 b n"]:
    error = unpacked(parts) - tokens.float()
    return torch.stack([error.square().sum(-1), tokens.float().square().sum(-1), error.abs().amax(-1)])


def rows_of(job: Job, pieces: Sequence[Piece], count: int) -> Shaped[np.ndarray, "count ..."]:
    """Rows of a store with the tokens of these pieces; those of none are zero. Raises FeatureError for no numbers."""
    rows = np.zeros((count, *job.kind.shape), job.kind.base)
    for piece in pieces:
        # The least or the greatest is not finite where any number is not, and takes less time than looking at each.
        if not all(extreme.isfinite() for extreme in torch.aminmax(piece.parts[-1])):
            raise FeatureError(
                f"{piece.name} gives tokens that are not finite in {job.token_type}; check its checkpoint"
            )
        for target, part in zip(parts_of(rows), piece.parts, strict=True):
            target[piece.rows] = untyped(part.cpu())
    return rows


def write(job: Job, batch: Batch, broken: dict[str, str], pieces: Sequence[Piece]) -> dict:
    """Write the tokens of a batch, and give the record of it, which may be noted when they are on the disk."""
    record = {"batch": batch.number, "broken": broken, "sha256": ""}
    if not pieces:
        return record
    content = memoryview(rows_of(job, pieces, len(batch.clips) * job.views).reshape(-1).view(np.uint8))
    coordinates = one_place_each(pieces[0].name, [piece.coordinates.numpy() for piece in pieces])
    if not (job.folder / COORDINATES).exists():
        file = io.BytesIO()
        np.save(file, coordinates)
        replace_file(job.folder / COORDINATES, file.getvalue())
    _written(job, batch.start, content)
    record |= {"sha256": hashlib.sha256(content).hexdigest(), "ends": coordinates[[0, -1]].tolist()}
    if job.token_type == "int8":
        errors = [piece.error.numpy().astype(np.float64) for piece in pieces]
        squares = {
            name: float(sum(error[row].sum() for error in errors)) for row, name in enumerate(("error", "tokens"))
        }
        record["error"] = squares | {"largest": float(max(error[2].max() for error in errors))}
    return record


def _written(job: Job, start: int, content: memoryview) -> None:
    path, kind = job.folder / TOKENS, job.kind

    # Another machine may write beside this one: a page of a shared disk that is written as a whole takes the bytes of
    # others back to what they were when it was read, and is not if every write goes to the disk by itself.
    def opened(path: str, _: int) -> int:
        return os.open(path, os.O_WRONLY | os.O_DSYNC | os.O_CLOEXEC)

    try:
        with open(path, "wb", opener=opened) as file:
            file.seek(len(header(kind, job.clips * job.views)) + start * job.views * kind.itemsize)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(path)  # a disk that is full says so of no file
        raise


def one_place_each(name: str, places: Sequence[Float[np.ndarray, "n 3"]]) -> Float[np.ndarray, "n 3"]:
    """The coordinates that all of these are; raises FeatureError where they differ, as a store has one set of them."""
    if any(np.abs(found - places[0]).max() > SAME_PLACE for found in places):
        raise FeatureError(
            f"{name}: frames of different shapes give tokens in different places, and a store keeps one place for "
            "each token; give the stream fit='squash', or extract clips of each shape by themselves"
        )
    return places[0]
