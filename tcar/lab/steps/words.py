"""Results in words, for the sentences that a notebook computes."""

from collections.abc import Mapping
from typing import Any

from tcar.lab.numerals import count, heading, interval, level_name, outcome, pair_name, percent
from tcar.lab.plots import label
from tcar.lab.plots.scores import METRICS


def shown(entry: Mapping[str, Any], sign: str = "") -> str:
    """Write {value (or difference), low, high}, shares, as a percentage with its interval, which one thing alone does
    not have; a dash where nothing was counted. `sign="+"` shows a plus.
    """
    value = entry["value"] if "value" in entry else entry["difference"]
    if value is None:
        return "–"
    text = f"{value:{sign}.1%}"
    return text if entry["low"] is None else f"{text} [{entry['low']:{sign}.1%}, {entry['high']:{sign}.1%}]"


def verdict(comparison: dict) -> str:
    """Say what the interval of a paired difference allows: above, below, not told apart from, or nothing."""
    if comparison["low"] is None:
        return "not measured enough against"
    if comparison["low"] > 0:
        return "above"
    return "below" if comparison["high"] < 0 else "not told apart from"


def corrected(row: dict, alpha: float) -> str:
    """Say what a paired comparison allows, with its p if that was corrected for several: the test decides the word."""
    known = row["holm"] is not None
    return "not told apart from" if known and row["holm"] >= alpha else verdict(row)


def replicate_sentence(row: dict, alpha: float) -> str:
    """Say what a paired comparison over replicates allows, by its corrected p."""
    p = f", corrected p = {row['holm']:.2g}" if row["holm"] is not None else ""
    return (
        f"Over replicates, in {METRICS[row['metric']]}, {label(row['a'])} is {corrected(row, alpha)} {label(row['b'])} "
        f"({shown(row, '+')}{p})."
    )


def factor_sentence(rows: list[dict], alpha: float) -> str:
    """Say how the levels of a factor compare with the headline's, `rows` of one factor and metric."""
    factor, metric = rows[0]["factor"], METRICS[rows[0]["metric"]]
    own, levels = level_name(factor, rows[0]["against"]), [level_name(factor, row["level"]) for row in rows]
    return f"**{heading(factor)}**, against {own}, in {metric}: {_judged(levels, rows, alpha)}."


def pair_sentences(measured: Mapping[str, Any]) -> list[str]:
    """Say how each method does on other pairs of streams than its own, and the headline against its closest rival on
    every pair; `measured` is what `pairs.json` holds.
    """
    headline, rival = measured["headline"], measured["rival"]
    asked = {
        (method, "what it reaches on the run's own streams"): [
            row for row in measured["comparisons"] if row["method"] == method
        ]
        for method in dict.fromkeys((headline, rival))
    } | {(headline, f"{label(rival).lower()} on the same streams"): measured["over_rival"]}
    said = []
    for (method, against), compared in asked.items():
        if rows := [row for row in compared if row["metric"] == measured["metric"]]:
            levels = [f"with {pair_name(row['level'])} it" for row in rows]
            judged = _judged(levels, rows, measured["alpha"])
            said.append(f"**{label(method)}**, against {against}, in {METRICS[measured['metric']]}: {judged}.")
    return said


def _judged(levels: list[str], rows: list[dict], alpha: float) -> str:
    return "; ".join(
        f"{level} is {corrected(row, alpha)} it ({shown(_difference(row), '+')}"
        + (f", corrected p = {row['holm']:.2g})" if row["holm"] is not None else ")")
        for level, row in zip(levels, rows, strict=True)
    )


def _difference(row: dict) -> dict[str, float | None]:
    return {key: row[key] for key in ("difference", "low", "high")}


# What a control leaves, after "when".
UNDER = {
    "reversed": "clips are played backwards", "shuffled": "frames are shuffled", "frozen": "one frame stands still",
    "background": "the background alone is left", "noise": "all surfaces are noise and only motion is left",
    "conflict": "another scene stands behind the action",
}  # fmt: skip


def evidence_sentence(method: str, rows: list[dict]) -> str:
    """Say which evidence a method uses: what it loses in accuracy under each control, `rows` of all its clips.

    A change is a loss or a gain only where its interval excludes 0, as it is shown.
    """
    found: dict[str, list[str]] = {"below": [], "above": [], "": []}
    for row in sorted(rows, key=lambda row: row["change"]["value"]):
        change = row["change"]
        said = {word: word for word in ("above", "below")}.get(outcome(change), "")
        low, high = sorted(abs(change[end] or 0) for end in ("low", "high"))  # of one sign where it is said
        points = f"{percent(abs(change['value']))} points {interval({'low': low, 'high': high})} " if said else ""
        found[said].append(f"{points}when {UNDER[row['control']]}")
    parts = [
        f"{verb} {', '.join(found[word])}"
        for word, verb in (("below", "loses"), ("above", "gains"), ("", "changes by nothing that can be told"))
        if found[word]
    ]
    return f"{label(method)} {'; '.join(parts)}."


# What is lost with each kind of error, and the clips that a condition compares, after "in which".
LOSSES = {
    "order lost": "lose order (their twin is the clip played backwards)",
    "binding lost": "lose binding (in their twin, things that move have exchanged their colours)",
    "appearance lost": "lose appearance (their twin differs in what the frames show)",
    "within the group": "name another class of the group", "another group": "name a class of another group",
}  # fmt: skip
COMPARED = {
    "small": ("what acts is small", "it is large"), "fast": ("what acts is fast", "it is slow"),
    "late": ("the last event begins late", "it begins early"),
    "occluded": ("much of what acts is hidden", "little of it is"),
}  # fmt: skip


