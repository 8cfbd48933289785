"""The trainings of a run: what is trained, where it is kept, and what it says of clips.

A training is kept in `trainings/<method>-seed<seed>-<key>/` of a run. The key is the digest of all that decides what it
gives, its code too, and of nothing else: so the notebooks open what `tcar train` has made on a cluster, and
nothing is trained twice.
"""

from __future__ import annotations

import json
import multiprocessing
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from tcar.features.ranks import Ranks
from tcar.fusion.kinds import FusionConfig, fusion_cost
from tcar.ground import log, processes
from tcar.lab import results
from tcar.lab.steps.clips import class_names, healthy_clips
from tcar.lab.steps.streams import extract, stores
from tcar.train import tracking
from tcar.train.checkpoints import Checkpoints
from tcar.train.recipe import converged, epochs_of
from tcar.train.tasks import Task, TokenTask, code_of, identity
from tcar.train.tokens import StoredTokens
from tcar.train.trainer import train_together
from tcar.train.training import Member
from tcar.train.watch import TrainingError

if TYPE_CHECKING:
    from tcar.data.ssv2 import Clip
    from tcar.lab.params import Params
    from tcar.train.watch import Watcher

LOG = log.get(__name__)
Name = TypeVar("Name")
LEARNING = ("train", "validation")
_ASKED_FOR: dict[Path, float] = {}  # the seconds of each training that this process asked for, by its folder


@dataclass(frozen=True)
class Job:
    """One training to do: a fusion at the parameters of a run, and a seed."""

    run: Params
    fusion: FusionConfig
    seed: int

    def task(self, tokens: Mapping[str, StoredTokens]) -> TokenTask:
        """What is trained, on the tokens of each split."""
        return TokenTask(self.fusion, *(tokens[split] for split in LEARNING), self.run, self.seed)


@dataclass(frozen=True)
class Fit:
    """A training that has ended: what is kept in its folder.

    `history` has a row for each epoch, as `tcar.train.watch` describes it; `seconds` are those of its epochs.
    """

    folder: Path
    fusion: FusionConfig | None
    seed: int
    history: list[dict]
    best_epoch: int
    broken: dict[str, str]

    @property
    def seconds(self) -> float:
        """Its share of the time that its epochs took on the machine that trained it."""
        return sum(row["seconds"] for row in self.history)

    @property
    def best(self) -> dict:
        """The row of the best epoch."""
        return next(row for row in self.history if row["epoch"] == self.best_epoch)

    @property
    def trained(self) -> dict[str, Tensor]:
        """The trained weights of the best epoch, by their names in the task's model; none of what was only loaded."""
        return Checkpoints(self.folder).read_best(self.best_epoch) if self.best_epoch else {}

    @property
    def calibration(self) -> dict:
        """What `tcar.evaluate.calibration` gave of the best epoch, on the validation clips."""
        return Checkpoints(self.folder).read_best_row(self.best_epoch)["calibration"]

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """The weights of the fusion."""
        return {name.removeprefix("fusion."): value for name, value in self.trained.items()}


def tokens_of(run: Params, *splits: str) -> dict[str, StoredTokens]:
    """Open the tokens of splits, all by default; they stay on the disk."""
    opened, found, names = stores(run), healthy_clips(run, *splits), class_names(run)
    return {
        split: StoredTokens.of(opened["semantic"], opened["motion"], clips, names) for split, clips in found.items()
    }


def extracted(
    run: Params, clips: Mapping[str, list[Clip]], names: Sequence[str], untrained: Sequence[str] = ()
) -> dict[str, StoredTokens]:
    """Extract the tokens of the clips of each split, or open what is there; `names` are those of the classes, and
    `untrained` the roles whose streams have random weights. Raises FeatureError, ParameterError, TrainingError.
    """
    made = extract(run, dict(clips), untrained=untrained).values()
    return {split: StoredTokens.of(*made, some, names) for split, some in clips.items()}


def fit_all(
    run: Params, configs: Mapping[Name, FusionConfig], seeds: Sequence[int], tokens: Mapping[str, StoredTokens],
    follow: Callable[[Path], Watcher] | None = None, other_code: bool = False,
) -> dict[Name, list[Fit]]:  # fmt: skip
    """Train every configuration with every seed, what is kept already not again; gives the fits by configuration.

    `follow` makes what is told of every epoch of the first configuration and seed while it is trained, from its folder.
    """
    jobs = [Job(run, config, seed) for config in configs.values() for seed in seeds]
    done = iter(fit_jobs(jobs, tokens, run.run_dir, follow, other_code))
    return {name: [next(done) for _ in seeds] for name in configs}


