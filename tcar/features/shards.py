"""The work behind a feature store: one batch of clips read, run through a stream and written as one shard.

A shard is `tokens-<number>.npy` and, written after it, `tokens-<number>.json`, the record of what is in it. Which
clips it holds follows from their order alone, so its bytes do not depend on who made it or on how often the work was
cut off. Nothing carries its final name before it is whole and on the disk.
"""

import io
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn

from tcar import models
from tcar.data.machine import reason_of
from tcar.data.ssv2 import Clip
from tcar.data.video import VideoError
from tcar.features.frames import Frames, alike, together
from tcar.features.views import View
from tcar.files import replace_file

TokenType = Literal["fp16", "bf16"]
Precision = Literal["fp32", "bf16"]
# numpy has no bfloat16: its bits are kept in unsigned integers of the same size.
STORED = {"fp16": np.dtype("<f2"), "bf16": np.dtype("<u2")}
SAME_PLACE = 1e-4  # of the frame: devices differ by less in a coordinate, frames of another shape by more


class FeatureError(RuntimeError):
    """Features that are not in the store, or could not be computed."""


@dataclass(frozen=True)
class Builder:
    """How a worker process comes by its stream."""

    stream: str | nn.Module | Callable[[], nn.Module]
    checkpoint: str

    def __call__(self) -> nn.Module:
        if isinstance(self.stream, str):
            return models.create_stream(self.stream, pretrained=True, checkpoint=self.checkpoint or None)
        if self.checkpoint:
            raise FeatureError("checkpoint= goes with the name of a stream; others bring their weights")
        return self.stream if isinstance(self.stream, nn.Module) else self.stream()


@dataclass(frozen=True)
class Job:
    """What every batch of a store has in common; `weights` is the digest of the stream's weights."""

    folder: Path
    grid: tuple[int, int, int]
    weights: str
    view: View
    views: int = 1
    view_seed: int = 0
    token_type: TokenType = "fp16"
    precision: Precision = "fp32"


@dataclass(frozen=True)
class Batch:
    """One shard to be: its clips, and those among them already known to be broken."""

    number: int
    clips: Sequence[Clip]
    broken: dict[str, str]


class Reader:
    """Decodes all views of the readable clips of a batch."""

    def __init__(self, job: Job):
        self.job = job

    def __call__(self, batch: Batch) -> Frames:
        began = time.perf_counter()
        ids, clips, broken = [], [], dict(batch.broken)
        for clip in batch.clips:
            if clip.id in broken:
                continue
            try:
                clips.append([self.job.view(clip, view, self.job.view_seed) for view in range(self.job.views)])
                ids.append(clip.id)
            except VideoError as error:
                broken[clip.id] = reason_of(error)
        videos = [[clip[view] for clip in clips] for view in range(self.job.views)]
        return Frames(ids, videos, broken, time.perf_counter() - began)


class Extractor:
    """Reads a batch, runs the stream and writes the shard, in a worker process; gives the seconds of each step."""

    def __init__(self, job: Job, build: Builder):
        self.job, self.build, self.model = job, build, None

    def __call__(self, batch: Batch) -> Counter:
        if self.model is None:
            torch.set_num_threads(1)
            self.model = self.build()
            if models.weights_digest(self.model) != self.job.weights:
                raise FeatureError(f"{self.model.name}: its factory gives other weights each time; seed it")
        frames = Reader(self.job)(batch)
        computed = time.perf_counter()
        shard = compute(self.job, self.model, frames)
        written = time.perf_counter()
        write_shard(self.job, batch.number, shard)
        spent = {"decoding": frames.seconds, "model": written - computed, "writing": time.perf_counter() - written}
        return Counter(spent)


@dataclass(frozen=True)
class Shard:
    """The content of a shard: the views of a clip stand side by side; no tokens where no clip is readable."""

    ids: list[str]
    broken: dict[str, str]
    tokens: Shaped[np.ndarray, "rows n d"] | None
    coordinates: Float[np.ndarray, "n 3"] | None


def compute(job: Job, model: nn.Module, frames: Frames) -> Shard:
    """Run the stream over a batch, one view after the other, so that memory does not grow with the views."""
    if not frames.ids:
        return Shard([], frames.broken, None, None)
    by_view, places = zip(*[pooled_tokens(model, videos, job) for videos in frames.videos], strict=True)
    rows = by_view[0] if len(by_view) == 1 else np.stack(by_view, axis=1).reshape(-1, *by_view[0].shape[1:])
    return Shard(frames.ids, frames.broken, rows, one_place_each(model.name, places))


