"""Notebook 03 and `tcar train`: every training of a run, what is written down of it, and all of them side by side.

How one training is done and kept is in `tcar.lab.steps.fits`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from tcar.features.ranks import Ranks
from tcar.ground.log import interactive  # noqa: F401  which notebook 03 asks
from tcar.lab import results
from tcar.lab.params import Common, Params
from tcar.lab.steps.ablations import OWN, tokens_by_source, variants
from tcar.lab.steps.baselines import baseline_task, train_on_clips
from tcar.lab.steps.clips import class_names, healthy_clips
from tcar.lab.steps.fits import LEARNING, Fit, Job, curves, fit_jobs, tokens_of
from tcar.lab.steps.methods import method_configs
from tcar.lab.steps.model import card_facts, save_fit, write_calibration
from tcar.train import alerts, tracking
from tcar.train.alerts import Alert
from tcar.train.clip_tasks import ClipTask, StreamTask
from tcar.train.settings import WatchSettings

# Where a run is kept and who is told of it makes no difference to what is compared.
_ASIDE = {f.name for group in (Common, WatchSettings) for f in fields(group)} - {"seed"}
RUNNING = "running, or killed"
MACHINE = {"seconds", "clips_per_second", "data_wait", "memory_mb"}  # what two equal trainings do not share


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
        methods, asked = method_configs(run), variants(run)
        for source, tokens in tokens_by_source(asked, tokens_of(run, *LEARNING)).items():
            varied = [one.fusion for one in dict.fromkeys(asked.values()) if one.source == source]
            jobs = [Job(run, fusion, seed) for fusion in varied for seed in run.ablations.ablation_seeds]
            if source == OWN:
                jobs = [Job(run, fusion, seed) for fusion in methods.values() for seed in run.training.seeds] + jobs
            for job, fit in zip(jobs, fit_jobs(jobs, tokens, run.run_dir, other_code=other_code), strict=True):
                if job.fusion == methods[run.fusion.fusion] and source == OWN and Ranks.here().rank == 0:
                    save_fit(run, fit, fit.folder / "model")
                yield job.fusion.method, fit


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


def training_record(run: Params, fits: Mapping[str, Sequence[Fit]]) -> dict:
    """Write down fits as training.json holds them: the recipe, and each method's curves and kept epochs."""
    methods = {
        method: {
            "fusion": asdict(done[0].fusion),
            "seeds": [fit.seed for fit in done],
            "epochs": max(len(fit.history) for fit in done),
            **curves(done),
        }
        for method, done in fits.items()
    }
    return {"recipe": asdict(run.training), "trainer": asdict(run.trainer), "methods": methods}


def places(fits: Mapping[str, Sequence[Fit]]) -> dict[str, list[str]]:
    """Give the names of the folders of fits, as training.meta.json holds them."""
    return {method: [fit.folder.name for fit in done] for method, done in fits.items()}


@dataclass(frozen=True)
class Record:
    """One training: `settings` by the names of the parameters, `history` with a row an epoch."""

    name: str
    settings: dict[str, Any]
    trained_parameters: int
    history: list[dict[str, float]]
    seconds: float
    ended: str = "finished"
    commit: str = ""
    alerts: list[Alert] = field(default_factory=list)
    steps: list[dict[str, float]] = field(default_factory=list)
    folder: Path | None = None


def tracked(root: str | Path) -> list[Record]:
    """The records of the trainings that were written down in folders below `root`, those under way included.

    Raises ResultError: a file of one of them is damaged (named).
    """
    return [_tracked(path.parent) for path in sorted(Path(root).rglob(tracking.RUN))]


def rows(folder: Path) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """The step rows and the epoch rows of a training, without what depends on the machine."""
    return tuple([{k: v for k, v in row.items() if k not in MACHINE} for row in found]
                 for found in tracking.read(folder))  # fmt: skip


