"""What a sentence of the paper that was written by hand may state, by a key that it names.

The text of the paper says `#states("h1 closer sum_averaged", "above")[…]`: where the results say another word, the
paper does not compile, and the sentence has to be written anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tcar.lab.numerals import count, estimate, interval, outcome, percent, significant

NONE = "not distinguishable from"


def claims(sizes: Mapping[int, Mapping]) -> dict[str, dict[str, str]]:
    """Give what each test of the experiment says: key -> `word`, `difference` (points, with its interval) and `p`.

    A key has the hypothesis, the pair in short, and what it is compared with: "h1 closer sum_averaged" of the main
    size, "260 h1 closer sum_averaged" of 260 training sets. The word is above or below where the corrected test tells a
    difference. Empty where nothing was measured.
    """
    if not sizes:
        return {}
    from tcar.lab.steps import experiment

    said, main = {}, sizes[experiment.main_size(sizes)]
    for prefix, values in [("", main), *((f"{size} ", one) for size, one in sizes.items())]:
        for row in experiment.tests(values):
            key = f"{prefix}h{row['hypothesis']} {experiment.SHORT.get(row['part'], 'lead')} {row['b'].split()[-1]}"
            said[key] = {
                "word": _word(row, values["alpha"]),
                "difference": f"{percent(row['difference'], '+')} points {interval(row)}",
                "p": significant(row["holm"], 2),
            }
    return said


def ablated(measured: Mapping[str, Any], metric: str) -> dict[str, dict[str, str]]:
    """Give what the ablations say of each level in a metric, as `claims` does: "window joint" -> its `word`."""
    tested = [row for row in measured.get("comparisons", []) if row["metric"] == metric and row["holm"] is not None]
    return {f"{row['factor']} {row['level']}": {"word": _word(row, measured["alpha"])} for row in tested}


def _word(row: Mapping[str, Any], alpha: float) -> str:
    told = row["holm"] is not None and row["holm"] < alpha
    return (told and outcome(row)) or NONE


def reached(sizes: Mapping[int, Mapping], recipes: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Give what the methods reach, in % with intervals: key -> text, such as "closer sum_averaged".

    Of the main size there are twin accuracies of pairs and of numbers of movers ("movers3 sum"), and those of additive
    projections ("closer sum emap"); of every size those of pairs ("36 collide sum"). "sets", "replicates", "trainings"
    and "split" say what the main size has. `recipes` is the grid of the main size: "doubled sum" says how many points
    of validation top-1 the second half of the epochs that a method has added there.
    """
    if not sizes:
        return {}
    from tcar.lab.steps import experiment

    sets = experiment.main_size(sizes)
    values = sizes[sets]
    found = {
        "sets": count(sets), "replicates": count(len(values["replicates"])),
        "trainings": count(len(values["seeds"][0]["heads"])), "split": values["split"],
        "sizes": ", ".join(map(count, sizes)),
    }  # fmt: skip

    def add(prefix: str, kind: str, metric: str, names: Mapping[str, str], one: Mapping[str, Any], suffix: str = ""):
        for part, row in experiment.cells(one, kind, metric).items():
            for method, entry in row.items():
                found[f"{prefix}{names.get(part, part)} {method}{suffix}"] = estimate(entry)

    add("", "per_pair", "twin_accuracy", experiment.SHORT, values)
    add("", "per_pair", "emap", experiment.SHORT, values, " emap")
    variants = {part: f"movers{part.split()[0]}" for part in experiment.cells(values, "per_variant")}
    add("", "per_variant", "twin_accuracy", variants, values)
    for size, one in sizes.items():
        add(f"{size} ", "per_pair", "twin_accuracy", experiment.SHORT, one)
    return found | _doubled(recipes or {"chosen": {}, "rows": []})


def _doubled(recipes: Mapping[str, Any]) -> dict[str, str]:
    top1 = {(row["method"], row["learning_rate"], row["epochs"]): row["validation_top1"] for row in recipes["rows"]}
    found = {}
    for method, chosen in recipes["chosen"].items():
        whole, half = (top1.get((method, chosen["learning_rate"], chosen["epochs"] // part)) for part in (1, 2))
        if whole is not None and half is not None:
            found[f"doubled {method}"] = percent(whole - half, "+")
    return found
