"""Read weights safely and load them strictly: a key that does not match is an error that lists it."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


class CheckpointError(ValueError):
    """A checkpoint that is absent, unreadable, or does not match the network it is meant for."""


def load_strict(module: nn.Module, state: dict[str, Tensor], source: str | Path) -> nn.Module:
    """Load a state dict key by key into a module; raises CheckpointError listing what does not match."""
    own = module.state_dict()
    shapes = [
        f"{key} {list(state[key].shape)}, expected {list(own[key].shape)}"
        for key in own.keys() & state.keys()
        if own[key].shape != state[key].shape
    ]
    refuse_mismatch(source, own.keys() - state.keys(), state.keys() - own.keys(), shapes)
    module.load_state_dict(state)
    return module


def refuse_mismatch(source: str | Path, missing, unexpected, misshapen) -> None:
    """Raise CheckpointError listing the keys that are missing, left over or misshapen, if there are any."""
    faults = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    listing = "".join(
        f"\n  {fault} ({len(keys)}): {', '.join(sorted(keys))}" for fault, keys in faults.items() if keys
    )
    if listing:
        raise CheckpointError(f"{source}: does not match the network it is loaded into{listing}")


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file or a PyTorch checkpoint (weights only, no code is run).

    Raises CheckpointError naming the file where it is missing, truncated or holds no tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    try:
        state = (
            load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        )
    except Exception as error:  # an unpickler on arbitrary bytes raises nearly anything
        raise CheckpointError(
            f"{path}: not a readable checkpoint (truncated, or not weights): {error}"
        ) from error
    state = state.get("model_state", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: holds no plain dictionary of tensors")
    return state
