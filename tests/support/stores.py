"""Feature stores as an extraction leaves them, of tokens that are given, or of none that would take room on a disk."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tcar.features import FeatureStore
from tcar.features.making import allocate
from tcar.features.packing import TokenType, row_type
from tcar.features.store import COORDINATES, LAYOUT, TOKENS, key_of, write_description


def write_store(root: Path, tokens: np.ndarray, grid: tuple[int, int, int], ids: Sequence[str]) -> FeatureStore:
    """A store in fp16 of one view, in a folder of `root`."""
    made = _made(grid, "fp16", len(ids), 1)
    folder = _begun(root, made, tokens.shape[-1], ids)
    rows = np.load(folder / TOKENS, mmap_mode="r+")
    rows[:] = tokens.astype(np.float16)
    rows.flush()
    return _completed(folder, made, tokens.shape[-1], ids, [hashlib.sha256(rows).hexdigest()])


def sparse_store(
    root: Path, ids: Sequence[str], grid: tuple[int, int, int], width: int, *, token_type: TokenType = "fp16",
    views: int = 1, name: str = "sparse", frames: int = 0,
) -> FeatureStore:  # fmt: skip
    """A complete store whose tokens are all zero: of any number of clips it takes no room on the disk, but its list of
    clips. `verify` finds nothing to read in it. `frames` are those its stream was given, 0: as many as the grid has.
    """
    made = _made(grid, token_type, 32, views, name) | {"frames": frames or grid[0]}
    folder = _begun(root, made, width, ids)
    return _completed(folder, made, width, ids, [""] * -(-len(ids) // 32))


def _made(grid: tuple[int, int, int], token_type: str, batch_clips: int, views: int, name: str = "given") -> dict:
    return {"layout": LAYOUT, "stream": name, "frames": grid[0], "grid": list(grid), "token_type": token_type,
            "views": views, "batch_clips": batch_clips}  # fmt: skip


def _begun(root: Path, made: dict, width: int, ids: Sequence[str]) -> Path:
    folder, grid = root / f"{made['stream']}-{key_of(made)[:16]}", made["grid"]
    folder.mkdir(parents=True)
    allocate(folder, row_type(made["token_type"], int(np.prod(grid)), width), len(ids) * made["views"])
    axes = [(np.arange(cells, dtype=np.float32) + 0.5) / cells for cells in grid]
    np.save(folder / COORDINATES, np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3))
    return folder


def _completed(folder: Path, made: dict, width: int, ids: Sequence[str], digests: list[str]) -> FeatureStore:
    write_description(folder, {"made": made, "width": width, "clips": list(ids), "broken": {}, "batches": digests,
                               "flipped": {}, "error": None})  # fmt: skip
    return FeatureStore.open(folder)
