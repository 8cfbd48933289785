"""What an extraction leaves on the disk: its tokens by id and view, and whether they are still the same bytes.

A store is a folder `<stream>-<key>/`. It is complete when it holds `store.json`.

    tokens.npy          the views of all clips side by side, in the order of the clips: [clips * views, N, D] of fp16,
                        or of bf16 as unsigned integers; for int8 [clips * views] of values [N, D] and scales [N]
    coordinates.npy     [N, 3], the centres (t, y, x) of the tokens in [0, 1]
    store.json          what made it, and its digest, the key; the clips, those left out, and why; mirrored views; a
                        digest of each batch of tokens, and one of all this, the content; how exact int8 is
    store.meta.json     how fast it was made; not part of the content
    done-<rank>.jsonl   while it is made: a line for each batch whose tokens are on the disk

The file of tokens has its full size from the beginning. What nobody wrote is a hole that takes no room on the disk.
"""

import hashlib
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from tcar.features.buffers import Buffers
from tcar.features.packing import FeatureError, TokenType, row_type, typed, unpacked
from tcar.ground import locks, log
from tcar.ground.files import replace_file, sync_folder

TOKENS, COORDINATES, DESCRIPTION, META = "tokens.npy", "coordinates.npy", "store.json", "store.meta.json"
FILES = (TOKENS, COORDINATES, DESCRIPTION, META, "done-[0-9]*.jsonl", locks.FILE)
LAYOUT = 2  # of the files above; part of the key
_CONTENT = ("clips", "broken", "width", "batches", "coordinates", "flipped", "error")


