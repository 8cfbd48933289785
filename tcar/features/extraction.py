"""How feature stores get filled: decoding, streams and writing side by side, on one or several processes.

On the CPU each worker process does all three for its own batch. On another device the workers decode ahead, this
process runs the streams and a thread writes. Under torchrun the batches are dealt to the ranks by their number, so that
none is made twice; what is not there when a process dies is made by the next run, whatever its number of processes.
"""

import datetime
import json
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from tcar.data.ssv2 import Clip
from tcar.data.workers import Failure, isolated_map
from tcar.features.batches import Extractor, Frames, OnDevice, Piece, Reader, compute, write
from tcar.features.making import ClipBatch, StoreSpec, fingerprint, finish, missing, note
from tcar.features.outdated import make_way
from tcar.features.packing import FeatureError
from tcar.features.ranks import Ranks, await_ranks
from tcar.features.settings import ExtractionSettings, TokenSpec
from tcar.features.store import DESCRIPTION, META, FeatureStore, key_of
from tcar.ground import locks, log
from tcar.ground.files import drop_drafts, replace_file

# Reading and computing one batch takes seconds to minutes; beyond these a process hangs.
BATCH_LIMIT, CLIP_LIMIT = 3600.0, 60.0
# Batches between two steps: enough to bridge an uneven one, few enough for the memory.
AHEAD = 2

logger = log.get(__name__)


def extract(
    clips: Sequence[Clip], wanted: Sequence[TokenSpec], root: str | Path, settings: ExtractionSettings | None = None
) -> list[FeatureStore]:
    """Compute the pooled tokens of every clip by each of these streams, or open the stores that already hold them.

    A clip is decoded once for all streams. Each worker process builds its own streams and uses one thread, and batches
    follow the order of the clips, so the numbers depend neither on the number of workers nor on which streams are
    extracted together. Clips that cannot be read are left out and listed in `store.broken`. Under torchrun every rank
    makes its share and returns when all is there. Raises FeatureError when nothing can be read, the disk is too small,
    a stream fails, a rank is late, another command extracts the same, or the present code would not make a store that
    stands (`ExtractionSettings.remake`).
    """
    if len({clip.id for clip in clips}) != len(clips):
        raise FeatureError("two of the clips to extract have the same id; give each clip once")
    settings, ranks = settings or ExtractionSettings(), Ranks.here()
    device, size = _device(settings.device, ranks), settings.batch_clips
    streams = [one.build().to(device) for one in wanted]
    sizes, both = fingerprint(clips), list(zip(wanted, streams, strict=True))
    stores = [StoreSpec.of(one, stream, Path(root), len(clips), sizes, settings) for one, stream in both]
    batches = [ClipBatch(n, start, clips[start : start + size]) for n, start in enumerate(range(0, len(clips), size))]
    for store, stream in zip(stores, streams, strict=True):
        make_way(store, stream, batches, ranks)
    todo = {number: store for number, store in enumerate(stores) if not (store.folder / DESCRIPTION).is_file()}
    with ExitStack() as held:
        for store in todo.values():
            store.folder.mkdir(parents=True, exist_ok=True)
            if ranks.rank == 0:
                busy = f"{store.folder}: another command extracts into it; wait for it, then this opens what it made"
                held.enter_context(locks.alone(store.folder / locks.FILE, FeatureError, busy))
        mine = [batch for batch in missing(todo, batches) if batch.number % ranks.world == ranks.rank]
        began = time.monotonic()
        spent = make(stores, mine, [one.build for one in wanted] if device == "cpu" else streams, ranks, device)
        for store in todo.values():
            await_ranks(store, len(batches), ranks)
            if ranks.rank == 0:
                finish(store, clips, batches)
        if ranks.rank == 0 and mine:
            count, seconds = sum(len(batch.clips) for batch in mine), time.monotonic() - began
            speed = _speed(list(todo.values()), count, spent, seconds, ranks, device)
            for store in todo.values():
                replace_file(store.folder / META, speed, durable=False)
    return [_opened(store, ranks) for store in stores]


