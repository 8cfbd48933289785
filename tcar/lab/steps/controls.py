"""Notebook 05: the trained methods on the scored clips under each control of Tabletop, and what that says of them.

A control takes one kind of evidence away (`tcar.tabletop.controls`). The scored split alone is rendered again, with the
seeds and ids that it has, so that each clip is compared with itself; nothing is trained. A clip is asked for the class
that it has *without* the control: of a clip played backwards, the class of the original counts as right, though what is
seen is often that of its twin. What is called accuracy there is how often a method stays with the original.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int

from tcar.data.ssv2 import load_split
from tcar.evaluate import annotations, mean_interval
from tcar.lab.steps.clips import class_names, ground_truth
from tcar.lab.steps.methods import bootstrap, scored
from tcar.lab.steps.streams import ROLES, extract
from tcar.lab.steps.units import clip_units, right, shares, twin_units
from tcar.tabletop.dataset import Part, render_dataset
from tcar.tabletop.settings import CONTROLS
from tcar.train.tokens import StoredTokens

if TYPE_CHECKING:
    from tcar.features import FeatureStore
    from tcar.lab.params import Params
    from tcar.lab.steps.fits import Fit

ALL = "all"  # the group of all clips


def controlled(run: Params, control: str) -> Params:
    """Give the parameters of the run's clips under a control, which has a folder of its own in that of the run."""
    common = replace(run.common, name=f"{run.common.name}/controls/{control}")
    data, tabletop = replace(run.data, data_root=""), replace(run.tabletop, control=control)
    return replace(run, common=common, data=data, tabletop=tabletop)


def control_tokens(run: Params, control: str) -> StoredTokens:
    """Render what is scored under a control, `control_sets` of each family, and give its tokens.

    What is there already is not made again. Raises DatasetError, FeatureError.
    """
    here, split = controlled(run, control), run.evaluation.evaluation_split
    part = Part((split,), run.ablations.control_sets)
    render_dataset(here.data_root, here.tabletop, seed=run.common.seed, workers=run.workers, part=part)
    clips = load_split(here.data_root, split)
    return StoredTokens.of(*extract(here, {split: clips}).values(), clips, class_names(run))


def score_controls(
    run: Params, fits: Mapping[str, Sequence[Fit]], tokens: StoredTokens, controls: Sequence[str] = CONTROLS
) -> dict[str, list[dict]]:
    """Score every fit of every method on the clips under each control and on the same clips as they are (`tokens`).

    Gives `rows`, one a control, method and group (and "all"): `clips`, `accuracy`, its `change`, `twin_accuracy`,
    its `twin_change`, all against the original class; and `pairs`, one a control, method and pair of twin classes:
    `twin_accuracy` and `twin_change`. Values are means over seeds of fractions, {"value", "low", "high"}, with
    intervals of the paired bootstrap over twin sets. Empty where the dataset has no controls, where its own clips are
    under one, and where `control_sets` is 0.
    """
    found: dict[str, list[dict]] = {"rows": [], "pairs": []}
    if run.data.dataset != "tabletop" or run.tabletop.control or not run.ablations.control_sets:
        return found
    scorable = set(tokens.ids)
    for control in controls:
        changed = control_tokens(run, control)
        both = [name for name in changed.ids if name in scorable]
        clips = [_only(one, both) for one in (tokens, changed)]
        as_is, under = (scored(run, fits, one) for one in clips)
        for method in fits:
            named = [right(logits[method], clips[0].labels) for logits in (as_is, under)]
            paired = Paired(*named, clips[0].labels, **annotations(both, ground_truth(run)))
            about = {"control": control, "method": method}
            found["rows"] += [about | row for row in paired.by_group(run)]
            found["pairs"] += [about | row for row in paired.by_pair(run)]
    return found


def _only(tokens: StoredTokens, ids: list[str]) -> StoredTokens:
    """The tokens of these clips, in this order."""
    place = {name: number for number, name in enumerate(tokens.ids)}
    stores: dict[str, FeatureStore] = {role: getattr(tokens, role).only(ids) for role in ROLES}
    return replace(tokens, **stores, ids=ids, labels=tokens.labels[[place[name] for name in ids]])


@dataclass(frozen=True, eq=False)
class Paired:
    """Which clips each seed of a method names rightly `before`, as they are, and `after`, under a control."""

    before: Bool[np.ndarray, "s n"]
    after: Bool[np.ndarray, "s n"]
    labels: Int[np.ndarray, " n"]
    groups: Sequence[str]
    twins: Int[np.ndarray, " n"]
    sets: Sequence[str]

    def by_group(self, run: Params) -> list[dict]:
        """Give accuracy and twin accuracy under the control, and their changes, of all clips and of each group."""
        groups, clips, pairs = np.array(self.groups), clip_units(len(self.labels)), twin_units(self.twins)
        rows = []
        for group in (ALL, *sorted(set(self.groups))):
            inside = np.full(len(groups), group == ALL) | (groups == group)
            one, two = (self._measured(run, units[:, inside[units[0]]]) for units in (clips, pairs))
            row = {"group": group, "clips": int(inside.sum()), "accuracy": one[0], "change": one[1]}
            rows.append(row | {"twin_accuracy": two[0], "twin_change": two[1]})
        return rows

    def by_pair(self, run: Params) -> list[dict]:
        """Give twin accuracy under the control, and its change, of each pair of classes that are twins."""
        units, names, rows = twin_units(self.twins), class_names(run), []
        kinds = np.sort(self.labels[units], axis=0)
        for kind in sorted(set(map(tuple, kinds.T.tolist()))):
            chosen = (kinds == np.array(kind)[:, None]).all(axis=0)
            accuracy, change = self._measured(run, units[:, chosen])
            rows.append({"twins": [names[k] for k in kind], "twin_accuracy": accuracy, "twin_change": change})
        return rows

    def _measured(self, run: Params, units: Int[np.ndarray, "k u"]) -> tuple[dict, dict]:
        """The share of units all of whose clips are right after, and how it changed; intervals over sets."""
        before, after = (shares(named, units) for named in (self.before, self.after))
        sets = np.array(self.sets)[units[0]]
        return mean_interval(after, sets, bootstrap(run)), mean_interval(after - before, sets, bootstrap(run))
