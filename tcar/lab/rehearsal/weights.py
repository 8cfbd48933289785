"""Weights of random values in the layouts that published ones have."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from tcar.ground import files
from tcar.lab.params import ParameterError, Params
from tcar.streams.i3d import I3D
from tcar.streams.registry import create_stream


def imitate(run: Params, seed: int) -> list[str]:
    """Write random weights in the published layout where the parameters expect a stream's; returns what is random.

    Raises ParameterError for a stream whose published layout is not imitated, or for baselines with weights.
    """
    if run.baselines.baseline_checkpoints:
        raise ParameterError("baseline_checkpoints: their files are not imitated; rehearse with --set baselines=[] "
                             "--set baseline_checkpoints={}")  # fmt: skip
    found = []
    for role in ("semantic", "motion"):
        name, stated = getattr(run.streams, role), getattr(run.streams, f"{role}_checkpoint")
        if not stated:
            continue
        write = next((write for start, write in LAYOUTS.items() if name.startswith(start)), None)
        if write is None:
            raise ParameterError(f"{role}: the published layout of {name} is not imitated, only those of "
                                 f"{', '.join(LAYOUTS)}; rehearse with one of these")  # fmt: skip
        path = Path(stated)
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.manual_seed(seed)
            with files.drafted(path) as draft:
                write(name, draft)
        found.append(f"{name} ({path.name})")
    return found


def _dinov2(name: str, path: Path) -> None:
    """As the Hub has it: safetensors, in the names of transformers."""
    save_file({key: value.contiguous() for key, value in create_stream(name).backbone.state_dict().items()}, path)


def _i3d(_: str, path: Path) -> None:
    """As pytorchvideo has it, whose names are our own, with the classifier of Kinetics-400.

    Batch norms are random too: as they begin they would change nothing, and hide a key that goes astray.
    """
    network = I3D()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.25, 0.75)
            nn.init.uniform_(module.bias, -0.2, 0.2)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    torch.save({"model_state": network.state_dict()}, path)


def _vjepa2_1(name: str, path: Path) -> None:
    """As Meta has it: the averaged encoder among others, every name behind that of a wrapper."""
    state = create_stream(name).backbone.state_dict()
    torch.save({"ema_encoder": {f"module.backbone.{key}": value for key, value in state.items()}, "epoch": 1}, path)


LAYOUTS: Mapping[str, Callable[[str, Path], None]] = {"dinov2_vit": _dinov2, "i3d_r50": _i3d, "vjepa2_1": _vjepa2_1}
