"""Models of the transformers library with published weights, loaded strictly from a folder, a file or the Hub."""

import re
from copy import deepcopy
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedConfig

from tcar.models.checkpoints import CheckpointError, read_state, refuse_mismatch
from tcar.models.stream import Source

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_name(checkpoint: str | Path) -> bool:
    """Whether a checkpoint is given as owner/name on the Hub and not as something that lies on the disk."""
    return not Path(checkpoint).exists() and HUB_NAME.fullmatch(str(checkpoint)) is not None


def build(model_class: type, config: PreTrainedConfig) -> nn.Module:
    """Build a model with random weights, on a configuration of its own: switching attention would edit a shared one."""
    return model_class(deepcopy(config))


def load(
    model_class: type,
    config: PreTrainedConfig,
    checkpoint: str | Path,
    *,
    left_out: tuple[str, ...] = (),
    local_files_only: bool = False,
) -> nn.Module:
    """Load a model strictly from a checkpoint folder, a weights file, or a Hub name.

    `left_out` are patterns of keys that the file may hold and the model does not need (the head of another task).
    Raises CheckpointError where nothing is found (with what to fetch and where to put it), or listing the keys that are
    missing, left over or misshapen.
    """
    path, state, name = Path(checkpoint), None, str(checkpoint)
    if path.is_file():
        name, state = None, read_state(path)
    elif not path.is_dir() and not is_hub_name(checkpoint):
        raise CheckpointError(f"{path}: no such checkpoint file or folder")
    try:
        # Misshapen keys are reported with the others instead of raising, so that one error can list them all.
        model, report = model_class.from_pretrained(
            name,
            config=deepcopy(config),
            state_dict=state,
            dtype=torch.float32,
            local_files_only=local_files_only,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {_fix(path, local_files_only)}") from error
    known = re.compile("|".join(left_out)) if left_out else None
    unexpected = [key for key in report["unexpected_keys"] if not (known and known.match(key))]
    shapes = [f"{key} {list(found)}, expected {list(wanted)}" for key, found, wanted in report["mismatched_keys"]]
    refuse_mismatch(path, report["missing_keys"], unexpected, shapes)
    return model


def locate(source: Source, filename: str = "model.safetensors") -> Path:
    """Return the weights file of a source: the file itself, the one in a folder, or the one that the Hub has.

    Raises CheckpointError where there is none, with what to fetch and where to put it.
    """
    path = Path(source.checkpoint)
    if path.is_dir():
        path /= filename
    elif is_hub_name(source.checkpoint):
        try:
            return Path(hf_hub_download(str(path), filename, local_files_only=source.local_files_only))
        except (OSError, HfHubHTTPError, LocalEntryNotFoundError) as error:
            raise CheckpointError(f"{path}: {_fix(path, source.local_files_only)}") from error
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file or folder")
    return path


def _fix(path: Path, local_files_only: bool) -> str:
    if path.is_dir():
        return "no readable checkpoint; the folder needs an intact model.safetensors"
    where = "not in the local cache of the Hub" if local_files_only else "neither in the local cache nor to be fetched"
    return (
        f"{where}. With a network: hf download {path}. Without: put its config.json and model.safetensors into a "
        f"folder, for example checkpoints/{path.name}, and give that as the checkpoint"
    )
