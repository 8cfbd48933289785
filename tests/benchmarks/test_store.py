"""How fast the feature store is filled and read, against its parts alone, side by side in one run."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from bright import Brightness
from stores import write_store
from videos import write_video

from tcar.data.ssv2 import Clip
from tcar.data.views import SegmentView
from tcar.data.workers import Failure, isolated_map
from tcar.features.batches import Extractor, Reader, compute
from tcar.features.buffers import Buffers
from tcar.features.extraction import _in_this_process
from tcar.features.making import ClipBatch, StoreSpec, allocate
from tcar.streams.grids import Tokens, grid_coordinates
from tcar.streams.registry import create_stream, weights_digest

CORES = 2
CASES = {  # grid, frames, clips, clips in a batch, width and height
    "dinov2_tiny": ((4, 4, 4), 8, 320, 16, (160, 120)),
    "i3d_tiny": ((2, 4, 4), 16, 320, 16, (160, 120)),
    "dinov2_vits14": ((8, 7, 7), 8, 36, 2, (432, 240)),
    "i3d_r50": ((4, 7, 7), 8, 36, 2, (432, 240)),
}


class Decoding:
    """Decodes a batch in a worker and leaves the frames there."""

    def __init__(self, jobs: list[StoreSpec]):
        self.read = Reader(jobs)

    def __call__(self, batch: ClipBatch) -> None:
        self.read(batch)


class Modelling:
    """Runs the stream over frames that are there already, one thread a worker as in an extraction."""

    def __init__(self, job: StoreSpec, build: Callable):
        self.job, self.build, self.model = job, build, None

    def __call__(self, batch: ClipBatch) -> None:
        if self.model is None:
            torch.set_num_threads(1)
            self.model = self.build()
            (self.frames,), _ = Reader([self.job])(replace(batch, wanted=(0,)))
        compute(self.job, self.model, self.frames.on("cpu"))


@dataclass(frozen=True)
class Speed:
    """Clips a second, and processor seconds a clip of this process and its workers, which other programs slow less."""

    rate: float
    processor: float


@dataclass
class Clock:
    """Processor seconds of this process and of every worker it has had."""

    workers: dict[int, float] = field(default_factory=dict)

    def __call__(self) -> float:
        for child in multiprocessing.active_children():
            with suppress(psutil.Error):
                times = psutil.Process(child.pid).cpu_times()
                self.workers[child.pid] = times.user + times.system
        return time.process_time() + sum(self.workers.values())


def steady(outcomes: Iterator, batches: list[ClipBatch], workers: int = CORES) -> Speed:
    """The speed while all workers are at work: neither their start is part of it nor the end, which needs no decoding.

    As many batches are on their way when the reading begins as when it ends.
    """
    clock, readings, full, clips = Clock(), [], None, 0
    with closing(outcomes):
        for number, outcome in outcomes:
            assert not isinstance(outcome, Failure), outcome
            clips += len(batches[number].clips)
            readings.append(np.array([time.perf_counter(), clock(), clips]))
            if full is None and len(clock.workers) == workers:
                full = len(readings) + 2 * CORES
    seconds, processor, clips = readings[-1 - 2 * CORES] - readings[full - 1]
    return Speed(clips / seconds, processor / clips)


def speed(function: Callable, batches: list[ClipBatch], workers: int = CORES) -> Speed:
    """The speed of work done wholly in other processes."""
    return steady(isolated_map(function, batches, workers=workers), batches, workers)


def case(names: tuple[str, ...], folder: Path) -> tuple[list[StoreSpec], list[Callable], list[ClipBatch], int]:
    """What is extracted together: the jobs, the streams, the batches, and how often to measure it."""
    _, _, count, batch_clips, (width, height) = CASES[names[0]]
    files = [write_video(folder / f"{n}.webm", 36, width=width, height=height) for n in range(8)]
    clips = [Clip(str(n), files[n % 8], 0, "", "", ()) for n in range(count)]
    wanted = tuple(range(len(names)))
    starts = range(0, count, batch_clips)
    batches = [ClipBatch(n, at, clips[at : at + batch_clips], wanted=wanted) for n, at in enumerate(starts)]
    jobs, builders = [], []
    for name in names:
        grid, frames, *_ = CASES[name]
        builders.append(partial(create_stream, name))
        model = builders[-1]()
        jobs.append(StoreSpec(folder / name, count, grid, model.width, weights_digest(model), SegmentView(frames)))
        jobs[-1].folder.mkdir()
        allocate(jobs[-1].folder, jobs[-1].kind, count)
    return jobs, builders, batches, 3 if width < 200 else 1


@contextmanager
def one_thread() -> Iterator[None]:
    """A model in this process computes on one core meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def load() -> str:
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


