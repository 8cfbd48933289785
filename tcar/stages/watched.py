"""One training by the trainer, followed while it runs: tracked, with alerts, interrupted once and resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcar import log, results
from tcar.files import remove_folder
from tcar.plots import label
from tcar.stages.fusion import fusion_config
from tcar.stages.runs import LiveCurves
from tcar.train import alerts, tracking
from tcar.train.checkpoints import Checkpoints
from tcar.train.tasks import Task, TokenTask
from tcar.train.trainer import INTERRUPTED, Trained, code_of, train
from tcar.train.watch import StopTraining, Watcher

if TYPE_CHECKING:
    from tcar.params import Params
    from tcar.tokens import TokenSet
    from tcar.train.heads import Fit

# What the trainer can do to a training and fits side by side cannot, each as it is when it is off.
EXTRAS = {
    "mixup": 0.0, "cutmix": 0.0, "contrastive_weight": 0.0, "weight_averaging": 0.0, "early_stopping": 0,
    "learning_rate_clips": 0, "accumulation": 1, "precision": "fp32",
}  # fmt: skip
_MACHINE = {"seconds", "clips_per_second", "data_wait", "memory_mb"}  # what two equal trainings do not share


@dataclass(frozen=True)
class Watched:
    """A training that was watched: its method and seed, what came of it, and where it was written down.

    `interrupted` is the epoch after which it was stopped and resumed, 0 for none.
    """

    method: str
    seed: int
    interrupted: int
    trained: Trained
    folder: Path

    @property
    def rows(self) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
        """The step rows and the epoch rows, without what depends on the machine."""
        return tuple([{k: v for k, v in row.items() if k not in _MACHINE} for row in rows]
                     for rows in tracking.read(self.folder))  # fmt: skip


class Interruption:
    """Asks for the end of a training after an epoch, as somebody does who needs the machine; a Watcher."""

    def __init__(self, epoch: int):
        self.at = epoch

    def start(self, run: Mapping[str, Any]) -> None:
        """Learn nothing: the epoch is known."""

    def step(self, row: Mapping[str, float]) -> None:
        """Let every step pass."""

    def epoch(self, row: Mapping[str, float]) -> None:
        """Raise StopTraining after the epoch."""
        if row["epoch"] == self.at:
            raise StopTraining(INTERRUPTED)

    def end(self, reason: str) -> None:
        """Leave the rest to the checkpoints."""


def watch(run: Params, tokens: Mapping[str, TokenSet], seed: int) -> Watched:
    """Train the headline method on tokens in memory, half of it, and then resume it to the end.

    Checkpoints, CSV and alerts are kept in a folder named after all that decides the result; those of other parameters
    are removed, and what is finished is only opened. Curves are drawn live where somebody looks on.
    Raises TrainingError.
    """
    task = TokenTask(fusion_config(run), tokens["train"], tokens["validation"], run, seed)
    folder = run.run_dir / "trainings" / f"watched-{training_key(task, run, seed)}"
    for other in folder.parent.glob(f"watched-{16 * '[0-9a-f]'}"):
        if other != folder:
            Checkpoints(other).remove()
            remove_folder(other, (tracking.RUN, tracking.STEPS, tracking.EPOCHS, alerts.FILE))
    middle, facts = task.recipe.epochs // 2, results.revision(run.root)
    seen: list[Watcher] = [LiveCurves(folder)] if log.interactive() else []
    for after in ([Interruption(middle)], []):
        # The curves come behind trackers and alarm: they show what has been written down.
        following = [*tracking.watchers(run.watching, folder), *seen, *after]
        found = train(task, run, folder, seed, following, facts)
        if found.reason != INTERRUPTED:
            break
    return Watched(task.name, seed, middle, found, folder)


def training_key(task: Task, run: Params, seed: int) -> str:
    """A digest of all that decides what a training gives: code, model, data, recipe and seed."""
    recipe = {"recipe": asdict(task.recipe), "trainer": asdict(run.trainer), "seed": seed}
    return results.digest({**code_of(task), "task": task.identity(), **recipe})


def record(run: Params, watched: Watched, fits: Sequence[Fit]) -> dict[str, Any]:
    """Write down a watched training beside fits of the same configuration, as training.json holds it.

    Accuracies are fractions on validation, of the best epoch.
    """
    steps, epochs = watched.rows
    best = next(row for row in epochs if row["epoch"] == watched.trained.best_epoch)
    extras = {key: value for key, off in EXTRAS.items() if (value := getattr(run.trainer, key)) != off}
    return {
        "method": watched.method, "seed": watched.seed, "ended": watched.trained.reason,
        "interrupted_after": watched.interrupted, "best_epoch": watched.trained.best_epoch,
        **{key: value for key, value in best.items() if key.startswith("validation")},
        "extras": extras, "curve": epochs, "steps": len(steps),
        "side_by_side": {"seeds": [fit.seed for fit in fits], "validation_top1": [_best_top1(fit) for fit in fits]},
    }  # fmt: skip


def machine(watched: Watched) -> dict[str, float]:
    """What the watched training took on this machine: seconds, and medians over the steps that were logged."""
    steps, epochs = tracking.read(watched.folder)
    middle = {key: sorted(row[key] for row in steps)[len(steps) // 2] for key in _MACHINE - {"seconds"} if steps}
    return {"seconds": sum(row["seconds"] for row in epochs)} | middle


def sentence(values: Mapping[str, Any]) -> str:
    """Say whether the trainer and the fits side by side agree, and in what they differ."""
    others, reached = values["side_by_side"]["validation_top1"], values["validation_top1"]
    said = (f"{label(values['method'])} by the trainer, seed {values['seed']}: {reached:.1%} validation top-1 in epoch "
            f"{values['best_epoch']}")  # fmt: skip
    if not others:
        return f"{said}. It is not among `methods`, so there is nothing to compare it with."
    low, high = min(others), max(others)
    rounding = 1e-9  # kept fits have ten digits
    where = "above" if reached > high + rounding else "below" if reached < low - rounding else "within"
    extras = ", ".join(f"`{key}` {value}" for key, value in values["extras"].items())
    return (
        f"{said}, {where} the range of the same configuration side by side ({low:.1%} to {high:.1%}, {len(others)} "
        f"seed{'s' * (len(others) > 1)}). The two draw the order of the clips differently. "
        + (f"The trainer also had {extras}." if extras else "Nothing else differs.")
    )


def marks(run: Params, watched: Watched) -> list[tuple[str, float]]:
    """The kind and epoch of each alert that the epochs of a watched training give, which is the same on any machine."""
    return [(alert.kind, alert.epoch) for alert in alerts.review(watched.rows[1], run.watching)]


def _best_top1(fit: Fit) -> float:
    return fit.history[fit.best_epoch - 1]["validation_top1"]
