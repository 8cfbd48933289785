"""A store while it is made: what its batches have in common, what of them is done, and its description at the end.

Where the tokens of a clip lie follows from the order of the clips alone, so the bytes of a store do not depend on who
made it or on how often the work was cut off.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from tcar.data.ssv2 import Clip
from tcar.data.views import SegmentView
from tcar.features.packing import FeatureError, row_type
from tcar.features.settings import ExtractionSettings, TokenSpec
from tcar.features.store import COORDINATES, DESCRIPTION, LAYOUT, TOKENS, canonical, header, key_of, write_description
from tcar.ground.files import sync_folder
from tcar.streams.stream import Stream

SAME_PLACE = 1e-4  # of the frame: devices differ by less in a coordinate, frames of another shape by more


@dataclass(frozen=True)
class StoreSpec:
    """A store to be made, of `clips` clips, in rows of tokens of a `grid` (t, h, w) and `width`.

    `weights` is the digest of the stream's weights, `made` all that decides the numbers, whose digest is the key.
    """

    folder: Path
    clips: int
    grid: tuple[int, int, int]
    width: int
    weights: str
    view: SegmentView
    settings: ExtractionSettings = field(default_factory=ExtractionSettings)
    made: Mapping = field(default_factory=dict)

    @classmethod
    def of(
        cls, wanted: TokenSpec, stream: Stream, root: Path, clips: int, sizes: str, settings: ExtractionSettings
    ) -> "StoreSpec":
        """The store of the tokens wanted of a stream, in the folder of `root` that its key names.

        `sizes` is the `fingerprint` of the clips.
        """
        made = {
            "layout": LAYOUT,
            "stream": stream.name,
            "weights": (weights := weights_of(stream)),
            "input_size": stream.input_size,
            "fit": stream.fit,
            "frames": wanted.view.frames,
            "sampling": wanted.view.key,
            "views": settings.views,
            "view_seed": settings.view_seed,
            "grid": list(wanted.grid),
            "token_type": settings.token_type,
            "precision": settings.precision,
            "batch_clips": settings.batch_clips,
            "clips": sizes,
            "quarantine": [],  # in every key of this layout; what the audit sets aside is not among the clips
        }
        folder = root / f"{stream.name.replace(':', '-').replace('/', '-')}-{key_of(made)[:16]}"
        return cls(folder, clips, tuple(wanted.grid), stream.width, weights, wanted.view, settings, made)

    @property
    def kind(self) -> np.dtype:
        """A row of the store: one view of a clip."""
        return row_type(self.settings.token_type, math.prod(self.grid), self.width)

    @property
    def readings(self) -> list[tuple[SegmentView, int, int]]:
        """What is read of each clip by `read_views`: view, number, seed."""
        return [(self.view, number, self.settings.view_seed) for number in range(self.settings.views)]


@dataclass(frozen=True)
class ClipBatch:
    """Clips that are decoded and run at once, the first of them at `start` among all, for the stores of `wanted`.

    `broken` are those among them already known to be, with the reason.
    """

    number: int
    start: int
    clips: Sequence[Clip]
    broken: dict[str, str] = field(default_factory=dict)
    wanted: tuple[int, ...] = (0,)


def weights_of(stream: Stream) -> str:
    """The digest of a stream's weights."""
    # The registry imports the libraries of all streams, which takes seconds, and most steps read tokens alone.
    from tcar.streams.registry import weights_digest

    return weights_digest(stream)


def fingerprint(clips: Sequence[Clip]) -> str:
    """A digest of ids and file sizes in order: cheap for 220,847 videos, changed by any repaired or re-rendered one."""
    digest = hashlib.sha256()
    for clip in clips:
        try:
            size = os.stat(clip.path).st_size
        except (FileNotFoundError, NotADirectoryError):  # of a disk that fails, the key of the store must not depend
            size = -1
        digest.update(f"{clip.id} {size}\n".encode())
    return digest.hexdigest()


def allocate(folder: Path, kind: np.dtype, rows: int) -> None:
    """Give the file of tokens its beginning and its size, unless it has them: several processes may do so at once.

    Raises FeatureError where the tokens of batches that are done are gone.
    """
    head, path = header(kind, rows), folder / TOKENS
    size = len(head) + rows * kind.itemsize
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if os.fstat(file).st_size == size and os.pread(file, len(head), 0) == head:
            return
        if records(folder):
            raise FeatureError(f"{path} is not what was written there; delete the folder and extract again")
        os.pwrite(file, head, 0)
        os.ftruncate(file, size)
    finally:
        os.close(file)
    sync_folder(folder)


