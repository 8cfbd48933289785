"""What a sentence of the deciding experiment that was written by hand may state, by a key that it names.

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

    A key has the hypothesis, the pair in short, and what it is compared with: "h1 closer sum_averaged". The word is
    above or below where the corrected test tells a difference. Empty where nothing was measured.
    """
    if not sizes:
        return {}
    from tcar.lab.steps import experiment

    values, said = sizes[experiment.main_size(sizes)], {}
    for row in experiment.tests(values):
        told = row["holm"] is not None and row["holm"] < values["alpha"]
        key = f"h{row['hypothesis']} {experiment.SHORT.get(row['part'], 'lead')} {row['b'].split()[-1]}"
        said[key] = {
            "word": outcome(row) if told else NONE,
            "difference": f"{percent(row['difference'], '+')} points {interval(row)}",
            "p": significant(row["holm"], 2),
        }
    return said


def reached(sizes: Mapping[int, Mapping]) -> dict[str, str]:
    """Give what the methods reach, in % with intervals: key -> text, such as "closer sum_averaged".

    Of the main size there are twin accuracies of pairs and of numbers of movers ("movers3 sum"), and those of additive
    projections ("closer sum emap"); of every size those of pairs ("36 collide sum"). "sets", "replicates", "trainings"
    and "split" say what the main size has.
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
    return found
