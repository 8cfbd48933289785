"""The sentences of the paper that state an outcome, computed so that they say no more than the numbers bear."""

from tcar.lab.numerals import interval, level_name, outcome, pair_name, percent, readable, significant
from tcar.lab.paper.explained import explained_sentences
from tcar.lab.paper.tables import WORDS, methods_of, need, twins_measured

HEADLINE = "cross_attention"
LEAST_EPOCHS = 8  # of a training whose last quarter can show a plateau
# What decides in each group, as a sentence says it.
DECIDES = {
    "one frame": "one frame decides", "what and where": "it matters what is where", "motion": "motion decides",
    "order of appearance": "the order of appearance decides", "bound": "appearance and motion have to be bound",
}
# How a sentence calls the methods that the headline is compared with, the main rivals first.
RIVALS = {
    "semantic": "the semantic stream", "motion": "the motion stream", "late_concat": "late concatenation",
    "late_concat_raw": "late concatenation of raw pooled features",
    "sum": "the sum of both streams' scores", "joint": "one transformer over all tokens",
    "semantic_step": "the STEP probe of the semantic stream",
    "semantic_bag": "the semantic stream with its frames as a set",
}


def find_comparison(results: dict, a: str, b: str, metric: str) -> dict:
    """The paired difference a - b, turned round where the file holds b - a; empty if it was not measured."""
    for c in results["evaluation"].get("comparisons", []):
        if c["metric"] == metric and (c["a"], c["b"]) == (a, b):
            return c
        if c["metric"] == metric and (c["a"], c["b"]) == (b, a) and c.get("low") is not None:
            return {"difference": -c["difference"], "low": -c["high"], "high": -c["low"]}
    return {}


def against(results: dict, rivals: list[str], metric: str) -> str:
    """`above the motion stream (+12.3 points [8.0, 16.1]) and …`; what was not measured is left out."""
    found = {rival: find_comparison(results, HEADLINE, rival, metric) for rival in rivals}
    parts = [f"{outcome(c)} {RIVALS[rival]} ({percent(c['difference'], '+')} points {interval(c)})"
             for rival, c in found.items() if outcome(c)]
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])}{',' * (len(parts) > 2)} and {parts[-1]}"


def standing(results: dict, metric: str) -> str:
    """`In twin accuracy, below temporal cross-attention: the motion stream; not told apart from it: the sum …`."""
    titles = {"above": "below temporal cross-attention", "not distinguishable from": "not told apart from it",
              "below": "above it"}  # fmt: skip
    found: dict[str, list[str]] = {word: [] for word in titles}
    for rival, name in RIVALS.items():
        if word := outcome(find_comparison(results, HEADLINE, rival, metric)):
            found[word].append(name)
    parts = [f"{titles[word]}: {', '.join(names)}" for word, names in found.items() if names]
    return f"In {WORDS[metric]}, {'; '.join(parts)}" if parts else ""


def groups_told(results: dict) -> str:
    """What each group of twins shows: `Of bound pairs it answers 23.7% [12.0, 36.0]: …`, group by group."""
    from tcar.lab.steps.words import group_meaning

    reached = need(results, "evaluation", "methods", HEADLINE).get("per_group_twin_accuracy") or {}
    against = results["evaluation"].get("comparisons_by_group") or {}
    return " ".join(
        f"Where {DECIDES.get(group, group)}, it answers {percent(entry['value'])}% {interval(entry)} of the pairs; "
        f"{group_meaning(entry, against[group])}."
        for group, entry in reached.items() if group in against and entry["value"] is not None
    )


def both_needed(results: dict) -> str:
    """The groups in whose twin accuracy the headline is above each of its streams; `no group` where there is none."""
    against = results["evaluation"].get("comparisons_by_group") or {}
    alone = {group: [rows[stream] for stream in ("semantic", "motion") if stream in rows]
             for group, rows in against.items()}
    told = [group for group in DECIDES if alone.get(group) and all(outcome(row) == "above" for row in alone[group])]
    if not any(alone.values()):
        return ""
    return f"the group{'s' * (len(told) > 1)} {' and '.join(told)}" if told else "no group"


