"""The study of a search: Optuna's trials, planned as numbered slots, so that several processes do each of them once.

Optuna hands every trial to one worker, and its heartbeat tells whose worker has died: the slot of such a trial is
planned again with the same parameters. What there is to do follows from the trials alone, so a search goes on wherever
it was killed. Nothing takes a lock: of two trials that were planned for one slot at once, the one of the lower number
counts, and the other is closed without being done.
"""

from __future__ import annotations

import contextlib
import re
import time
import traceback
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, fail_stale_trials
from optuna.storages._heartbeat import BaseHeartbeat, get_heartbeat_thread
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState

from tcar.ground import log
from tcar.ground.errors import TcarError

POLL = 1.0  # seconds between two looks at what others do
_BEATS = 6  # signs of life within the patience
_DIED = "its worker died"
_GIVE_UP = 3  # failures of a worker in a row, with no trial done before, are the fault of no single trial

Report = Callable[[int, float], None]
Evaluate = Callable[[optuna.Trial, Report], float]
LOG = log.get(__name__)


class SearchError(TcarError, RuntimeError):
    """A search that cannot start or go on; the message says why and what to do."""


class Journal(JournalStorage, BaseHeartbeat):
    """Optuna's journal file with the heartbeat that Optuna gives to databases alone.

    A worker counts as dead when the process that looks has seen no new sign of life of it for `patience` seconds, by
    its own clock: those of two machines differ.
    """

    def __init__(self, path: str, patience: float):
        super().__init__(JournalFileBackend(path, _lock(path, patience)))
        self.patience, self._seen = patience, {}

    def record_heartbeat(self, trial_id: int) -> None:
        """Write a sign of life into a trial; a file system that is away for a moment is left to those who look."""
        try:
            self.set_trial_system_attr(trial_id, "beat", time.time())
        except UpdateFinishedTrialError:
            pass
        except OSError as error:
            LOG.warning(f"no sign of life could be written: {error}")

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        now, stale = time.monotonic(), []
        for trial in self.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,)):
            beat = trial.system_attrs.get("beat")
            before, since = self._seen.setdefault(trial._trial_id, (beat, now))
            if beat != before:
                self._seen[trial._trial_id] = beat, now
            elif now - since > self.patience:
                stale.append(trial._trial_id)
        return stale

    def get_heartbeat_interval(self) -> float:
        """Give the seconds between two signs of life."""
        return self.patience / _BEATS

    def get_heartbeat_stale_trial_callback(self) -> None:
        """Have nothing done about a trial whose worker died but closing it: `Plan.fill` plans its slot again."""


def open_storage(address: str, patience: float = 60.0) -> BaseStorage:
    """Open a database by its address (`…://…`), or a journal file by its absolute path, made where there is none.

    A journal is locked by a symbolic link, which works between machines on a network file system too. A worker without
    a sign of life for `patience` seconds counts as dead.
    Raises SearchError: the folder or the database cannot be used.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # one voice: progress is shown by tcar.ground.log
    warnings.filterwarnings("ignore", category=ExperimentalWarning)  # the heartbeat; Optuna's version is pinned
    warnings.filterwarnings("ignore", "Heartbeat of storage")  # `work` gives the signs of life itself
    if "://" in address:
        try:
            seconds = max(1, round(patience))
            return RDBStorage(address, heartbeat_interval=max(1, seconds // _BEATS), grace_period=seconds)
        except Exception as error:  # of SQLAlchemy or of the database's driver
            raise SearchError(f"the storage cannot be opened: {_without_password(str(error), address)}") from None
    try:
        Path(address).parent.mkdir(parents=True, exist_ok=True)
        _mend(Path(address), patience)
        return Journal(address, patience)
    except OSError as error:
        raise SearchError(f"{address}: the journal cannot be written: {error}") from error


def open_study(storage: BaseStorage, name: str, definition: Mapping[str, Any]) -> optuna.Study:
    """Open a study, or make it. Raises SearchError where one of that name was defined in another way, and names it."""
    study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
    before = study.user_attrs.get("definition")
    if before is None:
        study.set_user_attr("definition", dict(definition))
        return study
    differing = [key for key in sorted({*before, *definition}) if before.get(key) != definition.get(key)]
    if differing:
        changes = "; ".join(f"{key} was {before.get(key)!r}, is {definition.get(key)!r}" for key in differing)
        raise SearchError(f"the search {name!r} was begun in another way: {changes}. Give the new one another name")
    return study


@dataclass(frozen=True)
class Plan:
    """What a study has to do: a trial for every slot.

    slots: (fixed parameters, attributes of the trial) each. attempts: so often a trial is begun whose worker dies while
    the command that started it lives; killing the whole command does not count.
    """

    study: optuna.Study
    slots: Sequence[tuple[dict[str, Any], dict[str, Any]]]
    attempts: int = 3

    def fill(self) -> None:
        """Plan the slots that nobody has planned, or whose worker has died."""
        attempts = self._attempts()
        for slot, (fixed, attributes) in enumerate(self.slots):
            tried = attempts[slot]
            if all(map(_died, tried)) and not self._given_up(tried):
                if tried:
                    LOG.warning(f"trial {slot}: {_DIED}, it is done again")
                    fixed = tried[-1].params or fixed
                given = {"slot": slot, "attempt": len(tried) + 1, **attributes}
                self.study.enqueue_trial(fixed, user_attrs=given)

    def standing(self) -> list[FrozenTrial]:
        """The trial that counts for each slot: the first whose worker has not died, else the last."""
        attempts = self._attempts()
        tried = [attempts[slot] for slot in range(len(self.slots)) if attempts[slot]]
        return [next((trial for trial in trials if not _died(trial)), trials[-1]) for trials in tried]

    def finished(self) -> list[FrozenTrial]:
        """The trials that are done, pruned or failed for good, in the order of their slots."""
        attempts = self._attempts()
        return [
            trial for trial in self.standing()
            if trial.state.is_finished() and (not _died(trial) or self._given_up(attempts[trial.user_attrs["slot"]]))
        ]  # fmt: skip

    def bury(self, worker: str) -> None:
        """Close the trial of a worker of this command that has died, without waiting for its silence."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.user_attrs.get("worker") == worker:
                with contextlib.suppress(UpdateFinishedTrialError):
                    self.study._storage.set_trial_user_attr(trial._trial_id, "reason", _DIED)
                    self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    def _attempts(self) -> dict[int, list[FrozenTrial]]:
        found = defaultdict(list)
        for trial in self.study.get_trials(deepcopy=False):
            if "slot" in trial.user_attrs and "spare" not in trial.user_attrs:
                found[trial.user_attrs["slot"]].append(trial)
        return found

    def _given_up(self, tried: Sequence[FrozenTrial]) -> bool:
        return sum("reason" in trial.user_attrs for trial in tried if _died(trial)) >= self.attempts


