"""The baselines of a run: published models trained on its clips, or scored as they were published."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from tcar.models.baselines import BASELINES, baseline_cost, find_baseline
from tcar.params import Training
from tcar.plots import label
from tcar.results import load
from tcar.stages.clips import class_names, healthy_clips
from tcar.stages.fits import mean_curve
from tcar.tokens import TokenSet
from tcar.train.baselines import ClipFit, ClipJob, clip_logits, fit_clips
from tcar.train.heads import converged

if TYPE_CHECKING:
    from tcar.params import Params


def train_baselines(run: Params) -> dict[str, list[ClipFit]]:
    """Train every baseline of the run, once a seed, one after the other; what is kept is not repeated.

    One of 0 epochs is only loaded, once.
    """
    settings = run.baselines
    jobs = {}
    for name in settings.baselines:
        epochs = settings.baseline_epochs.get(name, run.training.epochs)
        jobs[name] = {
            "seeds": run.training.seeds if epochs else run.training.seeds[:1],
            "epochs": epochs,
            "batch_size": settings.baseline_batch_size,
            "learning_rate": settings.baseline_learning_rate,
            "checkpoints": _stated(run, name),
        }
    return _fits(run, jobs, run.training)


def trained_baselines(run: Params) -> dict[str, list[ClipFit]]:
    """Give the fits of the baselines that training.json lists; they are kept, so none is trained twice."""
    record = load(run.results_dir / "training.json")
    return _fits(run, record.get("baselines", {}), Training(**record["recipe"]))


def baseline_record(run: Params, fits: dict[str, list[ClipFit]]) -> dict[str, dict]:
    """Write down baselines as training.json holds them: under `baselines`, which is absent where there are none."""
    record = {
        name: {
            "seeds": [fit.job.seed for fit in done],
            "epochs": done[0].job.epochs,
            "batch_size": done[0].job.batch_size,
            "learning_rate": done[0].job.learning_rate,
            "checkpoints": _stated(run, name),
            "curves": {fit.job.seed: fit.history for fit in done},
            "best_epoch": [fit.best_epoch for fit in done],
            "converged": converged(mean_curve(done)) if done[0].history else None,
            "broken": {clip: reason for fit in done for clip, reason in fit.broken.items()},
            "notes": done[0].notes,
        }
        for name, done in fits.items()
    }
    return {"baselines": record} if record else {}


def baseline_logits(
    run: Params, fits: dict[str, list[ClipFit]], test: TokenSet
) -> tuple[dict[str, list[Float[np.ndarray, "n c"]]], TokenSet]:
    """Score the test clips with every fit; gives logits by baseline, and the clips that all methods can be scored on.

    A clip that a baseline cannot read any more is left out for everyone, with a warning, so that methods are compared
    on the same clips.
    """
    if not fits:
        return {}, test
    clips = {clip.id: clip for clip in healthy_clips(run)["test"]}
    wanted, where = [clips[name] for name in test.ids], {"workers": run.workers, "device": run.common.device}
    scored = {name: [clip_logits(fit, wanted, **where) for fit in done] for name, done in fits.items()}
    kept = np.ones(len(test), bool)
    for logits in (one for done in scored.values() for one in done):
        kept &= np.isfinite(logits).all(axis=1)
    found = {name: [logits[kept] for logits in done] for name, done in scored.items()}
    return found, test if kept.all() else _only(test, kept)


def baseline_costs(run: Params, fits: dict[str, list[ClipFit]]) -> dict[str, dict]:
    """Give each baseline's parameters, trained parameters, GFLOPs of a clip (all of it, from frames) and notes."""
    classes = len(class_names(run))
    return {name: baseline_cost(name, classes) | {"notes": done[0].notes} for name, done in fits.items()}


def baseline_text(fits: dict[str, list[ClipFit]]) -> str:
    """Say what must stand beside each baseline's numbers, one line a baseline."""
    if not fits:
        return "No baselines: the parameter `baselines` is empty."
    lines = []
    for name, done in fits.items():
        baseline, job = find_baseline(name), done[0].job
        view = "its middle square" if baseline.crop else "the whole frame, squashed to a square"
        left_out = len({clip for fit in done for clip in fit.broken})
        said = [
            f"{baseline.frames} frames of {baseline.size} pixels, one view: {view}",
            f"{job.epochs} epochs" if job.epochs else "scored as published, not trained here",
            *done[0].notes,
            *([f"{left_out} clips could not be read and are left out"] if left_out else []),
        ]
        lines.append(f"- {label(name)}: {'; '.join(said)}.")
    return "\n".join(lines)


def _stated(run: Params, name: str) -> dict[str, str]:
    given = run.baselines.baseline_checkpoints
    return {key: given[key] for key in BASELINES[name].published if key in given}


def _fits(run: Params, made: dict[str, dict], recipe: Training) -> dict[str, list[ClipFit]]:
    """Do the jobs that entries of training.json describe."""
    if not made:
        return {}
    found, classes, fits = healthy_clips(run), tuple(class_names(run)), {}
    where = {"workers": run.workers, "device": run.common.device}
    for name, entry in made.items():
        given = {key: entry[key] for key in ("epochs", "batch_size", "learning_rate")}
        given["checkpoints"] = {key: run.checkpoint(stated) for key, stated in entry["checkpoints"].items()}
        fits[name] = [
            fit_clips(
                ClipJob(name, classes, seed, upright=run.data.upright, **given),
                found["train"],
                found["validation"],
                recipe,
                run.run_dir / "baselines",
                **where,
            )
            for seed in entry["seeds"]
        ]
    return fits


def _only(tokens: TokenSet, kept: np.ndarray) -> TokenSet:
    ids = [clip for clip, there in zip(tokens.ids, kept, strict=True) if there]
    return TokenSet(
        tokens.semantic[kept], tokens.semantic_xyz, tokens.motion[kept], tokens.motion_xyz, tokens.labels[kept], ids
    )