@dataclass(frozen=True)
class FeatureStore:
    """The cached tokens of one stream; `broken` holds the reason for every clip that has none.

    `coordinates` are the centres (t, y, x) in [0, 1] of the N tokens of a clip, in the order of the tokens. They are
    those of a mirrored view as well: its frames were mirrored before the stream saw them. `flips` holds the numbers
    of these views for each clip that has any. `places` holds the row of each clip's first view. `content` is a
    digest of all tokens, taken when they were written. `start` is where the first row begins in the file, in bytes.
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
    places: dict[str, int] = field(repr=False)
    views: int = 1
    token_type: TokenType = "fp16"
    flips: dict[str, list[int]] = field(default_factory=dict, repr=False)
    content: str = ""
    start: int = 128
    buffers: Buffers = field(default_factory=Buffers, repr=False, compare=False)

    @classmethod
    def open(cls, root: str | Path) -> "FeatureStore":
        """Open a complete store; raises FeatureError where there is none, or it is not the one that was made."""
        root = Path(root)
        described = _described(root)
        if faults := [*_told(root, described), *_shape(root, described)]:
            raise FeatureError(f"{root}: {faults[0]}; delete the folder and extract again")
        made, broken, views = described["made"], described["broken"], described["made"]["views"]
        places = {name: row * views for row, name in enumerate(described["clips"]) if name not in broken}
        return cls(
            root, described["key"], made["stream"], made["frames"], tuple(made["grid"]), described["width"],
            np.load(root / COORDINATES), list(places), broken, places, views, made["token_type"], described["flipped"],
            described["content"], len(_head(described)),
        )  # fmt: skip

    def only(self, ids: list[str]) -> "FeatureStore":
        """The same store of these clips alone, for who has to remember where 24,777 clips are and not 220,847.

        Raises FeatureError as `read` does.
        """
        return replace(self, ids=ids, places={name: self._row(name, 0) for name in ids})

    def load(self, ids: Sequence[str] | None = None, view: int | Sequence[int] = 0) -> Float[np.ndarray, "clips n d"]:
        """The tokens of these clips (all by default), in this order; fp16 as it is, others in single precision.

        Clips and views are named as in `read`, and the errors are those of `read`.
        """
        parts = self.read(ids, view)
        return (parts[0] if self.token_type == "fp16" else unpacked(parts)).numpy()

    def read(
        self, ids: Sequence[str] | None = None, view: int | Sequence[int] = 0
    ) -> tuple[Shaped[Tensor, "clips n ..."], ...]:
        """The tokens of these clips (all by default), in this order, as they are stored, for `unpacked`.

        One part for fp16 and bf16 [clips n d]; for int8 values [clips n d] and scales [clips n]. `view` is that of all
        clips, or one for each. Raises FeatureError naming a clip that is not in the store, and why, or a view that it
        does not have.
        """
        ids, rows = self._asked(ids, view)
        kind = row_type(self.token_type, len(self.coordinates), self.width)
        inner = [(kind.base, kind.shape)] if kind.names is None else [kind[name].subdtype for name in kind.names]
        parts = [self.buffers.empty((len(ids), *shape), base) for base, shape in inner]
        lines = [part.reshape(len(ids), math.prod(part.shape[1:])).view(np.uint8) for part in parts]
        # Read, not mapped: of a map that is new every page costs a fault.
        file = os.open(path := self.root / TOKENS, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for position, row in enumerate(rows):
                into = [line[position] for line in lines]
                if os.preadv(file, into, self.start + row * kind.itemsize) != kind.itemsize:
                    raise FeatureError(f"{path} ends before clip {ids[position]}; verify the store, and extract again")
        finally:
            os.close(file)
        return tuple(map(typed, parts))

    def flipped(self, ids: Sequence[str] | None = None, view: int | Sequence[int] = 0) -> Bool[np.ndarray, " clips"]:
        """Which of these views are mirrored: a class that a mirror changes is then that of its mirror image.

        Clips and views are named as in `read`, and the errors are those of `read`.
        """
        ids, rows = self._asked(ids, view)
        mirrored = [row % self.views in self.flips.get(name, ()) for name, row in zip(ids, rows, strict=True)]
        return np.array(mirrored, bool)

    def _asked(self, ids: Sequence[str] | None, view: int | Sequence[int]) -> tuple[list[str], list[int]]:
        """The clips meant, and their rows in the file."""
        ids = self.ids if ids is None else list(ids)
        views = [view] * len(ids) if isinstance(view, int) else [int(number) for number in view]
        return ids, [self._row(identifier, number) for identifier, number in zip(ids, views, strict=True)]

    def _row(self, identifier: str, view: int) -> int:
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
        return self.places[identifier] + view


def key_of(made: Mapping) -> str:
    """The key of a store: the digest of all that decides its numbers."""
    return hashlib.sha256(canonical(made)).hexdigest()


def header(kind: np.dtype, rows: int) -> bytes:
    """The beginning of a `.npy` file of this many rows of a `row_type`."""
    file, shape = io.BytesIO(), (rows, *kind.shape)
    described = {"descr": np.lib.format.dtype_to_descr(kind.base), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)
    return file.getvalue()


def write_description(folder: Path, described: Mapping) -> None:
    """Write, last, the description that makes a store complete."""
    described = {**described, "key": key_of(described["made"]), "coordinates": _digest(folder / COORDINATES)}
    described["content"] = _content(described)
    sync_folder(folder)  # what the description stands for is on the disk before it is
    replace_file(folder / DESCRIPTION, canonical(described) + b"\n")


def verify(root: str | Path) -> list[str]:
    """Read every byte of a complete store again and name what has changed since it was made; empty where nothing has.

    Raises FeatureError where there is no complete store.
    """
    root = Path(root)
    described = _described(root)
    faults = _told(root, described)
    if not root.resolve().name.endswith(described["key"][:16]):
        faults.append(f"{DESCRIPTION}: its key is not that in the folder's name")
    if faults := faults + _shape(root, described):
        return faults
    made, clips, kind = described["made"], described["clips"], _kind(described)
    step = made["batch_clips"]
    with (root / TOKENS).open("rb") as file:
        file.seek(len(_head(described)))
        numbers = log.progress(range(len(described["batches"])), description=f"verify {root.name}", unit="batches")
        for number in numbers:
            names = clips[number * step : (number + 1) * step]
            content = file.read(len(names) * made["views"] * kind.itemsize)
            # Of a batch that no clip could be read of nothing was written, and nothing is read.
            if (digest := described["batches"][number]) and hashlib.sha256(content).hexdigest() != digest:
                faults.append(f"{TOKENS}: the tokens of the clips {names[0]} to {names[-1]} have changed")
    return faults


def _described(root: Path) -> dict:
    try:
        described = json.loads((root / DESCRIPTION).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FeatureError(f"{root}: no complete feature store ({DESCRIPTION} is missing); extract again") from None
    except ValueError as error:
        raise FeatureError(f"{root / DESCRIPTION}: not JSON ({error}); delete the folder and extract again") from None
    if not isinstance(described, dict) or "content" not in described:
        raise FeatureError(f"{root}: written by an earlier version of tcar; extract again")
    return described


def _told(root: Path, described: dict) -> list[str]:
    """What contradicts itself in a description, or the small file that it tells of."""
    faults = []
    if key_of(described["made"]) != described["key"]:
        faults.append(f"{DESCRIPTION}: its key is not that of what it says made it")
    if _content(described) != described["content"]:
        faults.append(f"{DESCRIPTION}: its content has changed")
    if not (root / COORDINATES).is_file():
        faults.append(f"{COORDINATES}: missing")
    elif _digest(root / COORDINATES) != described["coordinates"]:
        faults.append(f"{COORDINATES}: its content has changed")
    return faults


def _shape(root: Path, described: dict) -> list[str]:
    """Whether the file of tokens is there, begins as it should, and has its size."""
    head, rows = _head(described), len(described["clips"]) * described["made"]["views"]
    try:
        with (root / TOKENS).open("rb") as file:
            whole = os.fstat(file.fileno()).st_size == len(head) + rows * _kind(described).itemsize
            return [] if whole and file.read(len(head)) == head else [f"{TOKENS}: another size or type of tokens"]
    except FileNotFoundError:
        return [f"{TOKENS}: missing"]


def _kind(described: dict) -> np.dtype:
    return row_type(described["made"]["token_type"], math.prod(described["made"]["grid"]), described["width"])


def _head(described: dict) -> bytes:
    return header(_kind(described), len(described["clips"]) * described["made"]["views"])


def _content(described: dict) -> str:
    return hashlib.sha256(canonical({name: described[name] for name in _CONTENT})).hexdigest()


def canonical(content: Mapping) -> bytes:
    """JSON of which there is one form only, so that its digest tells what is the same."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
