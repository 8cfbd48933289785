"""How fast the feature store is filled and read, against its parts alone, side by side in one run."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from bright import Brightness
from videos import write_video

from tcar.data.ssv2 import Clip
from tcar.data.workers import Failure, isolated_map
from tcar.features.extraction import _in_this_process
from tcar.features.shards import Batch, Builder, Extractor, Job, Reader, compute
from tcar.features.store import FeatureStore
from tcar.features.views import SegmentView
from tcar.models import create_stream, weights_digest

CORES = 2
CASES = {  # grid, frames, clips, clips in a batch, width and height
    "dinov2_tiny": ((4, 4, 4), 8, 320, 16, (160, 120)),
    "i3d_tiny": ((2, 4, 4), 16, 320, 16, (160, 120)),
    "dinov2_vits14": ((8, 7, 7), 8, 20, 2, (432, 240)),
    "i3d_r50": ((4, 7, 7), 8, 20, 2, (432, 240)),
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


def steady(outcomes: Iterator, batches: list[Batch]) -> float:
    """Clips a second from the first result on: starting the processes is no part of it."""
    began, clips = None, 0
    with closing(outcomes):
        for number, outcome in outcomes:
            assert not isinstance(outcome, Failure), outcome
            clips += len(batches[number].clips) if began else 0
            began = began or time.perf_counter()
    return clips / (time.perf_counter() - began)


def rate(function: Callable, batches: list[Batch]) -> float:
    """Clips a second of work done wholly in `CORES` processes."""
    return steady(isolated_map(function, batches, workers=CORES), batches)


@pytest.mark.parametrize("name", CASES)
def test_extraction_against_decoding_and_model_alone(name, tmp_path, capsys):
    grid, frames, count, batch_clips, (width, height) = CASES[name]
    files = [write_video(tmp_path / f"{n}.webm", 36, width=width, height=height) for n in range(8)]
    clips = [Clip(str(n), files[n % 8], 0, "", "", ()) for n in range(count)]
    batches = [Batch(n, clips[n * batch_clips : (n + 1) * batch_clips], {}) for n in range(count // batch_clips)]
    build = Builder(partial(create_stream, name), "")
    job = Job(tmp_path, grid, weights_digest(build()), SegmentView(frames))
    kinds = {"decoding": Decoding(job), "model": Modelling(job, build), "both": Extractor(job, build)}
    best = dict.fromkeys(kinds, 0.0)
    for _ in range(2 if width < 200 else 1):
        for kind, function in kinds.items():
            best[kind] = max(best[kind], rate(function, batches))
    slower = min(best["decoding"], best["model"])
    # On the CPU decoding and model share the cores: working side by side they can at best take turns.
    shared = 1 / (1 / best["decoding"] + 1 / best["model"])
    with capsys.disabled():
        print(f"\n{name}, {CORES} processes: decoding {best['decoding']:.1f}, model {best['model']:.1f}, "
              f"extraction {best['both']:.1f} clips/s: {best['both'] / slower:.2f} of the slower alone, "
              f"{best['both'] / shared:.2f} of what sharing the cores allows")


class Waiting(Brightness):
    """A stream that takes its time elsewhere, as one on a GPU does: the processor is free meanwhile."""

    def __init__(self, seconds_a_clip: float):
        super().__init__()
        self.seconds = seconds_a_clip
        self.tokens = create_stream("dinov2_tiny")(torch.zeros(1, 8, 120, 160, 3, dtype=torch.uint8))

    def forward(self, frames):
        time.sleep(self.seconds * len(frames))
        return replace(self.tokens, values=self.tokens.values.expand(len(frames), -1, -1, -1), class_token=None)


@pytest.mark.parametrize("share", [0.5, 1.0, 2.0])
def test_a_stream_beside_the_decoding(share, tmp_path, capsys):
    """The way of a GPU, with a stand-in that is `share` times as slow as the decoding."""
    files = [write_video(tmp_path / f"{n}.webm", 36) for n in range(8)]
    clips = [Clip(str(n), files[n % 8], 0, "", "", ()) for n in range(1600)]
    batches = [Batch(n, clips[n * 16 : (n + 1) * 16], {}) for n in range(100)]
    job = Job(tmp_path, (4, 4, 4), "", SegmentView(8))
    decoding = max(rate(Decoding(job), batches) for _ in range(2))
    slower = decoding / max(1.0, share)
    model = Waiting(share / decoding)
    both = max(steady(_in_this_process(job, batches, model, CORES), batches) for _ in range(2))
    with capsys.disabled():
        print(f"\nstand-in for a GPU {share} times as slow as decoding ({decoding:.0f} clips/s): extraction at "
              f"{both / slower:.2f} of the slower alone")


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

    times = {"store": [], "map": [], "new map": []}
    for _ in range(15):
        new = np.load(folder / "all.npy", mmap_mode="r")
        times["map"].append(seconds(lambda batch: mapped[batch]))
        times["store"].append(seconds(lambda batch: store.load([ids[number] for number in batch])))
        times["new map"].append(seconds(lambda batch, new=new: new[batch]))
    ratios = {name: np.median(np.divide(found, times["store"])) for name, found in times.items()}
    return (
        f"random batches from the store: {ratios['map']:.2f} of the speed of a raw memory map, "
        f"{ratios['new map']:.2f} of that of a new one (processor time, median of 15 rounds)"
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
