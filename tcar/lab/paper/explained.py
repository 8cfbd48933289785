"""Tables and sentences about explanations: what notebook 06 and `tcar explanations` measured, and what it bears."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tcar.lab.numerals import beyond, capital, count, estimate, interval, outcome, percent, significant
from tcar.lab.paper.writing import Table

STREAMS = ("semantic", "motion")
REFERENCES = {
    "even": "Even map", "random": "Random map", "centre": "Middle of the picture",
    "frame_difference": "Frame difference (no model)",
}  # fmt: skip
# The groups whose exchanges are told, with the stream that decides by construction.
ASKED = {
    "bound": ("Where appearance and motion have to be bound, with one flow for both twins", "semantic"),
    "motion": ("Where motion decides", "motion"),
}
# What the wiring may fix of an attention, by the last part of its name (tcar.explain.wiring).
FIXED = {
    "weights": "all weights", "entropy": "the entropy of the weights", "relative_entropy": "the entropy of the weights",
    "specialisation": "how far heads differ", "time": "how far away in time is read",
    "space": "how far away in space is read", "frame_to_frame": "what a frame reads of each frame",
    "per_place": "the share of each place", "per_moment": "the share of each moment",
    "share": "the share of each stream",
}  # fmt: skip


# --- tables ---------------------------------------------------------------------------------------------------


def explained_tables(results: dict, data: str, confidence: str) -> list[Table]:
    """Give the tables about explanations; those of what was not measured have no rows."""
    inside, judged = results["interpretability"], results.get("explanations") or {}
    intervals = f"in % with {confidence} intervals over twin sets"
    return [
        exchange_table(inside, f"One stream of a clip taken from its twin, {data}, {intervals}"),
        *scores_tables(judged, f"{_clips(judged)}, {data}: means {intervals}"),
        moments_table(judged, f"{data}: means {intervals}"),
        layouts_table(inside.get("layouts") or {}, data),
    ]


def exchange_table(found: Mapping[str, Any], caption: str) -> Table:
    """Which stream of the twin changes the answer, pair by pair; no rows where clips have no twins."""
    left = {_pair(row): row for row in found.get("interaction") or []}
    rows = []
    for pair, by in _exchanged(found).items():
        some = next(iter(by.values()))
        cells = [beyond(by.get(stream, {}).get(key)) for key in ("flips", "moved") for stream in STREAMS]
        rows.append([capital(some["group"] or "all groups"), pair, count(some["clips"]), *cells,
                     beyond(left.get(pair))])  # fmt: skip
    order = {group: place for place, group in enumerate(dict.fromkeys(row[0] for row in rows if row[1] != "All"))}
    return Table(
        "exchange", f"{caption}; of clips of pairs that the model tells apart both ways. Flips: the answer between the "
        "twins changes. Moves: the share of the margin between them, which may be more than all of it. Together: what "
        "neither stream moves alone.",
        ["Group", "Twins", "Clips", "Semantic flips", "Motion flips", "Semantic moves", "Motion moves", "Together"],
        sorted(rows, key=lambda row: order.get(row[0], len(order))))


def scores_tables(found: Mapping[str, Any], over: str) -> list[Table]:
    """What maps have of the places where twins differ, by method and stream, and of each group; with who passes."""
    scores = [row for row in found.get("scores") or [] if row["mask"] == "decisive"]
    verdicts = {(row["method"], row["stream"]): row for row in found.get("verdicts") or []}
    by: dict[tuple[str, str], dict[str, dict]] = {}
    for row in scores:
        by.setdefault((row["stream"], row["method"]), {})[row["group"]] = row
    groups = list(dict.fromkeys(row["group"] for row in scores if row["group"] != "all"))
    judged, grouped = [], []
    for stream, method in sorted(by, key=lambda key: (_place(STREAMS, key[0]), _place(_labels(), key[1]))):
        row, verdict = by[stream, method]["all"], verdicts.get((method, stream), {})
        name = [f"{capital(stream)} stream", _labels().get(method, capital(method))]
        judged.append([
            *name, count(row["mass"]["n"]), estimate(row["mass"]), beyond(_against(verdict)), estimate(row["most"]),
            estimate(row["pointing"]), estimate(row["auc"]), _passes(verdict),
        ])  # fmt: skip
        grouped.append([*name, *(estimate(by[stream, method].get(group, {}).get("mass")) for group in groups)])
    mass = "the share of a map's mass where twins differ, less that place's share of the clip"
    return [
        Table(
            "explanations", f"What explanations find, on {over}. Mass: {mass}; beside it, how far it is above that "
            "of the frame difference on the same grid, and the most that any map of its grid reaches. Pointing: how "
            "often the strongest place is one. AUC: of all places. A method passes that has more mass than the frame "
            "difference, than itself on a fusion with fresh weights, and than itself on one trained with permuted "
            "labels.",
            ["Stream", "Method", "Clips", "Mass", "Above the frame difference", "Most", "Pointing", "AUC", "Passes"],
            judged),
        Table("explanations_per_group", f"What explanations find by group, on {over} of {mass}.",
              ["Stream", "Method", *map(capital, groups)], grouped),
    ]  # fmt: skip


def moments_table(found: Mapping[str, Any], over: str) -> Table:
    """Moments inside the events by model, and the areas under insertion and deletion."""
    rows = [[_labels().get(row["method"], row["method"]), capital(row["model"]), count(row["inside"]["n"]),
             estimate(row["inside"]), "", ""] for row in found.get("moments") or []]  # fmt: skip
    rows += [[_labels().get(row["method"], row["method"]), "Headline", count(row["insertion"]["n"]), "",
              estimate(row["insertion"]), estimate(row["deletion"])] for row in found.get("curves") or []]  # fmt: skip
    return Table(
        "explanation_moments", f"Moments and curves, {over}. Inside: the share of a method's importance inside the "
        "events, less the events' share of time. Insertion and deletion: the area under the probability of the true "
        "class as the cells of a map come in, or go, the strongest first.",
        ["Method", "Model", "Clips", "Inside", "Insertion", "Deletion"], rows)


def layouts_table(found: Mapping[str, Any], data: str) -> Table:
    """The numbers beside the layouts; no rows where none was made."""
    kept = {(row["features"], row["method"]): row["value"] for row in found.get("trustworthiness") or []}
    rows = [[capital(row["features"]), *(percent(row[key]) for key in ("same_class_neighbours", "most", "chance")),
             significant(row["silhouette"], 2), *(significant(kept.get((row["features"], method)), 2)
                                                  for method in ("umap", "tsne"))]
            for row in found.get("features") or []]  # fmt: skip
    return Table(
        "layouts", f"Beside the layouts, {data}: of the {count(found.get('neighbours'))} nearest neighbours of each of "
        f"{count(found.get('n'))} clips in the full space, how many are of its class, the most that so few clips of a "
        "class allow, and chance, in %; the silhouette of the classes there; and how far neighbours in a picture are "
        "neighbours (trustworthiness).",
        ["Features", "Same class", "Most", "Chance", "Silhouette", "UMAP", "t-SNE"], rows)


# --- sentences ------------------------------------------------------------------------------------------------


def explained_sentences(results: dict) -> dict[str, str]:
    """Every sentence about explanations; empty where what it rests on was not measured."""
    inside, judged = results["interpretability"], results.get("explanations") or {}
    fixed = (inside.get("fixed_by_wiring") or {}).get("headline") or {}
    return {
        "exchange": exchange_sentence(inside),
        "explanations": explanations_sentence(judged),
        "binding": binding_sentence(judged, fixed),
        "cells": cells_sentence(judged, fixed),
        "wiring": wiring_sentence(fixed),
        "layouts": layouts_sentence(inside.get("layouts") or {}),
        "growing": growing_sentence(inside.get("growing") or []),
    }


def judged_sentences(judged: Mapping[str, Any]) -> list[str]:
    """What `tcar explanations` found, a sentence or two a line."""
    said = (explanations_sentence(judged), binding_sentence(judged), cells_sentence(judged))
    return [one for one in said if one]


def exchange_sentence(found: Mapping[str, Any]) -> str:
    """Which stream of a twin changes the answer, where one should by construction; empty without twins."""
    said, exchanged = [], _exchanged(found)
    for group, (where, first) in ASKED.items():
        second = next(stream for stream in STREAMS if stream != first)
        pairs = {pair: by for pair, by in exchanged.items()
                 if {row["group"] for row in by.values()} == {group} and set(by) == set(STREAMS)
                 and all(row["flips"]["value"] is not None for row in by.values())}  # fmt: skip
        if not pairs:
            continue
        flips = {stream: {pair: by[stream]["flips"] for pair, by in pairs.items()} for stream in STREAMS}
        apart = {stream: sum(_above(flips[stream][pair], flips[other][pair]) for pair in pairs)
                 for stream, other in (STREAMS, STREAMS[::-1])}  # fmt: skip
        said.append(
            f"{where}, the {first} stream of the twin alone flips the answer in {_range(flips[first])} of the clips"
            f"{', by pair' * (len(pairs) > 1)}, its {second} stream in {_range(flips[second])}; the {first} stream "
            f"flips more in {apart[first]} of {len(pairs)} pairs and the {second} stream in {apart[second]}, as far as "
            "intervals lie apart."
        )
    return " ".join(said)


def explanations_sentence(judged: Mapping[str, Any]) -> str:
    """Which methods pass, on how many clips, which do not, and how well integrated gradients converged."""
    verdicts = judged.get("verdicts") or []
    if not verdicts:
        return ""
    passed = [row for row in verdicts if row["passed"]]
    failed = [row for row in verdicts if row["passed"] is False]
    no_better = [row for row in failed if outcome(_against(row)) != "above"]
    rest = [row for row in failed if row not in no_better]
    parts = {"not told to be above the frame difference": no_better,
             "of too few sets to say": [row for row in verdicts if row["passed"] is None]}  # fmt: skip
    told = "; ".join(f"{words}: {_named(rows)}" for words, rows in parts.items() if rows)
    if rest:
        told += "; " * bool(told) + "all others are above it, but not told to be above themselves with fresh weights "
        told += "or permuted labels"
    who = f"{_named(passed)} pass{'es' * (len(passed) == 1)}" if passed else "no method passes"
    return f"On {_clips(judged)}, {who}{f'; {told}' * bool(told)}.{_converged(judged.get('convergence') or {})}"


def binding_sentence(judged: Mapping[str, Any], fixed: Mapping[str, str] | None = None) -> str:
    """Whether what cross-attention reads lies more on what moves than what late concatenation looks at."""
    words = {"above": "above it", "below": "below it", "not distinguishable from": "not told apart from it"}
    by: dict[str, list[str]] = {}
    for row in judged.get("binding") or []:
        if (word := outcome(row["difference"])) and not _is_fixed(fixed, row["method"], row["stream"]):
            said = f"{words[word]} by {_label(row['method'])} ({_points(row['difference'])})"
            by.setdefault(row["stream"], []).append(said)
    told = "; ".join(f"in the {stream} stream {' and '.join(parts)}" for stream, parts in by.items())
    return (
        "On clips of bound classes, what cross-attention reads falls on the mover, beside the Grad-CAM of late "
        f"concatenation, {told}."
    ) if told else ""


def cells_sentence(judged: Mapping[str, Any], fixed: Mapping[str, str] | None = None) -> str:
    """How much of what its grid allows the exchange of cells finds, and whether that is more than rollout."""
    words = {"above": "above", "below": "below", "not distinguishable from": "not told apart from"}
    parts = []
    for row in judged.get("cells") or []:
        if row["group"] != "all" or row["share"]["value"] is None:
            continue
        word = "" if _is_fixed(fixed, "rollout", row["stream"]) else outcome(row["more"])
        beside = f", {words[word]} attention rollout ({_points(row['more'])} of mass)" if word else ""
        parts.append(f"{_percent(row['share'])} in the {row['stream']} stream{beside}")
    return f"Of what its grid allows, the exchange of single cells reaches {'; '.join(parts)}." if parts else ""


def wiring_sentence(fixed: Mapping[str, str]) -> str:
    """What the wiring of the headline fixes, and so is left out; the reasons are those of `fixed_by_wiring`."""
    found = []
    for name in fixed:
        source, _, what = name.rpartition(".")
        rolled = source.startswith(("rollout", "gradient_rollout"))
        where = f"of {_label(source.partition('.')[0])}" if rolled else (
            "across the streams" if "_from_" in source else "among the tokens of both streams")  # fmt: skip
        found.append(f"{FIXED.get(what, what)} {where}")
    told = _listed(list(dict.fromkeys(found)))
    return f"Whatever is learned, the wiring fixes {told}; nothing here rests on these." if told else ""


def layouts_sentence(found: Mapping[str, Any]) -> str:
    """How many neighbours of a clip are of its class, of each stream and of the readout."""
    rows = found.get("features") or []
    names = {stream: f"the mean {stream} token" for stream in STREAMS} | {"readout": "the readout"}
    parts = [f"{percent(row['same_class_neighbours'])}% by {names[row['features']]}" for row in rows]
    most = max((row["most"] for row in rows), default=0)  # of the clips' classes alone, and so the same for all
    return (f"Of the {count(found['neighbours'])} nearest neighbours of a clip in the full space, {_listed(parts)} are "
            f"of its class, where at most {percent(most)}% can be.") if parts else ""  # fmt: skip


def growing_sentence(rows: Sequence[Mapping[str, Any]]) -> str:
    """From which moment on the true class keeps more than one half, and where the last event ends."""
    row = next((row for row in rows if row["group"] == "all"), None)
    if row is None or row["decided"]["value"] is None:
        return ""
    said = (f"The true class stays above one half from some moment on in {_percent(row['decided'])} of "
            f"{count(row['clips'])} clips")  # fmt: skip
    moment, end = row["moment"], row["event_end"]
    if moment["value"] is None:
        return f"{said}."
    said += f", on average from {_percent(moment)} of the clip"
    if end["value"] is None:
        return f"{said}."
    word = "before" if _above(end, moment) else "after" if _above(moment, end) else "not told apart from"
    return f"{said}; that is {word} where the last event ends, at {_percent(end)}."


# --- parts ----------------------------------------------------------------------------------------------------


def _exchanged(found: Mapping[str, Any]) -> dict[str, dict[str, dict]]:
    """The rows of exchanges by pair and stream, of pairs of which a clip counts."""
    by: dict[str, dict[str, dict]] = {}
    for row in found.get("exchange") or []:
        if row["clips"]:
            by.setdefault(_pair(row), {})[row["stream"]] = row
    return by


def _pair(row: Mapping[str, Any]) -> str:
    return "All" if row["pair"] == "all" else " / ".join(row["pair"])


def _range(flips: Mapping[str, dict]) -> str:
    """`52.1% [42.1, 58.1] to 89.8% [79.8, 95.8]`, of the pair with the least and that with the most."""
    least, most = (pick(flips, key=lambda pair: flips[pair]["value"]) for pick in (min, max))
    if least == most or flips[least]["value"] == flips[most]["value"]:
        return _percent(flips[least])
    return f"{_percent(flips[least])} to {_percent(flips[most])}"


def _above(high: Mapping[str, Any], low: Mapping[str, Any]) -> bool:
    """Whether one interval lies above another, as they are shown; unpaired, so it says rather too little."""
    return None not in (high["low"], low["high"]) and round(high["low"], 3) > round(low["high"], 3)


def _clips(judged: Mapping[str, Any]) -> str:
    sets = judged.get("sets") or {"clips": 0, "pixel_clips": 0, "sets": 0}
    return (f"{count(sets['clips'])} clips by what reads tokens and {count(sets['pixel_clips'])} by what goes back to "
            f"pixels, of {count(sets['sets'])} twin sets")  # fmt: skip


def _named(rows: Iterable[Mapping[str, Any]]) -> str:
    """`exchanged cells (both streams), Grad-CAM (semantic)`."""
    by: dict[str, list[str]] = {}
    for row in rows:
        by.setdefault(row["method"], []).append(row["stream"])
    ordered = sorted(by, key=lambda method: _place(_labels(), method))
    return _listed([
        f"{_label(method)} ({'both streams' if set(by[method]) == set(STREAMS) else ' and '.join(by[method])})"
        for method in ordered
    ])  # fmt: skip


def _converged(found: Mapping[str, Any]) -> str:
    if not found.get("clips"):
        return ""
    below, left = found["below"], found["unconverged"]
    return (
        f" Integrated gradients miss the sum that they must have by {beyond(found['median'])}% in the median and "
        f"{beyond(found['p95'])}% in the 95th percentile of {count(found['clips'])} clips, by less than "
        f"{beyond(below['threshold'])}% in {percent(below['share'])}% of them; {left or 'none'} did not converge."
    )


def _against(verdict: Mapping[str, Any]) -> dict:
    return (verdict.get("differences") or {}).get("frame difference") or {}


def _passes(verdict: Mapping[str, Any]) -> str:
    return {True: "yes", False: "no", None: "too few sets"}[verdict["passed"]] if verdict else ""


def _is_fixed(fixed: Mapping[str, str] | None, method: str, stream: str) -> bool:
    """Whether the wiring decides where a map of rollout lies."""
    return any(f"{method}.{stream}.{what}" in (fixed or {}) for what in ("per_place", "per_moment"))


def _percent(metric: Mapping[str, Any]) -> str:
    """`81.2% [79.0, 83.1]`."""
    value, *bounds = beyond(metric).split(" ", 1)
    return " ".join([f"{value}%", *bounds])


def _points(difference: Mapping[str, Any]) -> str:
    return f"{percent(difference['value'], '+')} points {interval(dict(difference))}"


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))


def _labels() -> dict[str, str]:
    """Methods and references by their names for people, in the order of the tables."""
    from tcar.explain.methods import LABELS  # with all that explains, which the check needs not

    return LABELS | REFERENCES


def _label(method: str) -> str:
    """A method inside a sentence: `attention rollout`, but `Grad-CAM`."""
    name = _labels().get(method, method.replace("_", " "))
    return name if name[1:] != name[1:].lower() else name[:1].lower() + name[1:]


def _place(known: Iterable[str], name: str) -> int:
    names = list(known)
    return names.index(name) if name in names else len(names)
