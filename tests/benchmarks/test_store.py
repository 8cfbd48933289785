"""How fast the feature store is filled and read, against its parts alone, side by side in one run."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from bright import Brightness
from videos import write_video

from tcar.data.ssv2 import Clip
from tcar.data.workers import Failure, isolated_map
from tcar.features.buffers import Buffers
from tcar.features.extraction import _in_this_process
from tcar.features.shards import Batch, Builder, Extractor, Job, Reader, compute
from tcar.features.store import FeatureStore
from tcar.features.views import SegmentView
from tcar.models import Tokens, create_stream, weights_digest
from tcar.models.grids import grid_coordinates

CORES = 2
CASES = {  # grid, frames, clips, clips in a batch, width and height
    "dinov2_tiny": ((4, 4, 4), 8, 320, 16, (160, 120)),
    "i3d_tiny": ((2, 4, 4), 16, 320, 16, (160, 120)),
    "dinov2_vits14": ((8, 7, 7), 8, 36, 2, (432, 240)),
    "i3d_r50": ((4, 7, 7), 8, 36, 2, (432, 240)),
}


class Decoding:
    """Decodes a batch in a worker and leaves the frames there."""

    def __init__(self, job: Job):
        self.read = Reader(job)

    def __call__(self, batch: Batch) -> None:
        self.read(batch)


class Modelling:
    """Runs the stream over frames that are there already, one thread a worker as in an extraction."""

    def __init__(self, job: Job, build: Callable):
        self.job, self.build, self.model = job, build, None

    def __call__(self, batch: Batch) -> None:
        if self.model is None:
            torch.set_num_threads(1)
            self.model, self.frames = self.build(), Reader(self.job)(batch)
        compute(self.job, self.model, self.frames)


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


def steady(outcomes: Iterator, batches: list[Batch], workers: int = CORES) -> Speed:
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


def speed(function: Callable, batches: list[Batch], workers: int = CORES) -> Speed:
    """The speed of work done wholly in other processes."""
    return steady(isolated_map(function, batches, workers=workers), batches, workers)


def case(name: str, folder: Path) -> tuple[Job, Builder, list[Batch], int]:
    """What is extracted: the job, the stream, the batches, and how often to measure it."""
    grid, frames, count, batch_clips, (width, height) = CASES[name]
    files = [write_video(folder / f"{n}.webm", 36, width=width, height=height) for n in range(8)]
    clips = [Clip(str(n), files[n % 8], 0, "", "", ()) for n in range(count)]
    batches = [Batch(n, clips[n * batch_clips : (n + 1) * batch_clips], {}) for n in range(count // batch_clips)]
    build = Builder(partial(create_stream, name), "")
    return Job(folder, grid, weights_digest(build()), SegmentView(frames)), build, batches, 3 if width < 200 else 1


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


@pytest.mark.parametrize("name", CASES)
def test_extraction_against_decoding_and_model_alone(name, tmp_path, capsys):
    job, build, batches, rounds = case(name, tmp_path)
    kinds = {"decoding": Decoding(job), "model": Modelling(job, build), "both": Extractor(job, build)}
    found = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, function in kinds.items():
            found[kind].append(speed(function, batches))
    rate = {kind: max(speed.rate for speed in speeds) for kind, speeds in found.items()}
    spent = {kind: np.median([speed.processor for speed in speeds]) for kind, speeds in found.items()}
    slower = min(rate["decoding"], rate["model"])
    # On the CPU decoding and model share the cores: working side by side they can at best take turns.
    shared = 1 / (1 / rate["decoding"] + 1 / rate["model"])
    with capsys.disabled():
        print(f"\n{name}, {CORES} processes: decoding {rate['decoding']:.1f}, model {rate['model']:.1f}, "
              f"extraction {rate['both']:.1f} clips/s: {rate['both'] / slower:.2f} of the slower alone, "
              f"{rate['both'] / shared:.2f} of what sharing the cores allows; by processor time "
              f"{max(spent['decoding'], spent['model']) / spent['both']:.2f} and "
              f"{(spent['decoding'] + spent['model']) / spent['both']:.2f} ({load()})")


@pytest.mark.parametrize("name", CASES)
def test_extraction_with_a_core_for_decoding_and_one_for_the_model(name, tmp_path, capsys):
    """The way of a GPU, where the two do not share what they compute on: a worker decodes, this process computes."""
    job, build, batches, rounds = case(name, tmp_path)
    model, frames, found = build(), Reader(job)(batches[0]), {"decoding": [], "model": [], "both": []}
    with one_thread():
        for _ in range(rounds):
            found["decoding"].append(speed(Decoding(job), batches, 1))
            computed = ((number, compute(job, model, frames)) for number in range(len(batches)))
            found["model"].append(steady(computed, batches, 0))
            found["both"].append(steady(_in_this_process(job, batches, model, 1), batches, 1))
    rate = {kind: max(speed.rate for speed in speeds) for kind, speeds in found.items()}
    with capsys.disabled():
        print(f"\n{name}, a core for each: decoding {rate['decoding']:.1f}, model {rate['model']:.1f}, extraction "
              f"{rate['both']:.1f} clips/s: {rate['both'] / min(rate['decoding'], rate['model']):.2f} of the slower "
              f"alone ({load()})")


class Waiting(Brightness):
    """A stream that takes its time elsewhere, as one on a GPU does, pooling too: the processor is free meanwhile."""

    def __init__(self, seconds_a_clip: float, grid: tuple[int, int, int]):
        super().__init__()
        self.seconds, self.tokens = seconds_a_clip, torch.rand(64, grid[0], grid[1] * grid[2], 384)
        self.places, self.grid = grid_coordinates(grid), grid

    def forward(self, frames):
        time.sleep(self.seconds * len(frames))
        return Tokens(self.tokens[: len(frames)], self.places, None, self.grid)


@pytest.mark.parametrize(("share", "size"), [(0.5, (160, 120)), (1.0, (160, 120)), (2.0, (160, 120)),
                                             (0.5, (432, 240)), (1.0, (432, 240))])  # fmt: skip
def test_a_stream_beside_the_decoding(share, size, tmp_path, capsys):
    """The way of a GPU, with a stand-in that is `share` times as slow as the decoding."""
    files = [write_video(tmp_path / f"{n}.webm", 36, width=size[0], height=size[1]) for n in range(8)]
    count = 60 if size[0] < 200 else 20
    clips = [Clip(str(n), files[n % 8], 0, "", "", ()) for n in range(16 * count)]
    batches = [Batch(n, clips[n * 16 : (n + 1) * 16], {}) for n in range(count)]
    job = Job(tmp_path, (4, 4, 4), "", SegmentView(8))
    alone, beside = [], []
    for _ in range(2):
        alone.append(speed(Decoding(job), batches))
        seconds = share / max(speed.rate for speed in alone)
        beside.append(steady(_in_this_process(job, batches, Waiting(seconds, job.grid), CORES), batches))
    rate = max(speed.rate for speed in alone) / max(1.0, share)
    processor = np.median([speed.processor for speed in alone]) / np.median([speed.processor for speed in beside])
    with capsys.disabled():
        print(f"\n{size[0]}x{size[1]}, stand-in for a GPU {share} times as slow as decoding ({rate:.0f} clips/s the "
              f"slower): extraction at {max(speed.rate for speed in beside) / rate:.2f} of the slower alone; decoding "
              f"is {processor:.2f} of its processor time ({load()})")


def reading(folder: Path) -> str:
    """The same random batches from a store and from one mapped array that holds all tokens.

    Of a map that is new every page is met for the first time, as in a store that is larger than the memory.
    """
    tokens = np.random.default_rng(0).random((2048, 392, 384), np.float32).astype(np.float16)
    np.save(folder / "all.npy", tokens)
    for shard in range(128):
        np.save(folder / f"tokens-{shard:05d}.npy", tokens[16 * shard : 16 * (shard + 1)])
    ids = [str(number) for number in range(2048)]
    places = {name: divmod(number, 16) for number, name in enumerate(ids)}
    store = FeatureStore(folder, "", "", 8, (8, 7, 7), 384, np.zeros((392, 3), np.float32), ids, {}, places)
    batches = np.random.default_rng(1).permutation(2048).reshape(-1, 128)
    mapped = np.load(folder / "all.npy", mmap_mode="r")
    np.testing.assert_array_equal(store.load(ids[5:9]), mapped[5:9])

    def seconds(read: Callable) -> float:
        began = time.process_time()
        for batch in batches:
            read(batch)
        return time.process_time() - began

    times = {"map": [], "store": [], "new map": [], "new memory": []}
    for _ in range(15):
        new = np.load(folder / "all.npy", mmap_mode="r")
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
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, __file__, str(tmp_path)], env=environment, capture_output=True, text=True,
                          check=True)  # fmt: skip
    with capsys.disabled():
        print(f"\n{done.stdout.strip()}")


if __name__ == "__main__":
    print(reading(Path(sys.argv[1])))
