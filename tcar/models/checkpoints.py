"""Read weights safely and load them strictly: a key that does not match is an error that lists it."""

import hashlib
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tcar.models import unpickle

# Where training frameworks keep the weights in a checkpoint that holds other things too: pytorchvideo and SlowFast,
# mmaction2, Caffe2.
CONTAINERS = ("model_state", "state_dict", "blobs")


class CheckpointError(ValueError):
    """A checkpoint that is absent, unreadable, or does not match the network it is meant for."""


def load_strict(
    module: nn.Module, state: Mapping[str, Tensor], source: str | Path, names: Mapping[str, str] | None = None
) -> nn.Module:
    """Load a state dict key by key into a module; raises CheckpointError listing what does not match.

    `names` maps the module's keys to those of the file, where they differ, and the listing uses the file's. A key of
    the module that it leaves out keeps its value.
    """
    own = module.state_dict()
    names = {key: key for key in own} if names is None else names
    expected = {name: list(own[key].shape) for key, name in names.items()}
    shapes = [
        f"{name} {list(state[name].shape)}, expected {expected[name]}"
        for name in expected.keys() & state.keys()
        if list(state[name].shape) != expected[name]
    ]
    refuse_mismatch(source, expected.keys() - state.keys(), state.keys() - expected.keys(), shapes)
    module.load_state_dict({key: state[name] for key, name in names.items()}, strict=False)
    return module


def refuse_mismatch(
    source: str | Path, missing: Iterable[str], unexpected: Iterable[str], misshapen: Iterable[str]
) -> None:
    """Raise CheckpointError listing the keys that are missing, left over or misshapen, if there are any."""
    faults = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    faults = {fault: sorted(keys) for fault, keys in faults.items()}
    listing = "".join(f"\n  {fault} ({len(keys)}): {', '.join(keys)}" for fault, keys in faults.items() if keys)
    if listing:
        raise CheckpointError(f"{source}: does not match the network it is loaded into{listing}")


def state_digest(name: str, *modules: nn.Module) -> str:
    """Return the SHA-256 of a name and of the weights of modules: names, types, shapes, bytes, each in key order."""
    digest = hashlib.sha256(name.encode())
    for module in modules:
        for key, value in sorted(module.state_dict().items()):
            digest.update(f"{key} {value.dtype} {list(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read the weights of a checkpoint by name, from the inner dictionary of a framework's container if it is one.

    Raises CheckpointError naming the file where `read_checkpoint` does, or where it holds no tensors by name.
    """
    state = read_checkpoint(path)
    if isinstance(state, dict):
        state = next((state[name] for name in CONTAINERS if isinstance(state.get(name), dict)), state)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds no plain dictionary of tensors")
    tensors = {key: _tensor(value) for key, value in state.items()}
    others = [str(key) for key, value in tensors.items() if value is None or not isinstance(key, str)]
    if others:
        raise CheckpointError(f"{path}: holds no plain dictionary of tensors; not one: {', '.join(others[:5])}")
    return tensors


def read_checkpoint(path: str | Path) -> object:
    """Read all that a checkpoint holds: .safetensors, PyTorch (zip, memory-mapped, or legacy), a pickle of arrays.

    No code of the file is run. Objects of classes that torch does not allow come as `unpickle.Placeholder`, so what a
    framework left beside the weights does not stand in their way. Raises CheckpointError naming the file where it is
    missing, truncated, or no checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if zipfile.is_zipfile(path) or _is_legacy(path):
            return _read_torch(path)
        with path.open("rb") as file:
            return unpickle.load_arrays(file)
    except Exception as error:  # an unpickler on arbitrary bytes raises nearly anything
        raise CheckpointError(f"{path}: not a readable checkpoint (truncated, or not weights): {error}") from error


def _is_legacy(path: Path) -> bool:
    """Whether a file begins as torch.save wrote until 1.6: with a magic number, pickled at any protocol."""
    magic = pickle.dumps(torch.serialization.MAGIC_NUMBER, 2)[2:]
    with path.open("rb") as file:
        return file.read(2 + len(magic))[2:] == magic


def _read_torch(path: Path) -> object:
    options = {"map_location": "cpu", "mmap": zipfile.is_zipfile(path)}
    try:
        return torch.load(path, weights_only=True, **options)
    except pickle.UnpicklingError:
        # Foreign classes are refused with this error alone, but some honest files hold them. `unpickle` runs no code
        # either; that it is no part of torch is why torch wants weights_only=False for it.
        return torch.load(path, weights_only=False, pickle_module=unpickle, **options)


def _tensor(value: object) -> Tensor | None:
    """Return a tensor, an array or a number as a tensor; None for all else."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray | np.number | int | float):
        try:
            return torch.from_numpy(np.asarray(value))
        except TypeError:  # text, objects, and numbers that torch has no type for
            pass
    return None