TOGETHER = [("dinov2_tiny", "i3d_tiny"), ("dinov2_vits14", "i3d_r50")]


@pytest.mark.parametrize("names", TOGETHER)
def test_extraction_against_decoding_and_models_alone(names, tmp_path, capsys):
    jobs, builders, batches, rounds = case(names, tmp_path)
    kinds = {"decoding": Decoding(jobs), "both": Extractor(jobs, builders)}
    kinds |= {name: Modelling(*one) for name, *one in zip(names, jobs, builders, strict=True)}
    found = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, function in kinds.items():
            found[kind].append(speed(function, batches))
    rate = {kind: max(speed.rate for speed in speeds) for kind, speeds in found.items()}
    spent = {kind: np.median([speed.processor for speed in speeds]) for kind, speeds in found.items()}
    # On the CPU decoding and models share the cores: working side by side they can at best take turns.
    parts = ["decoding", *names]
    shared = 1 / sum(1 / rate[part] for part in parts)
    with capsys.disabled():
        print(f"\n{' and '.join(names)}, {CORES} processes: {said(rate, parts)}, extraction of both {rate['both']:.1f} "
              f"clips/s: {rate['both'] / min(rate[part] for part in parts):.2f} of the slowest alone, "
              f"{rate['both'] / shared:.2f} of what sharing the cores allows; by processor time "
              f"{sum(spent[part] for part in parts) / spent['both']:.2f} ({load()})")


@pytest.mark.parametrize("names", TOGETHER)
def test_extraction_with_a_core_for_decoding_and_one_for_the_models(names, tmp_path, capsys):
    """The way of a GPU, where the two do not share what they compute on: a worker decodes, this process computes."""
    jobs, builders, batches, rounds = case(names, tmp_path)
    built, kinds = [build() for build in builders], ("decoding", "models", "both")
    (frames, _), found = Reader(jobs)(batches[0]), {kind: [] for kind in kinds}

    def computed() -> Iterator:
        for number in range(len(batches)):
            for job, model, seen in zip(jobs, built, frames, strict=True):
                compute(job, model, seen.on("cpu"))
            yield number, None

    with one_thread():
        for _ in range(rounds):
            found["decoding"].append(speed(Decoding(jobs), batches, 1))
            found["models"].append(steady(computed(), batches, 0))
            found["both"].append(steady(_in_this_process(jobs, batches, built, 1, "cpu"), batches, 1))
    rate = {kind: max(speed.rate for speed in speeds) for kind, speeds in found.items()}
    with capsys.disabled():
        print(f"\n{' and '.join(names)}, a core for each: {said(rate, kinds)} clips/s: "
              f"{rate['both'] / min(rate['decoding'], rate['models']):.2f} of the slower alone ({load()})")


def said(rate: dict[str, float], parts: Sequence[str]) -> str:
    return ", ".join(f"{part} {rate[part]:.1f}" for part in parts)


class Waiting(Brightness):
    """A stream that takes its time elsewhere, as one on a GPU does, pooling too: the processor is free meanwhile."""

    def __init__(self, seconds_a_clip: float, grid: tuple[int, int, int]):
        super().__init__()
        self.seconds, self.tokens, self.width = seconds_a_clip, torch.rand(64, grid[0], grid[1] * grid[2], 384), 384
        self.places, self.grid = grid_coordinates(grid), grid

    def forward(self, frames):
        time.sleep(self.seconds * len(frames))
        return Tokens(self.tokens[: len(frames)], self.places, None, self.grid)


