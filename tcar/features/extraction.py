"""How feature stores get filled: decoding, models and writing side by side, on one or several processes.

On the CPU each worker process does all three for its own batch. On another device the workers decode ahead, this
process runs the streams and a thread writes. Under torchrun the batches are dealt to the ranks by their number, so that
none is made twice; what is not there when a process dies is made by the next run, whatever its number of processes.
"""

from __future__ import annotations

import itertools
import os
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from tcar.data.workers import Failure, isolated_map, worker_count
from tcar.features.batches import Batch, Builder, Decoded, Extractor, Job, Piece, Reader, compute, write
from tcar.features.frames import Frames, Stacked
from tcar.features.packing import FeatureError
from tcar.features.store import DESCRIPTION, note, records
from tcar.ground import log

# Reading and computing one batch takes seconds to minutes; beyond these a process hangs.
BATCH_LIMIT, CLIP_LIMIT = 3600.0, 60.0
# Batches between two steps: enough to bridge an uneven one, few enough for the memory.
AHEAD = 2
REPORT_INTERVAL = 60.0  # seconds
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
    def here(cls) -> Ranks:
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
        """Count a finished batch and, every minute, tell where the time went so far."""
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


def make(
    jobs: Sequence[Job], batches: Sequence[Batch], models: Sequence[Builder] | Sequence[nn.Module], ranks: Ranks,
    workers: int, device: str,
) -> Spent:  # fmt: skip
    """Make these batches; one whose process dies is made again without the clip that killed it.

    With builders the streams run in the workers, with modules on a device in this process. Raises FeatureError when a
    stream fails or a worker dies for another reason than a clip.
    """
    wanted = sorted({number for batch in batches for number in batch.wanted})
    name = " and ".join(jobs[number].folder.name for number in wanted)
    spent = Spent(name)

    def finished() -> Iterator[str]:
        left = batches
        while left:
            again = []
            if device == "cpu":
                made = isolated_map(Extractor(jobs, models), left, workers=workers, time_limit=BATCH_LIMIT)
            else:
                made = _in_this_process(jobs, left, models, workers, device)
            with closing(made) as outcomes:
                for position, outcome in outcomes:
                    if isinstance(outcome, Failure):
                        again.append(_without_killers(jobs, left[position], outcome))
                        continue
                    records, seconds = outcome
                    for number, record in records.items():
                        note(jobs[number].folder, ranks.rank, record)
                    spent.add(len(left[position].clips), seconds)
                    yield from (clip.id for clip in left[position].clips)
            left = again

    if batches:
        total = sum(len(batch.clips) for batch in batches)
        for _ in log.progress(finished(), total=total, description=name, unit="clips"):
            pass
    return spent


def await_ranks(job: Job, batches: int, ranks: Ranks, patience: float) -> None:
    """Wait for what the other ranks make: rank 0 for every batch, the others until it has completed the store.

    Raises FeatureError when nothing new has come for `patience` seconds: it names the batches and ranks that are late.
    """
    changed, before = time.monotonic(), -1
    while not (job.folder / DESCRIPTION).is_file():
        missing = sorted(set(range(batches)) - records(job.folder).keys())
        if not missing and ranks.rank == 0:
            return
        if len(missing) != before:
            changed, before = time.monotonic(), len(missing)
        elif time.monotonic() - changed > patience:
            raise FeatureError(_late(job, missing, ranks, patience))
        time.sleep(POLL)


def _late(job: Job, missing: list[int], ranks: Ranks, patience: float) -> str:
    if not missing:
        return f"rank 0 has not completed {job.folder} within {patience:g} s; look at its error, then extract again"
    by_rank = Counter(number % ranks.world for number in missing)
    some = ", ".join(map(str, missing[:10])) + (", …" if len(missing) > 10 else "")
    late = ", ".join(f"rank {rank} ({count})" for rank, count in sorted(by_rank.items()))
    return (
        f"{job.folder}: no new batch for {patience:g} s, {len(missing)} are missing ({some}) of {late}; look at what "
        "these ranks say and extract again, with any number of processes: what is there is kept"
    )


