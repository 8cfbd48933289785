"""The search for better parameters: `tcar search params/search.yaml [--workers 2] [--trials 20]`.

Trials are trained with one seed and judged on validation; the best of them and the base are then trained with several
seeds. The command can be killed and started again, and may run on several machines at once that reach its storage:
they share one study (`tcar.lab.search.study`), so no trial is lost and none is done twice. Random and grid proposals
are the same whoever makes them; TPE learns from what is finished at that moment, so with several workers it depends on
timing, as pruning does.
"""

from __future__ import annotations

import itertools
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any
from uuid import uuid4

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from tcar.ground import log
from tcar.ground.processes import end_with_parent
from tcar.lab import results
from tcar.lab.params import Params
from tcar.lab.search.space import SearchSettings, grid
from tcar.lab.search.study import POLL, Plan, Report, SearchError, open_storage, open_study, work

# Trains at these parameters with this seed, reports (epoch, score) on the way, and gives the score.
Score = Callable[[Params, int, Report], float]
Slots = list[tuple[dict[str, Any], dict[str, Any]]]
LOG = log.get(__name__)
_STARTUP = 5  # trials that are never pruned, because there is nothing yet to compare with


@dataclass(frozen=True)
class Found:
    """A finished search: its trials in the order of their slots, and each finalist's scores, one a seed.

    `finalists` begins with the base, whose changes are {}; a score is None where that training failed.
    """

    trials: list[FrozenTrial]
    finalists: list[tuple[dict[str, Any], list[float | None]]]
    study: optuna.Study


def search(settings: SearchSettings, make_score: Callable[[SearchSettings], Score], identity: Mapping[str, Any],
           workers: int = 1) -> Found:
    """Do what is missing of a search, in so many processes, and give all of it.

    make_score: a function of a module, called once in every process. identity: what the scores depend on besides the
    settings (tokens, code); a search goes on only where it is the same.
    Raises SearchError: begun in another way, no trial succeeded, all workers died, a storage that cannot be used.
    """
    storage = open_storage(settings.address, settings.patience)
    given = {**settings.definition(), **{f"data.{key}": value for key, value in identity.items()}}
    study = open_study(storage, settings.name, given)
    trials = _together(settings, study, [(fixed, {}) for fixed in _fixed(settings)], make_score, workers)
    chosen = [{}, *best(trials, settings.finalists)]
    # Other finalists (after more trials, say) are a study of their own; what both have in common is trained again.
    named = f"{settings.name}, finalists {results.digest([chosen, settings.seeds])}"
    finals = open_study(storage, named, given | {"finalists": chosen, "seeds": list(settings.seeds)})
    slots = [({}, {"changes": changes, "seed": seed}) for changes in chosen for seed in settings.seeds]
    done = _together(settings, finals, slots, make_score, workers)
    scores = [trial.value if trial.state == TrialState.COMPLETE else None for trial in done]
    rows = [scores[start : start + len(settings.seeds)] for start in range(0, len(slots), len(settings.seeds))]
    return Found(trials, list(zip(chosen, rows, strict=True)), study)


def best(trials: list[FrozenTrial], count: int) -> list[dict[str, Any]]:
    """The parameters of the best finished trials, each once; equal scores go to the earlier trial.

    Raises SearchError: none was finished without being pruned.
    """
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        reasons = [trial.user_attrs.get("reason", "pruned") for trial in trials]
        raise SearchError(f"none of {len(trials)} trials succeeded; the last one: {reasons[-1]}")
    found: list[dict[str, Any]] = []
    for trial in sorted(complete, key=lambda trial: -trial.value):
        if trial.params not in found:
            found.append(trial.params)
    return found[:count]


def suggest(trial: optuna.Trial, settings: SearchSettings) -> dict[str, Any]:
    """The parameters of the space that a trial proposes."""
    values = {}
    for key, given in settings.space.items():
        if isinstance(given, CategoricalDistribution):
            values[key] = trial.suggest_categorical(key, given.choices)
        else:
            draw = trial.suggest_int if isinstance(given, IntDistribution) else trial.suggest_float
            values[key] = draw(key, given.low, given.high, step=given.step, log=given.log)
    return values


