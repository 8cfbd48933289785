"""One training among those that read the same batches: its steps, its epochs, its checkpoints, and how it ends."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from tcar.evaluate import calibration
from tcar.ground import log
from tcar.train.checkpoints import Checkpoints
from tcar.train.processes import Processes
from tcar.train.stepping import Measured, Stepper, on_device, validation_row
from tcar.train.tasks import BATCH, Batch, Slice, Task, code_of, identity, unsound
from tcar.train.watch import EARLY, FINISHED, NOT_A_NUMBER, StopTraining, TrainingError, Watcher

_SUMS = ("loss", "clips", "right", "norm", "steps")

logger = log.get(__name__)


@dataclass(frozen=True, eq=False)
class Trained:
    """A training that has ended, and why (`reason`, one of the words of `tcar.train.watch`).

    `history` has the rows that watchers saw after each epoch; `state_dict` the trained weights of the best epoch, the
    averaged ones where there are any; `calibration` is theirs on the validation clips, as `tcar.evaluate.calibration`
    gives it (None where no epoch was validated); `broken` says by id why a clip was left out.
    """

    reason: str
    history: list[dict]
    best_epoch: int
    state_dict: dict[str, Tensor]
    calibration: dict[str, Any] | None
    broken: dict[str, str]


@dataclass(frozen=True, eq=False)
class Member:
    """One of the trainings that read the same batches: what is trained, where it is kept, and who follows it."""

    task: Task
    folder: Path
    watchers: Sequence[Watcher] = ()


@dataclass
class State:
    """Where a training is, as a checkpoint has it in JSON; `sums` are of the steps since the epoch began."""

    step: int = 0
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_SUMS, 0.0))
    history: list[dict] = field(default_factory=list)
    best_epoch: int = 0
    broken: dict[str, str] = field(default_factory=dict)
    ended: str = ""


class Training:
    """One training: its model, where it is, and how it came to its end (`reason`, empty while it goes on)."""

    def __init__(self, member: Member, processes: Processes, other_code: bool = False):
        self.task, self.processes, self.other_code = member.task, processes, other_code
        self.watchers = member.watchers if processes.main else ()
        self.recipe, self.settings = self.task.recipe, self.task.run.trainer
        self.name = f"{self.task.name}, seed {self.task.seed}"
        if self.recipe.epochs <= self.recipe.warmup_epochs:
            raise TrainingError(
                f"{self.name}: epochs is {self.recipe.epochs}, but must be above warmup_epochs, which is "
                f"{self.recipe.warmup_epochs}"
            )
        self.stepper = Stepper(self.task, processes)
        self.steps, self.state, self.checkpoints = self.stepper.steps, State(), Checkpoints(member.folder)
        total = {"batch_size x accumulation x processes": self.stepper.total}
        self.identity = json.loads(json.dumps(total | identity(self.task)))
        self.error: TrainingError | None = None
        self._resume()
        self.reason = self.state.ended

    def begin(self, facts: dict[str, Any]) -> None:
        """Tell the watchers that it begins, unless it is finished already; `facts` are what the caller knows of it."""
        if self.reason:  # what was written down of it, its commit too, is of those who trained it
            logger.info(f"{self.name}: is finished ({self.reason}) and only opened, from {self.checkpoints.root}")
            return
        facts = facts | {
            "name": self.name, "parameters": self.task.run.shown(), "seed": self.task.seed,
            "clips": {split: len(labels) for split, labels in self.task.labels.items()},
            "trained_parameters": sum(p.numel() for p in self.stepper.trained.values()),
            "total_batch": self.stepper.total, "learning_rate": self.stepper.rate, "processes": self.processes.count,
            "device": str(self.processes.device), "step": self.state.step, "folder": str(self.checkpoints.root),
        }  # fmt: skip
        logger.info(
            f"{self.name}: {self.recipe.batch_size} clips x {self.settings.accumulation} x {self.processes.count} "
            f"processes = {self.stepper.total} a step, {self.steps} steps an epoch; peak learning rate "
            f"{self.stepper.rate:.4g}" + (" (scaled)" if self.settings.learning_rate_clips else "")
        )
        for watcher in self.watchers:
            watcher.start(facts)

    def end(self, reason: str) -> None:
        """End it where it still goes on, and tell the watchers why."""
        if not self.reason:
            self.reason = reason
            for watcher in self.watchers:
                watcher.end(reason)

    def outcome(self) -> Trained:
        """Return the trained weights, the history, and why it ended."""
        state, weights, calibrated = self.state, self.stepper.best(), None
        if state.best_epoch:
            weights = self.checkpoints.read_best(state.best_epoch)
            calibrated = self.checkpoints.read_best_row(state.best_epoch).get("calibration")
        return Trained(self.reason, state.history, state.best_epoch, weights, calibrated, state.broken)

    # --- the loop ----------------------------------------------------------------------------------------

    def open_epoch(self) -> None:
        """Begin to train an epoch, or what is left of it."""
        self.stepper.wrapped.train()
        self.since, self.waited, self.clips, self.seconds, self.asked = time.perf_counter(), 0.0, 0.0, 0.0, ""

    def step(self, parts: Sequence[Batch], epoch: int, waited: float) -> None:
        """Do a step, tell its row, and keep a checkpoint where one is due; `waited` seconds went into its batch."""
        began, where = time.perf_counter(), f"{self.name}, epoch {epoch}/{self.recipe.epochs}"
        self.waited += waited
        for part in parts:
            self.state.broken.update(part.broken)
        found = self.stepper.step(parts, self.state.step, epoch)
        self.state.step += 1
        self.clips += found.clips
        lost, reason = self.stepper.lost(found.norm), ""
        if lost or self.state.step % self.settings.log_steps == 0:
            reason = self._tell("step", self._row(found))
        if lost:
            cause = unsound(self.task, "train", parts) or "lower learning_rate or clip_norm, or set precision to fp32"
            self._fail(
                f"{where}, step {self.state.step}: the gradient's norm is {found.norm}, the loss {self.loss}; {cause}. "
                "The checkpoints before are kept"
            )
            return
        if found.norm < float("inf"):  # in fp16 a step may be left out
            for key in _SUMS:
                share = 1 / self.processes.count if key == "norm" else 1  # each process has the whole norm
                self.state.sums[key] += getattr(found, key) * share
        every, inside = self.settings.checkpoint_steps, self.state.step % self.steps
        if inside and (reason or (every and self.state.step % every == 0)):
            self._keep()
        self.seconds += time.perf_counter() - began
        if reason and inside:
            self.end(reason)
        self.asked = reason

    def close_epoch(self, epoch: int, scored: tuple[Tensor, Tensor], broken: dict[str, str], seconds: float) -> None:
        """Tell and keep an epoch that is trained and validated, and end where it was the last.

        `seconds` are its share of the time that the epoch took all trainings together.
        """
        where = f"{self.name}, epoch {epoch}/{self.recipe.epochs}"
        self.state.broken.update(broken)
        sums = self._added()
        if not sums["clips"]:
            raise TrainingError(
                f"{where}: no clip to train on is left, {len(self.state.broken)} cannot be read; run the audit again"
            )
        row = {
            "epoch": epoch,
            "step": self.state.step,
            "train_loss": sums["loss"] / sums["clips"],
            "gradient_norm": sums["norm"] / max(1.0, sums["steps"]),
            "learning_rate": self.stepper.learning_rate((epoch - 1) * self.steps),
            **validation_row(*scored),
            **({} if self.stepper.mixes else {"train_top1": sums["right"] / sums["clips"]}),
            "seconds": seconds,
        }
        if math.isfinite(row["validation_loss"]):
            reason = self._end_epoch(row, scored, where) or self.asked or self.state.ended
            if reason:
                self.end(reason)
            return
        self._tell("epoch", row)
        each = [Slice([place]) for place in range(len(self.task.labels["validation"]))]
        with closing(self.task.batches("validation", each, 0, {})) as batches:
            device = self.processes.device
            ready = (part for one in batches for part in on_device(self.task, [one], device))
            cause = unsound(self.task, "validation", ready) or "lower learning_rate or set precision to fp32"
        self._fail(
            f"{where}: the validation loss is {row['validation_loss']}, that of training {row['train_loss']:.4g}; "
            f"{cause}. The checkpoints before are kept"
        )

    def _fail(self, message: str) -> None:
        self.error = TrainingError(message)
        self.end(NOT_A_NUMBER)

    def _row(self, found: Measured) -> dict[str, float]:
        """What is told of a step, over all processes."""
        loss, clips, seen, *terms = self.processes.added([found.loss, found.clips, self.clips, *found.terms])
        now, scale, names = time.perf_counter(), self.stepper.loss_scale, self.stepper.learner.terms
        self.loss = loss / max(1.0, clips)
        row = {
            "step": self.state.step,
            "epoch": self.state.step / self.steps,
            "loss": self.loss,
            **{f"loss/{name}": term / max(1.0, clips) for name, term in zip(names, terms, strict=True)},
            "learning_rate": self.stepper.learning_rate(self.state.step - 1),
            "gradient_norm": found.norm,
            "clips_per_second": seen / (now - self.since),
            "data_wait": min(1.0, self.waited / (now - self.since)),
            "memory_mb": self.stepper.memory_mb(),
            **({} if scale is None else {"loss_scale": scale}),
        }
        self.since, self.waited, self.clips = now, 0.0, 0.0
        return row

    def _end_epoch(self, row: dict, scored: tuple[Tensor, Tensor], where: str) -> str:
        state, epoch, patience = self.state, row["epoch"], self.settings.early_stopping
        best = next((kept for kept in state.history if kept["epoch"] == state.best_epoch), None)
        state.history.append(row)
        state.sums = dict.fromkeys(_SUMS, 0.0)
        if best is None or _score(row) > _score(best):
            state.best_epoch = epoch
            if self.processes.main:
                fitted = calibration(*(values.numpy() for values in scored))
                self.checkpoints.write_best(row | {"calibration": fitted}, self.stepper.best())
        if epoch == self.recipe.epochs:
            state.ended = FINISHED
        elif patience and epoch - state.best_epoch >= patience:
            state.ended = EARLY
        if self.processes.main:
            logger.info(f"{where}: loss {row['train_loss']:.3f}, validation top-1 {row['validation_top1']:.3f}")
        reason = self._tell("epoch", row)
        self._keep()
        return reason

    def _tell(self, kind: str, row: dict) -> str:
        """Give a row to the watchers; where one of them wants an end, return the reason on all processes."""
        reason = ""
        for watcher in self.watchers:
            try:
                getattr(watcher, kind)(row)
            except StopTraining as stop:
                reason = reason or stop.reason
        return self.processes.from_main(reason)

    # --- keeping and resuming ----------------------------------------------------------------------------

    def _added(self) -> dict[str, float]:
        return dict(zip(_SUMS, self.processes.added([self.state.sums[key] for key in _SUMS]), strict=True))

    def _keep(self) -> None:
        """Write a checkpoint. The sums of all processes become the main one's, as they would be after a resume."""
        sums = self._added()
        self.state.sums = sums if self.processes.main else dict.fromkeys(_SUMS, 0.0)
        self.state.broken = self.processes.merged(self.state.broken)
        if self.processes.main:
            state = {"made_from": self.identity, **asdict(self.state)}
            self.checkpoints.write(self.state.step, self.stepper.snapshot(state))
        self.processes.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        found = None
        if self.processes.main:
            self.checkpoints.clean()
            found = self.checkpoints.newest()
        found = self.processes.from_main(found)
        if found is None:
            return
        kept = self.checkpoints.read(found)
        self._compare(kept.state.pop("made_from"), kept.state["ended"])
        self.stepper.restore(kept)
        self.state = State(**kept.state)
        if not self.processes.main:
            self.state.sums = dict.fromkeys(_SUMS, 0.0)
        logger.info(f"{self.name}: goes on after step {self.state.step}, from {found}")

    def _compare(self, begun: dict[str, Any], ended: str) -> None:
        """Raise TrainingError where the folder holds another training, or half of one that other code has begun."""
        asked, root = self.identity, self.checkpoints.root
        # Of the clips of a step the total counts, however many processes share it.
        odd = [key for key in {**begun, **asked} if key != BATCH and begun.get(key) != asked.get(key)]
        some = "; ".join(f"{key} was {_short(begun.get(key))}, is {_short(asked.get(key))}" for key in odd)
        if set(odd) - code_of(self.task).keys():
            raise TrainingError(
                f"{root} holds a training with other parameters: {some}. Give them back, or train under another name, "
                "or remove the folder"
            )
        if odd and not ended and not self.other_code:
            raise TrainingError(
                f"{root} holds half a training by other code: {some}. Give the code back, or remove the folder to "
                "begin anew; --other-code (other_code=True) goes on all the same, and its numbers are then of both"
            )
        if odd:
            done = "was trained" if ended else "goes on that was begun"
            logger.warning(f"{self.name}: {done} by other code ({some})")


def _score(row: dict) -> tuple[float, float]:
    return row["validation_top1"], -row["validation_loss"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
