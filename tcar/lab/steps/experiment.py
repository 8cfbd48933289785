"""The deciding experiment: appearance {in order, averaged over time} x fusion, by pair, by number of movers, by data.

What is tested was written down before it was measured, in paper/hypotheses.md. `tcar replicates params/bound_120.yaml`
and its siblings measure it; here the hypotheses are tested on what they have written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from tcar.evaluate import holm, paired
from tcar.fusion.settings import AVERAGED, METHODS
from tcar.lab import measured, results
from tcar.lab.plots import label
from tcar.lab.plots.experiment import FORMS

if TYPE_CHECKING:
    from tcar.lab.params import Params

OURS, SUM, LATE, JOINT = KINDS = ("cross_attention", "sum", "late_concat", "joint")
# The pairs as `tcar.lab.steps.parts` names them: the class of the smaller index first.
CLOSER = "Moving something away from something / Moving something closer to something"
MANY = (
    "Putting something similar to other things that are already on the table / "
    "Taking one of many similar things on the table"
)
COVER = "Covering something with something / Uncovering something"
COLLIDE = (
    "Moving something and something so they collide with each other / "
    "Moving something and something so they pass each other"
)
BOUND = (CLOSER, MANY)
# How figures and sentences call the pairs.
PAIRS = {CLOSER: "closer / away", MANY: "many movers", COVER: "cover / uncover", COLLIDE: "collide / pass"}
# And the keys of what the paper states.
SHORT = {CLOSER: "closer", MANY: "movers", COVER: "cover", COLLIDE: "collide"}
FEWEST, MOST = "3 movers", "9 movers"


def found(run: Params) -> dict[int, dict[str, Any]]:
    """Give what was measured of the experiment, by the number of training sets (`tcar.lab.measured.experiment`)."""
    return {sets: results.load(path) for sets, path in measured.experiment(run).items()}


def recipes(run: Params) -> dict[str, Any] | None:
    """Give what the grid found that decided the lengths and learning rates, None where no such result is kept."""
    kept = [path.with_name(measured.RECIPES) for path in measured.experiment(run).values()]
    return next((results.load(path) for path in kept if path.is_file()), None)


def main_size(sizes: Mapping[int, Mapping]) -> int:
    """Give the number of training sets with the most trainings of each method in a replicate."""
    return max(sizes, key=lambda sets: (len(sizes[sets]["seeds"][0]["heads"]), sets))


def tests(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Test the hypotheses on the replicates of one size.

    Rows have `hypothesis` (1 to 5, as numbered in paper/hypotheses.md), `part` (a pair, or a number of movers), `a`,
    `b`, `difference` of their twin accuracies, `low`, `high`, `p`, and `holm`, corrected for the rivals within a part.
    """
    scores, confidence = values["replicates"], 1 - values["alpha"]

    def of(method: str, kind: str, part: str, metric: str = "twin_accuracy") -> Float[np.ndarray, " r"]:
        return np.array([row[method][kind][part][metric] for row in scores], float)

    def rows(hypothesis: int, part: str, pairs: Sequence[tuple[str, str, np.ndarray, np.ndarray]]) -> list[dict]:
        tested = [paired(a, b, confidence) for *_, a, b in pairs]
        corrected = holm([row["p"] for row in tested])
        return [
            {"hypothesis": hypothesis, "part": part, "a": names[0], "b": names[1], **row, "holm": p}
            for names, row, p in zip(pairs, tested, corrected, strict=True)
        ]

    def against(hypothesis: int, pair: str, a: str, rivals: Sequence[str]) -> list[dict]:
        mine = of(a, "per_pair", pair)
        return rows(hypothesis, pair, [(a, b, mine, of(b, "per_pair", pair)) for b in rivals])

    made = []
    for pair in BOUND:
        made += against(1, pair, OURS + AVERAGED, [SUM + AVERAGED, LATE + AVERAGED])
    made += against(2, CLOSER, SUM, [SUM + AVERAGED])
    leads = {count: of(OURS, "per_variant", count) - of(SUM, "per_variant", count) for count in (FEWEST, MOST)}
    made += rows(3, MOST, [(f"lead among {MOST}", f"lead among {FEWEST}", leads[MOST], leads[FEWEST])])
    for pair in PAIRS:
        own, projected = (of(OURS, "per_pair", pair, metric) for metric in ("twin_accuracy", "emap"))
        made += rows(4, pair, [(OURS, "its additive projection", own, projected)])
    for pair in BOUND:
        made += against(5, pair, OURS, [JOINT]) + against(5, pair, OURS + AVERAGED, [JOINT + AVERAGED])
    return made


def cells(values: Mapping[str, Any], kind: str = "per_pair", metric: str = "twin_accuracy") -> dict[str, dict]:
    """Give part -> method -> {value, low, high} of a metric, over replicates."""
    methods = values["methods"]
    parts = next(iter(methods.values()))[kind]
    return {part: {method: entry[kind][part][metric] for method, entry in methods.items()} for part in parts}


def by_movers(values: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Give twin accuracies on many movers: form of appearance -> how many move -> kind -> {value, low, high}."""
    counted = {part.split()[0]: row for part, row in cells(values, "per_variant").items()}
    return {name: {count: _of_form(row, form) for count, row in counted.items()} for form, name in FORMS.items()}


def by_sets(sizes: Mapping[int, Mapping]) -> dict[str, dict[str, dict[str, Any]]]:
    """Give twin accuracies on the bound pairs with averaged appearance: pair -> training sets -> kind -> {value, …}."""
    told = {str(size): cells(values) for size, values in sizes.items()}
    return {PAIRS[pair]: {size: _of_form(row[pair], AVERAGED) for size, row in told.items()} for pair in BOUND}


def _of_form(row: Mapping[str, Any], form: str) -> dict[str, Any]:
    return {kind: row[kind + form] for kind in KINDS if kind + form in row}


def named(method: str) -> str:
    """Name a method as the paper does, and leave what is none as it is."""
    return label(method) if method in METHODS else method
