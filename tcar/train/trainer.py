"""The trainer of large runs, thin over accelerate: on one process or many, and resumed as if it had never stopped.

    tcar train params/ssv2.yaml                             one process
    tcar train params/ssv2.yaml task=clips batch_size=8     with other parameters
    torchrun --nproc-per-node 8 -m tcar train params/ssv2.yaml        one process a GPU, or so many on a CPU
    accelerate launch --multi_gpu --num_processes 8 -m tcar train …   the same (--cpu starts one, unless under MPI)
    accelerate.notebook_launcher(train, (task, folder), 8)   the same from a notebook

A notebook that launches processes must neither have used a GPU nor have trained before: they are forks of it. They
give nothing back; what they trained is in the folder.

A step takes `batch_size` clips times `accumulation` times the number of processes. Which clips these are depends on
the seed, the epoch and their number alone, and what is drawn in a step on seed, step and process. So neither the number
of processes nor an interruption changes what is learned (but dropout masks, which are each process's own), and no
generator has a state to be kept.

Trainings of one seed that read the same tokens are made together (`train_together`): a batch is read once and goes
through all of them, each with its own loss, clipping, schedule, length and random numbers, so that none of them learns
what others do.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from tcar.ground import locks, log
from tcar.train.processes import Processes
from tcar.train.recipe import reproducible
from tcar.train.stepping import on_device, predict
from tcar.train.tasks import Task
from tcar.train.training import Member, Trained, Training
from tcar.train.watch import INTERRUPTED, TrainingError, Watcher


def train(
    task: Task, folder: str | Path, watchers: Sequence[Watcher] = (), facts: dict[str, Any] | None = None,
    other_code: bool = False,
) -> Trained:  # fmt: skip
    """Train with AdamW, linear warm-up and a cosine to zero; go on where an interrupted training in `folder` ended.

    The best epoch is that of the highest validation top-1, then of the lowest loss. `facts` reach the watchers beside
    what the trainer knows. On a CPU a process computes on one thread, and the same seed gives the same weights.
    `other_code` goes on with a training that was begun by other code or another torch, and says so.
    AdamW: Loshchilov & Hutter 2019, arXiv:1711.05101. Averaged weights: Tarvainen & Valpola 2017, arXiv:1703.01780.

    Raises:
        TrainingError: a recipe, classes or device that do not fit; a folder of a training with other parameters
            (named); a loss that is not finite; a batch that does not fit into the memory; a disk that is full; another
            training in the same folder.
        MachineError: clips that cannot be read though there is nothing the matter with them.
    """
    return train_together([Member(task, Path(folder), watchers)], facts, other_code)[0]


def train_together(
    members: Sequence[Member], facts: dict[str, Any] | None = None, other_code: bool = False
) -> list[Trained]:
    """Do trainings of one seed in one pass over their batches; each ends as `train` would have ended it alone.

    They read the same splits in batches of the same size, on the same device in the same precision. One that cannot go
    on leaves the others to their end; then its error is raised. Raises what `train` raises.
    """
    _check_company(members)
    first = members[0].task
    processes = Processes(first.run, any(member.task.partly_used for member in members))
    with ExitStack() as held:
        for member in members:
            held.enter_context(_alone(member.folder, processes))
        trainings = []
        for member in members:
            with reproducible(first.seed):  # each begins as it would alone
                trainings.append(Training(member, processes, other_code))
        with reproducible(first.seed):
            _follow(trainings, facts or {})
        return [training.outcome() for training in trainings]


def _check_company(members: Sequence[Member]) -> None:
    """Raise TrainingError where trainings cannot share their batches."""
    first = members[0].task
    for other in (member.task for member in members[1:]):
        ours, theirs = ((task.seed, task.recipe.batch_size, task.run.trainer.accumulation, task.run.trainer.precision,
                         task.run.device) for task in (first, other))  # fmt: skip
        if ours != theirs or getattr(first, "splits", first) != getattr(other, "splits", other):
            raise TrainingError(
                f"{first.name} and {other.name} cannot be trained in one pass: seed, batch_size, accumulation, "
                f"precision and device are {ours} and {theirs}; these and the clips must be the same"
            )


@contextmanager
def _alone(folder: Path, processes: Processes) -> Iterator[None]:
    """Hold the lock of the folder in the main process; all raise TrainingError where another training has it."""
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


def _follow(trainings: Sequence[Training], facts: dict[str, Any]) -> None:
    """Train to the end with the watchers told of beginning and end; raise what ended the first that failed."""
    for training in trainings:
        training.begin(facts)
    try:
        while going := [training for training in trainings if not training.reason]:
            _epoch(going)
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        for training in trainings:
            training.end(INTERRUPTED if stopped else f"failed: {error}")
        raise
    for training in trainings:
        if training.error:
            raise training.error


def _epoch(going: Sequence[Training]) -> None:
    """Train an epoch, or what is left of it, and validate. Those that are further wait for the one that is least far.
    """
    first, opened = going[0], time.perf_counter()
    begun = min(training.state.step for training in going)
    epoch, end = begun // first.steps + 1, (begun // first.steps + 1) * first.steps
    here = [training for training in going if training.state.step < end]
    for training in here:
        training.open_epoch()
    steps = first.stepper.slices(epoch)[begun % first.steps :]
    slices, broken = [part for step in steps for part in step], here[0].state.broken
    named = here[0].name if len(here) == 1 else f"{len(here)} trainings, seed {first.task.seed}"
    named += f", epoch {epoch}/{max(training.recipe.epochs for training in here)}"
    shown = log.progress(steps, len(steps), named, "steps") if first.processes.main else steps
    with closing(first.task.batches("train", slices, epoch, broken)) as batches:
        for number, _ in enumerate(shown, begun):
            asked = time.perf_counter()
            parts = on_device(first.task, list(islice(batches, first.settings.accumulation)), first.processes.device)
            waited = time.perf_counter() - asked
            for training in here:
                if training.state.step == number and not training.reason:
                    training.step(parts, epoch, waited)
            if all(training.reason for training in here):
                return
    ready = [training for training in here if not training.reason]
    scores = predict([training.stepper for training in ready], broken)
    share = (time.perf_counter() - opened) / sum(training.seconds for training in ready)
    for training, scored in zip(ready, scores, strict=True):
        training.close_epoch(epoch, scored, broken, share * training.seconds)