def _died(trial: FrozenTrial) -> bool:
    """Whether a trial ended with its worker: closed by the command, or without a word by Optuna's heartbeat."""
    return trial.state == TrialState.FAIL and trial.user_attrs.get("reason", _DIED) == _DIED


def work(plan: Plan, evaluate: Evaluate, sampler: Callable[[int], BaseSampler], worker: str = "") -> None:
    """Do trials in this process, and wait for those of others, until all slots are finished.

    evaluate: gives the score of a trial, and reports that of each epoch on the way; what it raises fails the trial.
    sampler: of a slot, so that what is drawn does not depend on who draws it. worker: the name of this process.
    Raises SearchError: the first trials failed one after the other.
    """
    failures, succeeded, study = 0, False, plan.study
    while len(plan.finished()) < len(plan.slots):
        fail_stale_trials(study)
        plan.fill()
        if not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            time.sleep(POLL)
            continue
        trial = study.ask()
        counting = {one.user_attrs["slot"]: one.number for one in plan.standing()}
        if counting.get(slot := trial.user_attrs.get("slot")) != trial.number:
            trial.set_user_attr("spare", True)  # another trial of its slot counts, or the last one was taken meanwhile
            study.tell(trial, state=TrialState.FAIL)
            continue
        trial.set_user_attr("worker", worker)
        study.sampler = sampler(slot)
        try:
            reason = _do(study, trial, evaluate)
        except UpdateFinishedTrialError:
            LOG.warning(f"trial {slot}: given to another worker meanwhile")
            continue
        failures, succeeded = failures + 1 if reason else 0, succeeded or not reason
        if failures >= _GIVE_UP and not succeeded:
            raise SearchError(f"the first {failures} trials of this worker all failed, the last one: {reason}")


def _do(study: optuna.Study, trial: optuna.Trial, evaluate: Evaluate) -> str:
    """Do one trial and close it; gives why it failed. Raises UpdateFinishedTrialError: it was taken for dead."""

    def report(epoch: int, score: float) -> None:
        trial.report(score, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned

    value, reason, slot = None, "", trial.user_attrs["slot"]
    with get_heartbeat_thread(trial._trial_id, study._storage):
        try:
            value, state = float(evaluate(trial, report)), TrialState.COMPLETE
            if not np.isfinite(value):
                raise ValueError(f"the score is {value}")
        except optuna.TrialPruned:
            state = TrialState.PRUNED  # its value is the last one that it reported
        except UpdateFinishedTrialError:
            raise
        except Exception as error:
            # One bad trial is no reason to end a search; what happened stands in its record and in the log.
            value, state, reason = None, TrialState.FAIL, f"{type(error).__name__}: {error}"
            trial.set_user_attr("reason", reason)
            LOG.warning(f"trial {slot} failed: {reason}")
            LOG.debug(traceback.format_exc())
    told = study.tell(trial, value, state, skip_if_finished=True)
    if told.state != state:
        raise UpdateFinishedTrialError
    if not reason:
        LOG.info(f"trial {slot}: {told.value:.4f}" + (", pruned" * (told.state == TrialState.PRUNED)))
    return reason


def _without_password(text: str, address: str) -> str:
    """A driver's message on one line, without the address and the password in it."""
    password = re.match(r"[^:]+://[^:/]*:(.+)@", address)
    for hidden in (address, *([password[1], unquote(password[1])] if password else [])):
        text = text.replace(hidden, "…")
    return " ".join(text.split())


def _lock(journal: str, patience: float) -> JournalFileSymlinkLock:
    """The lock of a journal, which is taken from a process that died while it wrote."""
    return JournalFileSymlinkLock(journal, round(min(30, max(3, patience))))


def _mend(journal: Path, patience: float) -> None:
    """Cut off the half line that a machine leaves when it dies while writing: it would spoil the line after it."""
    if not journal.exists() or not journal.stat().st_size:
        return
    lock = _lock(str(journal), patience)
    lock.acquire()
    try:
        with journal.open("rb+") as file:
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)
    finally:
        lock.release()
