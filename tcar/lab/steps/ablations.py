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
from jaxtyping import Float

from tcar.evaluate import Metrics, holm, metrics, over_seeds, paired, paired_difference
from tcar.features.pooled import PooledStore
from tcar.fusion.kinds import FusionConfig, fusion_cost
from tcar.lab.steps.clips import class_names, healthy_clips
from tcar.lab.steps.fits import Fit, fit_all
from tcar.lab.steps.fusion import fusion_config
from tcar.lab.steps.methods import scored, scoring
from tcar.lab.steps.streams import ROLES, extract, stores, with_packaged
from tcar.streams.packaged import SEEDS
from tcar.train.tokens import StoredTokens

if TYPE_CHECKING:
    from tcar.lab.params import Params

# The factors of the fusion: the parameter that has the levels, the field of the configuration that they change.
FACTORS = {
    "fusion": ("ablation_fusions", "kind"),
    "direction": ("ablation_directions", "kind"),
    "window": ("ablation_windows", "window"),
    "positions": ("ablation_positions", "positions"),
    "fusion_blocks": ("ablation_fusion_blocks", "blocks"),
    "self_blocks": ("ablation_self_blocks", "self_blocks"),
    "heads": ("ablation_heads", "heads"),
}
METRICS = ("top1", "twin_accuracy")
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
    headline = config()
    found = {}
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
    return found | {("streams", kind): Variant(replace(headline, kind=kind)) for kind in (*ROLES, headline.kind)}


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


def score_variants(
    run: Params, fits: Mapping[Variant, Sequence[Fit]], sources: Mapping[Source, Mapping[str, StoredTokens]]
) -> dict[Variant, list[Metrics]]:
    """Score every fit on the scored split: metrics by variant, one a seed."""
    found = {}
    for source, by_split in sources.items():
        tokens = by_split[run.evaluation.evaluation_split]
        settings, chosen = scoring(run, tokens.ids), {v: done for v, done in fits.items() if v.source == source}
        for variant, logits in scored(run, chosen, tokens).items():
            found[variant] = [metrics(one, tokens.labels, settings) for one in logits]
    return found


def ablation_rows(
    asked: Mapping[Level, Variant], fits: Mapping[Variant, Sequence[Fit]], scores: Mapping[Variant, Sequence[Metrics]],
    sources: Mapping[Source, Mapping[str, StoredTokens]],
) -> list[dict]:  # fmt: skip
    """Give a row for each level and seed: what it reached (fractions; `per_group` twin accuracy), and what it costs."""
    rows = []
    for (factor, level), variant in asked.items():
        shape = [len(xyz) for xyz in sources[variant.source]["train"].coordinates.values()]
        cost = fusion_cost(variant.fusion, *shape)
        for fit, score in zip(fits[variant], scores[variant], strict=True):
            groups = {group: entry["twin_accuracy"]["value"] for group, entry in score["per_group"].items()}
            rows.append(
                {"factor": factor, "level": level, "seed": fit.seed}
                | {metric: score[metric]["value"] for metric in METRICS}
                | {"per_group": groups, "gflops": cost["gflops"], "trainable_parameters": cost["trained_parameters"]}
            )
    return rows


def summary(asked: Mapping[Level, Variant], scores: Mapping[Variant, Sequence[Metrics]]) -> list[dict]:
    """Give the means over seeds of each level, with intervals over clips and seeds; `headline` tells its own levels."""
    means, own = {variant: over_seeds(seeds) for variant, seeds in scores.items()}, headline_of(asked)
    return [
        {"factor": factor, "level": level, "headline": variant == own}
        | {metric: means[variant][metric] for metric in METRICS}
        for (factor, level), variant in asked.items()
    ]


def headline_of(asked: Mapping[Level, Variant]) -> Variant:
    """Give the variant that nothing is changed of: `variants` has it last."""
    return list(asked.values())[-1]


def comparisons(asked: Mapping[Level, Variant], scores: Mapping[Variant, Sequence[Metrics]]) -> list[dict]:
    """Compare each level with the headline on the same clips: rows of factor, level, `against`, metric and difference.

    `low` and `high` are of the bootstrap over twin sets and seeds; `p` of the paired t-test over twin sets, of the mean
    over seeds, and `holm` is corrected for the number of variants (Holm 1979), as one may have several names.
    """
    own, rows = headline_of(asked), []
    names = {factor: level for (factor, level), variant in asked.items() if variant == own}
    for metric in METRICS:
        found = {
            variant: paired_difference(seeds, scores[own], metric) | {"p": _over_sets(seeds, scores[own], metric)}
            for variant, seeds in scores.items()
            if variant != own
        }
        corrected = holm([row["p"] for row in found.values()])
        found = {v: row | {"holm": p} for (v, row), p in zip(found.items(), corrected, strict=True)}
        rows += [
            {"factor": factor, "level": level, "against": names[factor], **found[variant]}
            for (factor, level), variant in asked.items()
            if variant != own
        ]
    return rows


def _over_sets(a: Sequence[Metrics], b: Sequence[Metrics], metric: str) -> float | None:
    first, second = (_by_set(runs, metric) for runs in (a, b))
    return paired(first, second, a[0].bootstrap.confidence)["p"]


def _by_set(runs: Sequence[Metrics], metric: str) -> Float[np.ndarray, " g"]:
    """What each set that counts adds to a metric, mean over seeds, so scaled that the mean over sets is the metric."""
    column = runs[0].tally.paths.index((metric,))
    counts = runs[0].tally.counts[:, [column]].toarray()[:, 0]
    hits = np.mean([run.tally.hits[:, [column]].toarray()[:, 0] for run in runs], axis=0)
    counting = counts > 0
    return hits[counting] * counting.sum() / max(1.0, counts.sum())