def _in_this_process(
    jobs: Sequence[Job], batches: Sequence[Batch], models: Sequence[nn.Module], workers: int, device: str
) -> Iterator[tuple[int, tuple[dict[int, dict], Counter] | Failure]]:
    """Workers decode ahead, a thread brings frames to the device, this one runs the streams, another writes behind."""

    def decoded() -> Iterator[tuple[int, _Sent | Failure]]:
        with closing(isolated_map(Reader(jobs), batches, workers=workers, time_limit=BATCH_LIMIT)) as outcomes:
            for position, outcome in outcomes:
                yield position, outcome if isinstance(outcome, Failure) else _Sent.of(outcome, device)

    def written(
        batch: Batch, done: torch.cuda.Event | None, broken: list[dict[str, str]], pieces: list[list[Piece]]
    ) -> dict[int, dict]:
        if done is not None:
            done.synchronize()
        each = zip(batch.wanted, broken, pieces, strict=True)
        return {number: write(jobs[number], batch, reasons, found) for number, reasons, found in each}

    waited, behind = Counter(), deque()
    with ThreadPoolExecutor(1) as writer, closing(_timed(_ahead(decoded), waited)) as items:
        for position, sent in items:
            if isinstance(sent, Failure):
                yield position, sent
                continue
            began, batch = time.perf_counter(), batches[position]
            pieces = [
                compute(jobs[number], models[number], batch, frames.ids, sent.stacked[id(frames)])
                for number, frames in zip(batch.wanted, sent.frames, strict=True)
            ]
            if sent.done is not None:
                sent.done.record(torch.cuda.current_stream(device))
            waited["model"] += time.perf_counter() - began
            broken = [frames.broken for frames in sent.frames]  # the frames themselves are not needed any more
            behind.append((position, sent.done, writer.submit(written, batch, sent.done, broken, pieces)))
            del sent
            if len(behind) > AHEAD:
                yield _oldest(behind, waited)
        while behind:
            yield _oldest(behind, waited)


@dataclass(frozen=True)
class _Sent:
    """The frames of a batch and, by the id of these, what is on the device of them; `done` marks the streams' end."""

    frames: list[Frames]
    stacked: dict[int, list[Stacked]]
    done: torch.cuda.Event | None

    @classmethod
    def of(cls, decoded: Decoded, device: str) -> _Sent:
        """Bring frames to the device, beside what it computes; those that two jobs share once."""
        distinct = {id(frames): frames for frames in decoded.frames}
        if not device.startswith("cuda"):
            return cls(decoded.frames, {name: list(frames.stacked(device)) for name, frames in distinct.items()}, None)
        with torch.cuda.stream(stream := torch.cuda.Stream(device)):
            stacked = {name: list(frames.stacked(device)) for name, frames in distinct.items()}
        stream.synchronize()
        for views in stacked.values():
            for _, clips in itertools.chain(*views):
                clips.record_stream(torch.cuda.default_stream(device))  # where they are used, and freed after
        return cls(decoded.frames, stacked, torch.cuda.Event())


def _oldest(
    behind: deque[tuple[int, torch.cuda.Event | None, Future]], waited: Counter
) -> tuple[int, tuple[dict[int, dict], Counter]]:
    """Wait for the oldest batch to be computed and written, and hand over the waiting since the last."""
    position, done, future = behind.popleft()
    began = time.perf_counter()
    if done is not None:
        done.synchronize()
    computed = time.perf_counter()
    made = future.result()
    waited.update({"model": computed - began, "writing": time.perf_counter() - computed})
    spent = Counter(waited)
    waited.clear()
    return position, (made, spent)


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


def _without_killers(jobs: Sequence[Job], batch: Batch, failure: Failure) -> Batch:
    """The batch with every clip set aside that kills or hangs a process when it is read alone."""
    where = " and ".join(str(jobs[number].folder) for number in batch.wanted)
    if failure.kind == "error":
        raise FeatureError(f"extraction into {where} failed:\n{failure.detail}")
    alone = [replace(batch, clips=[clip], broken={}) for clip in batch.clips if clip.id not in batch.broken]
    with closing(isolated_map(Reader(jobs), alone, workers=1, time_limit=CLIP_LIMIT)) as outcomes:
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
