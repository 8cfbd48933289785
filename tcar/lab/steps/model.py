"""The whole model of a run: built at its parameters, kept with its temperature, opened again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tcar.fusion.kinds import FusionConfig
from tcar.ground import files, locks
from tcar.lab import params, results
from tcar.lab.real_plans import CLASSES, plan_files
from tcar.lab.steps.clips import class_names
from tcar.lab.steps.fits import Fit
from tcar.lab.steps.fusion import fusion_config
from tcar.lab.steps.streams import ROLES, stores
from tcar.models.tca import TCA, TCAConfig
from tcar.streams.weights import CheckpointError

if TYPE_CHECKING:
    from tcar.lab.params import Params


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


def planned(root: Path) -> list[dict]:
    """Count the models that the parameter files for the real dataset describe, without weights.

    root: the project's folder. One row a plan: `plan`, the names of its streams, and `parts`, what the model's
    parameter_table says of 174 classes. Raises ParameterError where a file is missing or wrong.
    """
    rows = []
    for plan, file in plan_files(root).items():
        run = params.load(file)
        with torch.device("meta"):
            model = TCA.create(TCAConfig.of(run.streams, run.fusion, tuple(map(str, range(CLASSES)))))
        streams = {role: getattr(run.streams, role) for role in ROLES}
        rows.append({"plan": plan, **streams, "parts": model.parameter_table()})
    return rows


def save_model(run: Params, fit: Fit) -> dict:
    """Keep the model of a fit in the run's folder, with the temperature that the trainer fitted on validation clips.

    Gives the `temperature` and the model's table of `parameters`.
    """
    with locks.of_run(run.run_dir, results.ResultError, locks.WRITING):
        return save_fit(run, fit, model_folder(run))


def save_fit(run: Params, fit: Fit, folder: Path) -> dict:
    """Keep the model of a fit in a folder, as `save_model` does in that of the run."""
    model = TCA.create(model_config(run, fit.fusion), pretrained=True, **run.stream_checkpoints)
    fitted = fit.calibration
    model.fusion.load_state_dict(fit.state_dict)
    model.save_pretrained(folder, card=card_facts(run, fit))
    write_calibration(folder, fitted)
    return {"temperature": fitted["temperature"], "parameters": model.parameter_table()}


def write_calibration(folder: Path, fitted: dict) -> None:
    """Put what `tcar.evaluate.calibration` gave beside the model in a folder, where `tcar.predict` looks for it."""
    files.write_text(folder / "calibration.json", json.dumps(fitted, indent=1) + "\n")


def card_facts(run: Params, fit: Fit) -> dict:
    """Give what the card of a kept model tells of its training: clips, epochs, seed, accuracy on validation."""
    best = fit.best
    named = {
        "tabletop": "Tabletop, clips that are rendered from seeds", "ssv2": "Something-Something-V2",
        "rehearsal": "a rendered imitation of Something-Something-V2",
    }  # fmt: skip
    return {
        "dataset": f"{named[run.material]} ({len(class_names(run))} classes)",
        "synthetic": run.material != "ssv2",
        "ranges": training_ranges(run),
        "Epoch kept": f"{fit.best_epoch} of {len(fit.history)}",
        "Seed": fit.seed,
        "metrics": {"top-1 on the validation clips": best["validation_top1"]},
        "protocol": "one view of each clip; the epoch was chosen on these clips, so the accuracy is a little too good",
    }


def training_ranges(run: Params) -> dict[str, list[float]]:
    """Give the smallest and the largest frames, seconds and rate of training clips, as far as the audit has them."""
    audited = results.load(run.results_dir / "audit.json")
    keys = {"frames": "frames", "seconds": "durations", "rate": "rates"}
    found = {name: audited.get(key, {}).get("train") for name, key in keys.items()}
    return {name: [summary["minimum"], summary["maximum"]] for name, summary in found.items() if summary}


def open_model(run: Params) -> TCA:
    """Open the model that `save_model` kept; raises CheckpointError where there is none, its streams changed, or its
    classes are not those of the run.
    """
    model = TCA.from_pretrained(model_folder(run), **run.stream_checkpoints)
    kept, wanted = model.config.class_names, class_names(run)
    if list(kept) != wanted:
        raise CheckpointError(
            f"{model_folder(run)}: its model names {len(kept)} classes and the run has {len(wanted)}, not the same "
            "ones in the same order; run notebook 03 again"
        )
    return model


def model_folder(run: Params) -> Path:
    """Give the folder of the run's model."""
    return run.run_dir / "model"
