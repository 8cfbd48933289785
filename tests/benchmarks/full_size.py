"""The real lists of ids at full length: reader, extraction, verification and random reading, and the memory they take.

    python tests/benchmarks/full_size.py ../shared/ssv2 --clips 20000
    python tests/benchmarks/full_size.py ../shared/ssv2             all 193,690 entries of train and validation

The videos are links to a few hundred small rendered ones (synthetic), the stream is a trivial one: this is about
the number of clips, not about pictures. What is measured is printed; nothing is kept.
"""

import argparse
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from bright import Brightness  # noqa: E402
from videos import write_video  # noqa: E402

from tcar import log  # noqa: E402
from tcar.data.ssv2 import Clip, load_split  # noqa: E402
from tcar.features import FeatureStore, extract, verify  # noqa: E402

SPLITS = ("train", "validation")


class Memory(threading.Thread):
    """Notes the memory of this process and of its children, resident, every second."""

    def __init__(self):
        super().__init__(daemon=True)
        self.samples: list[tuple[float, int, int]] = []
        self.began, self.process = time.monotonic(), psutil.Process()

    def run(self) -> None:
        while True:
            children = []
            for child in self.process.children(recursive=True):
                try:
                    children.append(child.memory_info().rss)
                except psutil.Error:
                    continue
            own = self.process.memory_info().rss
            self.samples.append((time.monotonic() - self.began, own, max(children, default=0)))
            time.sleep(1)

    def table(self, since: float, until: float) -> list[str]:
        """Ten moments of a span: seconds, MB of this process, MB of the largest child."""
        found = [sample for sample in self.samples if since <= sample[0] <= until] or self.samples[-1:]
        chosen = [found[round(i)] for i in np.linspace(0, len(found) - 1, 11)]
        return [f"  {at - since:8.0f} s {own / 1e6:8.0f} MB {child / 1e6:8.0f} MB" for at, own, child in chosen]


def dataset(folder: Path, lists: Path, limit: int, videos: int) -> list[Clip]:
    """The real lists and a link for each id; the reader goes over them."""
    rendered = folder / "rendered"
    (folder / "data" / "videos").mkdir(parents=True)
    rendered.mkdir()
    files = [write_video(rendered / f"{n}.webm", 8 + n % 16, width=64, height=48) for n in range(videos)]
    for name in ("labels.json", *(f"{split}.csv" for split in SPLITS)):
        (folder / "data" / name).symlink_to((lists / name).resolve())
    began = time.monotonic()
    clips = [clip for split in SPLITS for clip in load_split(folder / "data", split)]
    print(f"reader: {len(clips):,} entries in {time.monotonic() - began:.1f} s", flush=True)
    clips = clips[:limit] if limit else clips
    for number, clip in enumerate(clips):
        clip.path.symlink_to(files[number % videos])
    return clips


def random_reading(store: FeatureStore, size: int = 128) -> int:
    """Every clip once, in random batches, as a sampler would ask for them."""
    order = np.random.default_rng(0).permutation(store.ids)
    batches = [order[start : start + size].tolist() for start in range(0, len(order), size)]
    return sum(len(store.load(batch)) for batch in log.progress(batches, description="random batches"))


def main() -> None:
    """Run everything in a folder that is deleted afterwards."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("lists", type=Path, help="the folder with labels.json, train.csv and validation.csv")
    parser.add_argument("--clips", type=int, default=0, help="only so many; 0 = all")
    parser.add_argument("--videos", type=int, default=300, help="rendered files to link to")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--batch-clips", type=int, default=64)
    asked = parser.parse_args()
    log.configure()
    memory = Memory()
    memory.start()
    with tempfile.TemporaryDirectory(prefix="tcar-full-size-") as name:
        folder = Path(name)
        clips = dataset(folder, asked.lists, asked.clips, asked.videos)
        spans = {}
        began = time.monotonic() - memory.began
        store = extract(
            clips, Brightness(), (2, 1, 1), 2, folder / "store", workers=asked.workers, batch_clips=asked.batch_clips
        )
        spans["extraction"] = (began, time.monotonic() - memory.began)
        assert store.ids == [clip.id for clip in clips]
        steps = {"verification": lambda: verify(store.root), "random batches": lambda: random_reading(store)}
        for step, run in steps.items():
            began = time.monotonic() - memory.began
            done = run()
            spans[step] = (began, time.monotonic() - memory.began)
            print(f"{step}: {done if done else 'no fault'}")
        for step, (since, until) in spans.items():
            print(f"{step}: {len(clips):,} clips in {until - since:.0f} s, {len(clips) / (until - since):.0f} clips/s")
            print("        time   process   largest child", *memory.table(since, until), sep="\n")


if __name__ == "__main__":
    main()