def fit_jobs(
    jobs: Sequence[Job], tokens: Mapping[str, StoredTokens], run_dir: Path,
    follow: Callable[[Path], Watcher] | None = None, other_code: bool = False,
) -> list[Fit]:  # fmt: skip
    """Do trainings, those of a seed in one pass over their tokens; on a CPU as many such passes at a time as there are
    cores. Gives the fits in the order of the jobs.

    Under torchrun all processes do every training together. Raises TrainingError: a training failed, or a process died.
    """
    folders = [folder_of(run_dir, job, tokens, other_code) for job in jobs]
    todo = {folder: job for folder, job in zip(folders, jobs, strict=True) if not _ended(folder)}
    LOG.info(f"{len(jobs)} trainings, {len(todo)} of them to do")
    run, passes = jobs[0].run if jobs else None, _passes(todo, tokens)
    if len(passes) > 1 and Ranks.here().world == 1 and run.workers > 1 and device_of(run).type == "cpu":
        _side_by_side(passes, tokens, run.workers, follow and follow(folders[0]), folders[0])
    else:
        for one in passes:
            _train(one, tokens, follow and {folders[0]: follow(folders[0])}, other_code)
    fits = [opened(folder, job.fusion, job.seed) for folder, job in zip(folders, jobs, strict=True)]
    count(fits)
    return fits


def count(fits: Sequence[Fit]) -> None:
    """Note that this process asked for trainings, whose seconds `seconds_asked_for` then has."""
    _ASKED_FOR.update((fit.folder, fit.seconds) for fit in fits)


def seconds_asked_for() -> float:
    """Give the seconds that all trainings took which this process asked for, those that were there already too."""
    return sum(_ASKED_FOR.values())


def folder_of(run_dir: Path, job: Job, tokens: Mapping[str, StoredTokens], other_code: bool = False) -> Path:
    """Give the folder of a training; with `other_code` that of one that other code has begun, where there is any."""
    return folder_of_task(run_dir, job.task(tokens), other_code)


def folder_of_task(run_dir: Path, task: Task, other_code: bool = False) -> Path:
    """Give the folder in which the training of a task is kept."""
    decides = json.loads(json.dumps(identity(task)))
    name = f"{task.name.replace(' ', '-')}-seed{task.seed}"
    own = run_dir / "trainings" / f"{name}-{results.digest(decides)}"
    if own.is_dir():
        return own
    code = code_of(task).keys()
    for other in sorted(own.parent.glob(f"{name}-{16 * '[0-9a-f]'}")):
        made_from = (Checkpoints(other).state() or {}).get("made_from", {})
        if all(made_from.get(key) == value for key, value in decides.items() if key not in code):
            if other_code:
                return other
            LOG.warning(f"{other} was trained by other code, and stays: it is trained again beside it (--other-code)")
    return own


def opened(folder: Path, fusion: FusionConfig | None, seed: int) -> Fit:
    """Open a training that has ended; raises TrainingError where it has not, or is damaged."""
    state = Checkpoints(folder).state()
    if not state or not state["ended"]:
        raise TrainingError(f"{folder}: holds no training that has ended; train again")
    return Fit(folder, fusion, seed, state["history"], state["best_epoch"], state["broken"])


def mean_curve(fits: Sequence[Fit]) -> list[dict]:
    """Average the validation accuracy of a method's seeds, epoch by epoch: one seed's curve is mostly noise.

    Of trainings that ended early, the epochs that all of them have.
    """
    epochs = zip(*(fit.history for fit in fits), strict=False)
    return [{"validation_top1": sum(row["validation_top1"] for row in rows) / len(fits)} for rows in epochs]


def curves(done: Sequence[Fit]) -> dict:
    """Write down the curves of the seeds of one method, without what depends on the machine."""
    return {
        "curves": {fit.seed: [{k: v for k, v in row.items() if k != "seconds"} for row in fit.history] for fit in done},
        "best_epoch": [fit.best_epoch for fit in done],
        "converged": converged(mean_curve(done)) if done[0].history else None,
    }


