"""The real lists of ids at full length: reader, sampler, loader and feature store, and the memory they take.

    python tests/benchmarks/full_size.py ../shared/ssv2 --clips 20000
    python tests/benchmarks/full_size.py ../shared/ssv2             all 193,690 entries of train and validation
    python tests/benchmarks/full_size.py ../shared/ssv2 --only loader --decoded 0.1

The videos are links to a few hundred small rendered ones (synthetic), the stream is a trivial one: this is about
the number of clips, not about pictures. What is measured is printed; nothing is kept.
"""

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from bright import Brightness  # noqa: E402
from videos import write_video  # noqa: E402

from tcar.data.clip_views import ClipViews  # noqa: E402
from tcar.data.loader import Loader  # noqa: E402
from tcar.data.sampling import view_seed  # noqa: E402
from tcar.data.ssv2 import Clip, load_labels, load_split  # noqa: E402
from tcar.data.views import SegmentView  # noqa: E402
from tcar.features import ExtractionSettings, FeatureStore, TokenSpec, extract, verify  # noqa: E402
from tcar.ground import log
from tcar.lab import params  # noqa: E402
from tcar.train.clip_tasks import BaselineTask  # noqa: E402
from tcar.train.processes import Processes
from tcar.train.stepping import Stepper  # noqa: E402
from tcar.train.tasks import Slice  # noqa: E402

SPLITS = ("train", "validation")


class Memory(threading.Thread):
    """Notes the memory of this process and of its children, resident, every second."""

    def __init__(self):
        super().__init__(daemon=True)
        self.samples: list[tuple[float, int, int]] = []
        self.began, self.process = time.monotonic(), psutil.Process()

    def run(self) -> None:
        while True:
            self.samples.append((time.monotonic() - self.began, *self.now()))
            time.sleep(1)

    def now(self) -> tuple[int, int]:
        """Bytes of this process and of the largest child."""
        children = []
        for child in self.process.children(recursive=True):
            try:
                children.append(child.memory_info().rss)
            except psutil.Error:
                continue
        return self.process.memory_info().rss, max(children, default=0)

    def table(self, since: float, until: float) -> list[str]:
        """Ten moments of a span: seconds, MB of this process, MB of the largest child."""
        found = [sample for sample in self.samples if since <= sample[0] <= until] or self.samples[-1:]
        chosen = [found[round(i)] for i in np.linspace(0, len(found) - 1, 11)]
        return [f"  {at - since:8.0f} s {own / 1e6:8.0f} MB {child / 1e6:8.0f} MB" for at, own, child in chosen]


def dataset(folder: Path, lists: Path, limit: int, videos: int) -> dict[str, list[Clip]]:
    """The real lists and a link for each id; the reader goes over them. With a limit, each split keeps its share."""
    rendered = folder / "rendered"
    (folder / "data" / "videos").mkdir(parents=True)
    rendered.mkdir()
    files = [write_video(rendered / f"{n}.webm", 8 + n % 16, width=64, height=48) for n in range(videos)]
    for name in ("labels.json", *(f"{split}.csv" for split in SPLITS)):
        (folder / "data" / name).symlink_to((lists / name).resolve())
    began = time.monotonic()
    splits = {split: load_split(folder / "data", split) for split in SPLITS}
    count = sum(map(len, splits.values()))
    print(f"reader: {count:,} entries in {time.monotonic() - began:.1f} s", flush=True)
    if limit:
        splits = {split: clips[: round(limit * len(clips) / count)] for split, clips in splits.items()}
    for number, clip in enumerate(clip for clips in splits.values() for clip in clips):
        clip.path.symlink_to(files[number % videos])
    return splits


@dataclass(frozen=True)
class Thinned:
    """Views of a share of the clips; those of the others are grey, as if decoding took no time."""

    views: ClipViews
    share: float

    def __call__(self, item: tuple[Clip, int]) -> tuple[np.ndarray, int] | str:
        if view_seed(0, item[0].id) / 2**63 < self.share:
            return self.views(item)
        return np.full((sum(self.views.frames), self.views.size, self.views.size, 3), 128, np.uint8), item[0].label


def sampler(task: BaselineTask, run: params.Params, ranks: int) -> str:
    """The clips of an epoch as so many processes would ask for them: together each of them once."""
    seen = []
    for rank in range(ranks):
        processes = Processes(run, task.partly_used)
        processes.count, processes.rank = ranks, rank
        steps = Stepper(task, processes).slices(1)
        seen += [place for step in steps for part in step for place in part.places]
    assert sorted(seen) == list(range(len(task.labels["train"])))
    return f"{len(steps):,} steps of {ranks} processes ask for each of {len(seen):,} training clips once"


