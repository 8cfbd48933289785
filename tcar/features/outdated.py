"""Whether the present code would make a store that stands again as it is, and what becomes of one that it would not."""

import os
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tcar.data.video import VideoError
from tcar.features.batches import pooled_tokens, rows_of
from tcar.features.making import ClipBatch, StoreSpec, records
from tcar.features.packing import FeatureError, parts_of, typed, unpacked
from tcar.features.ranks import PATIENCE, POLL, Ranks
from tcar.features.store import DESCRIPTION, FILES, TOKENS, FeatureStore
from tcar.ground import log
from tcar.ground.files import foreign, remove_folder

# Devices and batch sizes differ by about 1e-3 in fp16, another way to read or scale frames by more than 1e-2. In
# bf16, eight times as coarse, so do devices.
SAME_TOKENS = {"fp32": 5e-3, "bf16": 2e-2}

logger = log.get(__name__)


def make_way(store: StoreSpec, stream: nn.Module, batches: list[ClipBatch], ranks: Ranks) -> None:
    """Raise FeatureError where a store stands that the present code would not make again; remove it if it may be.

    Rank 0 removes it, and the others wait until it has. It is renamed first: no rank ever adds to a folder that is
    being deleted.
    """
    until = time.monotonic() + PATIENCE
    while store.folder.is_dir() and (difference := _difference(store, stream, batches)):
        if not store.settings.remake:
            raise FeatureError(
                f"{store.folder}: {difference}: the code, a library, the device or the video has changed since it was "
                "made. It is left as it is; to have it made again, delete it, or call tcar extract "
                "PARAMS --remake (from Python: remake=True)"
            )
        if ranks.rank == 0:
            _set_aside(store.folder, difference)
            break
        if time.monotonic() > until:
            raise FeatureError(f"rank 0 has not removed the outdated {store.folder} within {PATIENCE:g} s")
        time.sleep(POLL)
    if ranks.rank == 0:
        for stale in store.folder.parent.glob(f".stale-*-{store.folder.name}"):
            remove_folder(stale, FILES)


def _set_aside(folder: Path, difference: str) -> None:
    if folder.is_symlink() or (others := foreign(folder, FILES)):
        what = "is a link" if folder.is_symlink() else f"holds {', '.join(others[:3])}, which no extraction wrote"
        raise FeatureError(f"{folder}: {what}, so it is not deleted; move that away, then extract again")
    logger.warning("%s is made again: %s", folder, difference)
    with suppress(FileNotFoundError):  # another process, started by mistake, was faster
        folder.rename(folder.with_name(f".stale-{os.getpid()}-{folder.name}"))


def _difference(store: StoreSpec, stream: nn.Module, batches: list[ClipBatch]) -> str:
    """In what the first clip of an existing store comes out otherwise than it stands there; empty where it does not.

    The key covers weights and settings; this covers the code that reads, scales and pools.
    """
    try:
        first, row = _first_row(store, batches)
        if not first:
            return ""
        kept = np.load(store.folder / TOKENS, mmap_mode="r")[[row]]
    except FileNotFoundError:
        if store.folder.is_dir():
            raise
        return ""  # another rank has removed the folder at this moment
    clip = next(clip for batch in batches for clip in batch.clips if clip.id == first)
    try:
        device = next((parameter.device for parameter in stream.parameters()), torch.device("cpu"))
        frames = torch.from_numpy(store.view(clip, 0, store.settings.view_seed))[None].to(device)
    except VideoError as error:
        return f"its first clip, {first}, cannot be read any more ({error.reason})"
    now = rows_of(store, [pooled_tokens(store, stream, frames, [0])], 1)
    tokens, kept = (unpacked([typed(part) for part in parts_of(found)]).numpy() for found in (now, kept))
    distance, size, most = np.linalg.norm(tokens - kept), np.linalg.norm(kept), SAME_TOKENS[store.settings.precision]
    if distance <= most * size:
        return ""
    share = float(distance) / max(float(size), 1e-12)
    return f"its first clip, {first}, comes out {share:.2%} differently ({most:.1%} may be)"


def _first_row(store: StoreSpec, batches: list[ClipBatch]) -> tuple[str, int]:
    """The first readable clip of a store, complete or not, and the row of its view 0; none while it is empty."""
    if (store.folder / DESCRIPTION).is_file():
        return next(iter(FeatureStore.open(store.folder).places.items()))
    done = records(store.folder)
    readable = (
        (clip.id, (batch.start + place) * store.settings.views)
        for batch in batches
        if batch.number in done
        for place, clip in enumerate(batch.clips)
        if clip.id not in done[batch.number]["broken"]
    )
    return next(readable, ("", 0))
