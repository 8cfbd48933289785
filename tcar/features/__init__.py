"""The feature store: the tokens of a frozen stream for every clip, computed once and kept on disk.

    python -m tcar.features plan params/ssv2.yaml --gpu A100      bytes and hours, before anything starts
    python -m tcar.features extract params/ssv2.yaml              both streams of a run, or what is missing of them
    torchrun --nproc-per-node 2 -m tcar.features extract params/ssv2.yaml
    python -m tcar.features extract params/ssv2.yaml --remake     also what other code made, which is deleted
    python -m tcar.features verify runs/ssv2/features/STORE       every byte read again

What a store holds is in `tcar.features.store`, how it is filled in `tcar.features.extraction`. Its name carries the
digest of what made it: stream, weights, sampling, views, pooling, type, and the ids and sizes of the clips. A batch of
clips is one shard: a run that is killed, at whatever moment, loses the batches it was at, and the next run makes them
again to the same bytes.
"""

import datetime
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tcar import locks, log, models
from tcar.data.ssv2 import Clip
from tcar.data.video import VideoError
from tcar.features.extraction import POLL, Ranks, Spent, await_ranks, make_shards
from tcar.features.shards import (
    STORED,
    Batch,
    Builder,
    FeatureError,
    Job,
    Precision,
    TokenType,
    from_stored,
    pooled_tokens,
    read_record,
    shard_path,
)
from tcar.features.store import DESCRIPTION, FILES, META, FeatureStore, finish, key_of, unpacked, verify
from tcar.features.views import SegmentView, View
from tcar.files import drop_drafts, foreign, remove_folder, replace_file

__all__ = ["FeatureError", "FeatureStore", "extract", "unpacked", "verify"]

# Devices and batch sizes differ by about 1e-3 in fp16, another way to read or scale frames by more than 1e-2. In
# bf16, eight times as coarse, so do devices.
SAME_TOKENS = {"fp32": 5e-3, "bf16": 2e-2}
PATIENCE = 1800.0  # seconds a rank waits for others that make nothing new

logger = log.get(__name__)


def extract(
    clips: Sequence[Clip],
    stream: str | nn.Module | Callable[[], nn.Module],
    grid: Sequence[int],
    frames: int,
    root: str | Path,
    *,
    checkpoint: str = "",
    workers: int = 0,
    batch_clips: int = 32,
    quarantine: Iterable[str] | Mapping[str, str] = (),
    device: str = "cpu",
    views: int = 1,
    view_seed: int = 0,
    view: View | None = None,
    token_type: TokenType = "fp16",
    precision: Precision = "fp32",
    patience: float = PATIENCE,
    remake: bool = False,
) -> FeatureStore:
    """Compute the pooled tokens of every clip, or open the store that already holds them.

    `stream` is a registered name (pretrained, from `checkpoint` if given), or a picklable module or factory;
    each worker process builds its own and uses one thread, and batches follow the order of the clips, so
    the numbers do not depend on `workers` (0: all cores). On "cuda" (or "auto" where there is one) the stream
    runs in this process and the workers only decode. `view` makes the `frames` frames of each of `views` views of a
    clip from `view_seed`; by default view 0 has the middle of each of equal segments, the others a random frame of
    each. Tokens are averaged to `grid` (t, h, w) and kept as `token_type`; `precision` bf16 runs the stream under
    autocast. Clips in `quarantine` (ids, or id to reason) and clips that cannot be read are left out and listed in
    `store.broken`. Under torchrun every rank makes its share and returns when all is there, or fails when nothing new
    came for `patience` seconds. A store whose first clip the present code would not give so is made again only with
    `remake`. Raises FeatureError for such a store, and when nothing can be read, the disk is too small, or the stream
    fails.
    """
    named = isinstance(quarantine, Mapping)
    left_out = dict(quarantine) if named else dict.fromkeys(quarantine, "quarantined")
    if len({clip.id for clip in clips}) != len(clips):
        raise FeatureError("two of the clips to extract have the same id; give each clip once")
    if views < 1 or token_type not in STORED or precision not in SAME_TOKENS:
        raise FeatureError(
            f"views={views}, token_type={token_type!r}, precision={precision!r}: at least 1 view, tokens kept as "
            f"{' or '.join(STORED)}, computed in {' or '.join(SAME_TOKENS)}"
        )
    ranks, build = Ranks.here(), Builder(stream, checkpoint)
    model, device = build(), _device(device, ranks)
    if device != "cpu":
        model = model.to(device)
    job = Job(
        Path(root), tuple(grid), models.weights_digest(model), view or SegmentView(frames), views, view_seed,
        token_type, precision,
    )  # fmt: skip
    made = _ingredients(job, clips, model, frames, batch_clips, left_out)
    name = model.name.replace(":", "-").replace("/", "-")
    job = replace(job, folder=job.folder / f"{name}-{key_of(made)[:16]}")
    batches = _batches(clips, batch_clips, left_out)
    _make_way(job, model, batches, ranks, patience, remake)
    if not (job.folder / DESCRIPTION).is_file():
        job.folder.mkdir(parents=True, exist_ok=True)
        _check_room(job, batches, getattr(model, "width", 0))
        mine = [batch for batch in batches if batch.number % ranks.world == ranks.rank]
        with _alone(job, ranks):
            spent = make_shards(job, mine, build if device == "cpu" else model, ranks.workers(workers))
            await_ranks(job, batches, ranks, patience)
            if ranks.rank == 0:
                finish(job, len(batches), made)
                _note_speed(job, spent, ranks, workers, device)
    if ranks.rank == 0:
        _tidy(job)
    store = FeatureStore.open(job.folder)
    if store.key != key_of(made):
        raise FeatureError(f"{job.folder} holds the store {store.key[:16]}: give the folder its old name back")
    if store.broken and ranks.rank == 0:
        some = ", ".join(f"{identifier} ({why})" for identifier, why in list(store.broken.items())[:5])
        logger.warning("%s: %d of %d clips left out: %s", store.root.name, len(store.broken), len(clips), some)
    return store