def pooled_tokens(
    model: nn.Module, videos: list[UInt8[np.ndarray, "t _ _ 3"]], job: Job
) -> tuple[Shaped[np.ndarray, "clips n d"], Float[np.ndarray, "n 3"]]:
    """Pooled tokens of videos as they are stored, run together where their frames have the same size."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    lower = torch.autocast(device.type, torch.bfloat16) if job.precision == "bf16" else nullcontext()
    half = torch.float16 if job.token_type == "fp16" else torch.bfloat16
    tokens, places = None, []
    for positions in alike([video.shape for video in videos]):
        clips = torch.from_numpy(together([videos[position] for position in positions])).to(device)
        with torch.inference_mode(), lower:
            pooled = models.pool_tokens(model(clips), job.grid)
        found = pooled.values.flatten(1, 2).to(half, copy=True)  # the next batch may overwrite what a stream gives
        # The least or the greatest is not finite where any number is not, and takes less time than looking at each.
        if not all(extreme.isfinite() for extreme in torch.aminmax(found)):
            raise FeatureError(
                f"{model.name} gives tokens that are not finite in {job.token_type}; check its checkpoint"
            )
        found = to_stored(found.contiguous().cpu())
        if len(positions) == len(videos):
            tokens = found
        else:
            tokens = np.empty((len(videos), *found.shape[1:]), found.dtype) if tokens is None else tokens
            tokens[positions] = found
        places.append(pooled.coordinates.flatten(0, 1).float().cpu().numpy())
    return tokens, one_place_each(model.name, places)


def one_place_each(name: str, places: Sequence[Float[np.ndarray, "n 3"]]) -> Float[np.ndarray, "n 3"]:
    """The coordinates that all of these are; raises FeatureError where they differ, as a store has one set of them."""
    if any(np.abs(found - places[0]).max() > SAME_PLACE for found in places):
        raise FeatureError(
            f"{name}: frames of different shapes give tokens in different places, and a store keeps one place for "
            "each token; give the stream fit='squash', or extract clips of each shape by themselves"
        )
    return places[0]


def to_stored(tokens: Tensor) -> Shaped[np.ndarray, "..."]:
    """Tokens of half precision as numpy can keep them."""
    return (tokens if tokens.dtype == torch.float16 else tokens.view(torch.uint16)).numpy()


def from_stored(
    tokens: Shaped[np.ndarray, "..."], empty: Callable[[tuple[int, ...], np.dtype], np.ndarray] = np.empty
) -> Float[np.ndarray, "..."]:
    """Stored tokens as numbers: fp16 as they are, bf16 in single precision, where they are exact.

    `empty` gives the array for those of bf16.
    """
    if tokens.dtype == STORED["fp16"]:
        return tokens
    numbers = empty(tokens.shape, np.dtype(np.float32))
    np.left_shift(tokens, 16, out=numbers.view(np.uint32), dtype=np.uint32)
    return numbers


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"tokens-{number:05d}.npy"


def record_path(folder: Path, number: int) -> Path:
    return folder / f"tokens-{number:05d}.json"


def write_shard(job: Job, number: int, shard: Shard) -> None:
    """Write the tokens, then the record that makes the shard count as complete."""
    record = {"ids": shard.ids, "broken": shard.broken, "sha256": "", "bytes": 0}
    if shard.ids:
        record |= {"flipped": flipped_views(job, shard.ids), "ends": shard.coordinates[[0, -1]].tolist()}
        record |= replace_file(shard_path(job.folder, number), *as_npy(shard.tokens))
        if not (job.folder / "coordinates.npy").exists():
            replace_file(job.folder / "coordinates.npy", *as_npy(shard.coordinates))
    # A record lost to a power cut is no harm: the shard is made again. So it does not wait for the disk.
    replace_file(record_path(job.folder, number), json.dumps(record).encode(), durable=False)


def flipped_views(job: Job, ids: Sequence[str]) -> list[list[bool]]:
    """Which views of these clips are mirrored, a list for each clip; raises FeatureError where view 0 is."""
    flipped = [[job.view.flipped(name, number, job.view_seed) for number in range(job.views)] for name in ids]
    if mirrored := [name for name, views in zip(ids, flipped, strict=True) if views[0]]:
        raise FeatureError(
            f"{job.view.key}: view 0 of clip {mirrored[0]} is mirrored, and scored as what the clip shows; mirror "
            "other views alone"
        )
    return flipped


def read_record(job: Job, number: int) -> dict | None:
    """The record of a shard that is complete, else None."""
    try:
        record = json.loads(record_path(job.folder, number).read_text(encoding="utf-8"))
        whole = not record["ids"] or shard_path(job.folder, number).stat().st_size == record["bytes"]
    except (FileNotFoundError, ValueError):
        return None
    return record if whole else None


def as_npy(array: np.ndarray) -> tuple[bytes, memoryview]:
    """The bytes of a `.npy` file: its head and, uncopied, the array, whose rows a store reads one by one."""
    head, rows = io.BytesIO(), np.ascontiguousarray(array)
    np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(rows))
    return head.getvalue(), memoryview(rows).cast("B")
