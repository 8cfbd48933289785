"""The checkpoints of a training: each a folder that is whole once its manifest is there.

    checkpoints/step-000000120/   weights.safetensors, averaged.safetensors (with weight averaging), optimiser.pt,
                                  state.json and, written last, manifest.json: size and SHA-256 of the others
    best-00003/                   weights.safetensors, epoch.json, manifest.json: the weights of the best epoch so far

The manifest is written after all other files are on the disk, and deleted before them. A training that is killed leaves
folders without one, which the next start removes; a checkpoint that was damaged afterwards is passed over for the one
before. Who only reads changes nothing.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from tcar.data.machine import fault_of
from tcar.ground import log
from tcar.ground.files import remove_folder, replace_file, sync_folder
from tcar.train.watch import TrainingError

KEPT = 3
MANIFEST, STATE = "manifest.json", "state.json"
WEIGHTS, AVERAGED, OPTIMISER, EPOCH = "weights.safetensors", "averaged.safetensors", "optimiser.pt", "epoch.json"
FILES = (WEIGHTS, AVERAGED, OPTIMISER, STATE, EPOCH, MANIFEST)
# A folder beside these has another name, and is not ours: a copy, somebody's best model.
_STEP, _BEST = f"step-{9 * '[0-9]'}", f"best-{5 * '[0-9]'}"

logger = log.get(__name__)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """All that a training needs to go on as if it had never stopped.

    `averaged` is empty without weight averaging. `optimiser` holds tensors and plain values, `state` what JSON can.
    """

    weights: dict[str, Tensor]
    averaged: dict[str, Tensor]
    optimiser: dict
    state: dict


class Checkpoints:
    """The checkpoints in one folder, the last three of them; for one process at a time to write."""

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self.folder = self.root / "checkpoints"

    def write(self, step: int, snapshot: Snapshot) -> Path:
        """Keep a snapshot after so many steps; remove all but the last three, and best weights that none of them means.

        `snapshot.state["best_epoch"]` names the best weights that belong to it. Raises TrainingError where the disk
        does not take it; the checkpoints before stay as they are.
        """
        buffer = io.BytesIO()
        torch.save(snapshot.optimiser, buffer)
        files = {WEIGHTS: save(_plain(snapshot.weights)), OPTIMISER: buffer.getvalue(), STATE: _json(snapshot.state)}
        if snapshot.averaged:
            files[AVERAGED] = save(_plain(snapshot.averaged))
        path = self.folder / f"step-{step:09}"
        _write_folder(path, files)
        for old in self._all()[:-KEPT]:
            _remove(old)
        meant = {_best_epoch(kept) for kept in self._all()[-KEPT:]}
        for best in self._all_best():
            if None not in meant and int(best.name[5:]) not in meant:
                _remove(best)
        return path

    def clean(self) -> None:
        """Remove what a killed process has left; for the one that is going to write."""
        for path in [*self.folder.glob(_STEP), *self.root.glob(_BEST)]:
            if not (path / MANIFEST).is_file():
                remove_folder(path, FILES)

    def newest(self) -> Path | None:
        """Return the last checkpoint that is as it was written, or None; damaged ones are named in a warning."""
        for path in reversed(self._all()):
            if not (fault := find_fault(path)):
                return path
            if (path / MANIFEST).is_file():  # else a training has just removed it, for later ones
                logger.warning(f"{path} is passed over: {fault}")
        return None

    def state(self) -> dict | None:
        """Return the plain values of the last checkpoint that has them whole, without reading its tensors, or None."""
        for path in reversed(self._all()):
            with suppress(OSError, ValueError, KeyError):
                content = (path / STATE).read_bytes()
                if hashlib.sha256(content).hexdigest() == json.loads((path / MANIFEST).read_text())[STATE]["sha256"]:
                    return json.loads(content)
        return None

    def read(self, path: Path) -> Snapshot:
        """Read a checkpoint that `newest` has found."""
        averaged = load_file(path / AVERAGED) if (path / AVERAGED).is_file() else {}
        optimiser = torch.load(path / OPTIMISER, map_location="cpu", weights_only=True)
        return Snapshot(load_file(path / WEIGHTS), averaged, optimiser, json.loads((path / STATE).read_text()))

    def write_best(self, row: Mapping, weights: Mapping[str, Tensor]) -> None:
        """Keep the weights of an epoch that is better than those before, with its row of the history."""
        _write_folder(self._best(row["epoch"]), {WEIGHTS: save(_plain(weights)), EPOCH: _json(row)})

    def read_best(self, epoch: int) -> dict[str, Tensor]:
        """Return the weights of the best epoch; raises TrainingError where they are damaged."""
        path = self._best(epoch)
        if fault := find_fault(path):
            raise TrainingError(f"{path}: {fault}; remove {self.root} and train again")
        return load_file(path / WEIGHTS)

    def read_best_row(self, epoch: int) -> dict:
        """Return the row that was kept with the weights of the best epoch."""
        return json.loads((self._best(epoch) / EPOCH).read_text(encoding="utf-8"))

    def _best(self, epoch: int) -> Path:
        return self.root / f"best-{epoch:05}"

    def _all(self) -> list[Path]:
        return _whole(self.folder, _STEP)

    def _all_best(self) -> list[Path]:
        return _whole(self.root, _BEST)


def _whole(folder: Path, pattern: str) -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"{pattern}/{MANIFEST}"))


def find_fault(path: Path) -> str:
    """Say in what a folder differs from its manifest; an empty text where it does not.

    Raises TrainingError where the machine keeps it from being read.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        for name, written in manifest.items():
            content = (path / name).read_bytes()
            if len(content) != written["bytes"]:
                return f"{name} has {len(content)} of its {written['bytes']} bytes"
            if hashlib.sha256(content).hexdigest() != written["sha256"]:
                return f"the content of {name} has changed"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if fault := fault_of(error):  # begun anew for a disk that stalls, a training would lose what it has
            raise TrainingError(f"{path}: cannot be read ({fault}); mend the disk and start again") from error
        return f"it is not whole ({type(error).__name__}: {error})"
    return ""


def _write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Bring files to the disk, and when all of them are there, the manifest that makes a checkpoint of them."""
    try:
        _remove(path)  # of a training that went on from an earlier checkpoint, because this one was damaged
        path.mkdir(parents=True, exist_ok=True)
        manifest = {name: replace_file(path / name, content) for name, content in files.items()}
        sync_folder(path)
        replace_file(path / MANIFEST, _json(manifest))
        sync_folder(path)
        sync_folder(path.parent)
    except OSError as error:
        remove_folder(path, FILES)
        size = sum(map(len, files.values())) / 1e6
        raise TrainingError(
            f"{path}: {size:.1f} MB could not be written ({error.strerror or error}); the checkpoints before are "
            "whole: make room, or put the run on a larger disk (runs), and start again to go on from the last"
        ) from error


def _remove(path: Path) -> None:
    """Delete a checkpoint that others may list at this moment: first what makes it one."""
    if not path.is_symlink():
        (path / MANIFEST).unlink(missing_ok=True)
        remove_folder(path, FILES)


def _best_epoch(path: Path) -> int | None:
    """The best epoch that a checkpoint means; None where it cannot be read."""
    try:
        return json.loads((path / STATE).read_text(encoding="utf-8"))["best_epoch"]
    except (OSError, ValueError, KeyError):
        return None


def _json(values: Mapping) -> bytes:
    return (json.dumps(dict(values), indent=1) + "\n").encode()


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
