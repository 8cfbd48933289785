"""Notebook 05: one factor at a time is changed from the headline method, trained, scored, and compared with it.

A factor changes the fusion, or the tokens that it is given: a coarser grid of one stream, averaged from the tokens that
are stored, or those of other streams, which are extracted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from tcar.evaluate import Metrics, Scoring, holm, metrics, over_seeds, paired, paired_difference
from tcar.features.pooled import PooledStore
from tcar.fusion.kinds import FusionConfig, fusion_cost
from tcar.lab.steps.clips import class_names, healthy_clips
from tcar.lab.steps.fits import Fit, fit_all
from tcar.lab.steps.fusion import fusion_config
from tcar.lab.steps.methods import scored, scoring
from tcar.lab.steps.streams import ROLES, extract, stores, with_packaged
from tcar.lab.steps.units import by_set, clip_units, right, shares, twin_units
from tcar.streams.packaged import SEEDS
from tcar.train.tokens import StoredTokens

if TYPE_CHECKING:
    from tcar.lab.params import Params

# The factors whose levels are methods, and the parameters that have them.
KINDS = {"fusion": "ablation_fusions", "direction": "ablation_directions"}
# The other factors of the fusion: the parameter that has the levels, the field of the configuration that they change.
FACTORS = {
    "window": ("ablation_windows", "window"),
    "positions": ("ablation_positions", "positions"),
    "fusion_blocks": ("ablation_fusion_blocks", "blocks"),
    "self_blocks": ("ablation_self_blocks", "self_blocks"),
    "heads": ("ablation_heads", "heads"),
}
SCORES = ("top1", "twin_accuracy")
AS_USED = "as used"  # the level of the run's own streams

Grid = tuple[int, int, int]
Level = tuple[str, str]  # of a factor


@dataclass(frozen=True)
class Source:
    """The tokens that a variant is trained on: `grids` are coarser than those stored, by role; `streams` names others
    than the run's (`ablation_streams`).
    """

    grids: tuple[tuple[str, Grid], ...] = ()
    streams: str = ""


OWN = Source()


@dataclass(frozen=True)
class Variant:
    """What a level of a factor stands for: a fusion, and its tokens."""

    fusion: FusionConfig
    source: Source = OWN


def variants(run: Params, **sizes: int) -> dict[Level, Variant]:
    """Give the variant of every (factor, level): one factor changes, all else is as in the headline method.

    The headline's own level is among those of each factor; `sizes` as in `fusion_config`.
    """
    config, varied = partial(fusion_config, run, **sizes), run.ablations
    headline, method, found = config(), run.fusion.fusion, {}
    for factor, key in KINDS.items():
        found |= {(factor, level): Variant(config(level)) for level in _levels(method, getattr(varied, key))}
    for factor, (key, name) in FACTORS.items():
        for level in _levels(getattr(headline, name), getattr(varied, key)):
            found[factor, str(level)] = Variant(replace(headline, **{name: level}))
    for role in ROLES:
        own = "x".join(map(str, getattr(run.streams, f"{role}_grid")))
        for level in _levels(own, getattr(varied, f"ablation_{role}_grids")):
            source = OWN if level == own else Source(grids=((role, tuple(map(int, level.split("x")))),))
            found[f"{role}_grid", level] = Variant(headline, source)
    for level in _levels(AS_USED, varied.ablation_streams):
        source = OWN if level == AS_USED else Source(streams=level)
        found["stream_weights", level] = Variant(config(**_widths(level)), source)
    return found | {("streams", one): Variant(config(one)) for one in (*ROLES, method)}


def _levels(own: Any, stated: Sequence) -> list:
    """The levels of a factor with that of the headline; none where no other is stated."""
    if not set(stated) - {own}:
        return []
    return list(stated) if own in stated else [own, *stated]


def _widths(level: str) -> dict[str, int]:
    """The widths of tokens that other streams change."""
    if not level.startswith("timm:"):
        return {}
    from tcar.streams.registry import stream_spec  # takes seconds

    return {"semantic_width": stream_spec(level).width}


def tokens_by_source(
    run: Params, asked: Mapping[Level, Variant], tokens: Mapping[str, StoredTokens]
) -> dict[Source, dict[str, StoredTokens]]:
    """Give the tokens of each split for every source that is asked for, the run's own (`tokens`) first.

    Those of other streams are extracted. Raises FeatureError, ParameterError.
    """
    found = {OWN: dict(tokens)}
    for variant in asked.values():
        if variant.source not in found:
            found[variant.source] = _tokens(run, variant.source, tokens)
    return found


def _tokens(run: Params, source: Source, tokens: Mapping[str, StoredTokens]) -> dict[str, StoredTokens]:
    if source.streams:
        made, names = other_stores(run, source.streams), class_names(run)
        clips = healthy_clips(run, *tokens)
        return {split: StoredTokens.of(*made, found, names) for split, found in clips.items()}
    for role, grid in source.grids:
        tokens = {split: replace(one, **{role: PooledStore(getattr(one, role), grid)}) for split, one in tokens.items()}
    return dict(tokens)


def other_stores(run: Params, level: str) -> list:
    """Extract the tokens of all clips with other streams (a level of `ablation_streams`), or open what is there.

    Gives the stores of the semantic and the motion stream. Random weights are drawn from the run's seed.
    """
    used, roles, untrained = run, ROLES, ()
    if level.startswith("timm:"):
        roles = untrained = ("semantic",)
        used = replace(run, streams=replace(run.streams, semantic=level, semantic_checkpoint=""))
    elif level == "untrained":
        untrained = ROLES
    else:
        used = with_packaged(run, SEEDS[1])
    made = stores(run) | extract(used, healthy_clips(run), roles, untrained=untrained)
    return [made[role] for role in ROLES]


def fit_variants(
    run: Params, asked: Mapping[Level, Variant], sources: Mapping[Source, Mapping[str, StoredTokens]]
) -> dict[Variant, list[Fit]]:
    """Train every variant with every seed of the ablations, what is kept already not again."""
    fits = {}
    for source, tokens in sources.items():
        configs = {variant: variant.fusion for variant in asked.values() if variant.source == source}
        fits |= fit_all(run, configs, run.ablations.ablation_seeds, tokens)
    return fits


@dataclass(frozen=True, eq=False)
class Scores:
    """What a variant reaches, seed by seed: `metrics`, and which clips are `named` rightly, whose sets and twins are
    `known`.
    """

    metrics: list[Metrics]
    named: Bool[np.ndarray, "s n"]
    known: Scoring

    def by_set(self, metric: str) -> Float[np.ndarray, " g"]:
        """What each twin set adds to a metric, mean over seeds: the mean over sets is the metric. Clips without sets
        are sets of their own.
        """
        count = self.named.shape[1]
        twins = np.full(count, -1) if self.known.twins is None else self.known.twins
        units = clip_units(count) if metric == "top1" else twin_units(twins)
        sets = np.arange(count) if self.known.sets is None else np.array(self.known.sets)
        return by_set(shares(self.named, units), sets[units[0]])


def score_variants(
    run: Params, fits: Mapping[Variant, Sequence[Fit]], sources: Mapping[Source, Mapping[str, StoredTokens]]
) -> dict[Variant, Scores]:
    """Score every fit on the scored split."""
    found = {}
    for source, by_split in sources.items():
        tokens = by_split[run.evaluation.evaluation_split]
        known, chosen = scoring(run, tokens.ids), {v: done for v, done in fits.items() if v.source == source}
        for variant, logits in scored(run, chosen, tokens).items():
            made = [metrics(one, tokens.labels, known) for one in logits]
            found[variant] = Scores(made, right(logits, tokens.labels), known)
    return found


def ablation_rows(
    asked: Mapping[Level, Variant], fits: Mapping[Variant, Sequence[Fit]], scores: Mapping[Variant, Scores],
    sources: Mapping[Source, Mapping[str, StoredTokens]],
) -> list[dict]:  # fmt: skip
    """Give a row for each level and seed: what it reached (fractions; `per_group` twin accuracy), and what it costs."""
    rows = []
    for (factor, level), variant in asked.items():
        shape = [len(xyz) for xyz in sources[variant.source]["train"].coordinates.values()]
        cost = fusion_cost(variant.fusion, *shape)
        for fit, score in zip(fits[variant], scores[variant].metrics, strict=True):
            groups = {group: entry["twin_accuracy"]["value"] for group, entry in score["per_group"].items()}
            rows.append(
                {"factor": factor, "level": level, "seed": fit.seed}
                | {metric: score[metric]["value"] for metric in SCORES}
                | {"per_group": groups, "gflops": cost["gflops"], "trainable_parameters": cost["trained_parameters"]}
            )
    return rows


def summary(asked: Mapping[Level, Variant], scores: Mapping[Variant, Scores]) -> list[dict]:
    """Give the means over seeds of each level, with intervals over clips and seeds; `headline` tells its own levels."""
    means, own = {variant: over_seeds(score.metrics) for variant, score in scores.items()}, headline_of(asked)
    return [
        {"factor": factor, "level": level, "headline": variant == own}
        | {metric: means[variant][metric] for metric in SCORES}
        for (factor, level), variant in asked.items()
    ]


def headline_of(asked: Mapping[Level, Variant]) -> Variant:
    """Give the variant that nothing is changed of: `variants` has it last."""
    return list(asked.values())[-1]


def comparisons(asked: Mapping[Level, Variant], scores: Mapping[Variant, Scores]) -> list[dict]:
    """Compare each level with the headline on the same clips: rows of factor, level, `against`, metric and difference.

    `low` and `high` are of the bootstrap over twin sets and seeds; `p` of the paired t-test over twin sets, of the mean
    over seeds, and `holm` is corrected for the number of variants (Holm 1979), as one may have several names.
    """
    own, rows = headline_of(asked), []
    names = {factor: level for (factor, level), variant in asked.items() if variant == own}
    for metric in SCORES:
        found = {
            variant: _compared(score, scores[own], metric) for variant, score in scores.items() if variant != own
        }
        corrected = holm([row["p"] for row in found.values()])
        found = {v: row | {"holm": p} for (v, row), p in zip(found.items(), corrected, strict=True)}
        rows += [
            {"factor": factor, "level": level, "against": names[factor], **found[variant]}
            for (factor, level), variant in asked.items()
            if variant != own
        ]
    return rows


def _compared(a: Scores, b: Scores, metric: str) -> dict:
    test = paired(a.by_set(metric), b.by_set(metric), a.known.bootstrap.confidence)
    return paired_difference(a.metrics, b.metrics, metric) | {"p": test["p"]}
