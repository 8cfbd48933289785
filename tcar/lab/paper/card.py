"""The model card of a run, made of its result files: what the model is for, what it reaches, and where it fails.

The sections are those of Mitchell et al., Model cards for model reporting (2019), and what the model relies on beside
them. The card that is kept beside a model's weights is another (`tcar.models.card`): it knows nothing of results.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcar.lab.numerals import capital, confidence_level, count, estimate, millions, percent, readable, significant
from tcar.lab.paper.sentences import DECIDES, HEADLINE, interaction
from tcar.lab.paper.tables import DATA, Scored, twins_measured
from tcar.lab.results import outdated

if TYPE_CHECKING:
    from tcar.lab.params import Params

FILE = "model_card.md"
# The commands that make what the card is made of; `make paper` makes the rest.
COMMANDS = {"explanations": "make explanations", "miniatures": "make miniatures"}
WORST = 5  # classes and confusions that the card lists
ABOUT = {
    "tabletop": (
        "**The clips are synthetic.** They are those of Tabletop, which a program renders from seeds: a drawn hand, "
        "drawn objects, a drawn table. Nobody was filmed, and no number in this card says how well the model sees "
        "real video. Classes come in twins, two clips of one seed that differ in one factor; all clips of a seed "
        "stay in one split, and shapes, textures and backgrounds of the validation and the test clips do not occur in "
        "training. `tcar/tabletop/DATASHEET.md` says how they are made."
    ),
    "ssv2": (
        "The clips are those of Something-Something V2: videos in which hands do something with objects, filmed by "
        "many people for its publisher, under a licence of its own."
    ),
    "rehearsal": (
        "**The clips are a rendered imitation of Something-Something V2**, with labels that are arbitrary for most "
        "classes. They show that everything runs; the scores in this card mean nothing."
    ),
}
METRICS = {
    "top1": "Top-1 accuracy", "top5": "Top-5 accuracy", "mean_class_accuracy": "Mean accuracy of a class",
    "twin_accuracy": "Twin accuracy",
}  # fmt: skip
CALIBRATION = {
    "ece": "Expected calibration error (ECE)", "ece_equal_mass": "ECE, bins of equal mass",
    "ece_classwise": "ECE by class",
}  # fmt: skip


@dataclass(frozen=True)
class _Found:
    """What a folder has of the results of a run: values and provenance by name; `late` are those that were made from
    an earlier version of another (`tcar.lab.results.outdated`), which count as missing."""

    params: "Params"
    values: dict[str, dict]
    made: dict[str, dict]
    late: dict[str, list[str]] = field(default_factory=dict)

    @property
    def headline(self) -> str:
        """The method that the card is of."""
        return self.values.get("evaluation", {}).get("headline", HEADLINE)

    @property
    def scores(self) -> dict[str, Any]:
        """What the method reaches; empty where it was not evaluated."""
        return self.values.get("evaluation", {}).get("methods", {}).get(self.headline, {})

    @property
    def scored(self) -> str:
        """`means over seeds in % with 95% intervals …, on the test clips, synthetic (Tabletop)`."""
        about = Scored.of(self.values, self.params)
        return f"{about.means} {about.intervals()}, on the {about.split} clips, {about.data}"

    def absent(self, name: str) -> str:
        """Say that something is not known, and where its file is missing the command that measures it."""
        command = COMMANDS.get(name, "make paper")
        if name in self.late:
            changed = " and ".join(f"`{one}`" for one in self.late[name])
            return f"Not known: `{name}.json` was made from an earlier {changed}. `{command}` measures it again."
        if name in self.values:
            return f"This has not been measured: `{name}.json` holds nothing of it."
        return f"This has not been measured: there is no `{name}.json`. `{command}` measures it."


def model_card(folder: Path, params: "Params") -> str:
    """Return the card of a run, in Markdown, from its result files in a folder; a missing one leaves a section that
    says so, an unknown value an empty cell.

    The same files give the same text. Raises ReportError for a share that is none.
    """
    late = {name.removesuffix(".json"): changed for name, changed in outdated(folder).items()}
    values, made = {}, {}
    for path in sorted(folder.glob("*.json")):
        name = path.name.removesuffix(".json")
        kind, name = (made, name.removesuffix(".meta")) if name.endswith(".meta") else (values, name)
        if name not in late:
            kind[name] = json.loads(path.read_text(encoding="utf-8"))
    found = _Found(params, values, made, late)
    sections = {
        "Model details": _details, "Intended use": _use, "Data": _data, "Metrics": _metrics, "By group": _groups,
        "Calibration": _calibration, "What it relies on": _reliance, "Explanations that can be trusted": _verdicts,
        "Where it fails": _failures, "Cost": _cost,
    }  # fmt: skip
    title = f"# Model card: {readable(found.headline).lower()}, {DATA[params.material]}"
    intro = (
        "Every number in this card comes from the run's result files. Its sections are those of Mitchell et al., "
        "*Model cards for model reporting* (2019), and what the model relies on beside them."
    )
    told = [f"## {name}\n\n" + "\n\n".join(filter(None, section(found))) for name, section in sections.items()]
    return "\n\n".join([title, intro, *told]) + "\n"


def _details(found: _Found) -> list[str]:
    said = [
        "The model names the action in a video. Two frozen streams turn its frames into tokens, one for what is seen "
        "and one for how it moves; the fusion, which alone was trained unless the table of costs says otherwise, reads "
        "both. The project's code is under Apache 2.0; published weights of streams have licences of their own."
    ]
    weights = {True: "trained before", False: "random"}
    streams = [
        [one.get("name"), one.get("role"), count(one.get("frames")), _sides(one.get("input_size")),
         _sides(one.get("grid")), count(one.get("width")), weights.get(one.get("pretrained"))]
        for one in found.values.get("extractors", {}).get("streams", [])
    ]  # fmt: skip
    columns = ["Stream", "Role", "Frames", "Pixels", "Tokens", "Width", "Weights"]
    said.append(_table(columns, streams) or found.absent("extractors"))
    training = found.values.get("training", {})
    if not (own := training.get("methods", {}).get(found.headline)):
        return [*said, found.absent("training")]
    recipe, fusion = training.get("recipe", {}), own.get("fusion", {})
    facts = {
        "Fusion": readable(found.headline).lower(), "Blocks": count(fusion.get("blocks")),
        "Heads": count(fusion.get("heads")), "Window": fusion.get("window"), "Positions": fusion.get("positions"),
        "Seeds": ", ".join(map(str, own.get("seeds", []))), "Epochs": count(own.get("epochs")),
        "Epochs kept": ", ".join(map(str, own.get("best_epoch", []))),
        "Learning rate": _plain(recipe.get("learning_rate_by_method", {}).get(found.headline)
                                or recipe.get("learning_rate")),
        "Batch": count(recipe.get("batch_size")), "Weight decay": _plain(recipe.get("weight_decay")),
    }  # fmt: skip
    return [*said, _table(["Training", "Value"], [[name, value] for name, value in facts.items() if value])]


def _use(found: _Found) -> list[str]:
    purpose = {
        "tabletop": "Research on a synthetic benchmark: to compare ways in which two streams can be fused where it is "
        "known what each of them can tell, and to test explanations where it is known what moves.",
        "ssv2": "Research on Something-Something V2: to compare ways in which two frozen streams can be fused.",
        "rehearsal": "To try the path of the real dataset before it is there; nothing else.",
    }[found.params.material]
    classes = count(len(found.values.get("evaluation", {}).get("classes", []))) or "its"
    return [
        purpose,
        "It is **not** made for watching people and must not be used for it: not for surveillance, not to recognise "
        "or follow anyone, not to judge work, conduct, health or ability, and for no decision about a person. It is "
        "not made for steering machines or for safety either.",
        f"It names one of {classes} classes whatever it is shown, and never says that none fits. On videos of another "
        "kind than its training clips its answers, and how sure it is of them, are untested.",
    ]


def _data(found: _Found) -> list[str]:
    said, audit = [ABOUT[found.params.material]], found.values.get("audit")
    if not audit:
        return [*said, found.absent("audit")]
    rows = []
    for split, clips in audit.get("clips", {}).items():
        ranges = [_range(audit.get(key, {}).get(split)) for key in ("durations", "frames", "rates")]
        sizes = ", ".join(size.replace("x", " × ") for size in audit.get("sizes", {}).get(split, {}))
        rows.append([split, count(clips), *ranges, sizes])
    return [
        *said,
        _table(["Split", "Clips", "Seconds", "Frames", "Frames a second", "Pixels"], rows),
        f"Clips that are broken and left out: {count(len(audit.get('quarantined', [])))}.",
    ]


def _metrics(found: _Found) -> list[str]:
    if not found.scores:
        return [found.absent("evaluation")]
    evaluation = found.values["evaluation"]
    own = evaluation if found.headline == evaluation.get("headline") else {}
    known = {key: found.scores.get(key) or own.get(key) or {} for key in METRICS}
    known = {key: entry for key, entry in known.items() if entry.get("value") is not None}
    rows = [[METRICS[key], estimate(entry)] for key, entry in known.items()]
    twins = " Twin accuracy counts a pair of twins only if both clips are right." if "twin_accuracy" in known else ""
    chance = f" Guessing gives {percent(1 / len(evaluation['classes']))}% in top-1." if evaluation["classes"] else ""
    return [f"{capital(found.scored)}.{twins}{chance}", _table(["Metric", "Value"], rows)]


def _groups(found: _Found) -> list[str]:
    if not found.scores:
        return [found.absent("evaluation")]
    top1, twin = (found.scores.get(key) or {} for key in ("per_group", "per_group_twin_accuracy"))
    groups = list(dict.fromkeys([*top1, *twin]))
    if not groups:
        return ["The classes of these clips have no groups."]
    rows = [[capital(one), DECIDES.get(one), estimate(top1.get(one)), estimate(twin.get(one))] for one in groups]
    return [f"{capital(found.scored)}.", _table(["Group", "What it is of", "Top-1", "Twin accuracy"], rows)]


def _calibration(found: _Found) -> list[str]:
    if not found.scores:
        return [found.absent("evaluation")]
    evaluation, about = found.values["evaluation"], Scored.of(found.values, found.params)
    rows = [[name, estimate(found.scores[key])] for key, name in CALIBRATION.items() if found.scores.get(key)]
    fitted, brier = evaluation.get("calibration", {}), found.scores.get("brier") or {}
    if fitted.get("ece"):
        rows.append(["ECE after temperature scaling", estimate(fitted["ece"])])
    if brier.get("value") is not None:
        value, *ends = (significant(brier.get(key)) for key in ("value", "low", "high"))
        rows.append(["Brier score, from 0 to 2 and not in %", f"{value} [{', '.join(ends)}]" if all(ends) else value])
    basis = "the validation clips" if about.split == "test" else "half of the clips, the error being that of the others"
    divisors = ", ".join(significant(one) for one in fitted.get("temperatures", []))
    kept = significant(found.values.get("training", {}).get("temperature"))
    told = [f"Temperatures, one for each seed, fitted on {basis}: {divisors}."] * bool(divisors)
    told += [f"That of the model that is kept: {kept}."] * bool(kept)
    return [f"{capital(found.scored)}.", _table(["Measure", "Value"], rows), " ".join(told)]


def _reliance(found: _Found) -> list[str]:
    from tcar.lab.steps.words import evidence_sentence

    inside, said = found.values.get("interpretability", {}), []
    exchange = [row for row in inside.get("exchange") or [] if row["clips"]]
    if exchange or not found.scores or twins_measured(found.values):
        said.append(
            "### One stream exchanged for the twin's\n\nAn answer flips where the model names the twin's class once "
            "one stream is the twin's and the other is as it was; *margin moved* is the share of the margin between "
            "the two classes that goes with that stream."
        )
    if exchange:
        level = confidence_level(found.params.evaluation.confidence)
        left = {tuple(row["pair"]): row for row in inside.get("interaction") or []}
        rows = [
            [capital(row["group"] or "all groups"), "all" if row["pair"] == "all" else " / ".join(row["pair"]),
             row["stream"], count(row["clips"]), _share(row["flips"]), _share(row["moved"]),
             _share(left.get(tuple(row["pair"])))]
            for row in exchange
        ]  # fmt: skip
        said[0] += f" With {level} intervals; {DATA[found.params.material]}."
        columns = ["Group", "Pair", "Stream exchanged", "Clips", "Answers that flip", "Margin moved", "Interaction"]
        said.append(_table(columns, rows))
    elif said:
        said.append(found.absent("interpretability"))
    else:
        said.append("No stream was exchanged: these clips come in no pairs that differ in one factor.")
    if found.headline == HEADLINE and "evaluation" in found.values and (lost := interaction(found.values)):
        said.append(f"### Interaction\n\nIts streams can be forced to be added up (EMAP). {lost}.")
    controls = (found.values.get("ablations", {}).get("controls") or {}).get("rows", [])
    if rows := [row for row in controls if (row["method"], row["group"]) == (found.headline, "all")]:
        said.append(f"### Evidence taken away\n\n{evidence_sentence(found.headline, rows)}")
    return said


def _verdicts(found: _Found) -> list[str]:
    verdicts = found.values.get("explanations", {}).get("verdicts")
    if not verdicts:
        return [found.absent("explanations")]
    methods = {row["method"]: [one["passed"] for one in verdicts if one["method"] == row["method"]] for row in verdicts}
    sorted_by = {
        "Passed whatever could be judged": [one for one, passed in methods.items() if set(passed) - {None} == {True}],
        "Failed at least once": [one for one, passed in methods.items() if False in passed],
        "Could not be judged": [one for one, passed in methods.items() if set(passed) == {None}],
    }
    words = {True: "yes", False: "no", None: ""}
    rows = [[*(_spaced(row[key]) for key in ("method", "stream", "measure")), words[row["passed"]]] for row in verdicts]
    return [
        " ".join(f"{told}: {', '.join(map(_spaced, names))}." for told, names in sorted_by.items() if names),
        _table(["Method", "Stream", "Measure", "Passed"], rows),
        "An empty cell could not be judged." if any(row["passed"] is None for row in verdicts) else "",
    ]


def _failures(found: _Found) -> list[str]:
    from tcar.lab.steps.words import error_sentences

    if not found.scores:
        return [found.absent("evaluation")]
    evaluation, said = found.values["evaluation"], []
    for key, name in (("per_group_twin_accuracy", "twin accuracy"), ("per_group", "top-1 accuracy")):
        reached = {one: row for one, row in (found.scores.get(key) or {}).items() if row["value"] is not None}
        if reached:
            worst = min(reached, key=lambda one: reached[one]["value"])
            said.append(f"The lowest {name} is that of the group *{worst}* ({estimate(reached[worst])}, in %).")
    said = [" ".join(said)]
    if evaluation.get("errors"):
        said.append(" ".join(error_sentences(found.headline, evaluation["errors"])))
    ranked = sorted((row["value"], name, row) for name, row in (evaluation.get("per_class") or {}).items()
                    if row["value"] is not None)  # fmt: skip
    if classes := [[name, count(row.get("support")), estimate(row)] for _, name, row in ranked[:WORST]]:
        said += ["### The weakest classes", _table(["Class", "Clips", "Top-1"], classes)]
    if pairs := [[row["true"], row["predicted"], count(row["count"]), estimate(row["share"])]
                 for row in (evaluation.get("confused_pairs") or [])[:WORST]]:  # fmt: skip
        said += [
            "### The largest confusions",
            _table(["Class", "Named instead", "Answers", "Share of the class"], pairs),
        ]
    basis = f"Ranked by {found.scored}. Whether neighbours in a ranking differ is not tested."
    return [*said, basis] if any(said) else ["The results say nothing of single classes."]


def _cost(found: _Found) -> list[str]:
    said, parts = [], found.values.get("fusion", {}).get("parts") or []
    rows = [[one["part"], count(one["total"]), count(one["trained"]), significant(one.get("gflops"))] for one in parts]
    if rows:
        said += [
            "Parameters, and GFLOPs for one clip (2 a multiply-add).",
            _table(["Part", "Parameters", "Trained", "GFLOPs"], rows),
        ]
        if (frozen := parts[-1].get("share_frozen")) is not None:
            said.append(f"Frozen: {percent(frozen)}% of all parameters.")
    else:
        trained = millions(found.scores.get("trained_parameters"))
        said += [f"Trained parameters, in millions: {trained}."] if trained else [found.absent("fusion")]
    timed = found.made.get("miniatures", {}).get("extra", {}).get("timings", {}).get(found.headline)
    if timed:
        p10, p50, p90 = (significant(timed["milliseconds"][key]) for key in ("p10", "p50", "p90"))
        said.append(
            f"One clip, from decoded frames to the answer: {p50} ms (median of {timed['repeats']}; 10th to 90th "
            f"percentile {p10} to {p90}) on {timed['device']}, threads: {timed['threads']}."
        )
    else:
        said.append(f"Milliseconds of a clip: {found.absent('miniatures')}")
    made = found.made.get("training", {})
    if seconds := made.get("extra", {}).get("seconds", {}).get(found.headline):
        # One digit: seconds are of a machine, and what is made again on it gives the same card.
        hours = significant(sum(seconds) / 3600, 1)
        on = {"tokens": "stored tokens, whose extraction is not counted"}.get(found.params.trainer.task, "clips")
        said.append(f"Training: {hours} hours for all seeds ({len(seconds)}) on {made['device']}, from {on}.")
    else:
        said.append("Training: the results do not say how many hours it took.")
    return said


# --- cells ----------------------------------------------------------------------------------------------------


def _table(columns: Sequence[str], rows: Sequence[Sequence[str | None]]) -> str:
    """Rows of text in Markdown, without columns in which no row has a value; empty without rows."""
    kept = [i for i in range(len(columns)) if not i or any(row[i] for row in rows)]
    lines = [[columns[i] for i in kept], ["---"] * len(kept)]
    lines += [[(row[i] or "").replace("|", "\\|") for i in kept] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else ""


def _share(entry: Mapping[str, Any] | None) -> str:
    """A share with its interval, which may lie beyond 0 and 1; empty where it is not known."""
    from tcar.lab.steps.words import shown

    return shown(entry) if entry and entry["value"] is not None else ""


def _range(summary: Mapping[str, float] | None) -> str:
    ends = [_plain(summary[key]) for key in ("minimum", "maximum")] if summary else []
    return " to ".join(dict.fromkeys(ends))


def _plain(number: float | None) -> str:
    return "" if number is None else f"{number:.4g}"


def _sides(value: Any) -> str:
    return " × ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)


def _spaced(name: Any) -> str:
    return "" if name is None else str(name).replace("_", " ")
