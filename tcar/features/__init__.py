"""The feature store: the tokens of a frozen stream for every clip, computed once and kept on disk.

    tcar plan params/ssv2.yaml                 bytes and hours, before anything starts
    tcar extract params/ssv2.yaml              both streams of a run, or what is missing of them
    torchrun --nproc-per-node 2 -m tcar extract params/ssv2.yaml
    tcar extract params/ssv2.yaml --remake     also what other code made, which is deleted
    tcar verify runs/ssv2/features/STORE       every byte read again

What a store holds is in `tcar.features.store`, how it is filled in `tcar.features.extraction`. Its name carries the
digest of what made it: stream, weights, sampling, views, pooling, type, and the ids and sizes of the clips. Streams
that are extracted together share what is decoded. A run that is killed, at whatever moment, loses the batches of clips
it was at, and the next run makes them again to the same bytes.
"""

import datetime
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tcar.data.ssv2 import Clip
from tcar.features.batches import Batch, Builder, Job, Precision, one_place_each
from tcar.features.extraction import Ranks, Spent, await_ranks, make
from tcar.features.outdated import SAME_TOKENS, make_way
from tcar.features.packing import TOKEN_TYPES, FeatureError, TokenType, unpacked
from tcar.features.store import (
    COORDINATES,
    DESCRIPTION,
    LAYOUT,
    META,
    FeatureStore,
    allocate,
    complete,
    key_of,
    records,
    summed,
    verify,
)
from tcar.features.views import SegmentView, View
from tcar.ground import locks, log
from tcar.ground.files import drop_drafts, replace_file
from tcar.streams import registry

__all__ = ["FeatureError", "FeatureStore", "Wanted", "extract", "extract_together", "unpacked", "verify"]

PATIENCE = 1800.0  # seconds a rank waits for others that make nothing new

logger = log.get(__name__)


@dataclass(frozen=True)
class Wanted:
    """A stream whose tokens are wanted, of `frames` frames of a clip, averaged to `grid` (t, h, w).

    `stream` is a registered name (pretrained, from `checkpoint` if given), or a picklable module or factory. `view`
    chooses the frames; by default view 0 has the middle of each of equal segments, the others a random frame of each.
    """

    stream: str | nn.Module | Callable[[], nn.Module]
    grid: Sequence[int]
    frames: int
    checkpoint: str = ""
    view: View | None = None


def extract(
    clips: Sequence[Clip],
    stream: str | nn.Module | Callable[[], nn.Module],
    grid: Sequence[int],
    frames: int,
    root: str | Path,
    *,
    checkpoint: str = "",
    view: View | None = None,
    **settings,
) -> FeatureStore:
    """`extract_together` for one stream."""
    return extract_together(clips, [Wanted(stream, grid, frames, checkpoint, view)], root, **settings)[0]