def interaction(results: dict) -> str:
    """Of which pairs of twins the headline loses accuracy when its streams may only be added up."""
    rows = [row for row in results["evaluation"].get("emap") or []
            if row["method"] == HEADLINE and row["pair"] != "all" and row["kept"]["high"] is not None]
    lost = [row for row in rows if row["kept"]["high"] < 0]
    told = ", ".join(f"\u201c{row['pair'][0]}\u201d and its twin ({percent(row['kept']['value'], '+')} points "
                     f"{interval(row['kept'])})" for row in lost)
    if not rows:
        return ""
    if not lost:
        return f"Of none of {len(rows)} pairs can it be told that temporal cross-attention loses anything by it"
    return (f"By it temporal cross-attention loses {told}; of the other {len(rows) - len(lost)} pairs no loss can be "
            "told")  # fmt: skip


def errors_told(found: dict) -> str:
    """Where the headline is wrong: the kinds of its errors, how often it is sure, and the conditions that matter."""
    from tcar.lab.steps.words import error_sentences

    said = error_sentences(HEADLINE, found)
    conditions = said[len(said) - len(found["conditions"]):]
    told, equal = [], []
    for text, row in zip(conditions, found["conditions"], strict=True):
        different = outcome(row["difference"]) in ("above", "below")
        (told if different else equal).append(text if different else row["condition"])
    if equal:
        told.append(f"Clips whose action is {', '.join(equal)} are not told apart from others of their class.")
    return " ".join([*said[: len(said) - len(conditions)], *told])


def plateaus(results: dict) -> str:
    """`5 of 5 methods count as converged`, of those that learned something in long enough a training.

    A quarter of a training of few epochs is no time to rise in, and a curve at the level of chance is flat from the
    beginning: neither says anything about a plateau.
    """
    chance = 1 / len(need(results, "evaluation", "classes"))
    scores, counted, idle = methods_of(results), [], 0
    for method, row in results["training"].get("methods", {}).items():
        if "converged" in row and row["epochs"] >= LEAST_EPOCHS and method in scores:
            learned = (scores[method]["top1"].get("low") or 0) > chance
            counted += [row["converged"]] * learned
            idle += not learned
    parts = [f"{sum(counted)} of {len(counted)} methods count as converged"] if counted else []
    parts += [f"{idle} cannot be told from chance, of which it says nothing"] if idle else []
    return "; ".join(parts)


def sentences(results: dict) -> dict[str, str]:
    """Every sentence that states an outcome, computed so that it says no more than the numbers bear."""
    from tcar.lab.steps.words import blind_probes  # with all that draws, which the check needs not

    need(results, "evaluation", "methods", HEADLINE)
    metric = "twin_accuracy" if twins_measured(results) else "top1"
    name, errors = WORDS[metric], results["evaluation"].get("errors")
    said = {
        "abstract": (f"In {name} it is {{}}.", against(results, ["semantic", "motion", "late_concat"], metric)),
        "rivals": (f"In {name}, temporal cross-attention is {{}}.", against(results, list(RIVALS), metric)),
        "methods_caption": ("{}.", standing(results, metric)),
        "groups": ("{}", groups_told(results)),
        "groups_caption": ("Cross-attention is above both of its streams alone in {}.", both_needed(results)),
        "emap": ("{}.", interaction(results)),
        "errors": ("{}", errors_told(errors) if errors else ""),
        "converged": ("By this criterion, {}.", plateaus(results)),
    }
    blind = blind_probes(need(results, "audit", "twins"))
    said["blind"] = ("{}", "Of {probes} such probes of single pairs, {same} see the same in both twins; of the "
                     "intervals of the other {measured}, {excluded} exclude{ending} 50%.".format(
                         **blind, ending="s" * (blind["excluded"] == 1))
                     if blind["probes"] else "")
    once = trained_once(results, metric)
    said["ablations"] = (f"In {name}, {{}}.{once}", ablations_told(results["ablations"], metric))
    pairs = results.get("pairs", {})
    said["pairs"] = (f"In {WORDS.get(pairs.get('metric'))}, {{}}.", pairs_told(pairs))
    said["controls"] = ("{}", controls_told(results["ablations"]))
    said["controls_caption"] = ("It loses most, of each group: {}.", hurts_most(results["ablations"]))
    said["replicates"] = ("In twin accuracy, temporal cross-attention is {}.", all_over_replicates(results))
    # The rivals of which the abstract speaks, whichever of them the replicates tell it from.
    said["anew"] = ("Drawn anew with other clips and streams, it is {}.",
                    over_replicates(results, ("late_concat", "sum")))
    said["loss_terms"] = ("{}.", terms_told(results.get("loss_terms", {})))
    said["miniatures"] = ("{}.", miniatures_told(results.get("miniatures", {})))
    return {key: frame.format(text) if text else "" for key, (frame, text) in said.items()} | (
        explained_sentences(results))


