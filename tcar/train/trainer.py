"""The trainer of large runs, thin over accelerate: on one process or many, and resumed as if it had never stopped.

    python -m tcar.train params/ssv2.yaml                             one process
    python -m tcar.train params/ssv2.yaml task=clips batch_size=8     with other parameters
    torchrun --nproc-per-node 8 -m tcar.train params/ssv2.yaml        one process a GPU, or so many on a CPU
    accelerate launch --multi_gpu --num_processes 8 -m tcar.train …   the same (--cpu starts one, unless under MPI)
    accelerate.notebook_launcher(train, (task, run, folder, seed), 8)   the same from a notebook

A notebook that launches processes must neither have used a GPU nor have trained before: they are forks of it. They
give nothing back; what they trained is in the folder.

A step takes `batch_size` clips times `accumulation` times the number of processes. Which clips these are depends on
the seed, the epoch and their number alone, and what is drawn in a step on seed, step and process. So neither the number
of processes nor an interruption changes what is learned (but dropout masks, which are each process's own), and no
generator has a state to be kept.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tcar import locks, log, results
from tcar.evaluate import calibration
from tcar.params import Params
from tcar.tokens import TrainingError
from tcar.train.checkpoints import Checkpoints
from tcar.train.heads import reproducible
from tcar.train.stepping import Measured, Processes, Stepper, validation_row
from tcar.train.tasks import Batch, Slice, Task, unsound
from tcar.train.watch import StopTraining, Watcher

FINISHED, EARLY, NOT_A_NUMBER, INTERRUPTED = "finished", "stopped early", "not a number", "interrupted"
_RECIPE = ("epochs", "learning_rate", "weight_decay", "warmup_epochs", "label_smoothing", "clip_norm")
# Of the parameters of `Trainer`, what changes no number beyond rounding: a training may go on with others.
_FREE = ("task", "accumulation", "checkpointing", "compiled", "checkpoint_steps", "log_steps", "frame_cache_gb")
_SUMS = ("loss", "clips", "right", "norm", "steps")

logger = log.get(__name__)


class NotANumber(TrainingError):
    """A loss or a gradient that is not finite."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A training that has ended, and why (`reason`, one of the words of `tcar.train.watch`).

    `history` has the rows that watchers saw after each epoch; `state_dict` the trained weights of the best epoch, the
    averaged ones where there are any; `calibration` is that of these weights on the validation clips, as
    `tcar.evaluate.calibration` gives it (None where no epoch was validated); `broken` says by id why a clip was left
    out.
    """

    reason: str
    history: list[dict]
    best_epoch: int
    state_dict: dict[str, Tensor]
    calibration: dict[str, Any] | None
    broken: dict[str, str]


def train(
    task: Task, run: Params, folder: str | Path, seed: int, watchers: Sequence[Watcher] = (),
    facts: dict[str, Any] | None = None, other_code: bool = False,
) -> Trained:  # fmt: skip
    """Train with AdamW, linear warm-up and a cosine to zero; go on where an interrupted training in `folder` ended.

    The best epoch is that of the highest validation top-1, then of the lowest loss. `facts` reach the watchers beside
    what the trainer knows. On a CPU a process computes on one thread, and the same seed gives the same weights.
    `other_code` goes on with a training that was begun by other code or another torch, and says so.
    AdamW: Loshchilov & Hutter 2019, arXiv:1711.05101. Averaged weights: Tarvainen & Valpola 2017, arXiv:1703.01780.

    Raises:
        TrainingError: recipe, classes or device that do not fit; a folder of a training with other parameters (named);
            a loss that is not finite; a batch that does not fit into the memory; a disk that is full; another training
            in the same folder.
        MachineError: clips that cannot be read though there is nothing the matter with them.
    """
    processes = Processes(run, task.partly_used)
    with _alone(Path(folder), processes), reproducible(seed):
        watching = watchers if processes.main else ()
        training = _Training(task, run, Path(folder), seed, watching, processes, other_code)
        reason = training.follow(facts or {})
        state, checkpoints = training.state, training.checkpoints
        best, fitted = training.stepper.best(), None
        if state.best_epoch:
            best, fitted = checkpoints.read_best(state.best_epoch), checkpoints.read_best_row(state.best_epoch)
    return Trained(reason, state.history, state.best_epoch, best, fitted and fitted.get("calibration"), state.broken)


@contextmanager
def _alone(folder: Path, processes: Processes) -> Iterator[None]:
    """Have the folder to oneself: the main process holds its lock, and all raise TrainingError where another has it."""
    busy = f"{folder}: another process trains there; wait for it, or end it and start again, to go on where it was"
    with ExitStack() as held:
        refused = ""
        if processes.main:
            try:
                held.enter_context(locks.alone(folder / locks.FILE, TrainingError, busy))
            except TrainingError as error:
                refused = str(error)
        if refused := processes.from_main(refused):
            raise TrainingError(refused)
        yield


@dataclass
class _State:
    """Where a training is, as a checkpoint has it in JSON; `sums` are of the steps since the epoch began."""

    step: int = 0
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_SUMS, 0.0))
    history: list[dict] = field(default_factory=list)
    best_epoch: int = 0
    broken: dict[str, str] = field(default_factory=dict)
    ended: str = ""


class _Training:
    def __init__(self, task: Task, run: Params, folder: Path, seed: int, watchers: Sequence[Watcher],
                 processes: Processes, other_code: bool = False):  # fmt: skip
        self.task, self.run, self.seed, self.watchers, self.processes = task, run, seed, watchers, processes
        self.recipe, self.settings, self.name = task.recipe, run.trainer, f"{task.name}, seed {seed}"
        if self.recipe.epochs <= self.recipe.warmup_epochs:
            raise TrainingError(
                f"{self.name}: epochs is {self.recipe.epochs}, but must be above warmup_epochs, which is "
                f"{self.recipe.warmup_epochs}"
            )
        self.stepper = Stepper(task, run, seed, processes)
        self.steps, self.state, self.checkpoints = self.stepper.steps, _State(), Checkpoints(folder)
        self.identity = json.loads(json.dumps(self._identity()))
        self.other_code = other_code
        self._resume()

    def follow(self, facts: dict[str, Any]) -> str:
        """Train to the end with the watchers told of beginning and end, and return the reason."""
        if self.state.ended:  # what was written down of it, its commit too, is of those who trained it
            logger.info(f"{self.name}: is finished ({self.state.ended}) and only opened, from {self.checkpoints.root}")
            return self.state.ended
        facts = {**facts, **self._facts()}
        logger.info(
            f"{self.name}: {self.recipe.batch_size} clips x {self.settings.accumulation} x {self.processes.count} "
            f"processes = {self.stepper.total} a step, {self.steps} steps an epoch; peak learning rate "
            f"{self.stepper.rate:.4g}" + (" (scaled)" if self.settings.learning_rate_clips else "")
        )
        reason = ""
        try:
            for watcher in self.watchers:
                watcher.start(facts)
            reason = self._all_epochs()
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | SystemExit)
            reason = INTERRUPTED if stopped else NOT_A_NUMBER if isinstance(error, NotANumber) else f"failed: {error}"
            raise
        finally:
            for watcher in self.watchers:
                watcher.end(reason)
        return reason

    def _facts(self) -> dict[str, Any]:
        return {
            "name": self.name, "parameters": self.run.as_dict(), "seed": self.seed,
            "clips": {split: len(labels) for split, labels in self.task.labels.items()},
            "trained_parameters": sum(p.numel() for p in self.stepper.trained.values()),
            "total_batch": self.stepper.total, "learning_rate": self.stepper.rate, "processes": self.processes.count,
            "device": str(self.processes.device), "step": self.state.step, "folder": str(self.checkpoints.root),
        }  # fmt: skip

    # --- the loop ----------------------------------------------------------------------------------------

    def _all_epochs(self) -> str:
        while not self.state.ended:
            if reason := self._epoch():
                return reason
        return self.state.ended

    def _epoch(self) -> str:
        """Train an epoch, or what is left of it, and validate; return a reason where a watcher wants an end."""
        epoch, done = self.state.step // self.steps + 1, self.state.step % self.steps
        began, where = time.perf_counter(), f"{self.name}, epoch {epoch}/{self.recipe.epochs}"
        self.stepper.wrapped.train()
        self.since, self.waited, self.clips = time.perf_counter(), 0.0, 0.0
        steps, reason = self.stepper.slices(epoch)[done:], ""
        slices = [part for step in steps for part in step]
        with closing(self.task.batches("train", slices, epoch, self.state.broken)) as batches:
            for _ in log.progress(steps, len(steps), where, "steps") if self.processes.main else steps:
                if reason := self._step(batches, epoch, where):
                    break
        if self.state.step % self.steps:
            self._keep()
            return reason
        sums = self._added()
        if not sums["clips"]:
            raise TrainingError(
                f"{where}: no clip to train on is left, {len(self.state.broken)} cannot be read; run the audit again"
            )
        scored = self.stepper.predict(self.state.broken)
        row = {
            "epoch": epoch,
            "step": self.state.step,
            "train_loss": sums["loss"] / sums["clips"],
            "gradient_norm": sums["norm"] / max(1.0, sums["steps"]),
            "learning_rate": self.stepper.learning_rate((epoch - 1) * self.steps),
            **validation_row(*scored),
            **({} if self.stepper.mixes else {"train_top1": sums["right"] / sums["clips"]}),
            "seconds": time.perf_counter() - began,
        }
        if not math.isfinite(row["validation_loss"]):
            self._tell("epoch", row)
            each = [Slice([place]) for place in range(len(self.task.labels["validation"]))]
            with closing(self.task.batches("validation", each, 0, {})) as batches:
                cause = unsound(self.task, "validation", batches) or "lower learning_rate or set precision to fp32"
            raise NotANumber(
                f"{where}: the validation loss is {row['validation_loss']}, that of training {row['train_loss']:.4g}; "
                f"{cause}. The checkpoints before are kept"
            )
        return self._end_epoch(row, scored, where) or reason

    def _step(self, batches: Iterator[Batch], epoch: int, where: str) -> str:
        """One step, and what is told and kept after it; return a reason where a watcher wants an end."""
        asked = time.perf_counter()
        parts = list(islice(batches, self.settings.accumulation))
        self.waited += time.perf_counter() - asked
        for part in parts:
            self.state.broken.update(part.broken)
        found = self.stepper.step(parts, self.state.step, epoch)
        self.state.step += 1
        self.clips += found.clips
        lost = self.stepper.lost(found.norm)
        reason = self._tell("step", self._row(found)) if lost or self.state.step % self.settings.log_steps == 0 else ""
        if lost:
            cause = unsound(self.task, "train", parts) or "lower learning_rate or clip_norm, or set precision to fp32"
            raise NotANumber(
                f"{where}, step {self.state.step}: the gradient's norm is {found.norm}, the loss {self.loss}; {cause}. "
                "The checkpoints before are kept"
            )
        if found.norm < float("inf"):  # in fp16 a step may be left out
            for key in _SUMS:
                share = 1 / self.processes.count if key == "norm" else 1  # each process has the whole norm
                self.state.sums[key] += getattr(found, key) * share
        every, inside = self.settings.checkpoint_steps, self.state.step % self.steps
        if every and inside and self.state.step % every == 0 and not reason:
            self._keep()
        return reason

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
        """Write a checkpoint. Sums become the main process's, whether or not somebody goes on from it."""
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
        begun, asked = kept.state.pop("made_from"), self.identity
        if odd := [key for key in {**begun, **asked} if begun.get(key) != asked.get(key)]:
            some = "; ".join(f"{key} was {_short(begun.get(key))}, is {_short(asked.get(key))}" for key in odd)
            self._meet(odd, some, kept.state["ended"])
        self.stepper.restore(kept)
        self.state = _State(**kept.state)
        if not self.processes.main:
            self.state.sums = dict.fromkeys(_SUMS, 0.0)
        logger.info(f"{self.name}: goes on after step {self.state.step}, from {found}")

    def _meet(self, odd: list[str], some: str, ended: str) -> None:
        """Raise TrainingError where a training cannot go on because of what is different, or else say that it does."""
        root = self.checkpoints.root
        if not code_of(self.task).keys() >= set(odd):
            raise TrainingError(
                f"{root} holds a training with other parameters: {some}. Give them back, or train under another name, "
                "or remove the folder"
            )
        if not ended and not self.other_code:
            raise TrainingError(
                f"{root} holds half a training by other code: {some}. Give the code back, or remove the folder to "
                "begin anew; --other-code (other_code=True) goes on all the same, and its numbers are then of both"
            )
        logger.warning(f"{self.name}: {'was trained' if ended else 'goes on that was begun'} by other code ({some})")

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a training to go on; the clips of a step may come about in another way."""
        settings = {key: value for key, value in asdict(self.settings).items() if key not in _FREE}
        recipe = {key: getattr(self.recipe, key) for key in _RECIPE}
        total = {"seed": self.seed, "batch_size x accumulation x processes": self.stepper.total}
        return {**recipe, **settings, **total, **code_of(self.task), **self.task.identity()}


def code_of(task: Task) -> dict[str, str]:
    """What computes a training: a digest of the code of trainer and task, and the version of torch."""
    own = type(task).__module__
    modules = ["tcar.train.trainer", *([own] if own.startswith("tcar.") else [])]
    return {"code": results.code_digest(*modules), "torch": torch.__version__}


def _score(row: dict) -> tuple[float, float]:
    return row["validation_top1"], -row["validation_loss"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
