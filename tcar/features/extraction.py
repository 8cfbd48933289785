"""How the shards of a feature store get made: decoding, model and writing side by side, on one or several processes.

On the CPU each worker process does all three for its own batch. On another device the workers decode ahead, this
process runs the stream and a thread writes. Under torchrun the shards are dealt to the ranks by their number, so that
none is made twice; what is not there when a process dies is made by the next run, whatever its number of processes.
"""

import os
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from tcar import log
from tcar.data.workers import Failure, isolated_map, worker_count
from tcar.features.shards import Batch, Builder, Extractor, FeatureError, Job, Reader, compute, read_record, write_shard
from tcar.features.store import DESCRIPTION

# Reading and computing one batch takes seconds to minutes; beyond these a process hangs.
BATCH_LIMIT, CLIP_LIMIT = 3600.0, 60.0
# Batches between two steps: enough to bridge an uneven one, few enough for the memory.
AHEAD = 2
REPORT_INTERVAL = 10.0  # seconds
POLL = 0.5  # seconds between two looks for what other ranks have made

logger = log.get(__name__)


@dataclass(frozen=True)
class Ranks:
    """This process among those of a run, as torchrun's environment tells it."""

    rank: int = 0
    world: int = 1
    local: int = 0
    local_world: int = 1

    @classmethod
    def here(cls) -> "Ranks":
        """Read RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE; without them, one process that does everything."""
        names = {"rank": "RANK", "world": "WORLD_SIZE", "local": "LOCAL_RANK", "local_world": "LOCAL_WORLD_SIZE"}
        ranks = cls(**{name: int(os.environ[variable]) for name, variable in names.items() if variable in os.environ})
        if not 0 <= ranks.rank < ranks.world:
            raise FeatureError(f"RANK is {ranks.rank} and WORLD_SIZE {ranks.world}; start the ranks with torchrun")
        return ranks

    def workers(self, asked: int) -> int:
        """Worker processes of this rank: as asked, or its share of the cores of its machine."""
        return asked or max(1, worker_count(0) // self.local_world)


@dataclass
class Spent:
    """Where the time of an extraction goes, told while it runs.

    `seconds` of decoding, model and writing: on the CPU those of all workers, which do one after the other; on another
    device those for which this process waited.
    """

    name: str
    clips: int = 0
    seconds: Counter = field(default_factory=Counter)
    began: float = field(default_factory=time.monotonic)
    told: float = field(default_factory=time.monotonic)

    def add(self, clips: int, seconds: Counter) -> None:
        """Count a finished batch and, every few seconds, tell where the time went so far."""
        self.clips += clips
        self.seconds.update(seconds)
        if time.monotonic() - self.told >= REPORT_INTERVAL:
            self.told = time.monotonic()
            logger.info("%s: %s", self.name, self.line())

    def shares(self) -> dict[str, float]:
        """The share of decoding, model and writing in the time of all three."""
        total = sum(self.seconds.values())
        return {step: spent / total for step, spent in sorted(self.seconds.items())} if total else {}

    def line(self) -> str:
        """Clips a second and the shares, for people."""
        shares = ", ".join(f"{step} {100 * share:.0f}%" for step, share in self.shares().items())
        return f"{self.clips / max(1e-9, time.monotonic() - self.began):.1f} clips/s, waiting for {shares}"


def make_shards(job: Job, batches: Sequence[Batch], model: Builder | nn.Module, workers: int) -> Spent:
    """Make the missing shards among these; a batch whose process dies is made again without the clip that killed it.

    A `Builder` has the stream run in the workers, a module in this process. Raises FeatureError when the stream fails
    or a worker dies for another reason than a clip.
    """
    spent = Spent(job.folder.name)
    todo = [batch for batch in batches if read_record(job, batch.number) is None]
    run = _in_workers if isinstance(model, Builder) else _in_this_process

    def finished() -> Iterator[str]:
        left = todo
        while left:
            again = []
            with closing(run(job, left, model, workers)) as outcomes:
                for position, outcome in outcomes:
                    if isinstance(outcome, Failure):
                        again.append(_without_killers(job, left[position], outcome))
                        continue
                    spent.add(len(left[position].clips), outcome)
                    yield from (clip.id for clip in left[position].clips)
            left = again

    if todo:
        total = sum(len(batch.clips) for batch in todo)
        for _ in log.progress(finished(), total=total, description=job.folder.name, unit="clips"):
            pass
    return spent


def await_ranks(job: Job, batches: Sequence[Batch], ranks: Ranks, patience: float) -> None:
    """Wait for what the other ranks make: rank 0 for every shard, the others until it has completed the store.

    Raises FeatureError when nothing new has come for `patience` seconds: it names the shards and ranks that are late.
    """
    changed, before = time.monotonic(), -1
    while not (job.folder / DESCRIPTION).is_file():
        missing = _missing(job.folder, batches)
        if not missing and ranks.rank == 0:
            return
        if len(missing) != before:
            changed, before = time.monotonic(), len(missing)
        elif time.monotonic() - changed > patience:
            raise FeatureError(_late(job, missing, ranks, patience))
        time.sleep(POLL)


def _missing(folder: Path, batches: Sequence[Batch]) -> list[int]:
    """The shards without a record; one listing of the folder, as there may be thousands."""
    records = {entry.name for entry in os.scandir(folder) if entry.name.endswith(".json")}
    return [batch.number for batch in batches if f"tokens-{batch.number:05d}.json" not in records]


def _late(job: Job, missing: list[int], ranks: Ranks, patience: float) -> str:
    if not missing:
        return f"rank 0 has not completed {job.folder} within {patience:g} s; look at its error, then extract again"
    by_rank = Counter(number % ranks.world for number in missing)
    some = ", ".join(map(str, missing[:10])) + (", …" if len(missing) > 10 else "")
    late = ", ".join(f"rank {rank} ({count})" for rank, count in sorted(by_rank.items()))
    return (
        f"{job.folder}: no new shard for {patience:g} s, {len(missing)} are missing ({some}) of {late}; look at what "
        "these ranks say and extract again, with any number of processes: what is there is kept"
    )


def _in_workers(
    job: Job, batches: Sequence[Batch], build: Builder, workers: int
) -> Iterator[tuple[int, Counter | Failure]]:
    with closing(isolated_map(Extractor(job, build), batches, workers=workers, time_limit=BATCH_LIMIT)) as outcomes:
        yield from outcomes


def _in_this_process(
    job: Job, batches: Sequence[Batch], model: nn.Module, workers: int
) -> Iterator[tuple[int, Counter | Failure]]:
    """Workers decode ahead, this thread runs the model, another writes behind."""

    def decode() -> Iterator:
        return isolated_map(Reader(job), batches, workers=workers, time_limit=BATCH_LIMIT)

    waited, behind = Counter(), deque()
    with ThreadPoolExecutor(1) as writer, closing(_timed(_ahead(decode), waited)) as decoded:
        for position, frames in decoded:
            if isinstance(frames, Failure):
                yield position, frames
                continue
            began = time.perf_counter()
            shard = compute(job, model, frames)
            waited["model"] += time.perf_counter() - began
            behind.append((position, writer.submit(write_shard, job, batches[position].number, shard)))
            if len(behind) > AHEAD:
                yield _written(behind, waited)
        while behind:
            yield _written(behind, waited)


def _written(behind: deque[tuple[int, Future]], waited: Counter) -> tuple[int, Counter]:
    """Wait for the oldest shard to be written, and hand over the waiting since the last."""
    position, future = behind.popleft()
    began = time.perf_counter()
    future.result()
    waited["writing"] += time.perf_counter() - began
    spent = Counter(waited)
    waited.clear()
    return position, spent


def _timed(items: Iterator, waited: Counter) -> Iterator:
    """Pass items on and count the seconds spent waiting for them."""
    with closing(items):
        while True:
            began = time.perf_counter()
            item = next(items, None)
            waited["decoding"] += time.perf_counter() - began
            if item is None:
                return
            yield item


def _ahead(make: Callable[[], Iterable]) -> Iterator[Any]:
    """Run a generator in a thread that stays up to `AHEAD` items ahead; its errors are raised here."""
    ready, stop = queue.Queue(AHEAD), threading.Event()

    def put(kind: str, content: Any) -> bool:
        while not stop.is_set():
            try:
                ready.put((kind, content), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def fill() -> None:
        try:
            with closing(make()) as items:
                for item in items:
                    if not put("item", item):
                        return
            put("end", None)
        except BaseException as error:
            put("error", error)

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    try:
        while True:
            kind, content = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise content
            yield content
    finally:
        stop.set()
        thread.join()


def _without_killers(job: Job, batch: Batch, failure: Failure) -> Batch:
    """The batch with every clip set aside that kills or hangs a process when it is read alone."""
    if failure.kind == "error":
        raise FeatureError(f"extraction into {job.folder} failed:\n{failure.detail}")
    alone = [Batch(0, [clip], {}) for clip in batch.clips if clip.id not in batch.broken]
    with closing(isolated_map(Reader(job), alone, workers=1, time_limit=CLIP_LIMIT)) as outcomes:
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
    return replace(batch, broken=batch.broken | killers)