def error_sentences(method: str, found: Mapping[str, Any]) -> list[str]:
    """Say where a method is wrong, as `tcar.lab.steps.errors.error_analysis` found it, and no more than the intervals
    bear.
    """
    trainings = found["answers"] // found["clips"]
    basis = f"{count(found['answers'])} answers (clips: {count(found['clips'])}, trainings: {trainings})"
    if not found["errors"]:
        return [f"{label(method)} makes no error in {basis}."]
    said = [f"{label(method)}: {count(found['errors'])} errors in {basis}."]
    if found["twins"]:
        twins = found["twins"]["share"]
        lead = f"Most of them, {shown(twins)}," if (twins["low"] or 0) > 0.5 else f"Of them, {shown(twins)}"
        kinds = [f"{shown(row['share'])} {LOSSES[row['kind']]}" for row in found["kinds"] if row["count"]]
        said.append(f"{lead} take a clip for its own twin. Of all, {', '.join(kinds)}.")
    said.append(_confident_sentence(found["confident"], found["errors"]))
    return said + [_condition_sentence(row) for row in found["conditions"]]


def _confident_sentence(row: Mapping[str, Any], errors: int) -> str:
    if not row["answers"]:
        return f"No answer has a confidence above {row['above']:.0%}."
    admitted, share = round(1 - row["above"], 6), row["share"]
    against = {"low": None, "high": None}
    if share["low"] is not None:
        against = {end: share[end] - admitted for end in ("low", "high")}
    word = {"above": "more than", "below": "fewer than", "": "with too few to compare with"}
    return (
        f"Of the {count(row['answers'])} answers with a confidence above {row['above']:.0%}, {shown(share)} are wrong, "
        f"{word.get(outcome(against), 'not told apart from')} the {admitted:.0%} that such confidence admits at most: "
        f"{count(row['count'])} of the {count(errors)} errors."
    )


def _condition_sentence(row: Mapping[str, Any]) -> str:
    (one, other), told = COMPARED[row["condition"]], outcome(row["difference"])
    if not told:
        return f"Whether it matters that {one} is not known: too few clips have it to compare."
    word = {"above": "named rightly more often than", "below": "named rightly less often than"}
    return (
        f"Clips in which {one} are {word.get(told, 'not told apart from')} those of their class in which {other} "
        f"({shown(row['difference'], '+')}; clips: {count(row['clips'])}, classes: {row['classes']})."
    )


def group_meaning(reached: dict[str, float | None], differences: dict[str, dict]) -> str:
    """Say what a group's twin accuracy and its paired differences show, and what they do not.

    `differences[rival]` is the headline method minus that rival in this group.
    """
    said = {rival: verdict(row) for rival, row in differences.items()}
    alone = {rival: said[rival] for rival in ("semantic", "motion") if rival in said}
    fused = {rival: said[rival] for rival in ("late_concat", "sum") if rival in said}
    if reached["value"] is None:
        return "nothing is known of this group, which has no pair"
    if "below" in said.values():
        better = [label(rival).lower() for rival, word in said.items() if word == "below"]
        return f"reading across is not the best choice here: {', '.join(better)} does better"
    if fused and all(word == "above" for word in (*fused.values(), *alone.values())):
        rest = " and ".join(label(rival).lower() for rival in fused)
        return f"reading across does better here than {rest}, on these streams and with this recipe"
    if alone and all(word == "above" for word in alone.values()):
        return "both streams are needed; that they read each other is not shown to matter"
    if "above" in alone.values():
        equal = next(rival for rival, word in alone.items() if word != "above")
        return f"the {label(equal).lower()} alone is not shown to do worse"
    return "this group does not tell the methods apart"


def group_sentence(group: str, reached: dict[str, float | None], differences: dict[str, dict]) -> str:
    """Say what a group's twin accuracy is, how it compares, and what that means (`group_meaning`)."""
    rivals = ", ".join(
        f"{verdict(row)} {label(rival).lower()} ({shown(row, '+')})" for rival, row in differences.items()
    )
    meaning = group_meaning(reached, differences)
    return f"**{group}**: twin accuracy {shown(reached)}, {rivals}. So {meaning}."


def blind_probes(rows: list[dict]) -> dict[str, int]:
    """Count the probes of twin pairs that theory puts at one half.

    Gives `probes`, `same` (which see exactly the same in both twins, so that one half is no measurement), `measured`,
    the others that have an interval, and `excluded`, of those whose interval leaves one half out.
    """
    blind = [row for row in rows if row["blind"]]
    same = [row for row in blind if row["low"] == row["high"] == 0.5]
    measured = [row for row in blind if row["low"] is not None and row not in same]
    excluded = sum(not row["low"] <= 0.5 <= row["high"] for row in measured)
    return {"probes": len(blind), "same": len(same), "measured": len(measured), "excluded": excluded}


def probe_verdict(rows: list[dict], confidence: float) -> str:
    """Say whether the probes of twin pairs are where theory puts them, and name those that are not."""
    blind = blind_probes(rows)
    told = [row for row in rows if row["low"] is not None]
    apart = [row for row in told if row["blind"] and not row["low"] <= 0.5 <= row["high"]]
    apart += (weak := [row for row in told if row["sufficient"] and row["value"] < 0.9])
    exceptions = "".join(f"\n- {row['probe']}: {' / '.join(row['twins'])}: {shown(row)}" for row in apart)
    return (
        f"Theory puts {blind['probes']} probes of single twin pairs at one half. {blind['same']} of them see exactly "
        f"the same in both twins. **Of the {100 * confidence:g}% intervals of the other {blind['measured']}, "
        f"{blind['excluded']} exclude one half**, where chance alone would exclude about "
        f"{round(1 - confidence, 6) * blind['measured']:.0f}. Of the probes that should decide a pair, {len(weak)} "
        f"stay below 90%.{exceptions}"
    )
