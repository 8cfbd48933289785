"""Notebook 05: one factor at a time is changed from the headline method, trained, scored, and compared with it.

A factor changes the fusion, or the tokens that it is given: a coarser grid of one stream, averaged from the tokens that
are stored. Other streams are a matter of `tcar.lab.steps.pairs`, which scores and compares as here.
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
from tcar.lab.steps.fits import Fit, Name, fit_all
from tcar.lab.steps.fusion import fusion_config
from tcar.lab.steps.methods import scored, scoring
from tcar.lab.steps.streams import ROLES
from tcar.lab.steps.units import by_set, clip_units, right, shares, twin_units
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

Grid = tuple[int, int, int]
Level = tuple[str, str]  # of a factor


@dataclass(frozen=True)
class Source:
    """The tokens that a variant is trained on: `grids` are coarser than those stored, by role."""

    grids: tuple[tuple[str, Grid], ...] = ()


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
    return found | {("streams", one): Variant(config(one)) for one in (*ROLES, method)}


def _levels(own: Any, stated: Sequence) -> list:
    """The levels of a factor with that of the headline; none where no other is stated."""
    if not set(stated) - {own}:
        return []
    return list(stated) if own in stated else [own, *stated]


def tokens_by_source(
    asked: Mapping[Level, Variant], tokens: Mapping[str, StoredTokens]
) -> dict[Source, dict[str, StoredTokens]]:
    """Give the tokens of each split for every source that is asked for, the run's own (`tokens`) first.

    Raises FeatureError: a grid is not coarser than that of the stored tokens.
    """
    sources = dict.fromkeys([OWN, *(variant.source for variant in asked.values())])
    return {source: _averaged(source, tokens) for source in sources}


def _averaged(source: Source, tokens: Mapping[str, StoredTokens]) -> dict[str, StoredTokens]:
    for role, grid in source.grids:
        tokens = {split: replace(one, **{role: PooledStore(getattr(one, role), grid)}) for split, one in tokens.items()}
    return dict(tokens)


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
        chosen = {v: done for v, done in fits.items() if v.source == source}
        found |= scores_of(run, chosen, tokens, scoring(run, tokens.ids))
    return found


def scores_of(
    run: Params, fits: Mapping[Name, Sequence[Fit]], tokens: StoredTokens, known: Scoring
) -> dict[Name, Scores]:
    """Score fits on the tokens of one split, of whose clips this is `known`."""
    return {
        name: Scores([metrics(one, tokens.labels, known) for one in logits], right(logits, tokens.labels), known)
        for name, logits in scored(run, fits, tokens).items()
    }


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

    What a difference has is as in `compared`, corrected for the number of variants, as one may have several names.
    """
    own, rows = headline_of(asked), []
    names = {factor: level for (factor, level), variant in asked.items() if variant == own}
    for metric in SCORES:
        found = compared({v: (score, scores[own]) for v, score in scores.items() if v != own}, metric)
        rows += [
            {"factor": factor, "level": level, "against": names[factor], **found[variant]}
            for (factor, level), variant in asked.items()
            if variant != own
        ]
    return rows


def compared(pairs: Mapping[Name, tuple[Scores, Scores]], metric: str) -> dict[Name, dict]:
    """Compare scores a and b of the same clips, as often as there are names: `metric` and the `difference` a - b.

    `low` and `high` are of the bootstrap over twin sets and seeds; `p` of the paired t-test over twin sets, of the mean
    over seeds, and `holm` is corrected for the number of comparisons (Holm 1979).
    """
    found = {name: _compared(*pair, metric) for name, pair in pairs.items()}
    corrected = holm([row["p"] for row in found.values()])
    return {name: row | {"holm": p} for (name, row), p in zip(found.items(), corrected, strict=True)}


def _compared(a: Scores, b: Scores, metric: str) -> dict:
    difference = paired_difference(a.metrics, b.metrics, metric)  # which refuses scores of other clips
    return difference | {"p": paired(a.by_set(metric), b.by_set(metric), a.known.bootstrap.confidence)["p"]}
