"""The work on one batch of clips: decode it once, run the streams, pack their tokens and write them to their stores."""

import hashlib
import io
import mmap
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import prod
from multiprocessing import reduction

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn

from tcar.data.machine import reason_of
from tcar.data.ssv2 import Clip
from tcar.data.video import VideoError
from tcar.data.views import SegmentView, read_views
from tcar.features.making import ClipBatch, StoreSpec, one_place_each, weights_of
from tcar.features.packing import FeatureError, packed, parts_of, unpacked, untyped
from tcar.features.store import COORDINATES, TOKENS, header
from tcar.ground.files import replace_file
from tcar.streams.grids import pool_tokens

OnDevice = list[list[tuple[list[int], UInt8[Tensor, "_ _ _ _ 3"]]]]


@dataclass(frozen=True)
class Frames:
    """What a stream sees of a batch: for each view the clips of one size as one array [clips t h w 3], with their rows
    in the batch; and why the other clips have none.

    A batch of frames is tens of megabytes. Where the system allows, pickling hands over memory that both processes
    see, without a name that could outlive them, instead of copying it through a pipe; /dev/shm, which containers keep
    small, is not asked for room.
    """

    views: list[list[tuple[list[int], UInt8[np.ndarray, "_ _ _ _ 3"]]]]
    broken: dict[str, str]

    def on(self, device: str | torch.device) -> OnDevice:
        """The same frames as tensors on a device."""
        return [[(rows, torch.from_numpy(clips).to(device)) for rows, clips in view] for view in self.views]

    def __reduce__(self):
        if not any(self.views) or not hasattr(os, "memfd_create"):
            return Frames, (self.views, self.broken)
        with open(os.memfd_create("tcar-frames"), "wb") as memory:
            for view in self.views:
                for _, clips in view:
                    memory.write(clips.data)
            memory.flush()
            handle = reduction.DupFd(memory.fileno())
        shapes = [[(rows, clips.shape) for rows, clips in view] for view in self.views]
        return _received, (handle, shapes, self.broken)


def _received(handle, shapes: list[list[tuple[list[int], tuple[int, ...]]]], broken: dict[str, str]) -> Frames:
    """The frames in the memory that a worker has handed over; it is freed with the last of them."""
    descriptor = handle.detach()
    try:
        memory, at = np.frombuffer(mmap.mmap(descriptor, 0), np.uint8), 0
    finally:
        os.close(descriptor)
    views = [[] for _ in shapes]
    for view, groups in zip(views, shapes, strict=True):
        for rows, shape in groups:
            view.append((rows, memory[at : at + prod(shape)].reshape(shape)))
            at += prod(shape)
    return Frames(views, broken)


class Reader:
    """Decodes each readable clip of a batch once; gives what each of the wanted stores' streams sees, and seconds."""

    def __init__(self, stores: Sequence[StoreSpec]):
        self.stores = stores

    def __call__(self, batch: ClipBatch) -> tuple[list[Frames], float]:
        began = time.perf_counter()
        asked = [self.stores[number].readings for number in batch.wanted]
        videos = [[{} for _ in views] for views in asked]
        broken = [dict(batch.broken) for _ in asked]
        for row, clip in enumerate(batch.clips):
            seen = () if clip.id in batch.broken else _seen(clip, asked)
            for into, reasons, found in zip(videos, broken, seen, strict=False):
                if isinstance(found, str):
                    reasons[clip.id] = found
                    continue
                for view, frames in zip(into, found, strict=True):
                    view[row] = frames
        frames = [Frames([_stacked(view) for view in views], why) for views, why in zip(videos, broken, strict=True)]
        return frames, time.perf_counter() - began


def _seen(clip: Clip, asked: list[list[tuple[SegmentView, int, int]]]) -> list[list[np.ndarray] | str]:
    """The frames of each list of views, or why there are none."""
    try:
        frames = iter(read_views(clip, [view for views in asked for view in views]))
    except VideoError as error:
        if len(asked) == 1:
            return [reason_of(error)]
        # The damage may lie among the frames of one of them alone.
        return [seen for views in asked for seen in _seen(clip, [views])]
    return [[next(frames) for _ in views] for views in asked]


