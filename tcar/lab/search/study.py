"""The book of a search: an Optuna study in which every trial is planned, claimed, followed and finished once.

All trials are planned before the first one starts: each is a slot with a number. A worker claims a waiting slot by the
one step that every Optuna storage does atomically (waiting to running), and gives a sign of life while it trains. Where
a worker has died, its trial is closed and the slot planned again with the same parameters, as often as the command is
killed and started again. Only a death of which the command lives to tell, as for want of memory, counts against the
trial. Nothing here takes a lock: where two workers plan the same attempt at once, both see the two of them and both go
by the lower number.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import optuna
import psutil
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState

from tcar.ground import log
from tcar.ground.errors import TcarError

BEAT = 5.0  # seconds between two signs of life
POLL = 1.0  # seconds between two looks at what others do
_DIED = "its worker died"
_GIVE_UP = 3  # failures of a worker in a row, with no trial done before, are the fault of no single trial

Report = Callable[[int, float], None]
Evaluate = Callable[[optuna.Trial, Report], float]


class SearchError(TcarError, RuntimeError):
    """A search that cannot start or go on; the message says why and what to do."""


class TrialTakenError(Exception):
    """A worker that was silent for too long has lost its trial to another."""


def open_storage(address: str) -> BaseStorage:
    """Open a database by its address (`…://…`), or a journal file by its absolute path, made where there is none.

    A journal is locked by a symbolic link, which works between machines on a network file system too.
    Raises SearchError: the folder or the database cannot be used.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # one voice: progress is shown by tcar.ground.log
    if "://" in address:
        try:
            return RDBStorage(address)
        except Exception as error:  # of SQLAlchemy or of the database's driver
            raise SearchError(f"the storage cannot be opened: {_without_password(str(error), address)}") from None
    try:
        Path(address).parent.mkdir(parents=True, exist_ok=True)
        _mend(Path(address))
        return JournalStorage(JournalFileBackend(address))
    except OSError as error:
        raise SearchError(f"{address}: the journal cannot be written: {error}") from error


def _without_password(text: str, address: str) -> str:
    """A driver's message on one line, without the address and the password in it."""
    password = re.match(r"[^:]+://[^:/]*:(.+)@", address)
    for hidden in (address, *([password[1], unquote(password[1])] if password else [])):
        text = text.replace(hidden, "…")
    return " ".join(text.split())


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


