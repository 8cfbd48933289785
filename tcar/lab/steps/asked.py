"""Every training that a parameter file asks for, as the notebooks open them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tcar.features.ranks import Ranks
from tcar.lab.params import Params
from tcar.lab.steps.baselines import baseline_task, train_on_clips
from tcar.lab.steps.clips import class_names, healthy_clips
from tcar.lab.steps.methods import ablation_configs, method_configs
from tcar.lab.steps.model import card_facts, save_fit, write_calibration
from tcar.lab.steps.trainings import LEARNING, Fit, Job, fit_jobs, tokens_of
from tcar.train.clip_tasks import ClipTask, StreamTask


def all_trainings(run: Params, other_code: bool) -> Iterator[tuple[str, Fit]]:
    """Train what the parameters ask for, those of `task: tokens` as notebooks 03 and 05 do; give it as it ends."""
    if run.trainer.task == "clips":
        clips = healthy_clips(run, *LEARNING)
        for seed in run.training.seeds:
            task = StreamTask(clips, class_names(run), run, seed)
            fit = replace(train_on_clips(run, task, seed, other_code), fusion=task.config.fusion)
            _keep_model(run, task, fit)
            yield task.name, fit
    elif run.trainer.task == "baseline":
        (name,) = run.baselines.baselines
        for seed in run.training.seeds:
            task = baseline_task(run, name, seed)
            fit = train_on_clips(run, task, seed, other_code)
            _keep_model(run, task, fit)
            yield name, fit
    else:
        tokens = tokens_of(run, *LEARNING)
        methods, ablations = method_configs(run), ablation_configs(run)
        jobs = [Job(run, config, seed) for config in methods.values() for seed in run.training.seeds]
        jobs += [Job(run, config, seed) for config in ablations.values() for seed in run.ablations.ablation_seeds]
        for job, fit in zip(jobs, fit_jobs(jobs, tokens, run.run_dir, other_code=other_code), strict=True):
            if job.fusion == methods[run.fusion.fusion] and Ranks.here().rank == 0:
                save_fit(run, fit, fit.folder / "model")
            yield job.fusion.kind, fit


def _keep_model(run: Params, task: ClipTask, fit: Fit) -> None:
    """Keep what was trained on clips as a model that opens by itself, where its kind has such a form."""
    if Ranks.here().rank or not fit.best_epoch:
        return
    built = task.build(fit.seed)
    built.load_state_dict(fit.trained, strict=False)
    if isinstance(task, StreamTask):
        built.tca.save_pretrained(fit.folder / "model", card=card_facts(run, fit))
        write_calibration(fit.folder / "model", fit.calibration)
    elif hasattr(built, "save_pretrained"):
        built.save_pretrained(fit.folder / "model")


def outcome(fit: Fit) -> str:
    """How a training ended, in words."""
    if not fit.best_epoch:
        return "no epoch was validated"
    top1 = fit.best["validation_top1"]
    return f"best of {len(fit.history)} epochs is {fit.best_epoch}, validation top-1 {top1:.4f}"
