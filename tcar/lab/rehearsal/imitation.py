"""An imitation of Something-Something-V2 as it is downloaded.

Nothing of the dataset is in it. The pictures are Tabletop's, at the size of the real ones and with grain, so that a
file weighs what a real one does and takes as long to decode. Those classes that Tabletop draws show what their label
says; all others show any of them: their labels are arbitrary.
"""

import shutil
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tcar.data.archives import ANNOTATIONS
from tcar.data.prepare import LABELS_ZIP
from tcar.data.workers import worker_count
from tcar.ground import files, log
from tcar.ground.processes import pool
from tcar.lab.params import ParameterError
from tcar.lab.real_plans import ALL_CLIPS, CLASSES, CLIPS
from tcar.tabletop.dataset import SPLITS, entry, write_annotations, write_video
from tcar.tabletop.scene import render
from tcar.tabletop.stage import Stage
from tcar.tabletop.templates import FAMILIES, LABELS

STEM = "20bn-something-something-v2"
PARTS = 20  # that the archive is published in
WIDTH, HEIGHT, RATE = 427, 240, 12  # pixels, frames a second
LENGTHS = (24, 36, 48, 60, 72)  # frames: 2 to 6 s
GRAIN = 4.5  # grey levels; with it a file weighs about the 88 kB of a real one, without it an eighth
OBJECTS = ("a cup", "a pen")


@dataclass(frozen=True)
class PlannedClip:
    """A clip to come: `shown` is the class whose scene is drawn, `label` the one that the annotations say."""

    id: str
    split: str
    label: int
    shown: int
    seed: int


def texts() -> list[str]:
    """The label list: the 32 templates that Tabletop knows at their official places, stand-ins at all others."""
    return [LABELS.get(n, f"Doing something to something that stands in for class {n:03d}") for n in range(CLASSES)]


def planned(clips: int, seed: int) -> list[PlannedClip]:
    """So many clips, shared over the splits as the published ones are; each split goes through all classes in turn.

    Raises ParameterError where a split would have no clip.
    """
    counts = {split: round(clips * CLIPS[split] / ALL_CLIPS) for split in ("validation", "test")}
    if min(counts.values()) < 1:
        raise ParameterError(f"--clips {clips}: each split needs one; give at least 10, and 230 for all classes")
    counts["train"] = clips - sum(counts.values())
    rng, found = np.random.default_rng(seed), []
    ids = iter(rng.choice(ALL_CLIPS, clips, replace=False) + 1)
    for split in SPLITS:
        order = rng.permutation(CLASSES)
        for n in range(counts[split]):
            label = int(order[n % CLASSES])
            shown = label if label in LABELS else int(rng.choice(sorted(LABELS)))
            found.append(PlannedClip(str(next(ids)), split, label, shown, int(rng.integers(1 << 31))))
    return found


def downloads(folder: Path, clips: int, seed: int, workers: int = 0) -> None:
    """Write an imitation of the downloads to `folder`, which is there only once it is whole; a killed call goes on.

    The archive comes in 20 parts, the label files in their zip.
    """
    if folder.is_dir():
        return
    plans, rendered = planned(clips, seed), folder.with_name("rendered")
    (rendered / STEM).mkdir(parents=True, exist_ok=True)
    files.drop_drafts(rendered / STEM)
    with pool(worker_count(workers)) as processes:
        jobs = processes.map(film, plans, [rendered / STEM] * clips, chunksize=4)
        words = list(log.progress(jobs, total=clips, description="rendering", unit="clips"))
    entries: dict[str, list[dict]] = {split: [] for split in SPLITS}
    for plan, named in zip(plans, words, strict=True):
        entries[plan.split].append(entry(plan.id, texts()[plan.label], named))
    write_annotations(rendered, texts(), entries)
    draft = folder.with_name(".downloads")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    _pack(rendered, draft)
    with zipfile.ZipFile(draft / LABELS_ZIP, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ANNOTATIONS:
            archive.write(rendered / name, f"labels/{name}")
    draft.rename(folder)
    shutil.rmtree(rendered)


def film(plan: PlannedClip, folder: Path) -> list[str]:
    """Draw and encode a clip where it is not there yet; returns the words of its caption."""
    import cv2

    cv2.setNumThreads(1)  # one process a core
    family = next(family for family in FAMILIES.values() if plan.shown in family.classes)
    scene = family.draw(Stage(plan.split, [plan.seed], LENGTHS))[plan.shown]
    path = folder / f"{plan.id}.webm"
    if not path.is_file():
        rng = np.random.default_rng(plan.seed)
        grain = rng.normal(0, GRAIN, (HEIGHT, WIDTH, 1)).astype(np.int16)
        frames = np.empty((scene.frames, HEIGHT, WIDTH, 3), np.uint8)
        for target, frame in zip(frames, render(scene, HEIGHT * 4 // 3, HEIGHT).frames, strict=True):
            moved = np.roll(grain, rng.integers(0, HEIGHT, 2), (0, 1))
            np.clip(cv2.resize(frame, (WIDTH, HEIGHT)) + moved, 0, 255, out=target, casting="unsafe")
        with files.drafted(path) as draft:
            write_video(draft, frames, RATE)
    return list(scene.placeholders if plan.shown == plan.label else OBJECTS[:2])


def _pack(rendered: Path, folder: Path) -> None:
    """One gzip-compressed tar of the videos, cut into parts of one size and a shorter last one, as published."""
    whole = folder / f"{STEM}.tar.gz"
    with tarfile.open(whole, "w:gz", compresslevel=1) as archive:
        archive.add(rendered / STEM, STEM)
    length = whole.stat().st_size // PARTS + 1
    with whole.open("rb") as file:
        for number in range(PARTS):
            (folder / f"{STEM}-{number:02d}").write_bytes(file.read(length))
    whole.unlink()
