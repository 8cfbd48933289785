"""The work behind a feature store: one batch of clips read, run through a stream and written as one shard.

A shard is `tokens-<batch>.npy` and, written after it, `tokens-<batch>.json`, the record of what is in it.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float16, UInt8
from torch import nn

from tcar import models
from tcar.data.ssv2 import Clip
from tcar.data.video import VideoError, read_segments


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
    frames: int
    grid: tuple[int, int, int]
    weights: str


@dataclass(frozen=True)
class Batch:
    """One shard to be: its clips, and those among them already known to be broken."""

    number: int
    clips: Sequence[Clip]
    broken: dict[str, str]


class Reader:
    """Decodes the readable clips of a batch: (ids, frames of each, reason for each broken one)."""

    def __init__(self, frames: int):
        self.frames = frames

    def __call__(self, batch: Batch) -> tuple[list[str], list[UInt8[np.ndarray, "t _ _ 3"]], dict[str, str]]:
        ids, videos, broken = [], [], dict(batch.broken)
        for clip in batch.clips:
            if clip.id in broken:
                continue
            try:
                videos.append(read_segments(clip.path, self.frames))
                ids.append(clip.id)
            except VideoError as error:
                broken[clip.id] = error.reason
        return ids, videos, broken


class Extractor:
    """Reads a batch, runs the stream and writes the shard, in a worker process."""

    def __init__(self, job: Job, build: Builder):
        self.job, self.build, self.model = job, build, None

    def __call__(self, batch: Batch) -> None:
        if self.model is None:
            torch.set_num_threads(1)
            self.model = self.build()
            if models.weights_digest(self.model) != self.job.weights:
                raise FeatureError(f"{self.model.name}: its factory gives other weights each time; seed it")
        write_shard(self.job, batch.number, self.model, *Reader(self.job.frames)(batch))


def pooled_tokens(
    model: nn.Module, videos: list[UInt8[np.ndarray, "t _ _ 3"]], grid: tuple[int, int, int]
) -> tuple[Float16[np.ndarray, "clips n d"], Float[np.ndarray, "n 3"]]:
    """Pooled tokens of videos, run together where their frames have the same size."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    sizes: dict[tuple[int, ...], list[int]] = {}
    for position, video in enumerate(videos):
        sizes.setdefault(video.shape, []).append(position)
    values: list[np.ndarray | None] = [None] * len(videos)
    for positions in sizes.values():
        clips = torch.from_numpy(np.stack([videos[position] for position in positions])).to(device)
        with torch.inference_mode():
            pooled = models.pool_tokens(model(clips), grid)
        found = pooled.values.flatten(1, 2).half().cpu().numpy()
        if not np.isfinite(found).all():
            raise FeatureError(f"{model.name} gives tokens that are not finite in fp16; check its checkpoint")
        for position, value in zip(positions, found, strict=True):
            values[position] = value
    return np.stack(values), pooled.coordinates.flatten(0, 1).float().cpu().numpy()


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"tokens-{number:05d}.npy"


def record_path(folder: Path, number: int) -> Path:
    return folder / f"tokens-{number:05d}.json"


def replace(path: Path, write: Callable[[Path], None]) -> None:
    """Write beside the target and rename, so that no reader ever meets half a file."""
    draft = path.with_name(f".{os.getpid()}-{path.name}")
    write(draft)
    os.replace(draft, path)


def write_shard(
    job: Job,
    number: int,
    model: nn.Module,
    ids: list[str],
    videos: list[UInt8[np.ndarray, "t _ _ 3"]],
    broken: dict[str, str],
) -> None:
    """Write the tokens, then the record that makes the shard count as complete."""
    if ids:
        tokens, coordinates = pooled_tokens(model, videos, job.grid)
        replace(shard_path(job.folder, number), lambda draft: np.save(draft, tokens))
        replace(job.folder / "coordinates.npy", lambda draft: np.save(draft, coordinates))
    record = json.dumps({"ids": ids, "broken": broken})
    replace(record_path(job.folder, number), lambda draft: draft.write_text(record, encoding="utf-8"))


def read_record(job: Job, number: int) -> dict | None:
    path = record_path(job.folder, number)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