def loader(task: BaselineTask, run: params.Params, share: float, memory: Memory) -> str:
    """An epoch and its validation, every clip through the loader into its batch; tells of the memory on the way."""
    size = task.recipe.batch_size
    if share < 1:
        task.loader = Loader(Thinned(task.views, share), workers=run.workers, ahead=2 * size)
    steps = Stepper(task, Processes(run, task.partly_used)).slices(1)
    places = range(len(task.labels["validation"]))
    slices = {
        "train": [part for step in steps for part in step],
        "validation": [Slice(list(places[start : start + size])) for start in range(0, len(places), size)],
    }
    seen = dict.fromkeys(SPLITS, 0)
    for split, parts in slices.items():
        for number, batch in enumerate(task.batches(split, parts, 1, {})):
            seen[split] += len(batch.rows)
            assert not batch.broken and len(batch.inputs[0]) == len(batch.rows)
            if number % max(1, len(parts) // 20) == 0:
                own, child = memory.now()
                print(f"  {split} {seen[split]:9,} clips {own / 1e6:8.0f} MB {child / 1e6:8.0f} MB", flush=True)
    assert seen == {split: len(task.labels[split]) for split in SPLITS}
    task.loader.close()
    done = ", ".join(f"{count:,} {split} clips" for split, count in seen.items())
    return f"{done}, {share:.0%} of them decoded" if share < 1 else done


def random_reading(store: FeatureStore, size: int = 128) -> int:
    """Every clip once, in random batches, as a sampler would ask for them."""
    order = np.random.default_rng(0).permutation(store.ids)
    batches = [order[start : start + size].tolist() for start in range(0, len(order), size)]
    return sum(len(store.load(batch)) for batch in log.progress(batches, description="random batches"))


def store_steps(clips: list[Clip], folder: Path, workers: int, batch_clips: int) -> dict[str, Callable]:
    """Extraction with a trivial stream, and two ways over what it has made."""

    def extraction() -> str:
        wanted = [TokenSpec(Brightness, (2, 1, 1), SegmentView(2))]
        made.extend(extract(clips, wanted, folder, ExtractionSettings(workers=workers, batch_clips=batch_clips)))
        assert made[0].ids == [clip.id for clip in clips]
        return f"{len(clips):,} clips"

    made: list[FeatureStore] = []
    return {
        "extraction": extraction,
        "verification": lambda: verify(made[0].root),
        "random batches": lambda: random_reading(made[0]),
    }


def main() -> None:
    """Run everything in a folder that is deleted afterwards."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("lists", type=Path, help="the folder with labels.json, train.csv and validation.csv")
    parser.add_argument("--clips", type=int, default=0, help="only so many; 0 = all")
    parser.add_argument("--videos", type=int, default=300, help="rendered files to link to")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--batch-clips", type=int, default=64)
    parser.add_argument("--only", choices=("loader", "store"))
    parser.add_argument("--decoded", type=float, default=1.0, help="the share of clips that the loader decodes")
    asked = parser.parse_args()
    log.configure()
    torch.set_num_threads(1)
    memory = Memory()
    memory.start()
    with tempfile.TemporaryDirectory(prefix="tcar-full-size-") as name:
        folder, steps, spans = Path(name), {}, {}
        splits = dataset(folder, asked.lists, asked.clips, asked.videos)
        clips = [clip for found in splits.values() for clip in found]
        if asked.only != "store":
            run = params.from_values({"device": "cpu", "workers": asked.workers, "baseline_batch_size": 32})
            task = BaselineTask("cast_tiny", splits, list(load_labels(folder / "data")), run, 0)
            steps["sampler"] = lambda: sampler(task, run, 8)
            steps["loader"] = lambda: loader(task, run, asked.decoded, memory)
        if asked.only != "loader":
            steps |= store_steps(clips, folder / "store", asked.workers, asked.batch_clips)
        for step, do in steps.items():
            began = time.monotonic() - memory.began
            done = do()
            spans[step] = (began, time.monotonic() - memory.began)
            print(f"{step}: {done or 'no fault'}", flush=True)
        for step, (since, until) in spans.items():
            print(f"{step}: {len(clips):,} clips in {until - since:.0f} s, {len(clips) / (until - since):.0f} clips/s")
            print("        time   process   largest child", *memory.table(since, until), sep="\n")


if __name__ == "__main__":
    main()
