"""The search of a run: fits on its cached tokens as trials, and what came out of it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState

from tcar.evaluate import holm, paired, student
from tcar.fusion.kinds import fusion_cost
from tcar.ground import locks, sources
from tcar.lab import measured, results
from tcar.lab.search import Found, Score, search
from tcar.lab.search.space import SearchSettings, described, load_settings, write_params
from tcar.lab.search.study import Report, SearchError
from tcar.lab.steps import apart
from tcar.lab.steps.clips import class_names
from tcar.lab.steps.fits import LEARNING, Job, tokens_of
from tcar.lab.steps.fusion import fusion_config
from tcar.train.trainer import train

if TYPE_CHECKING:
    from tcar.lab.params import Params
    from tcar.train.tokens import StoredTokens

FILE = "params/search.yaml"


class TokenScore:
    """Scores parameters by training their fusion on stored tokens: the best epoch's validation top-1."""

    def __init__(self, tokens: Mapping[str, StoredTokens], num_classes: int):
        self.tokens, self.num_classes = tokens, num_classes

    def __call__(self, proposed: Params, seed: int, report: Report) -> float:
        """Train once. Raises ValueError: a fusion that cannot be built, or has too many trained parameters."""
        fusion = fusion_config(proposed, num_classes=self.num_classes, **self.tokens["train"].widths)
        shape = [len(xyz) for xyz in self.tokens["train"].coordinates.values()]
        trained = fusion_cost(fusion, *shape)["trained_parameters"]
        if trained > (allowed := proposed.fusion.max_trained_parameters):
            raise ValueError(f"{trained:,} trained parameters, max_trained_parameters is {allowed:,}")
        task = Job(proposed, fusion, seed).task(self.tokens)
        # A trial that dies is begun anew, so nothing of it is kept.
        with tempfile.TemporaryDirectory(prefix="tcar-trial-") as folder:
            done = train(task, folder, [_Reporter(report)])
        return done.history[done.best_epoch - 1]["validation_top1"]


class _Reporter:
    """Tells a search of each epoch; what the search raises then, to prune a trial, ends the training. A Watcher."""

    def __init__(self, report: Report):
        self.report = report

    def start(self, run: dict) -> None:
        """Need nothing of it."""

    def step(self, row: dict[str, float]) -> None:
        """Let every step pass."""

    def epoch(self, row: dict[str, float]) -> None:
        """Report the accuracy of an epoch."""
        self.report(row["epoch"], row["validation_top1"])

    def end(self, reason: str) -> None:
        """Need nothing of it."""


def token_score(settings: SearchSettings) -> Score:
    """The score of a run's tokens, opened in the process that calls this."""
    return TokenScore(tokens_of(settings.base, *LEARNING), len(class_names(settings.base)))


def identity(tokens: Mapping[str, StoredTokens]) -> dict[str, str]:
    """What a score on tokens depends on besides the parameters."""
    made = {split: tokens[split].digest for split in LEARNING}
    code = sources.code_digest("tcar.train.trainer", "tcar.train.tasks", "tcar.lab.steps.fusion")
    return made | {"code": code, "torch": results.versions()["torch"]}


def run_search(settings: SearchSettings, workers: int = 1, make_score=token_score, data: dict | None = None) -> dict:
    """Search on a run's tokens, write the outcome and the winner's parameter file, and give the outcome.

    data: the identity of what `make_score` scores on, where that is not the run's tokens.
    Raises SearchError, ParameterError, ResultError (nothing was extracted yet).
    """
    data = data or identity(tokens_of(settings.base, *LEARNING))
    record = outcome(settings, search(settings, make_score, data, workers))
    # Searches share their study; what comes of it is written by one at a time, after whatever the run is busy with.
    with locks.of_run(settings.base.run_dir, SearchError, math.inf):
        file = write_params(settings, record["winner"]["changes"], _remarks(record))
        record["written"] = results.relative(file, settings.base.root)
        results.save(settings.folder / f"{settings.name}.json", record, params=settings.base, seeds=settings.seeds,
                     inputs=[file])  # fmt: skip
    return record


def publish(settings: SearchSettings, record: dict) -> Path:
    """Write an outcome where notebooks and paper look for it, and give the path."""
    base = settings.base
    with locks.of_run(base.run_dir, SearchError, math.inf):
        return apart.publish(base, measured.SEARCH, record, seeds=settings.seeds, inputs=apart.packaged_weights(base))


def published(run: Params) -> dict | None:
    """Give the outcome of the search that `tcar search` made for these parameters, or None."""
    path = measured.find(run, measured.SEARCH)
    return results.load(path) if path else None


def settings_of(run: Params) -> SearchSettings:
    """The search that the parameter `search_trials` of a run asks for: params/search.yaml, about this run."""
    return load_settings(Path(run.root, FILE), base=run, trials=run.search.search_trials)