def sampler_of(settings: SearchSettings, slot: int) -> BaseSampler:
    """The sampler of one slot, seeded by it; a grid's slots have their values already."""
    seed = int(np.random.SeedSequence([settings.seed, slot]).generate_state(1)[0])
    return TPESampler(seed=seed) if settings.sampler == "tpe" else RandomSampler(seed=seed)


def take_part(settings: SearchSettings, name: str, slots: Slots, score: Score, worker: str = "") -> None:
    """Work in this process on the study of that name until its slots are finished.

    Raises SearchError: the first trials failed one after the other.
    """
    storage = open_storage(settings.address, settings.patience)
    final = name != settings.name
    pruner = _pruner("none" if final else settings.pruner, settings.proposed({}).training.warmup_epochs + 1)
    study = optuna.load_study(study_name=name, storage=storage, pruner=pruner)

    def evaluate(trial: optuna.Trial, report: Report) -> float:
        if final:
            changes, seed = trial.user_attrs["changes"], trial.user_attrs["seed"]
        else:
            changes, seed = suggest(trial, settings), settings.seed
        return score(settings.proposed(changes, final), seed, report)

    work(Plan(study, slots, settings.attempts), evaluate, partial(sampler_of, settings), worker)


def _pruner(name: str, first: int) -> BasePruner:
    """A pruner that lets every trial reach the epoch `first`: while the rate warms up, a low one only looks worse."""
    if name == "median":
        return MedianPruner(_STARTUP, n_warmup_steps=first)
    return SuccessiveHalvingPruner(min_resource=first, reduction_factor=2) if name == "halving" else NopPruner()


def _fixed(settings: SearchSettings) -> list[dict[str, Any]]:
    return grid(settings)[: settings.trials] if settings.sampler == "grid" else [{}] * settings.trials


def _together(settings: SearchSettings, study: optuna.Study, slots: Slots, make_score: Callable, workers: int
              ) -> list[FrozenTrial]:  # fmt: skip
    """Let worker processes finish the slots, show how far they are, and give the trials in the order of the slots."""
    plan = Plan(study, slots, settings.attempts)
    missing = len(slots) - len(plan.finished())
    LOG.info(f"{study.study_name}: {len(slots)} trials, {missing} of them to do")
    if not missing:
        return plan.finished()
    context = multiprocessing.get_context("spawn")  # a fork of a process that has threads may hang
    lifeline, end = context.Pipe(duplex=False)
    given = settings, study.study_name, slots, make_score, lifeline
    processes = [context.Process(target=_process, args=given, name=uuid4().hex) for _ in range(min(workers, missing))]
    try:
        for process in processes:
            process.start()
        for _ in log.progress(_until_finished(plan, processes), missing, study.study_name, "trials"):
            pass
    finally:
        end.close()  # a worker without its parent ends
        for process in processes:
            process.join()
    return plan.finished()


def _until_finished(plan: Plan, processes: list[SpawnProcess]) -> Iterator[None]:
    """Wait, one step a trial, and close at once what a worker leaves that dies, as for want of memory."""
    done = len(plan.finished())
    while done < len(plan.slots):
        # Asked before the count, so that what the last worker did is counted.
        dead = [process.name for process in processes if not process.is_alive()]
        for name in dead:
            plan.bury(name)
        now = len(plan.finished())
        yield from itertools.repeat(None, now - done)
        done = now
        if done < len(plan.slots):
            if len(dead) == len(processes):
                raise SearchError(f"all workers ended before {len(plan.slots) - done} trials were done; the log says "
                                  "why. The same command goes on from here")
            time.sleep(POLL)


def _process(settings: SearchSettings, name: str, slots: Slots, make_score: Callable, lifeline: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers an interrupt
    end_with_parent(lifeline)
    log.configure(settings.base.common.log_level)
    try:
        take_part(settings, name, slots, make_score(settings), multiprocessing.current_process().name)
    except SearchError as error:
        LOG.error(str(error))
        sys.exit(1)