def plan(study: optuna.Study, slots: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """Add the slots that the study does not have yet; each is (fixed parameters, attributes), numbered from 0."""
    there = standing(study)
    for slot, (fixed, attributes) in enumerate(slots):
        if slot not in there:
            study.enqueue_trial(fixed, user_attrs={"slot": slot, "attempt": 1, **attributes})


def standing(study: optuna.Study) -> dict[int, FrozenTrial]:
    """The trial that counts for each slot, in their order: of its first attempt whose worker has not died.

    So an attempt stays closed to all until the one before it is closed, and one that was thought dead and is done
    after all counts. Of the same attempt planned twice the lower number counts; where all died, the last attempt.
    """
    attempts: dict[int, dict[int, FrozenTrial]] = {}
    for trial in study.get_trials(deepcopy=False):
        attempts.setdefault(trial.user_attrs["slot"], {}).setdefault(trial.user_attrs["attempt"], trial)
    counting = {}
    for slot, planned in sorted(attempts.items()):
        ordered = [planned[attempt] for attempt in sorted(planned)]
        counting[slot] = next((trial for trial in ordered if not _died(trial)), ordered[-1])
    return counting


def _died(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.FAIL and trial.user_attrs.get("reason", "").startswith(_DIED)


def finished(study: optuna.Study, count: int) -> list[FrozenTrial]:
    """Of the first `count` slots, the trials that are done, pruned or failed, in the order of their slots."""
    return [trial for slot, trial in standing(study).items() if slot < count and trial.state.is_finished()]


class Worker:
    """One process that takes part in a study until the first `count` slots are finished.

    `sampler(slot)` gives a sampler of its own for each slot, so that what is drawn does not depend on who draws it;
    `attempts` (of a trial that kills its workers) and `patience` (seconds) are those of the search's file.
    """

    def __init__(self, storage: BaseStorage, study: optuna.Study, count: int, sampler: Callable[[int], BaseSampler],
                 attempts: int = 3, patience: float = 60.0):
        self.storage, self.study, self.count, self.sampler = storage, study, count, sampler
        self.attempts, self.patience = attempts, patience
        self.study_id = storage.get_study_id_from_name(study.study_name)
        self.seen: dict[int, tuple[Any, float]] = {}
        self.succeeded, self.failures = 0, 0

    def work(self, evaluate: Evaluate) -> None:
        """Claim and do trials, and wait for those of others, until all are finished.

        evaluate: gives the score of a trial, and reports that of each epoch on the way. What it raises fails the trial.
        Raises SearchError: the first trials failed one after the other.
        """
        while len(finished(self.study, self.count)) < self.count:
            self.recover()
            trial = self.claim()
            if trial is None:
                time.sleep(POLL)
                continue
            self._do(trial, evaluate)

    def claim(self) -> optuna.Trial | None:
        """Take the first waiting slot for this process; None where there is none."""
        for slot, trial in standing(self.study).items():
            if slot < self.count and trial.state == TrialState.WAITING:
                identity = self._id(trial.number)
                with contextlib.suppress(UpdateFinishedTrialError):
                    if self.storage.set_trial_state_values(identity, TrialState.RUNNING):
                        self.storage.set_trial_user_attr(identity, "owner", _owner())
                        self.study.sampler = self.sampler(slot)
                        return optuna.Trial(self.study, identity)
        return None

    def recover(self) -> None:
        """Close the trials whose worker has died, and plan their slots again.

        The new attempt is planned before the old one is closed: a death in between leaves one to close, none to miss.
        """
        trials = self.study.get_trials(deepcopy=False)
        planned = {(trial.user_attrs["slot"], trial.user_attrs["attempt"]) for trial in trials}
        for trial in trials:
            if trial.state != TrialState.RUNNING or not self._dead(trial):
                continue
            slot, attempt = trial.user_attrs["slot"], trial.user_attrs["attempt"]
            deaths = trial.user_attrs.get("deaths", 0) + _by_itself(trial.user_attrs.get("owner"))
            again = deaths < self.attempts
            if again and (slot, attempt + 1) not in planned:
                kept = {key: value for key, value in trial.user_attrs.items() if key not in ("owner", "beat")}
                self.study.enqueue_trial(trial.params or trial.system_attrs["fixed_params"],
                                         user_attrs=kept | {"attempt": attempt + 1, "deaths": deaths})
            why = _DIED + ("" if again else f", as in all of {self.attempts} attempts")
            if self._finish(trial.number, TrialState.FAIL, reason=why):
                log.get(__name__).warning(f"trial {slot}: {why}" + (", it is done again" if again else ""))

    def _do(self, trial: optuna.Trial, evaluate: Evaluate) -> None:
        last: list[float] = []

        def report(epoch: int, score: float) -> None:
            if life.lost.is_set():
                raise TrialTakenError
            trial.report(score, epoch)
            last.append(score)
            if trial.should_prune():
                raise optuna.TrialPruned

        number, reason, values = trial.number, None, None
        with _Life(self.storage, self._id(number)) as life:
            try:
                values, state = [float(evaluate(trial, report))], TrialState.COMPLETE
                if not np.isfinite(values[0]):
                    values, state, reason = None, TrialState.FAIL, f"the score is {values[0]}"
            except optuna.TrialPruned:
                values, state = [max(last)], TrialState.PRUNED
            except (TrialTakenError, UpdateFinishedTrialError):
                log.get(__name__).warning(f"trial {trial.user_attrs['slot']}: given to another worker meanwhile")
                return
            except Exception as error:
                # One bad trial is no reason to end a search; what happened stands in its record and in the log.
                state, reason = TrialState.FAIL, f"{type(error).__name__}: {error}"
                log.get(__name__).debug(traceback.format_exc())
        self._finish(number, state, values, reason)
        self._count(state, trial.user_attrs["slot"], values, reason)

    def _count(self, state: TrialState, slot: int, values: list[float] | None, reason: str | None) -> None:
        self.failures = self.failures + 1 if state == TrialState.FAIL else 0
        self.succeeded += state != TrialState.FAIL
        if reason:
            log.get(__name__).warning(f"trial {slot} failed: {reason}")
        else:
            log.get(__name__).info(f"trial {slot}: {values[0]:.4f}" + (", pruned" * (state == TrialState.PRUNED)))
        if self.failures >= _GIVE_UP and not self.succeeded:
            raise SearchError(f"the first {self.failures} trials of this worker all failed, the last one: {reason}")

    def _finish(self, number: int, state: TrialState, values=None, reason: str | None = None) -> bool:
        """Close a trial; False where another worker has done so."""
        try:
            if reason:
                self.storage.set_trial_user_attr(self._id(number), "reason", reason)
            return self.storage.set_trial_state_values(self._id(number), state, values)
        except UpdateFinishedTrialError:
            return False

    def _dead(self, trial: FrozenTrial) -> bool:
        """Whether the process that runs a trial is gone: asked of this machine, or judged by silence elsewhere.

        Silence is measured with this process's own clock: those of two machines differ.
        """
        owner = trial.user_attrs.get("owner")
        if owner and owner["place"] == _place():
            return not _lives(owner)
        beat, now = trial.user_attrs.get("beat"), time.monotonic()
        before, since = self.seen.get(trial.number, (None, now))
        if trial.number not in self.seen or beat != before:
            self.seen[trial.number] = beat, now
            return False
        return now - since > self.patience

    def _id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self.study_id, number)


class _Life:
    """Writes a sign of life into a trial every few seconds, in a thread, while the `with` block lasts."""

    def __init__(self, storage: BaseStorage, identity: int):
        self.storage, self.identity = storage, identity
        self.ended, self.lost = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> _Life:
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.ended.set()
        self.thread.join()

    def _beat(self) -> None:
        beats = 0
        while not self.ended.wait(BEAT):
            beats += 1
            try:
                self.storage.set_trial_user_attr(self.identity, "beat", beats)
            except UpdateFinishedTrialError:
                self.lost.set()
                return
            except Exception as error:  # a file system that is away for a moment; silence is judged by the others
                log.get(__name__).warning(f"no sign of life could be written: {error}")


def _owner() -> dict[str, Any]:
    """The process that runs a trial, and the command that started it."""
    mine, command = ({"pid": found.pid, "since": found.create_time()}
                     for found in (psutil.Process(), psutil.Process(os.getppid())))  # fmt: skip
    return {"place": _place(), **mine, "command": command}


def _by_itself(owner: Mapping[str, Any] | None) -> bool:
    """Whether a worker that is dead died while its command went on. Of another machine that fell silent it did not:
    there, a command that lives has closed the trial itself.
    """
    return bool(owner) and owner["place"] == _place() and _lives(owner["command"])


def _place() -> str:
    """Where process numbers mean the same: a machine, and on Linux a container on it."""
    try:
        return f"{platform.node()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def _lives(owner: Mapping[str, Any]) -> bool:
    try:
        process = psutil.Process(owner["pid"])
        # A number is given to another process in time, and a dead child keeps its own until its parent has asked.
        return abs(process.create_time() - owner["since"]) < 5 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _mend(journal: Path) -> None:
    """Cut off the half line that a machine leaves when it dies while writing: it would spoil the line after it."""
    if not journal.exists() or not journal.stat().st_size:
        return
    lock = JournalFileSymlinkLock(str(journal))
    lock.acquire()
    try:
        with journal.open("rb+") as file:
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)
    finally:
        lock.release()
