"""The whole model of a run: built at its parameters, kept with its temperature, opened again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tcar.evaluate import fit_temperature
from tcar.models.fusion import FusionConfig
from tcar.models.tca import TCA, TCAConfig
from tcar.stages.clips import class_names
from tcar.stages.features import stores
from tcar.stages.fusion import fusion_config
from tcar.tokens import TokenSet
from tcar.train import Fit, logits

if TYPE_CHECKING:
    from tcar.params import Params

FULL_SIZE = {"semantic": "dinov2_vits14", "motion": "i3d_r50", "semantic_frames": 8, "motion_frames": 8}


def model_config(run: Params, fusion: FusionConfig | None = None) -> TCAConfig:
    """Give the configuration of the model: streams, frames and grids as the feature stores were made."""
    opened = stores(run)
    streams = {role: store.stream for role, store in opened.items()}
    frames = {f"{role}_frames": store.frames for role, store in opened.items()}
    grids = {f"{role}_grid": store.grid for role, store in opened.items()}
    return TCAConfig(
        **streams,
        **frames,
        **grids,
        class_names=tuple(class_names(run)),
        fusion=fusion or fusion_config(run),
        max_trained_parameters=run.fusion.max_trained_parameters,
    )


def full_size_config(run: Params) -> TCAConfig:
    """Give the configuration on the real dataset: DINOv2 ViT-S/14 and I3D-R50, 174 classes, width 512."""
    fusion = FusionConfig(semantic_width=384, motion_width=2048, num_classes=174, width=512)
    return TCAConfig(
        **FULL_SIZE,
        semantic_grid=(8, 4, 4),
        motion_grid=(4, 4, 4),
        fusion=fusion,
        class_names=tuple(map(str, range(174))),
        max_trained_parameters=run.fusion.max_trained_parameters,
    )


def save_model(run: Params, fit: Fit, validation: TokenSet) -> dict:
    """Keep the model of a fit in the run's folder, with a temperature fitted on the validation clips.

    Gives the `temperature` and the model's table of `parameters`.
    """
    model = TCA.create(model_config(run, fit.fusion), pretrained=True, **_checkpoints(run))
    model.fusion.load_state_dict(fit.state_dict)
    model.save_pretrained(model_folder(run))
    temperature = fit_temperature(logits(fit, validation), validation.labels)
    calibration = {"temperature": temperature, "fitted_on": "validation", "clips": len(validation)}
    (model_folder(run) / "calibration.json").write_text(json.dumps(calibration, indent=1) + "\n")
    return {"temperature": temperature, "parameters": model.parameter_table()}


def open_model(run: Params) -> TCA:
    """Open the model that `save_model` kept; raises CheckpointError where there is none, or its streams
    changed.
    """
    return TCA.from_pretrained(model_folder(run), **_checkpoints(run))


def model_folder(run: Params) -> Path:
    """Give the folder of the run's model."""
    return run.run_dir / "model"


def _checkpoints(run: Params) -> dict[str, str | None]:
    streams = run.streams
    return {
        "semantic_checkpoint": streams.semantic_checkpoint or None,
        "motion_checkpoint": streams.motion_checkpoint or None,
    }