def device_of(run: Params) -> torch.device:
    """Give the device that a run computes on."""
    if run.common.device != "auto":
        return torch.device(run.common.device)
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def _ended(folder: Path) -> bool:
    return bool((Checkpoints(folder).state() or {}).get("ended"))


def _passes(todo: Mapping[Path, Job], tokens: Mapping[str, StoredTokens]) -> list[dict[Path, Job]]:
    """Put together what can be trained in one pass: one seed, batches of one size, one precision.

    On a CPU a pass is divided among the cores, by what its trainings cost; those that cost most begin.
    """
    groups: dict[tuple, dict[Path, Job]] = defaultdict(dict)
    for folder, job in todo.items():
        trainer, training = job.run.trainer, job.run.training
        groups[job.seed, training.batch_size, trainer.accumulation, trainer.precision][folder] = job
    shape = [len(xyz) for xyz in tokens["train"].coordinates.values()]
    cost = {
        folder: epochs_of(job.fusion, job.run.training) * fusion_cost(job.fusion, *shape)["gflops"]
        for folder, job in todo.items()
    }
    found = []
    for group in groups.values():
        run = next(iter(group.values())).run
        count = run.workers if Ranks.here().world == 1 and device_of(run).type == "cpu" else 1
        parts: list[dict[Path, Job]] = [{} for _ in range(min(count, len(group)))]
        for folder in sorted(group, key=cost.get, reverse=True):
            min(parts, key=lambda part: sum(map(cost.get, part)))[folder] = group[folder]
        found += parts
    return sorted(found, key=lambda part: sum(map(cost.get, part)), reverse=True)


def _train(
    together: Mapping[Path, Job], tokens: Mapping[str, StoredTokens], follow: Mapping[Path, Watcher] | None = None,
    other_code: bool = False,
) -> None:  # fmt: skip
    """Do one pass; each training is tracked in its own folder."""
    first = Ranks.here().rank == 0
    heads = [
        Member(job.task(tokens), folder, [*tracking.watchers(job.run.watching, folder),
             *([follow[folder]] if follow and folder in follow else [])] if first else ())
        for folder, job in together.items()
    ]  # fmt: skip
    job = next(iter(together.values()))
    train_together(heads, results.revision(job.run.root), other_code)


def _side_by_side(
    passes: Sequence[dict[Path, Job]], tokens: Mapping[str, StoredTokens], workers: int, follow: Watcher | None,
    followed: Path,
) -> None:  # fmt: skip
    """Do passes in worker processes. What they write down is what is shown: how far they are, and the curves."""
    lifeline, end = multiprocessing.get_context("spawn").Pipe(duplex=False)
    jobs = {folder: job for one in passes for folder, job in one.items()}
    folders = {folder: epochs_of(job.fusion, job.run.training) for folder, job in jobs.items()}
    if follow and followed in jobs:
        follow.start({"name": f"{jobs[followed].fusion.method}, seed {jobs[followed].seed}"})
    with processes.pool(min(workers, len(passes)), lifeline) as pool:
        try:
            waiting = {pool.submit(_work, one, tokens) for one in passes}
            shown = log.progress(_epochs(waiting, folders), sum(folders.values()), "training", "epochs")
            for folder, row in shown:
                if follow and folder == followed:
                    follow.epoch(row)
        except BrokenProcessPool as error:
            raise TrainingError(
                "a training process died, often for want of memory: lower workers. In a script, call this under "
                '`if __name__ == "__main__":`'
            ) from error
        except BaseException:
            end.close()  # the workers end; what they trained is kept as far as it came
            pool.shutdown(cancel_futures=True)
            raise


def _work(one: dict[Path, Job], tokens: Mapping[str, StoredTokens]) -> None:
    log.configure("WARNING")  # several at once would tell their epochs across one another
    _train(one, tokens)


def _epochs(waiting: set[Future], folders: Mapping[Path, int]) -> Iterator[tuple[Path, dict]]:
    """The epochs that are written down until all is done, as they come; raises what the first failed pass raised."""
    seen = dict.fromkeys(folders, 0)
    while True:
        done, waiting = wait(waiting, timeout=1.0, return_when=FIRST_COMPLETED)
        for folder in folders:
            for row in tracking.CsvTable(folder / tracking.EPOCHS).rows()[seen[folder] :]:
                seen[folder] += 1
                yield folder, row
        for future in done:
            future.result()
        if not waiting:
            return
