"""The feature store: the tokens of a frozen stream for every clip, computed once and kept on disk.

A store is a folder `<stream>-<key>/` of `tokens-<batch>.npy` (fp16, [clips N D]), `coordinates.npy`,
`index.parquet` (where each clip is) and `store.json` (what made it, which clips are missing and why). It is
complete when `store.json` exists; until then finished batches are taken over by the next run.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from jaxtyping import Float, Float16
from torch import nn

from tcar import log, models
from tcar.data.ssv2 import Clip
from tcar.data.video import VideoError, read_segments
from tcar.data.workers import Failure, isolated_map
from tcar.shards import (
    Batch,
    Builder,
    Extractor,
    FeatureError,
    Job,
    Reader,
    pooled_tokens,
    read_record,
    record_path,
    replace,
    shard_path,
    write_shard,
)

# Reading and computing one batch takes seconds to minutes; beyond these a process hangs.
BATCH_LIMIT, CLIP_LIMIT = 3600.0, 60.0
# Devices and batch sizes differ by about 1e-3 in fp16, another way to read or scale frames by more than 1e-2.
SAME_TOKENS = 5e-3

logger = log.get(__name__)


@dataclass(frozen=True)
class FeatureStore:
    """The cached tokens of one stream; `broken` holds the reason for every clip that has none.

    `coordinates` are the centres (t, y, x) in [0, 1] of the N tokens of a clip, in the order of the tokens.
    """

    root: Path
    key: str
    stream: str
    frames: int
    grid: tuple[int, int, int]
    width: int
    coordinates: Float[np.ndarray, "n 3"]
    ids: list[str]
    broken: dict[str, str]
    places: dict[str, tuple[int, int]] = field(repr=False)

    @classmethod
    def open(cls, root: str | Path) -> "FeatureStore":
        """Open a complete store; raises FeatureError where there is none."""
        root = Path(root)
        if not (root / "store.json").is_file():
            raise FeatureError(f"{root}: no complete feature store (store.json is missing); extract again")
        made = json.loads((root / "store.json").read_text(encoding="utf-8"))
        index = pyarrow.parquet.read_table(root / "index.parquet").to_pydict()
        places = {identifier: (shard, row) for identifier, shard, row in zip(*index.values(), strict=True)}
        return cls(
            root,
            made["key"],
            made["stream"],
            made["frames"],
            tuple(made["grid"]),
            made["width"],
            np.load(root / "coordinates.npy"),
            index["id"],
            made["broken"],
            places,
        )

    def load(self, ids: Sequence[str] | None = None) -> Float16[np.ndarray, "clips n d"]:
        """The tokens of these clips (all by default), in this order.

        Raises FeatureError naming a clip that is not in the store, and why.
        """
        ids = self.ids if ids is None else list(ids)
        by_shard: dict[int, list[tuple[int, int]]] = {}
        for position, identifier in enumerate(ids):
            if identifier not in self.places:
                reason = self.broken.get(identifier, "it was not among the clips of the extraction")
                raise FeatureError(
                    f"clip {identifier} has no features in {self.root}: {reason}; leave it out "
                    "(store.ids lists what is there) or repair the video and extract again"
                )
            shard, row = self.places[identifier]
            by_shard.setdefault(shard, []).append((position, row))
        tokens = np.empty((len(ids), len(self.coordinates), self.width), np.float16)
        for shard, pairs in by_shard.items():
            positions, rows = zip(*pairs, strict=True)
            tokens[list(positions)] = np.load(shard_path(self.root, shard), mmap_mode="r")[list(rows)]
        return tokens


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
) -> FeatureStore:
    """Compute the pooled tokens of every clip, or open the store that already holds them.

    `stream` is a registered name (pretrained, from `checkpoint` if given), or a picklable module or factory;
    each worker process builds its own and uses one thread, and batches follow the order of the clips, so
    the numbers do not depend on `workers` (0: all cores). On "cuda" (or "auto" where there is one) the stream
    runs in this process and the workers only decode. Each of the `frames` frames is the middle of an equal
    segment; tokens are averaged to `grid` (t, h, w). Clips in `quarantine` (ids, or id to reason) and clips
    that cannot be read are left out and listed in `store.broken`. Raises FeatureError when nothing can be
    read, or when the stream fails.
    """
    named = isinstance(quarantine, Mapping)
    left_out = dict(quarantine) if named else dict.fromkeys(quarantine, "quarantined")
    if len({clip.id for clip in clips}) != len(clips):
        raise FeatureError("two of the clips to extract have the same id; give each clip once")
    build = Builder(stream, checkpoint)
    model = build()
    made = _ingredients(clips, model, grid, frames, batch_clips, left_out)
    folder = Path(root) / f"{model.name.replace(':', '-').replace('/', '-')}-{made['key'][:16]}"
    job = Job(folder, frames, tuple(grid), made["weights"])
    batches = _batches(clips, batch_clips, left_out)
    if folder.is_dir() and not _still_true(job, model, batches):
        logger.warning("%s is made again: its first clip comes out differently with the present code", folder)
        shutil.rmtree(folder)
    if not (folder / "store.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        _run(job, batches, build if device == "cpu" else model.to(device), workers)
        _finish(job, batches, made)
    store = FeatureStore.open(folder)
    if store.broken:
        some = ", ".join(f"{identifier} ({why})" for identifier, why in list(store.broken.items())[:5])
        logger.warning("%s: %d of %d clips left out: %s", folder.name, len(store.broken), len(clips), some)
    return store


def _ingredients(
    clips: Sequence[Clip],
    model: nn.Module,
    grid: Sequence[int],
    frames: int,
    batch_clips: int,
    left_out: Iterable[str],
) -> dict:
    """What decides the numbers in a store, and the key: the digest of it all."""
    made = {
        "stream": model.name,
        "weights": models.weights_digest(model),
        "input_size": model.input_size,
        "fit": getattr(model, "fit", ""),
        "frames": frames,
        "sampling": "segment middles",
        "grid": list(grid),
        "batch_clips": batch_clips,
        "clips": _fingerprint(clips),
        "quarantine": sorted(clip.id for clip in clips if clip.id in left_out),
    }
    canonical = json.dumps(made, sort_keys=True, separators=(",", ":"))
    return made | {"key": hashlib.sha256(canonical.encode()).hexdigest()}


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
        size = clip.path.stat().st_size if clip.path.is_file() else -1
        digest.update(f"{clip.id} {size}\n".encode())
    return digest.hexdigest()


def _run(job: Job, batches: list[Batch], model: Builder | nn.Module, workers: int) -> None:
    """Make the missing shards; a batch whose process dies is made again without the clip that killed it."""
    todo = [batch for batch in batches if read_record(job, batch.number) is None]
    on_device = isinstance(model, nn.Module)
    function = Reader(job.frames) if on_device else Extractor(job, model)
    while todo:
        again = []
        with closing(isolated_map(function, todo, workers=workers, time_limit=BATCH_LIMIT)) as outcomes:
            for position, outcome in log.progress(outcomes, total=len(todo), description=job.folder.name):
                if isinstance(outcome, Failure):
                    again.append(_without_killers(job, todo[position], outcome))
                elif on_device:
                    write_shard(job, todo[position].number, model, *outcome)
        todo = again


def _without_killers(job: Job, batch: Batch, failure: Failure) -> Batch:
    """The batch with every clip set aside that kills or hangs a process when it is read alone."""
    if failure.kind == "error":
        raise FeatureError(f"extraction into {job.folder} failed:\n{failure.detail}")
    alone = [Batch(0, [clip], {}) for clip in batch.clips if clip.id not in batch.broken]
    with closing(isolated_map(Reader(job.frames), alone, workers=1, time_limit=CLIP_LIMIT)) as outcomes:
        killers = {
            alone[position].clips[0].id: f"reading it {outcome.kind}"
            for position, outcome in outcomes
            if isinstance(outcome, Failure)
        }
    if not killers:
        raise FeatureError(
            f"a worker {failure.kind} on batch {batch.number} of {job.folder} ({failure.detail}), though "
            "each of its clips can be read; if memory ran out, lower workers or batch_clips"
        )
    return Batch(batch.number, batch.clips, batch.broken | killers)


def _still_true(job: Job, model: nn.Module, batches: list[Batch]) -> bool:
    """Whether the first clip of an existing store comes out as it stands there.

    The key covers weights and settings; this covers the code that reads, scales and pools.
    """
    paths = {clip.id: clip.path for batch in batches for clip in batch.clips}
    if (job.folder / "store.json").is_file():
        store = FeatureStore.open(job.folder)
        first, kept = store.ids[0], store.load(store.ids[:1])[0]
    else:
        records = {batch.number: read_record(job, batch.number) for batch in batches}
        number = next((number for number, record in records.items() if record and record["ids"]), None)
        if number is None:
            return True
        record = records[number]
        first, kept = record["ids"][0], np.load(shard_path(job.folder, number))[0]
    try:
        tokens, _ = pooled_tokens(model, [read_segments(paths[first], job.frames)], job.grid)
    except VideoError:
        return False
    if tokens[0].shape != kept.shape:
        return False
    kept = kept.astype(np.float32)
    return bool(np.linalg.norm(tokens[0] - kept) <= SAME_TOKENS * np.linalg.norm(kept))


def _finish(job: Job, batches: list[Batch], made: dict) -> None:
    """Write the index and the store's description, which makes it complete, and drop the records."""
    records = {batch.number: read_record(job, batch.number) for batch in batches}
    rows = [
        (identifier, number, row)
        for number, record in records.items()
        for row, identifier in enumerate(record["ids"])
    ]
    broken = {identifier: why for record in records.values() for identifier, why in record["broken"].items()}
    if not rows:
        raise FeatureError(
            f"none of the {len(broken)} clips can be read, the first because: "
            f"{next(iter(broken.values()), 'there is no clip')}; run the audit (notebook 00)"
        )
    ids, shards, places = zip(*rows, strict=True)
    index = pyarrow.table(
        {
            "id": ids,
            "shard": pyarrow.array(shards, pyarrow.int32()),
            "row": pyarrow.array(places, pyarrow.int32()),
        }
    )
    replace(job.folder / "index.parquet", lambda draft: pyarrow.parquet.write_table(index, draft))
    first = np.load(shard_path(job.folder, shards[0]), mmap_mode="r")
    made |= {"width": first.shape[2], "tokens": first.shape[1], "broken": broken}
    description = json.dumps(made, indent=1, sort_keys=True) + "\n"
    replace(job.folder / "store.json", lambda draft: draft.write_text(description, encoding="utf-8"))
    for batch in batches:
        record_path(job.folder, batch.number).unlink(missing_ok=True)