def searched(run: Params) -> dict | None:
    """Search where `search_trials` of a run asks for it, else give what the command has found for its parameters.

    None where it has found nothing. Raises what `run_search` raises.
    """
    return run_search(settings_of(run), run.workers) if run.search.search_trials else published(run)


def outcome(settings: SearchSettings, found: Found) -> dict[str, Any]:
    """Write down a finished search as values: its trials, what mattered, the finalists, and winner against base.

    The winner is the finalist of the best mean over the seeds, the base not among them. Mean and interval are by
    Student's t, the comparison by a paired t-test over the same seeds, on validation. As the winner was picked by the
    same scores, it beats the base only if the p corrected for the number of finalists (Holm 1979) says so too.
    Raises SearchError: a training of the base or of all finalists failed.
    """
    rows = [{"changes": changes, "scores": dict(zip(map(str, settings.seeds), scores, strict=True))}
            for changes, scores in found.finalists]  # fmt: skip
    whole = [row for row in rows if None not in row["scores"].values()]
    if rows[0] not in whole or len(whole) < 2:
        raise SearchError("a training of the base or of every finalist failed; the log says why")
    confidence = settings.base.evaluation.confidence
    for row in whole:
        row |= student(np.array(list(row["scores"].values())), confidence)
    base, *others = whole
    tops = [np.array(list(row["scores"].values())) for row in whole]
    comparisons = [paired(top1, tops[0], confidence) for top1 in tops[1:]]
    for row, corrected in zip(comparisons, holm([row["p"] for row in comparisons]), strict=True):
        row["holm"] = corrected
    winner, comparison = max(zip(others, comparisons, strict=True), key=lambda pair: pair[0]["value"])
    return {
        "name": settings.name, "dataset": settings.base.data.dataset, "sampler": settings.sampler,
        "pruner": settings.pruner, "trial": settings.trial, "space": settings.shown_space,
        "seeds": list(settings.seeds), "confidence": confidence, "trials": [_trial(trial) for trial in found.trials],
        "importance": importance(found, settings), "base": base, "finalists": rows[1:], "winner": winner,
        "comparison": comparison, "beats_base": bool(comparison["low"] > 0 and comparison["holm"] < 1 - confidence),
    }  # fmt: skip


def importance(found: Found, settings: SearchSettings) -> dict[str, float]:
    """The share of each parameter in how the trials' scores differ, from the trials that were not pruned.

    By functional ANOVA over a random forest (Hutter et al. 2014); empty where all scores are the same, or no parameter
    has two values.
    """
    complete = [trial for trial in found.trials if trial.state == TrialState.COMPLETE]
    if len({trial.value for trial in complete}) < 2 or not _varied(complete):
        return {}
    evaluator = FanovaImportanceEvaluator(seed=settings.seed)
    return get_param_importances(found.study, evaluator=evaluator, params=_varied(complete))


def sentence(record: dict) -> str:
    """Say in words what a search found, and whether its winner is better than the base."""
    states = [trial["state"] for trial in record["trials"]]
    words = {"complete": "finished", "pruned": "pruned", "fail": "failed"}
    counts = ", ".join(f"{states.count(state)} {word}" for state, word in words.items() if state in states)
    winner, base, test, finalists = (record[key] for key in ("winner", "base", "comparison", "finalists"))
    compared = (f"{winner['value']:.1%} against {base['value']:.1%} validation top-1, {len(record['seeds'])} seeds: "
                f"{100 * test['difference']:+.1f} points ({100 * test['low']:+.1f} to {100 * test['high']:+.1f}, "
                f"p = {test['p']:.2g}, paired; {test['holm']:.2g} corrected for {len(finalists)} "
                f"finalist{'s' * (len(finalists) > 1)})")  # fmt: skip
    verdict = "The winner beats the base" if record["beats_base"] else "The winner does not beat the base"
    if not record["beats_base"] and test["high"] < 0:
        verdict = "The winner is worse than the base"
    return f"{len(states)} trials: {counts}. {verdict}: {compared}. Winner: {described(winner['changes'])}."


def _remarks(record: dict) -> list[str]:
    data = "Tabletop, synthetic" if record["dataset"] == "tabletop" else record["dataset"]
    remarks = [f"from a search of {len(record['trials'])} trials ({record['sampler']}; {data}).", sentence(record)]
    if not record["beats_base"]:
        remarks.append("So there is no reason to prefer this file to the one it was made from.")
    return remarks


def _varied(complete: list) -> list[str]:
    return [key for key in complete[0].params if len({trial.params[key] for trial in complete}) > 1]


def _trial(trial) -> dict[str, Any]:
    curve = [trial.intermediate_values[epoch] for epoch in sorted(trial.intermediate_values)]
    kept = {"slot": trial.user_attrs["slot"], "attempt": trial.user_attrs["attempt"]}
    return kept | {"state": trial.state.name.lower(), "score": trial.value, "changes": trial.params, "curve": curve,
                   "reason": trial.user_attrs.get("reason", "")}  # fmt: skip
