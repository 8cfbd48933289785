"""Read weights safely and load them strictly: keys that do not match are an error that names them."""

import hashlib
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tcar.ground.errors import TcarError
from tcar.streams import unpickle

T = TypeVar("T")

# Where training frameworks keep the weights in a checkpoint that holds other things too. Of several, the first counts:
# averaged weights are those that are published and evaluated (DINO's teacher, V-JEPA's target encoder).
CONTAINERS = (
    "model_state", "state_dict", "blobs", "model", "model_state_dict", "teacher", "target_encoder", "ema_encoder",
    "student", "encoder", "module", "backbone", "network", "net",
)  # fmt: skip
SHOWN = 3  # keys of each fault that an error names
# What a key gives away of the network and the code base that it comes from, the most telling first.
SIGNS = {
    r"(.*\.)?norms_block\.\d": "V-JEPA 2.1",
    r"(.*\.)?text_model\.": "CLIP with its text model",
    r"(.*\.)?blocks\.\d+\.res_blocks\.": "a ResNet of pytorchvideo",
    r"(.*\.)?s\d\.pathway\d_": "a network of SlowFast",
    r"(.*\.)?res\d_\d+_branch": "a network of Caffe2",
    r"(.*\.)?layer\d\.\d+\.(conv|bn)\d\.": "a ResNet, of images or of clips",
    r"(.*\.)?blocks\.(\d+\.)*attn\.qkv\.": "a vision transformer in the names of timm or of Meta",
    r"(.*\.)?layers?\.\d+\.(attention|self_attn)\.": "a transformer in the names of the transformers library",
}


class CheckpointError(TcarError, ValueError):
    """A checkpoint that is absent, unreadable, or does not match the network it is meant for.

    `keys` are all that do not match; the message names a few.
    """

    keys: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Mismatch:
    """The keys of a network that a file lacks, those that are left over, and those of another shape (in words)."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.misshapen)

    def refuse(self, source: str | Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Raise CheckpointError with the numbers of the keys and the first of each, if there are any."""
        if not len(self):
            return
        listing = ""
        for fault in ("missing", "unexpected", "misshapen"):
            if keys := sorted(getattr(self, fault)):
                more = ", …" if len(keys) > SHOWN else ""
                listing += f"\n  {fault} ({len(keys)}): {', '.join(keys[:SHOWN])}{more}"
        # A few keys are damage; more are another network, and then it helps to say which.
        many = max(map(len, (self.missing, self.unexpected, self.misshapen))) > SHOWN
        seen = _seen(state or {}) if many else ""
        error = CheckpointError(f"{source}: does not match the network it is loaded into{listing}{seen}")
        error.keys = frozenset((*self.missing, *self.unexpected, *self.misshapen))
        raise error


def mismatch(expected: Mapping[str, Sequence[int]], state: Mapping[str, Tensor]) -> Mismatch:
    """Compare the names and shapes that a network expects with those of a state dict."""
    return Mismatch(
        missing=tuple(expected.keys() - state.keys()),
        unexpected=tuple(state.keys() - expected.keys()),
        misshapen=tuple(
            f"{name} {list(state[name].shape)}, expected {list(shape)}"
            for name, shape in expected.items()
            if name in state and list(state[name].shape) != list(shape)
        ),
    )


def unwrapped(state: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield a state dict as it is, then without the name that stands before all its keys, as often as there is one.

    Such names come from wrappers: `module.`, `_orig_mod.`, `model.`, `backbone.`, `encoder.`. Where a student stands
    beside its teacher, the teacher's weights go on.
    """
    state = dict(state)
    yield state
    while True:
        heads = {key.partition(".")[0] for key in state}
        head = "teacher" if heads == {"teacher", "student"} else heads.pop() if len(heads) == 1 else ""
        if not head or head in state:
            return
        state = {key.removeprefix(f"{head}."): value for key, value in state.items() if key.startswith(f"{head}.")}
        yield state


def load_strict(
    module: nn.Module,
    state: Mapping[str, Tensor],
    source: str | Path,
    names: Mapping[str, str] | None = None,
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
) -> nn.Module:
    """Load a state dict key by key into a module; raises CheckpointError naming some of what does not match.

    Names that a wrapper put before all keys are taken off where every key then matches. `names` maps the module's keys
    to those of the file, where they differ, and the error uses the file's. A key of the module that it leaves out keeps
    its value. `convert` makes a file's state dict one of the module's names and shapes.
    """
    own = module.state_dict()
    names = {key: key for key in own} if names is None else names
    expected = {name: own[key].shape for key, name in names.items()}

    def compare(given: dict[str, Tensor]) -> tuple[Mismatch, dict[str, Tensor]]:
        converted = convert(given)
        return mismatch(expected, converted), converted

    faults, found = fitting(state, compare)
    faults.refuse(source, state)
    module.load_state_dict({key: found[name] for key, name in names.items()}, strict=False)
    return module


def fitting(
    state: Mapping[str, Tensor], compare: Callable[[dict[str, Tensor]], tuple[Mismatch, T]]
) -> tuple[Mismatch, T]:
    """Return what `compare` makes of a state dict with the wrappers taken off that leave the fewest faults."""
    best = None
    for given in unwrapped(state):
        tried = compare(given)
        if best is None or len(tried[0]) < len(best[0]):
            best = tried
        if not len(tried[0]):
            break
    return best


def _seen(state: Mapping[str, Tensor]) -> str:
    """Return what a state dict looks like, as the last line of an error; nothing where no key gives it away."""
    sign = next((sign for sign in SIGNS if any(map(re.compile(sign).match, state))), None)
    if sign is None:
        return ""
    blocks = {match[1] for match in map(re.compile(r".*?\b(?:blocks|layers?)\.(\d+)\.").match, state) if match}
    width = next((len(value) for key, value in state.items() if re.search(r"norm\w*\.weight$", key)), 0)
    return f"\n  it looks like {SIGNS[sign]}" + (f", {len(blocks)} blocks, {width} wide" if width and blocks else "")


def state_digest(name: str, *modules: nn.Module) -> str:
    """Return the SHA-256 of a name and of the weights of modules: names, types, shapes, bytes, each in key order."""
    digest = hashlib.sha256(name.encode())
    for module in modules:
        for key, value in sorted(module.state_dict().items()):
            digest.update(f"{key} {value.dtype} {list(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read the weights of a checkpoint by name, from the inner dictionary of a framework's containers if it is one.

    Raises CheckpointError naming the file where `read_checkpoint` does, or where it holds no tensors by name.
    """
    state = read_checkpoint(path)
    while isinstance(state, dict) and (held := [n for n in CONTAINERS if isinstance(state.get(n), dict)]):
        state = state[held[0]]
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
