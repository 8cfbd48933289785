"""How many sets make a rendering of so many clips, and what it takes."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

from tcar.data.workers import worker_count
from tcar.tabletop.dataset import SPLITS, chosen_families, plan_sets, render_dataset
from tcar.tabletop.settings import TabletopSettings

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
MEASURED_CLIPS = 128


def sets_for(clips: int, classes: list[int]) -> dict[str, int]:
    """How many sets of each twin family make about `clips` clips, 80 : 10 : 10; at least one in each split."""
    a_set = sum(len(family.classes) for family in chosen_families(classes))
    return {split: max(1, round(clips * share / a_set)) for split, share in SHARES.items()}


def plan(drawn: TabletopSettings, seed: int, workers: int) -> str:
    """Say how many clips, bytes and minutes a rendering takes, from a few sets that are rendered for it."""
    families = chosen_families(drawn.classes)
    counts = {split: getattr(drawn, f"{split}_sets") for split in SPLITS}
    clips = sum(len(p.ids) for p in plan_sets(families, counts, seed))
    a_set = sum(len(family.classes) for family in families)
    sample = replace(drawn, train_sets=max(1, MEASURED_CLIPS // a_set), validation_sets=1, test_sets=1)
    with tempfile.TemporaryDirectory(prefix="tcar-tabletop-") as folder:
        began = time.perf_counter()
        render_dataset(folder, sample, seed=seed, workers=workers)
        seconds = time.perf_counter() - began
        videos = [path.stat().st_size for path in Path(folder, "videos").iterdir()]
        whole = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    rate, count = len(videos) / seconds, len(videos)
    lines = {
        "clips": f"{clips:,} ({', '.join(f'{counts[s]:,} sets of each family in {s}' for s in SPLITS)})",
        "measured": f"{count} clips in {seconds:.1f} s with {worker_count(workers)} processes: {rate:.1f} clips/s",
        "videos": f"{sum(videos) / count * clips / 1e9:.2f} GB ({sum(videos) / count / 1e3:.1f} kB each)",
        "with ground truth": f"{whole / count * clips / 1e9:.2f} GB",
        "time": f"{clips / rate / 60:.0f} minutes",
    }
    return "\n".join(f"{name:<18}{text}" for name, text in lines.items())