def extract_together(
    clips: Sequence[Clip],
    wanted: Sequence[Wanted],
    root: str | Path,
    *,
    workers: int = 0,
    batch_clips: int = 32,
    quarantine: Iterable[str] | Mapping[str, str] = (),
    device: str = "cpu",
    views: int = 1,
    view_seed: int = 0,
    token_type: TokenType = "fp16",
    precision: Precision = "fp32",
    patience: float = PATIENCE,
    remake: bool = False,
) -> list[FeatureStore]:
    """Compute the pooled tokens of every clip by each of these streams, or open the stores that already hold them.

    A clip is decoded once for all streams. Each worker process builds its own streams and uses one thread, and batches
    follow the order of the clips, so the numbers do not depend on `workers` (0: all cores), nor on which streams are
    extracted together. On "cuda" (or "auto" where there is one) the streams run in this process and the workers only
    decode. There are `views` views of each clip, drawn from `view_seed`. Tokens are kept as `token_type`; `precision`
    bf16 runs the streams under autocast. Clips in `quarantine` (ids, or id to reason) and clips that cannot be read are
    left out and listed in `store.broken`. Under torchrun every rank makes its share and returns when all is there, or
    fails when nothing new came for `patience` seconds. A store whose first clip the present code would not give so is
    made again only with `remake`. Raises FeatureError for such a store, and when nothing can be read, the disk is too
    small, or a stream fails.
    """
    named = isinstance(quarantine, Mapping)
    left_out = dict(quarantine) if named else dict.fromkeys(quarantine, "quarantined")
    if len({clip.id for clip in clips}) != len(clips):
        raise FeatureError("two of the clips to extract have the same id; give each clip once")
    if views < 1 or token_type not in TOKEN_TYPES or precision not in SAME_TOKENS:
        raise FeatureError(
            f"views={views}, token_type={token_type!r}, precision={precision!r}: at least 1 view, tokens kept as "
            f"{' or '.join(TOKEN_TYPES)}, computed in {' or '.join(SAME_TOKENS)}"
        )
    ranks = Ranks.here()
    device, builders = _device(device, ranks), [Builder(one.stream, one.checkpoint) for one in wanted]
    built = [build().to(device) for build in builders]
    batches = _batches(clips, batch_clips, left_out)
    fingerprint = _fingerprint(clips)
    jobs, made = [], []
    for one, model in zip(wanted, built, strict=True):
        view = one.view or SegmentView(one.frames)
        job = Job(Path(root), len(clips), tuple(one.grid), model.width, registry.weights_digest(model), view, views,
                  view_seed, token_type, precision)  # fmt: skip
        _refuse_mirrored(job, clips)
        made.append(_ingredients(job, fingerprint, clips, model, one.frames, batch_clips, left_out))
        name = model.name.replace(":", "-").replace("/", "-")
        jobs.append(replace(job, folder=job.folder / f"{name}-{key_of(made[-1])[:16]}"))
        make_way(jobs[-1], model, batches, ranks, patience, remake)
    todo = [number for number, job in enumerate(jobs) if not (job.folder / DESCRIPTION).is_file()]
    with ExitStack() as held:
        for number in todo:
            jobs[number].folder.mkdir(parents=True, exist_ok=True)
            if ranks.rank == 0:
                busy = (
                    f"{jobs[number].folder}: another command extracts into it; wait for it, then this one opens "
                    "what it made"
                )
                held.enter_context(locks.alone(jobs[number].folder / locks.FILE, FeatureError, busy))
        mine = _missing([jobs[number] for number in todo], todo, batches, ranks)
        spent = make(jobs, mine, builders if device == "cpu" else built, ranks, ranks.workers(workers), device)
        for number in todo:
            await_ranks(jobs[number], len(batches), ranks, patience)
            if ranks.rank == 0:
                _finish(jobs[number], clips, batches, made[number])
                _note_speed(jobs[number], [jobs[n] for n in todo], spent, ranks, workers, device)
    return [_opened(job, key_of(ingredients), ranks) for job, ingredients in zip(jobs, made, strict=True)]


def _device(asked: str, ranks: Ranks) -> str:
    """The device of this process: under torchrun, a GPU for each rank of a machine."""
    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    return f"cuda:{ranks.local % torch.cuda.device_count()}" if asked == "cuda" and ranks.world > 1 else asked


def _refuse_mirrored(job: Job, clips: Sequence[Clip]) -> None:
    """Raise FeatureError for a view 0 that is mirrored, as it is scored as what the clip shows."""
    if mirrored := next((clip for clip in clips if job.view.flipped(clip.id, 0, job.view_seed)), None):
        raise FeatureError(
            f"{job.view.key}: view 0 of clip {mirrored.id} is mirrored, and scored as what the clip shows; mirror "
            "other views alone"
        )


def _ingredients(
    job: Job, fingerprint: str, clips: Sequence[Clip], model: nn.Module, frames: int, batch_clips: int,
    left_out: Iterable[str],
) -> dict:  # fmt: skip
    """What decides the numbers in a store; its digest is the key."""
    return {
        "layout": LAYOUT,
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
        "clips": fingerprint,
        "quarantine": sorted(clip.id for clip in clips if clip.id in left_out),
    }