def _device(asked: str, ranks: Ranks) -> str:
    """The device of this process: under torchrun, a GPU for each rank of a machine."""
    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    return f"cuda:{ranks.local % torch.cuda.device_count()}" if asked == "cuda" and ranks.world > 1 else asked


def _speed(stores: Sequence[StoreSpec], clips: int, spent: Counter, seconds: float, ranks: Ranks, device: str) -> bytes:
    """How fast it went, for the log and beside a store; this rank speaks for itself, and for all streams at once."""
    total = sum(spent.values())
    shares = {step: spent[step] / total for step in sorted(spent)}
    waiting = ", ".join(f"{step} {100 * share:.0f}%" for step, share in shares.items())
    logger.info("%s: %.1f clips/s, waiting for %s", _names(stores), clips / seconds, waiting)
    about = {
        "clips": clips,
        "seconds": seconds,
        "clips_per_second": clips / seconds,
        "waiting": shares,
        "workers": ranks.workers(stores[0].settings.workers),
        "ranks": ranks.world,
        "stores": [store.folder.name for store in stores],
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return (json.dumps(about, indent=1) + "\n").encode()


def _opened(store: StoreSpec, ranks: Ranks) -> FeatureStore:
    """Open a complete store, and say what is not in it; what its making has left behind goes."""
    opened = FeatureStore.open(store.folder)
    if opened.key != key_of(store.made):
        raise FeatureError(f"{store.folder} holds the store {opened.key[:16]}: give the folder its old name back")
    if ranks.rank == 0:
        for journal in store.folder.glob("done-[0-9]*.jsonl"):
            journal.unlink(missing_ok=True)
        drop_drafts(store.folder)
        if opened.broken:
            some = ", ".join(f"{identifier} ({why})" for identifier, why in list(opened.broken.items())[:5])
            logger.warning("%s: %d of %d clips left out: %s", opened.root.name, len(opened.broken), store.clips, some)
    return opened


def make(
    stores: Sequence[StoreSpec], batches: Sequence[ClipBatch], streams: Sequence, ranks: Ranks, device: str
) -> Counter:
    """Make these batches; one whose process dies is made again without the clip that killed it.

    `streams` are factories where the workers run them (on "cpu"), modules where this process does. Returns the seconds
    of decoding, model and writing: on the CPU those of all workers, which do one after the other; on another device
    those for which this process waited. Raises FeatureError when a stream fails or a worker dies for another reason
    than a clip.
    """
    spent = Counter()

    def finished() -> Iterator[str]:
        left = batches
        while left:
            again, workers = [], ranks.workers(stores[0].settings.workers)
            if device == "cpu":
                made = isolated_map(Extractor(stores, streams), left, workers=workers, time_limit=BATCH_LIMIT)
            else:
                made = _in_this_process(stores, left, streams, workers, device)
            with closing(made) as outcomes:
                for position, outcome in outcomes:
                    if isinstance(outcome, Failure):
                        again.append(_without_killers(stores, left[position], outcome))
                        continue
                    records, seconds = outcome
                    for number, record in records.items():
                        note(stores[number].folder, ranks.rank, record)
                    spent.update(seconds)
                    yield from (clip.id for clip in left[position].clips)
            left = again

    if batches:
        name = _names([stores[number] for number in sorted({n for batch in batches for n in batch.wanted})])
        total = sum(len(batch.clips) for batch in batches)
        for _ in log.progress(finished(), total=total, description=name, unit="clips"):
            pass
    return spent


def _in_this_process(
    stores: Sequence[StoreSpec], batches: Sequence[ClipBatch], streams: Sequence[nn.Module], workers: int, device: str
) -> Iterator[tuple[int, tuple[dict[int, dict], Counter] | Failure]]:
    """Workers decode, a thread brings frames to the device, this one runs the streams, another thread writes behind."""
    waited, behind = Counter(), deque()

    def decoded() -> Iterator[tuple[int, tuple[list[Frames], list[OnDevice]] | Failure]]:
        with closing(isolated_map(Reader(stores), batches, workers=workers, time_limit=BATCH_LIMIT)) as outcomes:
            for position, outcome in outcomes:
                yield position, outcome if isinstance(outcome, Failure) else (outcome[0], _sent(outcome[0], device))

    def written(batch: ClipBatch, done, broken: list[dict[str, str]], pieces: list[list[Piece]]) -> dict[int, dict]:
        if done:
            done.synchronize()
        each = zip(batch.wanted, broken, pieces, strict=True)
        return {number: write(stores[number], batch, reasons, found) for number, reasons, found in each}

    def oldest() -> tuple[int, tuple[dict[int, dict], Counter]]:
        """Wait for the oldest batch to be computed and written, and hand over the waiting since the last."""
        position, done, future = behind.popleft()
        began = time.perf_counter()
        if done:
            done.synchronize()
        computed = time.perf_counter()
        made = future.result()
        spent = waited + Counter(model=computed - began, writing=time.perf_counter() - computed)
        waited.clear()
        return position, (made, spent)

    with ThreadPoolExecutor(1) as writer, closing(_ahead(decoded(), waited)) as items:
        for position, sent in items:
            if isinstance(sent, Failure):
                yield position, sent
                continue
            began, batch, (frames, views) = time.perf_counter(), batches[position], sent
            pieces = [
                compute(stores[number], streams[number], seen)
                for number, seen in zip(batch.wanted, views, strict=True)
            ]
            done = torch.cuda.Event() if device.startswith("cuda") else None
            if done:
                done.record(torch.cuda.current_stream(device))
            waited["model"] += time.perf_counter() - began
            broken = [one.broken for one in frames]  # the frames themselves are not needed any more
            behind.append((position, done, writer.submit(written, batch, done, broken, pieces)))
            del sent, frames, views
            if len(behind) > AHEAD:
                yield oldest()
        while behind:
            yield oldest()


def _sent(frames: list[Frames], device: str) -> list[OnDevice]:
    """Bring frames to the device, beside what it computes."""
    if not device.startswith("cuda"):
        return [one.on(device) for one in frames]
    with torch.cuda.stream(stream := torch.cuda.Stream(device)):
        sent = [one.on(device) for one in frames]
    stream.synchronize()
    for clips in (clips for views in sent for groups in views for _, clips in groups):
        clips.record_stream(torch.cuda.default_stream(device))  # where they are used, and freed after
    return sent


def _ahead(items: Iterator, waited: Counter) -> Iterator:
    """Take items in a thread that stays up to `AHEAD` of them ahead, and count the seconds spent waiting for them."""
    with closing(items), ThreadPoolExecutor(1) as taker:
        taken = deque(taker.submit(next, items, None) for _ in range(AHEAD))
        try:
            while True:
                taken.append(taker.submit(next, items, None))
                began = time.perf_counter()
                item = taken.popleft().result()
                waited["decoding"] += time.perf_counter() - began
                if item is None:
                    return
                yield item
        finally:
            for one in taken:
                one.cancel()


def _without_killers(stores: Sequence[StoreSpec], batch: ClipBatch, failure: Failure) -> ClipBatch:
    """The batch with every clip set aside that kills or hangs a process when it is read alone."""
    where = " and ".join(str(stores[number].folder) for number in batch.wanted)
    if failure.kind == "error":
        raise FeatureError(f"extraction into {where} failed:\n{failure.detail}")
    alone = [replace(batch, clips=[clip], broken={}) for clip in batch.clips if clip.id not in batch.broken]
    with closing(isolated_map(Reader(stores), alone, workers=1, time_limit=CLIP_LIMIT)) as outcomes:
        killers = {
            alone[position].clips[0].id: f"reading it {outcome.kind}"
            for position, outcome in outcomes
            if isinstance(outcome, Failure)
        }
    if not killers:
        raise FeatureError(
            f"a worker {failure.kind} on batch {batch.number} of {where} ({failure.detail}), though "
            "each of its clips can be read; if memory ran out, lower workers or batch_clips"
        )
    return replace(batch, broken=batch.broken | killers)


def _names(stores: Sequence[StoreSpec]) -> str:
    return " and ".join(store.folder.name for store in stores)