def _stacked(videos: dict[int, np.ndarray]) -> list[tuple[list[int], np.ndarray]]:
    """The videos of one size together, with their rows; what is stacked is taken out, as it fills the memory."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for row, video in videos.items():
        alike.setdefault(video.shape, []).append(row)
    return [(rows, np.stack([videos.pop(row) for row in rows])) for rows in alike.values()]


class Extractor:
    """Reads a batch, runs the streams and writes their tokens, in a worker process; gives a record by store and the
    seconds of each step.
    """

    def __init__(self, stores: Sequence[StoreSpec], builders: Sequence[Callable[[], nn.Module]]):
        self.stores, self.builders, self.streams = stores, builders, {}

    def __call__(self, batch: ClipBatch) -> tuple[dict[int, dict], Counter]:
        (decoded, seconds), records = Reader(self.stores)(batch), {}
        spent = Counter({"decoding": seconds})
        for number, frames in zip(batch.wanted, decoded, strict=True):
            stream, began = self._stream(number), time.perf_counter()
            pieces = compute(self.stores[number], stream, frames.on("cpu"))
            computed = time.perf_counter()
            records[number] = write(self.stores[number], batch, frames.broken, pieces)
            spent += Counter({"model": computed - began, "writing": time.perf_counter() - computed})
        return records, spent

    def _stream(self, number: int) -> nn.Module:
        if number not in self.streams:
            torch.set_num_threads(1)
            self.streams[number] = stream = self.builders[number]()
            if weights_of(stream) != self.stores[number].weights:
                raise FeatureError(f"{stream.name}: its factory gives other weights each time; seed it")
        return self.streams[number]


@dataclass(frozen=True)
class Piece:
    """Tokens of frames of one size: their rows among those of the batch, their parts as they are kept, their places.

    `error` of int8: of each token the squares of the error and of its numbers, and the largest error.
    """

    name: str
    rows: list[int]
    parts: tuple[Shaped[Tensor, "rows n ..."], ...]
    coordinates: Float[Tensor, "n 3"]
    error: Float[Tensor, "3 rows n"] | None

    def sent(self) -> "Piece":
        """The same on its way to the memory of the processor, where it is once the device has done all before."""
        early = self.coordinates.is_cuda  # where an event tells when
        error = None if self.error is None else self.error.to("cpu", non_blocking=early)
        parts = tuple(part.to("cpu", non_blocking=early) for part in self.parts)
        return replace(self, parts=parts, coordinates=self.coordinates.to("cpu", non_blocking=early), error=error)


def compute(store: StoreSpec, stream: nn.Module, views: OnDevice) -> list[Piece]:
    """Run the stream over the frames of a batch, view by view, clips of one size together."""
    count = store.settings.views
    return [
        pooled_tokens(store, stream, clips, [row * count + view for row in rows]).sent()
        for view, groups in enumerate(views)
        for rows, clips in groups
    ]


def pooled_tokens(store: StoreSpec, stream: nn.Module, clips: UInt8[Tensor, "b t h w 3"], rows: list[int]) -> Piece:
    """The pooled tokens of clips as they are kept; raises FeatureError for tokens of another shape than the store's."""
    kept, shape = store.settings, (prod(store.grid), store.width)
    lower = torch.autocast(clips.device.type, torch.bfloat16) if kept.precision == "bf16" else nullcontext()
    with torch.inference_mode():
        with lower:
            pooled = pool_tokens(stream(clips), store.grid)
        tokens = pooled.values.flatten(1, 2)
        if tokens.shape[1:] != shape:
            raise FeatureError(
                f"{stream.name} gives {tokens.shape[1]} tokens of {tokens.shape[2]} numbers a clip, not "
                f"{shape[0]} of {shape[1]}"
            )
        parts = packed(tokens, kept.token_type)
        error = _error(tokens, parts) if kept.token_type == "int8" else None
    return Piece(stream.name, rows, parts, pooled.coordinates.flatten(0, 1).float(), error)


def _error(tokens: Float[Tensor, "b n d"], parts: tuple[Tensor, ...]) -> Float[Tensor, "3 b n"]:
    error = unpacked(parts) - tokens.float()
    return torch.stack([error.square().sum(-1), tokens.float().square().sum(-1), error.abs().amax(-1)])


def rows_of(store: StoreSpec, pieces: Sequence[Piece], count: int) -> Shaped[np.ndarray, "count ..."]:
    """Rows of a store with the tokens of these pieces; those of none are zero. Raises FeatureError for no numbers."""
    rows = np.zeros((count, *store.kind.shape), store.kind.base)
    for piece in pieces:
        # The least or the greatest is not finite where any number is not, and takes less time than looking at each.
        if not all(extreme.isfinite() for extreme in torch.aminmax(piece.parts[-1])):
            raise FeatureError(
                f"{piece.name} gives tokens that are not finite in {store.settings.token_type}; check its checkpoint"
            )
        for target, part in zip(parts_of(rows), piece.parts, strict=True):
            target[piece.rows] = untyped(part.cpu())
    return rows


def write(store: StoreSpec, batch: ClipBatch, broken: dict[str, str], pieces: Sequence[Piece]) -> dict:
    """Write the tokens of a batch, and give the record of it, which may be noted when they are on the disk."""
    record = {"batch": batch.number, "broken": broken, "sha256": ""}
    if not pieces:
        return record
    content = memoryview(rows_of(store, pieces, len(batch.clips) * store.settings.views).reshape(-1).view(np.uint8))
    coordinates = one_place_each(pieces[0].name, [piece.coordinates.numpy() for piece in pieces])
    if not (store.folder / COORDINATES).exists():
        file = io.BytesIO()
        np.save(file, coordinates)
        replace_file(store.folder / COORDINATES, file.getvalue())
    _written(store, batch.start, content)
    record |= {"sha256": hashlib.sha256(content).hexdigest(), "ends": coordinates[[0, -1]].tolist()}
    if store.settings.token_type == "int8":
        errors = [piece.error.numpy().astype(np.float64) for piece in pieces]
        squares = {
            name: float(sum(error[row].sum() for error in errors)) for row, name in enumerate(("error", "tokens"))
        }
        record["error"] = squares | {"largest": float(max(error[2].max() for error in errors))}
    return record


def _written(store: StoreSpec, start: int, content: memoryview) -> None:
    path, views = store.folder / TOKENS, store.settings.views

    # Another machine may write beside this one: a page of a shared disk that is written as a whole takes the bytes of
    # others back to what they were when it was read, and is not if every write goes to the disk by itself.
    def opened(path: str, _: int) -> int:
        return os.open(path, os.O_WRONLY | os.O_DSYNC | os.O_CLOEXEC)

    try:
        with open(path, "wb", opener=opened) as file:
            file.seek(len(header(store.kind, store.clips * views)) + start * views * store.kind.itemsize)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(path)  # a disk that is full says so of no file
        raise
