"""The baselines of a run: published models trained on its clips, or scored as they were published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float

from tcar.ground import log
from tcar.lab import results
from tcar.lab.plots import label
from tcar.lab.steps.clips import class_names, healthy_clips
from tcar.lab.steps.fits import Fit, count, curves, device_of, folder_of_task, opened
from tcar.models.baselines import BASELINES, baseline_cost, find_baseline
from tcar.train import tracking
from tcar.train.clip_tasks import BaselineTask, ClipTask
from tcar.train.recipe import reproducible
from tcar.train.tasks import Slice
from tcar.train.trainer import train

if TYPE_CHECKING:
    from tcar.lab.params import Params


def baseline_task(run: Params, name: str, seed: int) -> BaselineTask:
    """Give what is trained of a baseline: on the clips that are left after the audit."""
    return BaselineTask(name, healthy_clips(run), class_names(run), run, seed)


def train_baselines(run: Params) -> dict[str, list[Fit]]:
    """Train every baseline of the run, once a seed, one after the other; what is kept is not repeated.

    One of 0 epochs is only loaded, once.
    """
    fits: dict[str, list[Fit]] = {}
    for name in run.baselines.baselines:
        task = baseline_task(run, name, 0)
        seeds = run.training.seeds if task.recipe.epochs else run.training.seeds[:1]
        fits[name] = [train_on_clips(run, baseline_task(run, name, seed), seed) for seed in seeds]
    return fits


def train_on_clips(run: Params, task: ClipTask, seed: int, other_code: bool = False) -> Fit:
    """Train what reads clips, or open what is kept; one of 0 epochs is only loaded."""
    folder = folder_of_task(run.run_dir, task, other_code)
    if not task.recipe.epochs:
        return Fit(folder, None, seed, [], 0, {})
    with closing(task):
        train(task, folder, tracking.watchers(run.watching, folder), results.revision(run.root), other_code)
    fit = opened(folder, None, seed)
    count([fit])
    return fit


def trained_baselines(run: Params) -> dict[str, list[Fit]]:
    """Open the fits of the baselines that training.json lists."""
    record = results.load(run.results_dir / "training.json").get("baselines", {})
    kept = results.load(run.results_dir / "training.meta.json")["extra"]["trainings"]
    folder = run.run_dir / "trainings"
    return {
        name: [
            opened(folder / place, None, seed) if made["epochs"] else Fit(folder / place, None, seed, [], 0, {})
            for place, seed in zip(kept[name], made["seeds"], strict=True)
        ]
        for name, made in record.items()
    }


def baseline_record(run: Params, fits: Mapping[str, Sequence[Fit]]) -> dict[str, dict]:
    """Write down baselines as training.json holds them: under `baselines`, which is absent where there are none."""
    record = {}
    for name, done in fits.items():
        task = baseline_task(run, name, done[0].seed)
        record[name] = {
            "seeds": [fit.seed for fit in done],
            "epochs": task.recipe.epochs,
            "batch_size": task.recipe.batch_size,
            "learning_rate": task.recipe.learning_rate,
            "checkpoints": _stated(run, name),
            **curves(done),
            "broken": {clip: reason for fit in done for clip, reason in fit.broken.items()},
            "notes": list(task.notes),
        }
    return {"baselines": record} if record else {}


@torch.inference_mode()
def baseline_logits(
    run: Params, fits: Mapping[str, Sequence[Fit]], split: str, ids: Sequence[str]
) -> tuple[dict[str, list[Float[np.ndarray, "k c"]]], Bool[np.ndarray, " n"]]:
    """Score clips of a split with every fit: logits by baseline, and which of the clips could be read.

    A clip that a baseline cannot read is left out for everyone, with a warning, so that methods are compared on the
    same clips; the logits are those of the clips that are left.
    """
    scores = {name: [_logits(run, name, fit, split, ids) for fit in done] for name, done in fits.items()}
    kept = np.ones(len(ids), bool)
    for logits in (one for done in scores.values() for one in done):
        kept &= np.isfinite(logits).all(axis=1)
    return {name: [logits[kept] for logits in done] for name, done in scores.items()}, kept


def _logits(run: Params, name: str, fit: Fit, split: str, ids: Sequence[str]) -> Float[np.ndarray, "n c"]:
    """The logits of a fit for clips of a split, one view each; those of a clip that cannot be read are NaN."""
    task, device = baseline_task(run, name, fit.seed), device_of(run)
    place = {clip.id: number for number, clip in enumerate(task.clips[split])}
    wanted, size = [place[one] for one in ids], task.recipe.batch_size
    row, broken = {number: row for row, number in enumerate(wanted)}, {}
    found = np.full((len(ids), task.num_classes), np.nan, np.float32)
    slices = [Slice(wanted[start : start + size]) for start in range(0, len(wanted), size)]
    with reproducible(fit.seed), closing(task), closing(task.batches(split, slices, 0, broken)) as batches:
        model = task.build(fit.seed)
        model.load_state_dict(fit.trained, strict=False)
        model.to(device).eval()
        for batch in log.progress(batches, len(slices), f"{name}, scoring", "batches"):
            broken.update(batch.broken)
            if batch.rows:
                # On a GPU the model itself computes in bfloat16, which has float32's range.
                with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                    logits = model(*task.ready(batch.inputs, device)).float()
                found[[row[number] for number in batch.places]] = logits.cpu().numpy()
    if broken:
        some = ", ".join(f"{clip} ({reason})" for clip, reason in list(broken.items())[:5])
        log.get(__name__).warning(f"{name}: {len(broken)} of {len(ids)} clips left out: {some}")
    return found


def baseline_costs(run: Params, fits: Mapping[str, Sequence[Fit]]) -> dict[str, dict]:
    """Give each baseline's parameters, trained parameters, GFLOPs of a clip (all of it, from frames) and notes."""
    classes = len(class_names(run))
    return {
        name: baseline_cost(name, classes) | {"notes": list(baseline_task(run, name, done[0].seed).notes)}
        for name, done in fits.items()
    }


def baseline_text(run: Params, fits: Mapping[str, Sequence[Fit]]) -> str:
    """Say what must stand beside each baseline's numbers, one line a baseline."""
    if not fits:
        return "No baselines: the parameter `baselines` is empty."
    lines = []
    for name, done in fits.items():
        baseline, task = find_baseline(name), baseline_task(run, name, done[0].seed)
        view = "its middle square" if baseline.crop else "the whole frame, squashed to a square"
        left_out = len({clip for fit in done for clip in fit.broken})
        said = [
            f"{baseline.frames} frames of {baseline.size} pixels, one view: {view}",
            f"{task.recipe.epochs} epochs" if task.recipe.epochs else "scored as published, not trained here",
            *task.notes,
            *([f"{left_out} clips could not be read and are left out"] if left_out else []),
        ]
        lines.append(f"- {label(name)}: {'; '.join(said)}.")
    return "\n".join(lines)


def _stated(run: Params, name: str) -> dict[str, str]:
    given = run.baselines.baseline_checkpoints
    return {key: given[key] for key in BASELINES[name].published if key in given}
