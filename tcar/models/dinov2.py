"""DINOv2 (Oquab et al. 2023) through transformers: the published sizes, the miniature, and strict loading."""

import re
from copy import deepcopy
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from tcar.models.checkpoints import CheckpointError, read_state, refuse_mismatch

DINOV2_TINY = Dinov2Config(
    hidden_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    mlp_ratio=4,
    patch_size=14,
    image_size=112,
    layerscale_value=1.0,
    use_mask_token=False,
)


def published_configs() -> dict[str, tuple[str, Dinov2Config | Dinov2WithRegistersConfig]]:
    """Return name -> (Hub name, configuration) of the published DINOv2 sizes (Oquab et al. 2023)."""
    sizes = {
        "s": ("small", 384, 12, 6),
        "b": ("base", 768, 12, 12),
        "l": ("large", 1024, 24, 16),
        "g": ("giant", 1536, 40, 24),
    }
    configs = {}
    for letter, (size, width, depth, heads) in sizes.items():
        shape = {
            "hidden_size": width,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "patch_size": 14,
            "image_size": 518,
            "use_swiglu_ffn": letter == "g",
        }
        configs[f"dinov2_vit{letter}14"] = (f"facebook/dinov2-{size}", Dinov2Config(**shape))
        configs[f"dinov2_vit{letter}14_reg"] = (
            f"facebook/dinov2-with-registers-{size}",
            Dinov2WithRegistersConfig(num_register_tokens=4, **shape),
        )
    return configs


def build_dinov2(config: Dinov2Config | Dinov2WithRegistersConfig) -> nn.Module:
    """Build a trainable DINOv2 with random weights; `last_hidden_state` holds its tokens, after the norm."""
    # transformers keeps the configuration by reference, and switching the attention of one model edits it.
    return _dinov2_class(config)(deepcopy(config))


def _dinov2_class(config: Dinov2Config | Dinov2WithRegistersConfig) -> type:
    return Dinov2WithRegistersModel if isinstance(config, Dinov2WithRegistersConfig) else Dinov2Model


def load_dinov2(checkpoint: str | Path, config: Dinov2Config | Dinov2WithRegistersConfig) -> nn.Module:
    """Load a DINOv2 strictly from a checkpoint folder, a .safetensors file, or a Hub name in the local cache.

    Raises CheckpointError where nothing is found, or listing the keys missing, left over or misshapen.
    """
    path, state = Path(checkpoint), None
    if path.is_file():
        checkpoint, state = None, read_state(path)
    elif not path.is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", str(checkpoint)):
        raise CheckpointError(f"{path}: no such checkpoint file or folder")
    try:
        # Misshapen keys are reported with the others instead of raising, so that one error can list them all.
        model, report = _dinov2_class(config).from_pretrained(
            checkpoint and str(checkpoint),
            config=config,
            state_dict=state,
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (OSError, SafetensorError) as error:
        fix = (
            "it needs an intact model.safetensors" if path.is_dir() else f"fetch it first: hf download {path}"
        )
        raise CheckpointError(f"{path}: no readable DINOv2 checkpoint; {fix}") from error
    shapes = [
        f"{key} {list(found)}, expected {list(wanted)}" for key, found, wanted in report["mismatched_keys"]
    ]
    refuse_mismatch(path, report["missing_keys"], report["unexpected_keys"], shapes)
    return model