def machine(folder: Path) -> dict[str, float]:
    """What a training took on the machine that made it: seconds, and medians over the steps that were logged."""
    steps, epochs = tracking.read(folder)
    middle = {key: sorted(row[key] for row in steps)[len(steps) // 2] for key in sorted(MACHINE - {"seconds"}) if steps}
    return {"seconds": sum(row["seconds"] for row in epochs)} | middle


def marks(run: Params, folder: Path) -> list[tuple[str, float]]:
    """The kind and epoch of each alert that the epochs of a training give, which is the same on any machine."""
    return [(alert.kind, alert.epoch) for alert in alerts.review(rows(folder)[1], run.watching)]


def _tracked(folder: Path) -> Record:
    about, (steps, epochs) = results.load(folder / tracking.RUN), tracking.read(folder)
    return Record(
        name=about["name"],
        settings={**about["parameters"], **({"seed": about["seed"]} if "seed" in about else {})},
        trained_parameters=about.get("trained_parameters", 0),
        history=epochs,
        seconds=sum(row.get("seconds", 0.0) for row in epochs),
        ended=about["parts"][-1]["reason"] or RUNNING,
        commit=about.get("commit") or "",
        alerts=alerts.raised(folder),
        steps=steps,
        folder=folder,
    )


def table(records: Sequence[Record]) -> list[dict[str, Any]]:
    """A row for each training, the best first: the settings in which they differ, then what came of each.

    Accuracies are fractions, of the epoch with the best validation top-1; `gap` is training minus validation.
    """
    names = differing([record.settings for record in records])
    rows = [_row(record, names) for record in records]
    filled = [key for key in dict.fromkeys(k for row in rows for k in row) if any(row[key] is not None for row in rows)]
    rows.sort(key=lambda row: -1.0 if row["validation top-1"] is None else row["validation top-1"], reverse=True)
    return [{key: row[key] for key in filled} for row in rows]


def differing(settings: Iterable[Mapping[str, Any]]) -> list[str]:
    """The settings that all have and that are not the same in all of them; where a run is kept does not count."""
    settings = list(settings)
    shared = [key for key in (settings[0] if settings else ()) if all(key in other for other in settings)]
    return [key for key in shared if key not in _ASIDE and any(other[key] != settings[0][key] for other in settings)]


def _row(record: Record, names: Sequence[str]) -> dict[str, Any]:
    best = max(record.history, key=lambda r: (r["validation_top1"], -r["validation_loss"]), default={})
    speeds = [row["clips_per_second"] for row in record.steps]
    kinds = dict.fromkeys(alert.kind for alert in record.alerts)
    return {
        "training": record.name,
        **{name: record.settings[name] for name in names},
        "trained parameters": record.trained_parameters,
        "epochs": len(record.history),
        "best epoch": int(best["epoch"]) if best else None,
        "validation top-1": best.get("validation_top1"),
        "validation loss": best.get("validation_loss"),
        "gap": best["train_top1"] - best["validation_top1"] if "train_top1" in best else None,
        "clips a second": float(np.median(speeds)) if speeds else None,
        "seconds": round(record.seconds),
        "ended": record.ended,
        "alerts": ", ".join(kinds),
        "commit": record.commit[:8] or None,
    }


class LiveCurves:
    """Draws the curves of a training under the cell that runs it, anew after every epoch; a Watcher.

    folder: where the trackers write; put this watcher behind them.
    """

    def __init__(self, folder: str | Path, name: str = ""):
        self.folder, self.name, self.shown = Path(folder), name, {}

    def start(self, run: Mapping[str, Any]) -> None:
        """Begin with an empty place; a training that goes on does so in the place that it had."""
        self.name, self.shown = run["name"], self.shown if run.get("step") else {}

    def step(self, row: Mapping[str, float]) -> None:
        """Do nothing: a picture takes longer than a step."""

    def epoch(self, row: Mapping[str, float]) -> None:
        """Draw what has been written so far, and list the alerts."""
        import matplotlib.pyplot as plt
        from IPython.display import Markdown, display

        from tcar.lab.plots.training import watched

        kept = alerts.raised(self.folder)
        figure = watched(*tracking.read(self.folder), [(alert.kind, alert.epoch) for alert in kept], self.name)
        for place, content in (("curves", figure), ("alerts", Markdown(alerts.text(kept)))):
            if place in self.shown:
                self.shown[place].update(content)
            else:
                self.shown[place] = display(content, display_id=True)
        plt.close(figure)

    def end(self, reason: str) -> None:
        """Leave the last picture where it is."""