def records(folder: Path) -> dict[int, dict]:
    """What is done, by the number of the batch; a line that was cut off does not count."""
    found = {}
    for path in sorted(folder.glob("done-[0-9]*.jsonl")):
        with suppress(FileNotFoundError):  # rank 0 has completed the store at this moment
            for line in path.read_bytes().splitlines():
                with suppress(ValueError):
                    record = json.loads(line)
                    found[record["batch"]] = record
    return found


def note(folder: Path, rank: int, record: Mapping) -> None:
    """Write down that a batch is done, once its tokens are on the disk.

    A line that is lost to a power cut is no harm, as its batch is made again: it does not wait for the disk.
    """
    with (folder / f"done-{rank}.jsonl").open("ab", buffering=0) as file:
        file.write(b"\n" + canonical(record) + b"\n")  # begins anew after a line that was cut off


def missing(stores: Mapping[int, StoreSpec], batches: Sequence[ClipBatch]) -> list[ClipBatch]:
    """The batches that any of these stores lacks, each with the numbers of those that do.

    Raises FeatureError where the tokens still missing do not fit on the disk.
    """
    lacking = {batch.number: [] for batch in batches}
    needed, most = 0, 0
    for number, store in stores.items():
        allocate(store.folder, store.kind, store.clips * store.settings.views)
        done = records(store.folder)
        left = [batch for batch in batches if batch.number not in done]
        for batch in left:
            lacking[batch.number].append(number)
        clips = sum(len(batch.clips) for batch in left)
        needed, most = needed + clips * store.settings.views * store.kind.itemsize, max(most, clips)
        folder = store.folder.parent
    if needed and needed > (free := shutil.disk_usage(folder).free):
        raise FeatureError(
            f"{folder} needs {needed / 1e9:.1f} GB for {most:,} clips, and {free / 1e9:.1f} GB are free; put the run "
            "on a larger disk (runs), or take a coarser grid, fewer views or int8 (token_type)"
        )
    return [replace(batch, wanted=tuple(lacking[batch.number])) for batch in batches if lacking[batch.number]]


def finish(store: StoreSpec, clips: Sequence[Clip], batches: Sequence[ClipBatch]) -> None:
    """Complete a store whose batches are all done.

    Raises FeatureError where no clip could be read, or tokens of one batch lie elsewhere than those of others.
    """
    done = records(store.folder)
    if (store.folder / DESCRIPTION).is_file():  # another process, started by mistake, has finished
        return
    found = [done[batch.number] for batch in batches]
    broken = {name: why for record in found for name, why in record["broken"].items()}
    if len(broken) == len(clips):
        raise FeatureError(
            f"none of the {len(broken)} clips can be read, the first because: "
            f"{next(iter(broken.values()), 'there is no clip')}; run the audit (notebook 00)"
        )
    ends = [np.array(record["ends"]) for record in found if record["sha256"]]
    one_place_each(store.made["stream"], [np.load(store.folder / COORDINATES)[[0, -1]], *ends])
    readable = [clip.id for clip in clips if clip.id not in broken]
    flipped = {name: [n for view, n, seed in store.readings if view.flipped(name, n, seed)] for name in readable}
    errors = [record["error"] for record in found if "error" in record]
    write_description(store.folder, {
        "made": dict(store.made), "width": store.width, "clips": [clip.id for clip in clips], "broken": broken,
        "batches": [record["sha256"] for record in found], "error": _summed(errors) if errors else None,
        "flipped": {name: views for name, views in flipped.items() if views},
    })  # fmt: skip


def _summed(errors: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """How exact the tokens of several batches are: the error's root mean square against theirs, and the largest."""
    squares = {name: math.fsum(error[name] for error in errors) for name in ("error", "tokens")}
    relative = math.sqrt(squares["error"] / squares["tokens"]) if squares["tokens"] else 0.0
    return {"relative_rms": relative, "largest": max(error["largest"] for error in errors)}


def one_place_each(name: str, places: Sequence[Float[np.ndarray, "n 3"]]) -> Float[np.ndarray, "n 3"]:
    """The coordinates that all of these are; raises FeatureError where they differ, as a store has one set of them."""
    if any(np.abs(found - places[0]).max() > SAME_PLACE for found in places):
        raise FeatureError(
            f"{name}: frames of different shapes give tokens in different places, and a store keeps one place for "
            "each token; give the stream fit='squash', or extract clips of each shape by themselves"
        )
    return places[0]