def ablations_told(measured: dict, metric: str) -> str:
    """`joint window is below time window (-2.1 points [-3.0, -1.2]); no difference can be told of the others`."""
    rows = [row for row in measured.get("comparisons", []) if row["metric"] == metric]
    parts = []
    for row in rows:
        if word := _told(row, measured["alpha"]):
            level, own = (f"{name[:1].lower()}{name[1:]}" for name in
                          (level_name(row["factor"], row[key]) for key in ("level", "against")))  # fmt: skip
            parts.append(f"{level} is {word} {own} ({percent(row['difference'], '+')} points {interval(row)})")
    if len(parts) < len(rows):
        those = "the others" if parts else "any level"
        parts.append(f"no difference from the headline can be told of {those}")
    return "; ".join(parts)


def trained_once(results: dict, metric: str) -> str:
    """Warns where each level has one training: how far apart those of the headline are; empty where it has one too."""
    seeds = {row["seed"] for row in need(results, "ablations", "rows")}
    own = (need(results, "evaluation", "methods", HEADLINE).get("per_seed") or {}).get(metric) or []
    if len(seeds) > 1 or len(own) < 2:
        return ""
    return (f" Each level is trained once, and no interval here knows of other trainings: those of the headline, "
            f"{len(own)} in number, lie within {percent(max(own) - min(own))} points of each other.")


def _told(row: dict, alpha: float) -> str:
    """`above` or `below` where a corrected test tells a paired difference from none; empty where it does not."""
    word = outcome(row)
    return word if row["holm"] is not None and row["holm"] < alpha and word in ("above", "below") else ""


def pairs_told(measured: dict) -> str:
    """`cross-attention is below what it reaches on the run's own streams with untrained streams (-2.1 points [-3.0,
    -1.2]), and …; it is …`: then on which pairs of streams it can be told from its closest rival.
    """
    if not measured:
        return ""
    own = [row for row in measured["comparisons"] if row["method"] == measured["headline"]]
    asked = {"what it reaches on the run's own streams": own,
             readable(measured["rival"]).lower(): measured["over_rival"]}  # fmt: skip
    parts = []
    for whom, compared in asked.items():
        rows = [row for row in compared if row["metric"] == measured["metric"]]
        told: dict[str, list[str]] = {"above": [], "below": []}
        for row in rows:
            if word := _told(row, measured["alpha"]):
                name = f"{pair_name(row['level'])} ({percent(row['difference'], '+')} points {interval(row)})"
                told[word].append(name)
        said = {word: " and ".join(names) for word, names in told.items() if names}
        if sum(map(len, told.values())) < len(rows):
            said["not told apart from"] = "the others" if said else "any pair of streams"
        words = [f"{word} {'it' if n else whom} with {names}" for n, (word, names) in enumerate(said.items())]
        parts += [", and ".join(words)] * bool(rows)
    return f"{readable(measured['headline']).lower()} is {'; it is '.join(parts)}"


def controls_told(measured: dict) -> str:
    """What the headline loses under each control: which evidence it uses."""
    from tcar.lab.steps.words import evidence_sentence

    rows = [row for row in (measured.get("controls") or {}).get("rows", [])
            if (row["method"], row["group"]) == (HEADLINE, "all")]
    return evidence_sentence(HEADLINE, rows) if rows else ""


