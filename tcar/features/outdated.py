"""Whether the present code would make a store that stands again as it is, and what becomes of one that it would not."""

import os
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tcar.data.video import VideoError
from tcar.features.batches import Batch, Job, pooled_tokens, rows_of
from tcar.features.extraction import POLL, Ranks
from tcar.features.packing import FeatureError, parts_of, typed, unpacked
from tcar.features.store import DESCRIPTION, FILES, TOKENS, FeatureStore, records
from tcar.ground import log
from tcar.ground.files import foreign, remove_folder

# Devices and batch sizes differ by about 1e-3 in fp16, another way to read or scale frames by more than 1e-2. In
# bf16, eight times as coarse, so do devices.
SAME_TOKENS = {"fp32": 5e-3, "bf16": 2e-2}

logger = log.get(__name__)


def make_way(job: Job, model: nn.Module, batches: list[Batch], ranks: Ranks, patience: float, remake: bool) -> None:
    """Raise FeatureError where a store stands that the present code would not make again; with `remake`, remove it.

    Rank 0 removes it, and the others wait until it has. It is renamed first: no rank ever adds to a folder that is
    being deleted.
    """
    until = time.monotonic() + patience
    while job.folder.is_dir() and (difference := _difference(job, model, batches)):
        if not remake:
            raise FeatureError(
                f"{job.folder}: {difference}: the code, a library, the device or the video has changed since it was "
                "made. It is left as it is; to have it made again, delete it, or call tcar extract "
                "PARAMS --remake (from Python: remake=True)"
            )
        if ranks.rank == 0:
            _set_aside(job.folder, difference)
            break
        if time.monotonic() > until:
            raise FeatureError(f"rank 0 has not removed the outdated {job.folder} within {patience:g} s")
        time.sleep(POLL)
    if ranks.rank == 0:
        for stale in job.folder.parent.glob(f".stale-*-{job.folder.name}"):
            remove_folder(stale, FILES)


def _set_aside(folder: Path, difference: str) -> None:
    if folder.is_symlink() or (others := foreign(folder, FILES)):
        what = "is a link" if folder.is_symlink() else f"holds {', '.join(others[:3])}, which no extraction wrote"
        raise FeatureError(f"{folder}: {what}, so it is not deleted; move that away, then extract again")
    logger.warning("%s is made again: %s", folder, difference)
    with suppress(FileNotFoundError):  # another process, started by mistake, was faster
        folder.rename(folder.with_name(f".stale-{os.getpid()}-{folder.name}"))


def _difference(job: Job, model: nn.Module, batches: list[Batch]) -> str:
    """In what the first clip of an existing store comes out otherwise than it stands there; empty where it does not.

    The key covers weights and settings; this covers the code that reads, scales and pools.
    """
    clips = {clip.id: clip for batch in batches for clip in batch.clips}
    try:
        first, kept = _first_tokens(job, batches)
    except FileNotFoundError:
        if job.folder.is_dir():
            raise
        return ""  # another rank has removed the folder at this moment
    if first is None:
        return ""
    try:
        place = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        frames = torch.from_numpy(job.view(clips[first], 0, job.view_seed))[None].to(place)
        rows = rows_of(job, [pooled_tokens(model, frames, [0], job)], 1)
    except VideoError as error:
        return f"its first clip, {first}, cannot be read any more ({error.reason})"
    tokens, kept = (unpacked([typed(part) for part in parts_of(found)]).numpy() for found in (rows, kept))
    distance, size = np.linalg.norm(tokens - kept), np.linalg.norm(kept)
    if distance <= SAME_TOKENS[job.precision] * size:
        return ""
    share = float(distance) / max(float(size), 1e-12)
    return f"its first clip, {first}, comes out {share:.2%} differently ({SAME_TOKENS[job.precision]:.1%} may be)"


def _first_tokens(job: Job, batches: list[Batch]) -> tuple[str | None, np.ndarray | None]:
    """The first clip of a store, complete or not, and its row in view 0; none while it is empty."""
    if (job.folder / DESCRIPTION).is_file():
        (first, row), *_ = FeatureStore.open(job.folder).places.items()
    else:
        done = records(job.folder)
        readable = (
            (clip.id, (batch.start + place) * job.views)
            for batch in batches
            if batch.number in done
            for place, clip in enumerate(batch.clips)
            if clip.id not in done[batch.number]["broken"]
        )
        first, row = next(readable, (None, 0))
    return (first, None) if first is None else (first, np.load(job.folder / TOKENS, mmap_mode="r")[[row]])