def _alone(job: Job, ranks: Ranks) -> AbstractContextManager:
    """The lock that rank 0 has of a store while it is made; raises FeatureError where another command makes it."""
    if ranks.rank:
        return nullcontext()
    busy = f"{job.folder}: another command extracts into it; wait for it, then this one opens what it made"
    return locks.alone(job.folder / locks.FILE, FeatureError, busy)


def _device(asked: str, ranks: Ranks) -> str:
    """The device of this process: under torchrun, a GPU for each rank of a machine."""
    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    return f"cuda:{ranks.local % torch.cuda.device_count()}" if asked == "cuda" and ranks.world > 1 else asked


def _ingredients(
    job: Job, clips: Sequence[Clip], model: nn.Module, frames: int, batch_clips: int, left_out: Iterable[str]
) -> dict:
    """What decides the numbers in a store; its digest is the key."""
    return {
        "stream": model.name,
        "weights": job.weights,
        "input_size": model.input_size,
        "fit": getattr(model, "fit", ""),
        "frames": frames,
        "sampling": job.view.key,
        "views": job.views,
        "view_seed": job.view_seed,
        "grid": list(job.grid),
        "token_type": job.token_type,
        "precision": job.precision,
        "batch_clips": batch_clips,
        "clips": _fingerprint(clips),
        "quarantine": sorted(clip.id for clip in clips if clip.id in left_out),
    }


def _batches(clips: Sequence[Clip], size: int, left_out: dict[str, str]) -> list[Batch]:
    parts = [clips[start : start + size] for start in range(0, len(clips), size)]
    return [
        Batch(number, part, {clip.id: left_out[clip.id] for clip in part if clip.id in left_out})
        for number, part in enumerate(parts)
    ]


def _fingerprint(clips: Sequence[Clip]) -> str:
    """Ids and file sizes in order: cheap for 220,847 videos, changed by any repaired or re-rendered one."""
    digest = hashlib.sha256()
    for clip in clips:
        try:
            size = os.stat(clip.path).st_size
        except (FileNotFoundError, NotADirectoryError):  # of a disk that fails, the key of the store must not depend
            size = -1
        digest.update(f"{clip.id} {size}\n".encode())
    return digest.hexdigest()


def _make_way(
    job: Job, model: nn.Module, batches: list[Batch], ranks: Ranks, patience: float, remake: bool
) -> None:
    """Raise FeatureError where a store stands that the present code would not make again; with `remake`, remove it.

    Rank 0 removes it, and the others wait until it has. It is renamed first: no rank ever adds to a folder that is
    being deleted.
    """
    until = time.monotonic() + patience
    while job.folder.is_dir() and (difference := _difference(job, model, batches)):
        if not remake:
            raise FeatureError(
                f"{job.folder}: {difference}: the code, a library, the device or the video has changed since it was "
                "made. It is left as it is; to have it made again, delete it, or call python -m tcar.features extract "
                "PARAMS --remake (from Python: remake=True)"
            )
        if ranks.rank == 0:
            _set_aside(job.folder, difference)
            break
        if time.monotonic() > until:
            raise FeatureError(f"rank 0 has not removed the outdated {job.folder} within {patience:g} s")
        time.sleep(POLL)
    if ranks.rank == 0:
        for stale in job.folder.parent.glob(f".stale-*-{job.folder.name}"):
            remove_folder(stale, FILES)