def hurts_most(measured: dict) -> str:
    """Of each group of classes the control that costs the headline most: `bound, when frames are shuffled; …`."""
    from tcar.lab.steps.words import UNDER

    worst: dict[str, dict] = {}
    for row in (measured.get("controls") or {}).get("rows", []):
        if row["method"] == HEADLINE and row["group"] in DECIDES and outcome(row["change"]) == "below":
            worst[row["group"]] = min(row, worst.get(row["group"], row), key=lambda row: row["change"]["value"])
    return "; ".join(f"{group}, when {UNDER[worst[group]['control']]}" for group in DECIDES if group in worst)


def terms_told(measured: dict) -> str:
    """`Of 7 terms, drop path raises validation top-1, and no difference can be told of the others`."""
    terms = measured.get("terms", [])
    told = {row["term"]: outcome(row) for row in terms if row["holm"] < measured["alpha"]}
    parts = []
    for word, verb in (("above", "raise"), ("below", "lower")):
        names = [readable(term) for term, found in told.items() if found == word]
        if names:
            parts.append(f"{' and '.join(names)} {verb}{'s' * (len(names) == 1)} validation top-1")
    if len(told) < len(terms):
        parts.append("no difference can be told of " + ("the others" if told else "any"))
    return f"Of {len(terms)} terms, {', and '.join(parts)}" if terms else ""


def miniatures_told(measured: dict) -> str:
    """`In twin accuracy, cross-attention is above CAST (+9.1 points [2.0, 16.0]; it takes 2.2 times as many operations
    a clip), and …`.
    """
    rows = measured.get("comparisons", [])
    metric = "twin_accuracy" if any(row["metric"] == "twin_accuracy" for row in rows) else "top1"
    cost = {method: row["gflops"] for method, row in measured.get("methods", {}).items()}
    parts = []
    for row in rows:
        if row["metric"] == metric and (word := outcome(row)):
            rival = readable(row["b"]).partition(",")[0]  # all of them are tiny
            times = significant(cost[row["b"]] / cost[row["a"]], 2)
            parts.append(f"{word} {rival} ({percent(row['difference'], '+')} points {interval(row)}; it takes {times} "
                         "times as many operations a clip)")  # fmt: skip
    if not parts:
        return ""
    said = f"In {WORDS[metric]}, {readable(measured['headline']).lower()} is {', and '.join(parts)}"
    late = [readable(name).partition(",")[0] for name, row in measured["methods"].items() if row["converged"] is False]
    return said + f". By the criterion above, {' and '.join(late)} had not converged" * bool(late)


def over_replicates(results: dict, rivals: tuple[str, ...]) -> str:
    """`above the motion stream (+12.3 points [8.0, 16.1], corrected p = 0.002) and …`, over replicates."""
    parts = [f"{word} {told}" for _, word, told in _replicated(results, rivals)]
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))


def all_over_replicates(results: dict) -> str:
    """Where the headline stands to all rivals over replicates: `above all 8 rivals, and closest to late concatenation
    (+6.1 points [2.8, 9.5], corrected p = 0.020)`; or whom it is above, and in full those that it is not.
    """
    rows = _replicated(results, tuple(RIVALS))
    above = [rival for rival, word, _ in rows if word == "above"]
    if rows and len(above) == len(rows):
        gaps = {row["b"]: row["difference"] for row in results["replicates"]["comparisons"]
                if row["metric"] == "twin_accuracy"}  # fmt: skip
        closest = min(above, key=gaps.get)
        whom = {1: "its rival", 2: "both rivals"}.get(len(above), f"all {len(above)} rivals")
        return f"above {whom}, and closest to {next(told for rival, _, told in rows if rival == closest)}"
    parts = ["above " + ", ".join(RIVALS[rival] for rival in above)] * bool(above)
    return "; ".join(parts + [f"{word} {told}" for _, word, told in rows if word != "above"])


def _replicated(results: dict, rivals: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """Each rival with the word that its corrected test bears, so that it holds for all rivals together, and in full."""
    measured = results.get("replicates", {})
    found = []
    for row in measured.get("comparisons", []):
        if row["metric"] == "twin_accuracy" and row["b"] in rivals and row["holm"] is not None:
            word = outcome(row) if row["holm"] < measured["alpha"] else "not distinguishable from"
            found.append((row["b"], word, f"{RIVALS[row['b']]} ({percent(row['difference'], '+')} points "
                          f"{interval(row)}, corrected p = {significant(row['holm'], 2)})"))
    return found
