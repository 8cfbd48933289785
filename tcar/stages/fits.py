"""The trainings of a run: tokens, jobs and fits, and what is needed to score them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, TypeVar

from tcar import results
from tcar.data.ssv2 import SPLITS
from tcar.evaluate import annotations
from tcar.models.fusion import FusionConfig
from tcar.params import Training
from tcar.stages.clips import class_names, ground_truth, healthy_clips
from tcar.stages.features import ROLES, stores
from tcar.stages.fusion import fusion_config
from tcar.tokens import TokenSet, token_set
from tcar.train.heads import Fit, Job, converged, fit_many

if TYPE_CHECKING:
    from tcar.params import Params

Name = TypeVar("Name")


def token_sets(run: Params, splits: tuple[str, ...] = SPLITS) -> dict[str, TokenSet]:
    """Load both streams' tokens and the labels of each split."""
    opened, found = stores(run), healthy_clips(run)
    return {split: token_set(opened["semantic"], opened["motion"], found[split]) for split in splits}


def jobs_for(
    configs: Mapping[Name, FusionConfig], seeds: list[int], epochs: int = 0
) -> dict[Name, list[Job]]:
    """Give one job for each configuration and seed; `epochs` above 0 overrides the recipe."""
    return {
        name: [
            Job(f"{' '.join(name) if isinstance(name, tuple) else name}, seed {seed}", config, seed, epochs)
            for seed in seeds
        ]
        for name, config in configs.items()
    }


def fit_all(
    run: Params, jobs: Mapping[Name, list[Job]], tokens: dict[str, TokenSet], recipe: Training | None = None
) -> dict[Name, list[Fit]]:
    """Do all jobs side by side and give the fits under the names of their jobs; what is kept is not
    repeated.
    """
    done = iter(
        fit_many(
            [job for some in jobs.values() for job in some],
            tokens["train"],
            tokens["validation"],
            recipe or run.training,
            run.run_dir / "fits",
            run.workers,
        )
    )
    return {name: [next(done) for _ in some] for name, some in jobs.items()}


def mean_curve(fits: list) -> list[dict]:
    """Average the validation accuracy of a method's seeds, epoch by epoch: one seed's curve is mostly noise.

    `fits` are of cached tokens (`tcar.train.heads.Fit`) or of clips (`tcar.train.baselines.ClipFit`).
    """
    epochs = zip(*(fit.history for fit in fits), strict=True)
    return [{"validation_top1": sum(row["validation_top1"] for row in rows) / len(fits)} for rows in epochs]


def training_record(run: Params, fits: dict[str, list[Fit]]) -> dict:
    """Write down fits as training.json holds them: the recipe, and each method's jobs, curves and kept
    epochs.
    """
    methods = {
        method: {
            "fusion": asdict(done[0].fusion),
            "seeds": [fit.seed for fit in done],
            "epochs": len(done[0].history),
            "curves": {fit.seed: fit.history for fit in done},
            "best_epoch": [fit.best_epoch for fit in done],
            "converged": converged(mean_curve(done)),
        }
        for method, done in fits.items()
    }
    return {"recipe": asdict(run.training), "methods": methods}


def trained(run: Params, tokens: dict[str, TokenSet]) -> dict[str, list[Fit]]:
    """Give every method's fits, one a seed, as training.json lists them; they are kept, so none is
    trained twice.
    """
    record = results.load(run.results_dir / "training.json")
    jobs = {}
    for method, made in record["methods"].items():
        jobs |= jobs_for({method: FusionConfig(**made["fusion"])}, made["seeds"], made["epochs"])
    return fit_all(run, jobs, tokens, Training(**record["recipe"]))


def ablation_configs(run: Params) -> dict[tuple[str, str], FusionConfig]:
    """Give the configuration of every (factor, level): one factor changes, all else is as in the headline
    model.
    """
    configs = {
        ("heads", str(heads)): fusion_config(run, heads=heads) for heads in run.ablations.ablation_heads
    }
    configs |= {("fusion", kind): fusion_config(run, kind) for kind in run.ablations.ablation_fusions}
    configs |= {
        ("window", window): fusion_config(run, window=window) for window in run.ablations.ablation_windows
    }
    return configs | {("streams", kind): fusion_config(run, kind) for kind in (*ROLES, run.fusion.fusion)}


def scoring(run: Params, tokens: TokenSet) -> dict:
    """Give everything `tcar.evaluate.metrics` needs besides logits and labels, for the clips of a token
    set.
    """
    return {
        "names": class_names(run),
        **annotations(tokens.ids, ground_truth(run)),
        "seed": run.common.seed,
        "bootstrap_samples": run.evaluation.bootstrap_samples,
        "confidence": run.evaluation.confidence,
        "calibration_bins": run.evaluation.calibration_bins,
    }
