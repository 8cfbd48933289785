"""What an extraction leaves on the disk: its tokens by id and view, and whether they are still the same bytes.

A store is a folder `<stream>-<key>/`. It is complete when it holds `store.json`.

    tokens-<shard>.npy    [clips * views, N, D], fp16, or bf16 as unsigned integers; the views of a clip side by side
    coordinates.npy       [N, 3], the centres (t, y, x) of the tokens in [0, 1]
    index.parquet         id, shard, row of the first view; where a view of any clip is mirrored: flipped, a list for
                          each clip with a truth value for each view
    shards.parquet        shard, clips, bytes, sha256
    store.json            what made it, and its digest, the key; the clips left out, and why; digests of the files above
    store.meta.json       how fast it was made; not part of the content
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from tcar import locks, log
from tcar.features.buffers import Buffers
from tcar.features.shards import (
    STORED,
    FeatureError,
    Job,
    TokenType,
    from_stored,
    one_place_each,
    read_record,
    shard_path,
)
from tcar.files import replace_file, sync_folder

INDEX, SHARDS, COORDINATES, DESCRIPTION = "index.parquet", "shards.parquet", "coordinates.npy", "store.json"
META = "store.meta.json"
FILES = ("tokens-[0-9]*.npy", "tokens-[0-9]*.json", COORDINATES, INDEX, SHARDS, DESCRIPTION, META, locks.FILE)
# np.save pads the description of an array to a multiple of 64 bytes; that of three axes takes 128.
HEADER = 128


@dataclass(frozen=True)
class FeatureStore:
    """The cached tokens of one stream; `broken` holds the reason for every clip that has none.

    `coordinates` are the centres (t, y, x) in [0, 1] of the N tokens of a clip, in the order of the tokens. They are
    those of a mirrored view as well: its frames were mirrored before the stream saw them. `flips` says for each clip
    which views these are, and is empty where none is. `content` is a digest of all tokens, taken when they were
    written.
    """

    root: Path
    key: str
    stream: str
    frames: int
    grid: tuple[int, int, int]
    width: int
    coordinates: Float[np.ndarray, "n 3"]
    ids: list[str]
    broken: dict[str, str]
    places: dict[str, tuple[int, int]] = field(repr=False)
    views: int = 1
    token_type: TokenType = "fp16"
    flips: dict[str, list[bool]] = field(default_factory=dict, repr=False)
    content: str = ""
    buffers: Buffers = field(default_factory=Buffers, repr=False, compare=False)

    @classmethod
    def open(cls, root: str | Path) -> "FeatureStore":
        """Open a complete store; raises FeatureError where there is none, or its index is not the one it was made
        with.
        """
        root = Path(root)
        described = _described(root)
        made = described["made"]
        try:
            index = pyarrow.parquet.read_table(root / INDEX).to_pydict()
            coordinates = np.load(root / COORDINATES)
        except (ValueError, EOFError) as error:
            raise FeatureError(
                f"{root}: {INDEX} or {COORDINATES} is damaged ({error}); delete the folder and extract again"
            ) from error
        flips = dict(zip(index["id"], index.pop("flipped"), strict=True)) if "flipped" in index else {}
        if (marked := sum(map(sum, flips.values()))) != (stated := described.get("flipped", 0)):
            raise FeatureError(
                f"{root}: {INDEX} marks {marked} views as mirrored, and {DESCRIPTION} states {stated}; extract again"
            )
        places = {identifier: (shard, row) for identifier, shard, row in zip(*index.values(), strict=True)}
        return cls(
            root,
            described["key"],
            made["stream"],
            made["frames"],
            tuple(made["grid"]),
            described["width"],
            coordinates,
            index["id"],
            described["broken"],
            places,
            made["views"],
            made["token_type"],
            flips,
            described["files"][SHARDS],
        )

    def load(
        self, ids: Sequence[str] | None = None, view: int | Sequence[int] = 0
    ) -> Float[np.ndarray, "clips n d"]:
        """The tokens of these clips (all by default), in this order; fp16 as it is, bf16 in single precision.

        `view` is that of all clips, or one for each. Raises FeatureError naming a clip that is not in the store, and
        why, or a view that it does not have.
        """
        return from_stored(self._stored(ids, view), self.buffers.empty)

    def read(self, ids: Sequence[str], view: int | Sequence[int] = 0) -> tuple[Shaped[Tensor, "clips n ..."], ...]:
        """The tokens of these clips as they are stored, for `tcar.features.unpacked`: fp16 or bf16 values.

        Clips and views are named as in `load`, and the errors are those of `load`.
        """
        stored = torch.from_numpy(self._stored(ids, view))
        return (stored if self.token_type == "fp16" else stored.view(torch.bfloat16),)

    def _stored(self, ids: Sequence[str] | None, view: int | Sequence[int]) -> Shaped[np.ndarray, "clips n d"]:
        ids = self.ids if ids is None else list(ids)
        views = [view] * len(ids) if isinstance(view, int) else [int(number) for number in view]
        by_shard: dict[int, list[tuple[int, int]]] = {}
        for position, (identifier, number) in enumerate(zip(ids, views, strict=True)):
            shard, row = self._place(identifier, number)
            by_shard.setdefault(shard, []).append((position, row))
        shape = len(ids), len(self.coordinates), self.width
        tokens = self.buffers.empty(shape, STORED[self.token_type])
        for shard, places in by_shard.items():
            self._fill(tokens, shard, places, ids)
        return tokens

    def flipped(self, ids: Sequence[str] | None = None, view: int | Sequence[int] = 0) -> Bool[np.ndarray, " clips"]:
        """Which of these views are mirrored: a class that a mirror changes is then that of its mirror image.

        Clips and views are named as in `load`, and the errors are those of `load`.
        """
        ids = self.ids if ids is None else list(ids)
        views = [view] * len(ids) if isinstance(view, int) else [int(number) for number in view]
        for identifier, number in zip(ids, views, strict=True):
            self._place(identifier, number)
        if not self.flips:
            return np.zeros(len(ids), bool)
        return np.array([self.flips[name][number] for name, number in zip(ids, views, strict=True)], bool)

    def _fill(
        self,
        tokens: Shaped[np.ndarray, "clips n d"],
        shard: int,
        places: Sequence[tuple[int, int]],
        ids: Sequence[str],
    ) -> None:
        """Copy rows of a shard to their positions among the tokens."""
        path = f"{os.fspath(self.root)}/tokens-{shard:05d}.npy"  # a Path costs as much as the copying of a row
        into, row_bytes = memoryview(tokens).cast("B"), tokens[0].nbytes
        # Read, not mapped: a map keeps its file open, and a full-size store has more files than a process may open.
        # For the same reason a file is closed again at once, and two system calls are all that opening it costs.
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for position, row in places:
                start = position * row_bytes
                read = os.preadv(file, [into[start : start + row_bytes]], HEADER + row * row_bytes)
                if read != row_bytes:
                    raise FeatureError(f"{path} ends before clip {ids[position]}; verify the store, and extract again")
        finally:
            os.close(file)

    def _place(self, identifier: str, view: int) -> tuple[int, int]:
        if identifier not in self.places:
            reason = self.broken.get(identifier, "it was not among the clips of the extraction")
            raise FeatureError(
                f"clip {identifier} has no features in {self.root}: {reason}; leave it out "
                "(store.ids lists what is there) or repair the video and extract again"
            )
        if not 0 <= view < self.views:
            raise FeatureError(
                f"{self.root} has the views 0 to {self.views - 1} of each clip, not {view}; extract with more views"
            )
        shard, row = self.places[identifier]
        return shard, row + view


def unpacked(parts: Sequence[Shaped[Tensor, "b n ..."]]) -> Float[Tensor, "b n d"]:
    """The tokens in single precision that `FeatureStore.read` gave in parts, on the device where these are."""
    return parts[0].float()


def key_of(made: Mapping) -> str:
    """The key of a store: the digest of all that decides its numbers."""
    canonical = json.dumps(made, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def finish(job: Job, shards: int, made: Mapping) -> None:
    """Write the index and, last, the description that makes a store complete.

    Raises FeatureError where no clip could be read, a shard is missing, or its tokens lie elsewhere than those of
    others.
    """
    records = {number: read_record(job, number) for number in range(shards)}
    missing = [number for number, record in records.items() if record is None]
    if missing and (job.folder / DESCRIPTION).is_file():  # another process, started by mistake, has finished
        return
    if missing:
        raise FeatureError(f"{job.folder} lacks {len(missing)} of {shards} shards: {_some(missing)}; extract again")
    rows = [
        (identifier, number, row * job.views)
        for number, record in records.items()
        for row, identifier in enumerate(record["ids"])
    ]
    broken = {identifier: why for record in records.values() for identifier, why in record["broken"].items()}
    if not rows:
        raise FeatureError(
            f"none of the {len(broken)} clips can be read, the first because: "
            f"{next(iter(broken.values()), 'there is no clip')}; run the audit (notebook 00)"
        )
    ids, places, first_rows = zip(*rows, strict=True)
    with_tokens = {number: record for number, record in records.items() if record["ids"]}
    # Records without `ends` and `flipped` are of a version that wrote neither, and mirrored nothing.
    ends = [np.array(record["ends"]) for record in with_tokens.values() if "ends" in record]
    one_place_each(made["stream"], [np.load(job.folder / COORDINATES)[[0, -1]], *ends])
    plain = [False] * job.views
    by_shard = [record.get("flipped", [plain] * len(record["ids"])) for record in with_tokens.values()]
    flipped = [views for clips in by_shard for views in clips]
    mirrored = sum(map(sum, flipped))
    tables = {
        INDEX: {"id": ids, "shard": _int32(places), "row": _int32(first_rows)},
        SHARDS: {
            "shard": _int32(list(with_tokens)),
            "clips": _int32([len(record["ids"]) for record in with_tokens.values()]),
            "bytes": [record["bytes"] for record in with_tokens.values()],
            "sha256": [record["sha256"] for record in with_tokens.values()],
        },
    }
    if mirrored:
        tables[INDEX]["flipped"] = pyarrow.array(flipped, pyarrow.list_(pyarrow.bool_()))
    files = {COORDINATES: _digest(job.folder / COORDINATES)}
    for name, columns in tables.items():
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.table(columns), sink)
        files[name] = replace_file(job.folder / name, memoryview(sink.getvalue()))["sha256"]
    _, tokens, width = np.load(shard_path(job.folder, places[0]), mmap_mode="r").shape
    described = {"key": key_of(made), "made": made, "tokens": tokens, "width": width, "broken": broken, "files": files}
    described |= {"flipped": mirrored} if mirrored else {}
    text = json.dumps(described, indent=1, sort_keys=True) + "\n"
    sync_folder(job.folder)  # what the description stands for is on the disk before it is
    replace_file(job.folder / DESCRIPTION, text.encode())


def verify(root: str | Path) -> list[str]:
    """Read every byte of a complete store again and name what has changed since it was made; empty where nothing has.

    Raises FeatureError where there is no complete store.
    """
    root = Path(root)
    described = _described(root)
    faults = []
    if key_of(described["made"]) != described["key"]:
        faults.append(f"{DESCRIPTION}: its key is not that of what it says made it")
    if not root.resolve().name.endswith(described["key"][:16]):
        faults.append(f"{DESCRIPTION}: its key is not that in the folder's name")
    for name, digest in described["files"].items():
        faults += _changed(root / name, digest)
    if any(SHARDS in fault for fault in faults):
        return faults
    shards = pyarrow.parquet.read_table(root / SHARDS).to_pydict()
    digests = dict(zip(shards["shard"], shards["sha256"], strict=True))
    for number in log.progress(digests, description=f"verify {root.name}", unit="shards"):
        faults += _changed(shard_path(root, number), digests[number])
    known = {shard_path(root, number) for number in digests}
    faults += [f"{path.name}: not a shard of this store" for path in sorted(set(root.glob("tokens-*.npy")) - known)]
    return faults


def _changed(path: Path, digest: str) -> list[str]:
    if not path.is_file():
        return [f"{path.name}: missing"]
    return [] if _digest(path) == digest else [f"{path.name}: its content has changed"]


def _described(root: Path) -> dict:
    try:
        described = json.loads((root / DESCRIPTION).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FeatureError(
            f"{root}: no complete feature store ({DESCRIPTION} is missing); extract again"
        ) from None
    except ValueError as error:
        raise FeatureError(f"{root / DESCRIPTION}: not JSON ({error}); delete the folder and extract again") from None
    if not isinstance(described, dict) or "made" not in described:
        raise FeatureError(f"{root}: written by an earlier version of tcar; extract again")
    return described


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _int32(values: Sequence[int]) -> pyarrow.Array:
    return pyarrow.array(values, pyarrow.int32())


def _some(numbers: Sequence[int], most: int = 10) -> str:
    return ", ".join(map(str, numbers[:most])) + (", …" if len(numbers) > most else "")