@pytest.mark.parametrize(("share", "size"), [(0.5, (160, 120)), (1.0, (160, 120)), (2.0, (160, 120)),
                                             (0.5, (432, 240)), (1.0, (432, 240))])  # fmt: skip
def test_two_streams_beside_the_decoding(share, size, tmp_path, capsys):
    """The way of a GPU, with stand-ins that are, both together, `share` times as slow as the decoding."""
    files = [write_video(tmp_path / f"{n}.webm", 36, width=size[0], height=size[1]) for n in range(8)]
    count = 60 if size[0] < 200 else 20
    clips = [Clip(str(n), files[n % 8], 0, "", "", ()) for n in range(16 * count)]
    batches = [ClipBatch(n, 16 * n, clips[n * 16 : (n + 1) * 16], {}, (0, 1)) for n in range(count)]
    jobs = [
        StoreSpec(tmp_path / str(frames), len(clips), (4, 4, 4), 384, "", SegmentView(frames)) for frames in (8, 16)
    ]
    for job in jobs:
        job.folder.mkdir()
        allocate(job.folder, job.kind, len(clips))
    alone, beside = [], []
    for _ in range(2):
        alone.append(speed(Decoding(jobs), batches))
        seconds = share / max(speed.rate for speed in alone) / len(jobs)
        streams = [Waiting(seconds, job.grid) for job in jobs]
        beside.append(steady(_in_this_process(jobs, batches, streams, CORES, "cpu"), batches))
    rate = max(speed.rate for speed in alone) / max(1.0, share)
    processor = np.median([speed.processor for speed in alone]) / np.median([speed.processor for speed in beside])
    with capsys.disabled():
        print(f"\n{size[0]}x{size[1]}, stand-ins for a GPU {share} times as slow as decoding ({rate:.0f} clips/s the "
              f"slower): extraction at {max(speed.rate for speed in beside) / rate:.2f} of the slower alone; decoding "
              f"is {processor:.2f} of its processor time ({load()})")


def reading(folder: Path) -> str:
    """The same random batches from a store and from one mapped array that holds all tokens.

    Of a map that is new every page is met for the first time, as in a store that is larger than the memory.
    """
    tokens = np.random.default_rng(0).random((2048, 392, 384), np.float32).astype(np.float16)
    ids = [str(number) for number in range(2048)]
    store = write_store(folder, tokens, (8, 7, 7), ids)
    batches = np.random.default_rng(1).permutation(2048).reshape(-1, 128)
    mapped = np.load(store.root / "tokens.npy", mmap_mode="r")
    np.testing.assert_array_equal(store.load(ids[5:9]), mapped[5:9])

    def seconds(read: Callable) -> float:
        began = time.process_time()
        for batch in batches:
            read(batch)
        return time.process_time() - began

    times = {"map": [], "store": [], "new map": [], "new memory": []}
    for _ in range(15):
        new = np.load(store.root / "tokens.npy", mmap_mode="r")
        times["map"].append(seconds(lambda batch: mapped[batch]))
        times["store"].append(seconds(lambda batch: store.load([ids[number] for number in batch])))
        times["new map"].append(seconds(lambda batch, new=new: new[batch]))
        times["new memory"].append(
            seconds(lambda batch: replace(store, buffers=Buffers()).load([ids[number] for number in batch]))
        )
    beside = {name: np.divide(times["map"], found) for name, found in times.items()}
    new = np.median(np.divide(times["new map"], times["store"]))
    return (
        f"random batches from the store: {np.median(beside['store']):.2f} of the speed of a raw memory map, "
        f"{new:.2f} of that of a new one, {np.median(beside['new memory']):.2f} where it may not use the memory of a "
        f"batch again (processor time, median of 15 rounds; {load()})"
    )


def test_random_batches_against_raw_memory_maps(tmp_path, capsys):
    """In a process without the type checker of the tests, which costs more than the reading."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "support")}
    done = subprocess.run([sys.executable, __file__, str(tmp_path)], env=environment, capture_output=True, text=True,
                          check=True)  # fmt: skip
    with capsys.disabled():
        print(f"\n{done.stdout.strip()}")


if __name__ == "__main__":
    print(reading(Path(sys.argv[1])))
