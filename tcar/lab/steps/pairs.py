"""Measure the headline method and late concatenation on other pairs of frozen streams.

    tcar pairs params/demo.yaml

A level of `ablation_streams` changes the weights of the streams, the semantic stream, or how many frames they see. The
tokens of all clips are extracted with it, to the grids of the run; both methods are trained on these with its recipe,
and scored on the split that it evaluates on. Each method is compared with itself on the run's own streams, and on every
pair of streams both are compared with one another, by the statistics of the ablations (`tcar.lab.steps.ablations`).
The seeds of a method share clips and streams, and untrained weights are one drawing from the run's seed: the intervals
say nothing of others. What is there already, after a kill too, is not made again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tcar.data.ssv2 import Clip
from tcar.evaluate import over_seeds
from tcar.ground import log
from tcar.lab import params
from tcar.lab.measured import PAIRS
from tcar.lab.params import ParameterError, Params
from tcar.lab.steps.ablations import SCORES, Scores, compared, scores_of
from tcar.lab.steps.apart import packaged_weights, publish
from tcar.lab.steps.clips import class_names, healthy_clips
from tcar.lab.steps.fits import extracted, fit_all
from tcar.lab.steps.fusion import fusion_config
from tcar.lab.steps.methods import scoring
from tcar.lab.steps.replicates import rendered
from tcar.lab.steps.streams import ROLES, with_packaged
from tcar.streams.catalogue import PACKAGED, TIMM
from tcar.streams.packaged import SEEDS, packaged
from tcar.train.tokens import StoredTokens

AS_USED = "as used"  # the level of the run's own streams
RIVAL = "late_concat"  # has the parts of the headline method, and lacks only the reading across
LOG = log.get("pairs")

Name = tuple[str, str]  # a level, a method


@dataclass(frozen=True)
class Pair:
    """A pair of streams: the parameters that state it, and the roles whose weights are random."""

    run: Params
    untrained: tuple[str, ...] = ()


def pairs(run: Params) -> dict[str, Pair]:
    """Give the pair of streams of every level, the run's own first.

    Raises ParameterError: a level that this run cannot have, or that changes nothing.
    """
    return {AS_USED: Pair(run)} | {level: _pair(run, level) for level in run.ablations.ablation_streams}


def _pair(run: Params, level: str) -> Pair:
    if level == "untrained":
        return Pair(run, ROLES)
    if level == "seed1":
        _check_second_training(run)
        return Pair(with_packaged(run, SEEDS[1]))
    if level.startswith(TIMM):
        _check_timm(level)
        return Pair(_with(run, level, {"semantic": level, "semantic_checkpoint": ""}), ("semantic",))
    counts = map(int, level.removeprefix("frames:").split("x"))
    made = _with(run, level, {f"{role}_frames": count for role, count in zip(ROLES, counts, strict=True)})
    if made == run:
        raise ParameterError(f"ablation_streams has {level}, which is what the run itself has: leave it out")
    return Pair(made)


def _with(run: Params, level: str, changes: Mapping[str, Any]) -> Params:
    made = params.from_values(run.as_dict() | changes, source=f"ablation_streams: {level}")
    return replace(made, root=run.root)


def _check_second_training(run: Params) -> None:
    for role in ROLES:
        name, stated = getattr(run.streams, role), getattr(run.streams, f"{role}_checkpoint")
        if name not in PACKAGED or stated:
            raise ParameterError(
                f"ablation_streams has seed1, but {role} is {stated or name}: only the streams that come with the "
                "package have a second training; leave seed1 out"
            )


def _check_timm(level: str) -> None:
    from tcar.streams.registry import stream_spec  # takes seconds

    try:
        stream_spec(level)
    except ValueError as error:
        raise ParameterError(f"ablation_streams has {error}") from None


def tokens_by_level(
    asked: Mapping[str, Pair], clips: Mapping[str, list[Clip]], names: list[str]
) -> dict[str, dict[str, StoredTokens]]:
    """Extract the tokens of the clips of each split with every pair of streams, or open what is there.

    Raises FeatureError, ParameterError, TrainingError: what `tcar.lab.steps.fits.extracted` does.
    """
    found = {}
    for level, pair in asked.items():
        LOG.info(f"tokens, streams {level}")
        found[level] = extracted(pair.run, clips, names, pair.untrained)
    return found


def measure(run: Params, tokens: Mapping[str, Mapping[str, StoredTokens]], names: list[str]) -> dict[Name, Scores]:
    """Train and score the headline method and late concatenation on the tokens of every level.

    Raises TrainingError: a training failed (named).
    """
    methods, found = dict.fromkeys((run.fusion.fusion, RIVAL)), {}
    for level, by_split in tokens.items():
        LOG.info(f"trainings, streams {level}")
        sizes, asked = by_split["train"].widths, by_split[run.evaluation.evaluation_split]
        configs = {
            (level, method): fusion_config(run, method, num_classes=len(names), **sizes) for method in methods
        }
        fits = fit_all(run, configs, run.ablations.pair_seeds, by_split)
        found |= scores_of(run, fits, asked, scoring(run, asked.ids, names))
    return found


def summary(scores: Mapping[Name, Scores], headline: str) -> dict[str, Any]:
    """Put the scores of every level and method together.

    Gives `rows` (`level`, `method`, means over seeds of `top1` and `twin_accuracy` with intervals over twin sets and
    seeds, and `per_seed`), `comparisons` (of a method with itself on the run's own streams: `level`, `method`,
    `metric`, and what `compared` gives, corrected for the number of levels and methods), `over_rival` (the headline
    minus late concatenation on the same streams: `level`, `metric`, and the same, corrected for the number of levels;
    none where it is itself the headline), and `metric`, in which the two are told: top-1 where there are no twins.
    """
    means = {name: over_seeds(score.metrics) for name, score in scores.items()}
    changed = {(level, method): (score, scores[AS_USED, method])
               for (level, method), score in scores.items() if level != AS_USED}  # fmt: skip
    levels = dict.fromkeys(level for level, _ in scores) if headline != RIVAL else ()
    against = {level: (scores[level, headline], scores[level, RIVAL]) for level in levels}
    return {
        "rows": [
            {"level": level, "method": method, **{metric: mean[metric] for metric in SCORES}}
            | {"per_seed": {metric: mean["per_seed"][metric] for metric in SCORES}}
            for (level, method), mean in means.items()
        ],
        "comparisons": [
            {"level": level, "method": method, **row}
            for metric in SCORES for (level, method), row in compared(changed, metric).items()
        ],
        "over_rival": [
            {"level": level, **row} for metric in SCORES for level, row in compared(against, metric).items()
        ],
        "metric": [metric for metric in SCORES if means[AS_USED, headline][metric]["value"] is not None][-1],
    }  # fmt: skip


def build(run: Params) -> Path:
    """Measure the pairs of streams and write `pairs.json`; gives its path.

    Tabletop is rendered where it is not there yet; of another dataset, notebook 00 has audited the clips. Raises
    ParameterError before anything is made where a level cannot be, FeatureError, TrainingError; ResultError without an
    audit.
    """
    if not run.ablations.ablation_streams:
        raise ParameterError("ablation_streams is empty: name a pair of streams, such as untrained")
    asked, seeds = pairs(run), run.ablations.pair_seeds
    if run.data.dataset == "tabletop":
        clips, names = rendered(run)
    else:
        clips, names = healthy_clips(run), class_names(run)
    scores = measure(run, tokens_by_level(asked, clips, names), names)
    values = {
        "headline": run.fusion.fusion, "rival": RIVAL, "dataset": run.data.dataset, "seeds": seeds,
        "split": run.evaluation.evaluation_split, "alpha": round(1 - run.evaluation.confidence, 6),
        **summary(scores, run.fusion.fusion),
    }  # fmt: skip
    return publish(run, PAIRS, values, seeds=seeds, inputs=_weights(run, asked))


def _weights(run: Params, levels: Iterable[str]) -> list[Path]:
    """The weights of the package that a result depends on."""
    second = [packaged(getattr(run.streams, role), SEEDS[1]) for role in ROLES] if "seed1" in levels else []
    return [*packaged_weights(run), *second]
