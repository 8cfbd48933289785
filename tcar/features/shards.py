"""The work behind a feature store: one batch of clips read, run through a stream and written as one shard.

A shard is `tokens-<number>.npy` and, written after it, `tokens-<number>.json`, the record of what is in it. Which
clips it holds follows from their order alone, so its bytes do not depend on who made it or on how often the work was
cut off. Nothing carries its final name before it is whole and on the disk.
"""

import hashlib
import io
import itertools
import json
import mmap
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from math import prod
from multiprocessing import reduction
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn

from tcar import models
from tcar.data.ssv2 import Clip
from tcar.data.video import VideoError
from tcar.features.views import View

TokenType = Literal["fp16", "bf16"]
Precision = Literal["fp32", "bf16"]
# numpy has no bfloat16: its bits are kept in unsigned integers of the same size.
STORED = {"fp16": np.dtype("<f2"), "bf16": np.dtype("<u2")}


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


@dataclass(frozen=True)
class Frames:
    """The decoded clips of a batch, `videos[view][clip]`, the reason for each broken one, and the seconds it took.

    A batch of frames is tens of megabytes. Where the system allows, pickling hands over memory that both processes
    see, without a name that could outlive them, instead of copying it through a pipe.
    """

    ids: list[str]
    videos: list[list[UInt8[np.ndarray, "t _ _ 3"]]]
    broken: dict[str, str]
    seconds: float

    def __reduce__(self):
        if not self.ids or not hasattr(os, "memfd_create"):
            return Frames, (self.ids, self.videos, self.broken, self.seconds)
        with open(os.memfd_create("tcar-frames"), "wb") as memory:
            for video in itertools.chain(*self.videos):
                memory.write(np.ascontiguousarray(video).data)
            memory.flush()
            handle = reduction.DupFd(memory.fileno())
        shapes = [[video.shape for video in view] for view in self.videos]
        return _received, (self.ids, handle, shapes, self.broken, self.seconds)


def _received(ids: list[str], handle, shapes: list[list[tuple]], broken: dict[str, str], seconds: float) -> Frames:
    """The frames in the memory that a worker has handed over; it is freed with the last of them."""
    descriptor = handle.detach()
    try:
        memory, at, videos = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ), 0, []
    finally:
        os.close(descriptor)
    for view in shapes:
        videos.append([])
        for shape in view:
            videos[-1].append(np.frombuffer(memory, np.uint8, prod(shape), at).reshape(shape))
            at += prod(shape)
    return Frames(ids, videos, broken, seconds)


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
                broken[clip.id] = error.reason
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
    by_view = [pooled_tokens(model, videos, job) for videos in frames.videos]
    tokens = np.stack([tokens for tokens, _ in by_view], axis=1)
    rows = np.ascontiguousarray(tokens.reshape(-1, *tokens.shape[2:]))  # a store reads row by row
    return Shard(frames.ids, frames.broken, rows, by_view[0][1])


def pooled_tokens(
    model: nn.Module, videos: list[UInt8[np.ndarray, "t _ _ 3"]], job: Job
) -> tuple[Shaped[np.ndarray, "clips n d"], Float[np.ndarray, "n 3"]]:
    """Pooled tokens of videos as they are stored, run together where their frames have the same size."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    lower = torch.autocast(device.type, torch.bfloat16) if job.precision == "bf16" else nullcontext()
    sizes: dict[tuple[int, ...], list[int]] = {}
    for position, video in enumerate(videos):
        sizes.setdefault(video.shape, []).append(position)
    values: list[np.ndarray | None] = [None] * len(videos)
    for positions in sizes.values():
        clips = torch.from_numpy(np.stack([videos[position] for position in positions])).to(device)
        with torch.inference_mode(), lower:
            pooled = models.pool_tokens(model(clips), job.grid)
        found = pooled.values.flatten(1, 2).to(torch.float16 if job.token_type == "fp16" else torch.bfloat16).cpu()
        if not found.isfinite().all():
            raise FeatureError(
                f"{model.name} gives tokens that are not finite in {job.token_type}; check its checkpoint"
            )
        for position, value in zip(positions, to_stored(found), strict=True):
            values[position] = value
    return np.stack(values), pooled.coordinates.flatten(0, 1).float().cpu().numpy()


def to_stored(tokens: Tensor) -> Shaped[np.ndarray, "..."]:
    """Tokens of half precision as numpy can keep them."""
    return (tokens if tokens.dtype == torch.float16 else tokens.view(torch.uint16)).numpy()


def from_stored(tokens: Shaped[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Stored tokens as numbers: fp16 as they are, bf16 in single precision, where they are exact."""
    if tokens.dtype == STORED["fp16"]:
        return tokens
    bits = tokens.astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"tokens-{number:05d}.npy"


def record_path(folder: Path, number: int) -> Path:
    return folder / f"tokens-{number:05d}.json"


def write_shard(job: Job, number: int, shard: Shard) -> None:
    """Write the tokens, then the record that makes the shard count as complete."""
    record = {"ids": shard.ids, "broken": shard.broken, "sha256": "", "bytes": 0}
    if shard.ids:
        record |= replace_file(shard_path(job.folder, number), as_npy(shard.tokens))
        if not (job.folder / "coordinates.npy").exists():
            replace_file(job.folder / "coordinates.npy", as_npy(shard.coordinates))
    # A record lost to a power cut is no harm: the shard is made again. So it does not wait for the disk.
    replace_file(record_path(job.folder, number), json.dumps(record).encode(), durable=False)


def read_record(job: Job, number: int) -> dict | None:
    """The record of a shard that is complete, else None."""
    try:
        record = json.loads(record_path(job.folder, number).read_text(encoding="utf-8"))
        whole = not record["ids"] or shard_path(job.folder, number).stat().st_size == record["bytes"]
    except (FileNotFoundError, ValueError):
        return None
    return record if whole else None


def as_npy(array: np.ndarray) -> memoryview:
    """The bytes of a `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getbuffer()


def replace_file(path: Path, content: bytes | memoryview, durable: bool = True) -> dict:
    """Write beside the target, on to the disk where `durable`, and rename: no reader ever meets half a file.

    Drafts carry machine and process in their name: two processes on the same file cannot get in each other's way.
    Returns the SHA-256 and the bytes of the content.
    """
    draft = path.with_name(f"{_draft_prefix()}{os.getpid()}~{path.name}")
    with draft.open("wb") as file:
        file.write(content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.replace(draft, path)
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def sync_folder(folder: Path) -> None:
    """Make the renames in a folder survive a power cut; where a file system cannot, nothing is lost by trying."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def drop_drafts(folder: Path) -> None:
    """Delete what processes of this machine left behind that are gone."""
    prefix = _draft_prefix()
    for draft in folder.glob(f"{prefix}*"):
        process = draft.name.removeprefix(prefix).partition("~")[0]
        if process.isdecimal() and not _alive(int(process)):
            draft.unlink(missing_ok=True)


def _draft_prefix() -> str:
    return f".{socket.gethostname()}~"


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
