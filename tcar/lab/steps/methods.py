"""The methods of a run: their configurations, their fits, and the scores of those."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from tcar.evaluate import Bootstrap, Scoring, annotations
from tcar.features import unpacked
from tcar.fusion.kinds import FusionConfig, create_fusion
from tcar.ground import log
from tcar.lab import results
from tcar.lab.steps.clips import class_names, ground_truth
from tcar.lab.steps.fits import Fit, Name, device_of, opened
from tcar.lab.steps.fusion import fusion_config
from tcar.train.recipe import reproducible
from tcar.train.tasks import TokenModel

if TYPE_CHECKING:
    from tcar.lab.params import Params
    from tcar.train.tokens import StoredTokens

SCORED_AT_ONCE = 32  # clips at most: several batches are read ahead, and on a CPU 128 took longer


def method_configs(run: Params, **sizes: int) -> dict[str, FusionConfig]:
    """Give the configuration of every method of the run, the headline first; `sizes` as in `fusion_config`."""
    headline = run.fusion.fusion
    return {method: fusion_config(run, method, **sizes) for method in sorted(run.training.methods, key=headline.__ne__)}


def trained(run: Params) -> dict[str, list[Fit]]:
    """Open every method's fits, one a seed, as training.json and training.meta.json list them.

    Raises ResultError or TrainingError where they are not there, or damaged.
    """
    record = results.load(run.results_dir / "training.json")
    kept = results.load(run.results_dir / "training.meta.json")["extra"]["trainings"]
    return {
        method: [
            opened(run.run_dir / "trainings" / name, FusionConfig(**made["fusion"]), seed)
            for name, seed in zip(kept[method], made["seeds"], strict=True)
        ]
        for method, made in record["methods"].items()
    }


@torch.inference_mode()
def scored(
    run: Params, fits: Mapping[Name, Sequence[Fit]], tokens: StoredTokens
) -> dict[Name, list[Float[np.ndarray, "n c"]]]:
    """Give the logits of fits for every clip of a split, in one pass over its tokens."""
    device, found = device_of(run), {}
    with reproducible(run.common.seed):
        models = {}
        for fit in (fit for done in fits.values() for fit in done):
            if fit.folder not in models:
                models[fit.folder] = token_model(fit, tokens).to(device).eval()
                found[fit.folder] = np.empty((len(tokens), fit.fusion.num_classes), np.float32)
        size = min(run.training.batch_size, SCORED_AT_ONCE)
        batches = log.progress(tokens.batches(size), -(-len(tokens) // size), "scoring", "batches")
        for rows, parts in batches:
            inputs = [unpacked(tuple(part.to(device) for part in stream)) for stream in parts]
            for folder, model in models.items():
                with lowered(run, device):
                    found[folder][rows] = model(*inputs).float().cpu().numpy()
    return {name: [found[fit.folder] for fit in done] for name, done in fits.items()}


def token_model(fit: Fit, tokens: StoredTokens) -> TokenModel:
    """Build the fusion of a fit with its trained weights, for tokens of these places."""
    model = TokenModel(create_fusion(fit.fusion), *tokens.coordinates.values())
    model.load_state_dict(fit.trained)
    return model


def lowered(run: Params, device: torch.device) -> torch.autocast:
    """Give the precision that a run's fusions compute in, as a context."""
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, kinds.get(run.trainer.precision), run.trainer.precision in kinds)


def scoring(run: Params, ids: Sequence[str], names: Sequence[str] | None = None) -> Scoring:
    """Give everything `tcar.evaluate.metrics` needs besides logits and labels, for clips by their ids; `names` are
    those of the classes, by default as the audit found them.
    """
    return Scoring(
        names=class_names(run) if names is None else names,
        bootstrap=bootstrap(run),
        calibration_bins=run.evaluation.calibration_bins,
        **annotations(list(ids), ground_truth(run)),
    )


def bootstrap(run: Params) -> Bootstrap:
    """Give how the intervals of a run are made."""
    return Bootstrap(run.evaluation.bootstrap_samples, run.common.seed, run.evaluation.confidence)