def _set_aside(folder: Path, difference: str) -> None:
    if folder.is_symlink() or (others := foreign(folder, FILES)):
        what = "is a link" if folder.is_symlink() else f"holds {', '.join(others[:3])}, which no extraction wrote"
        raise FeatureError(f"{folder}: {what}, so it is not deleted; move that away, then extract again")
    logger.warning("%s is made again: %s", folder, difference)
    with suppress(FileNotFoundError):  # another process, started by mistake, was faster
        folder.rename(folder.with_name(f".stale-{os.getpid()}-{folder.name}"))


def _difference(job: Job, model: nn.Module, batches: list[Batch]) -> str:
    """In what the first clip of an existing store comes out otherwise than it stands there; empty where it does not.

    The key covers weights and settings; this covers the code that reads, scales and pools.
    """
    clips = {clip.id: clip for batch in batches for clip in batch.clips}
    try:
        first, kept = _first_tokens(job, batches)
    except FileNotFoundError:
        if job.folder.is_dir():
            raise
        return ""  # another rank has removed the folder at this moment
    if first is None:
        return ""
    try:
        tokens, _ = pooled_tokens(model, [job.view(clips[first], 0, job.view_seed)], job)
    except VideoError as error:
        return f"its first clip, {first}, cannot be read any more ({error.reason})"
    tokens, kept = from_stored(tokens[0]).astype(np.float32), kept.astype(np.float32)
    if tokens.shape != kept.shape:
        return f"its first clip, {first}, now gives tokens of shape {tokens.shape}, not {kept.shape}"
    distance, size = np.linalg.norm(tokens - kept), np.linalg.norm(kept)
    if distance <= SAME_TOKENS[job.precision] * size:
        return ""
    share = float(distance) / max(float(size), 1e-12)
    return f"its first clip, {first}, comes out {share:.2%} differently ({SAME_TOKENS[job.precision]:.1%} may be)"


def _first_tokens(job: Job, batches: list[Batch]) -> tuple[str | None, np.ndarray | None]:
    """The first clip of a store, complete or not, and its tokens in view 0; none while it is empty."""
    if (job.folder / DESCRIPTION).is_file():
        store = FeatureStore.open(job.folder)
        return store.ids[0], store.load(store.ids[:1])[0]
    for batch in batches:
        record = read_record(job, batch.number)
        if record and record["ids"]:
            shard = np.load(shard_path(job.folder, batch.number), mmap_mode="r")
            return record["ids"][0], from_stored(np.array(shard[0]))
    return None, None


def _check_room(job: Job, batches: list[Batch], width: int) -> None:
    """Raise FeatureError where the tokens still missing do not fit on the disk."""
    clips = sum(len(batch.clips) for batch in batches if read_record(job, batch.number) is None)
    needed = clips * job.views * int(np.prod(job.grid)) * width * STORED[job.token_type].itemsize
    free = shutil.disk_usage(job.folder).free
    if needed > free:
        raise FeatureError(
            f"{job.folder} needs {needed / 1e9:.1f} GB for {clips:,} clips, and {free / 1e9:.1f} GB are free; put the "
            "run on a larger disk (runs), or take a coarser grid or fewer views"
        )


def _note_speed(job: Job, spent: Spent, ranks: Ranks, workers: int, device: str) -> None:
    """Say how fast it went, in the log and beside the store; rank 0 speaks for itself."""
    if not spent.clips:
        return
    seconds = time.monotonic() - spent.began
    logger.info("%s: %s", job.folder.name, spent.line())
    about = {
        "clips": spent.clips,
        "seconds": seconds,
        "clips_per_second": spent.clips / seconds,
        "waiting": spent.shares(),
        "workers": ranks.workers(workers),
        "ranks": ranks.world,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    replace_file(job.folder / META, (json.dumps(about, indent=1) + "\n").encode(), durable=False)


def _tidy(job: Job) -> None:
    """Drop the records of a complete store, and the drafts of processes that were killed."""
    for record in job.folder.glob("tokens-[0-9]*.json"):
        record.unlink(missing_ok=True)
    drop_drafts(job.folder)