def _batches(clips: Sequence[Clip], size: int, left_out: dict[str, str]) -> list[Batch]:
    parts = [(start, clips[start : start + size]) for start in range(0, len(clips), size)]
    return [
        Batch(number, start, part, {clip.id: left_out[clip.id] for clip in part if clip.id in left_out})
        for number, (start, part) in enumerate(parts)
    ]


def _missing(jobs: Sequence[Job], numbers: Sequence[int], batches: list[Batch], ranks: Ranks) -> list[Batch]:
    """The batches of this rank that any of these jobs, of these numbers, lacks; raises FeatureError where the tokens
    still missing do not fit on the disk.
    """
    done = []
    for job in jobs:
        allocate(job.folder, job.kind, job.clips * job.views)
        done.append(records(job.folder))
    clips = [sum(len(batch.clips) for batch in batches if batch.number not in found) for found in done]
    needed = sum(count * job.views * job.kind.itemsize for count, job in zip(clips, jobs, strict=True))
    if needed and needed > (free := shutil.disk_usage(jobs[0].folder).free):
        raise FeatureError(
            f"{jobs[0].folder.parent} needs {needed / 1e9:.1f} GB for {max(clips):,} clips, and {free / 1e9:.1f} GB "
            "are free; put the run on a larger disk (runs), or take a coarser grid, fewer views or int8 (token_type)"
        )
    mine = [
        replace(batch, wanted=tuple(n for n, found in zip(numbers, done, strict=True) if batch.number not in found))
        for batch in batches
        if batch.number % ranks.world == ranks.rank
    ]
    return [batch for batch in mine if batch.wanted]


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


def _finish(job: Job, clips: Sequence[Clip], batches: list[Batch], made: Mapping) -> None:
    """Complete a store whose batches are all done.

    Raises FeatureError where no clip could be read, or tokens of one batch lie elsewhere than those of others.
    """
    done = records(job.folder)
    if (job.folder / DESCRIPTION).is_file():  # another process, started by mistake, has finished
        return
    found = [done[batch.number] for batch in batches]
    broken = {name: why for record in found for name, why in record["broken"].items()}
    if len(broken) == len(clips):
        raise FeatureError(
            f"none of the {len(broken)} clips can be read, the first because: "
            f"{next(iter(broken.values()), 'there is no clip')}; run the audit (notebook 00)"
        )
    ends = [np.array(record["ends"]) for record in found if record["sha256"]]
    one_place_each(made["stream"], [np.load(job.folder / COORDINATES)[[0, -1]], *ends])
    flipped = {}
    for clip in clips:
        mirrored = [number for number in range(1, job.views) if job.view.flipped(clip.id, number, job.view_seed)]
        if mirrored and clip.id not in broken:
            flipped[clip.id] = mirrored
    errors = [record["error"] for record in found if "error" in record]
    digests = [record["sha256"] for record in found]
    complete(job.folder, made, [clip.id for clip in clips], broken, digests, width=job.width, flipped=flipped,
             error=summed(errors) if errors else None)  # fmt: skip


def _opened(job: Job, key: str, ranks: Ranks) -> FeatureStore:
    """Open a complete store, and say what is not in it; what its making has left behind goes."""
    store = FeatureStore.open(job.folder)
    if store.key != key:
        raise FeatureError(f"{job.folder} holds the store {store.key[:16]}: give the folder its old name back")
    if ranks.rank == 0:
        for journal in job.folder.glob("done-[0-9]*.jsonl"):
            journal.unlink(missing_ok=True)
        drop_drafts(job.folder)
        if store.broken:
            some = ", ".join(f"{identifier} ({why})" for identifier, why in list(store.broken.items())[:5])
            logger.warning("%s: %d of %d clips left out: %s", store.root.name, len(store.broken), job.clips, some)
    return store


def _note_speed(job: Job, together: Sequence[Job], spent: Spent, ranks: Ranks, workers: int, device: str) -> None:
    """Say how fast it went, in the log and beside the store; rank 0 speaks for itself, and for all streams at once."""
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
        "stores": [one.folder.name for one in together],
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    replace_file(job.folder / META, (json.dumps(about, indent=1) + "\n").encode(), durable=False)
