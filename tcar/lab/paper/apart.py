"""The tables of what commands of their own measure: replicates, recipes, pairs of streams, loss terms, and others."""

from collections.abc import Mapping
from typing import Any

from tcar.fusion.settings import AVERAGED
from tcar.lab.numerals import (
    capital,
    count,
    estimate,
    heading,
    interval,
    millions,
    pair_name,
    percent,
    readable,
    significant,
)
from tcar.lab.paper.writing import Table

# The commands that measure apart, by the stem of what they write.
COMMANDS = {
    "replicates": "tcar replicates", "recipes": "tcar recipes", "loss_terms": "tcar terms", "pairs": "tcar pairs",
    "search": "tcar search", "miniatures": "tcar miniatures", "explanations": "tcar explanations",
}


def all_tables(results: dict, data: str, confidence: str) -> list[Table]:
    """Those of everything that was measured; without rows where nothing was."""
    return [
        *replicate_tables(results.get("replicates"), data, confidence),
        recipes_table(results.get("recipes"), data),
        pairs_table(results.get("pairs"), data, confidence),
        terms_table(results.get("loss_terms"), data, confidence),
        miniatures_table(results.get("miniatures"), data, confidence),
        *experiment_tables(results.get("experiment") or {}, data, confidence),
        compute_table(results.get("provenance") or {}),
    ]


def compute_table(provenance: Mapping[str, Mapping[str, Any]]) -> Table:
    """What made every result that is not of the notebooks, and the hours of its trainings; of provenance by name."""
    rows = []
    for name, made in provenance.items():
        command, given = COMMANDS[name.rsplit("/", 1)[-1]], made["parameters"]
        opened = given.get("publish_as") and given["evaluation_split"] == "test" and name.endswith("/replicates")
        seconds, commit = made["extra"].get("training_seconds"), (made["commit"] or "")[:7]
        rows.append([
            name, f"{command} params/{given['name']}.yaml{' --unseal' * bool(opened)}",
            significant(seconds / 3600, 2) if seconds else "", made["device"],
            f"{commit}{' and changes' * bool(made['dirty'])}",
        ])  # fmt: skip
    return Table(
        "compute", "What made the results that take a command of their own: which one, on what and at which commit, "
        "and the hours that their trainings took, summed over processes that ran side by side on one core each.",
        ["Result", "Command", "Hours", "Machine", "Commit"], rows)


def grid_table(name: str, caption: str, corner: str, values: dict[str, dict]) -> Table:
    """Estimates by row and column, of which the rows are methods where `corner` says so; no rows without columns."""
    columns = list(dict.fromkeys(column for row in values.values() for column in row))
    called = heading if corner == "Method" else capital
    rows = [[called(key), *(estimate(row.get(c)) for c in columns)] for key, row in values.items()]
    return Table(name, caption, [corner, *map(capital, columns)], rows if columns else [])


def notes_of(methods: dict[str, dict]) -> str:
    """What must be said beside the numbers of methods that read frames: a sentence each, empty where there are none."""
    return "".join(f" {readable(m)}: {'; '.join(row['notes'])}." for m, row in methods.items() if row.get("notes"))


def replicate_tables(measured: dict | None, data: str, confidence: str) -> list[Table]:
    """Methods over replicates, and their twin accuracy per group; tables without rows where nothing was measured."""
    measured = measured or {"methods": {}, "comparisons": [], "replicates": [], "headline": ""}
    against = {row["b"]: row for row in measured["comparisons"] if row["metric"] == "twin_accuracy"}
    rows = []
    for method, row in measured["methods"].items():
        test = against.get(method)
        rows.append([readable(method), estimate(row["top1"]), estimate(row["twin_accuracy"]),
                     percent(row["twin_accuracy"]["spread"]),
                     f"{percent(test['difference'], '+')} {interval(test)}" if test else "",
                     significant(test["holm"], 2) if test else ""])
    over = f"over {len(measured['replicates'])} replicates, each with clips, streams and trainings of its own, {data}"
    return [
        Table("replicates", f"Methods {over}: means in % with {confidence} intervals (Student), the standard deviation "
              f"of the twin accuracy, and how far the headline, {readable(measured['headline']).lower()}, is above in "
              "it: paired differences in points and p of the paired t-test, corrected for the number of rivals (Holm).",
              ["Method", "Top-1", "Twin accuracy", "Deviation", "Headline minus it", "p"], rows),
        grid_table("replicates_per_group", f"Twin accuracy per group {over}: means in % with {confidence} intervals.",
                   "Method", {method: {group: entry["twin_accuracy"] for group, entry in row["per_group"].items()}
                              for method, row in measured["methods"].items()}),
    ]


def pairs_table(measured: dict | None, data: str, confidence: str) -> Table:
    """The headline method and its closest rival on each pair of streams; no rows where nothing was measured."""
    measured = measured or {"rows": [], "comparisons": [], "over_rival": [], "seeds": [], "metric": "top1",
                            "headline": "", "rival": "", "split": "test"}  # fmt: skip
    metric, rival = measured["metric"], measured["rival"]
    changed = {(row["level"], row["method"]): row for row in measured["comparisons"] if row["metric"] == metric}
    over = {(row["level"], rival): row for row in measured["over_rival"] if row["metric"] == metric}
    rows = []
    for row in measured["rows"]:
        key, name = (row["level"], row["method"]), pair_name(row["level"])
        tests = [cell for some in (changed, over) for cell in _test(some.get(key))]
        rows.append([name[:1].upper() + name[1:], readable(row["method"]), estimate(row["top1"]),
                     estimate(row["twin_accuracy"]), *tests])
    called, unit = {"twin_accuracy": ("twin accuracy", "twin sets"), "top1": ("top-1", "clips")}[metric]
    return Table(
        "pairs", f"{heading(measured['headline'])} and {readable(rival).lower()} on other pairs of frozen streams, "
        f"trained with the recipe on tokens of the same grids, {data}: {measured['split']} clips, "
        f"{len(measured['seeds'])} seed(s), in % with {confidence} intervals. Change: {called} minus that of the same "
        "method on the run's own streams; headline minus it: on the same streams; both paired, in points, with p of "
        f"the paired t-test over {unit}, corrected for the number of tests of each kind (Holm). Intervals are over "
        f"{unit} and seeds, p over {unit} alone: a difference is told where both tell it.",
        ["Streams", "Method", "Top-1", "Twin accuracy", "Change", "p of it", "Headline minus it", "p"], rows)


def _test(row: dict | None) -> list[str]:
    """A paired difference and its corrected p, as two cells."""
    if not row:
        return ["", ""]
    return [f"{percent(row['difference'], '+')} {interval(row)}".strip(), significant(row["holm"], 2)]


def terms_table(measured: dict | None, data: str, confidence: str) -> Table:
    """Each loss term and regulariser against its absence; no rows where nothing was measured."""
    measured = measured or {"terms": [], "seeds": []}
    rows = [[heading(row["term"]), f"{row['value']:g}", "yes" if row["on_by_default"] else "no",
             estimate(row["with"]), estimate(row["without"]), f"{percent(row['difference'], '+')} {interval(row)}",
             significant(row["holm"], 2)] for row in measured["terms"]]
    return Table(
        "loss_terms", f"Loss terms and regularisers, each against its absence with all else as in the recipe, {data}: "
        f"top-1 on the validation clips over {len(measured['seeds'])} seeds in % with {confidence} intervals "
        "(Student), and paired differences in points, with p of the paired t-test corrected for the number of terms "
        "(Holm).",
        ["Term", "Value", "In the recipe", "With", "Without", "With minus without", "p"], rows)


def recipes_table(measured: dict | None, data: str) -> Table:
    """The learning rate and the length that each method has, and what twice the epochs would add."""
    measured = measured or {"chosen": {}, "rows": [], "threshold": 0.0}
    trained = {(row["method"], row["learning_rate"], row["epochs"]): row for row in measured["rows"]}
    rows = []
    for method, chosen in measured["chosen"].items():
        row = trained[method, chosen["learning_rate"], chosen["epochs"]]
        rows.append([readable(method), significant(chosen["learning_rate"]), count(chosen["epochs"]),
                     significant(row["train_loss"], 2), significant(row["validation_loss"], 2),
                     percent(row["validation_top1"]),
                     "" if chosen["gain"] is None else percent(chosen["gain"], "+")])  # fmt: skip
    return Table(
        "recipes", f"What a grid on validation found for each method, {data}: the learning rate with the lowest loss, "
        f"and the shortest length for which twice the epochs gain less than {percent(measured['threshold'])} point of "
        "top-1, or the longest where none does; cross-entropies of the epoch that is kept, in nats.",
        ["Method", "Learning rate", "Epochs", "Training loss", "Validation loss", "Validation top-1",
         "Twice the epochs"], rows)


def experiment_tables(sizes: dict[int, dict[str, Any]], data: str, confidence: str) -> list[Table]:
    """The deciding experiment: accuracies and projections by pair, the tests, and training losses for all sizes."""
    if not sizes:
        return []
    from tcar.lab.steps import experiment

    sets = experiment.main_size(sizes)
    values = sizes[sets]
    accuracy, projected = (experiment.cells(values, metric=metric) for metric in ("twin_accuracy", "emap"))
    heads = len(values["seeds"][0]["heads"])
    over = (f"{count(sets)} training sets of each family, {values['split']} clips, {data}: means in % with "
            f"{confidence} intervals (Student) over {len(values['replicates'])} replicates of {heads} trainings each")
    shown = {pair: name for pair, name in experiment.PAIRS.items() if pair in accuracy}
    methods = sorted(values["methods"], key=lambda method: method.endswith(AVERAGED))  # in order first
    rows = []
    for method in methods:
        cells = [cell for pair in shown for cell in (accuracy[pair][method], projected[pair][method])]
        rows.append([*_apart(method), *map(estimate, cells)])
    columns = [text for name in shown.values() for text in (heading(name), f"{heading(name)}, EMAP")]
    tests = [
        [str(row["hypothesis"]), shown.get(row["part"], row["part"]), experiment.named(row["a"]),
         experiment.named(row["b"]), f"{percent(row['difference'], '+')} {interval(row)}", significant(row["holm"], 2)]
        for row in experiment.tests(values)
    ]
    by_size = [(size, method) for size in sizes for method in methods]
    reached = {size: experiment.cells(one) for size, one in sizes.items()}
    losses = {size: experiment.cells(one, metric="train_loss") for size, one in sizes.items()}
    pairs = [heading(name) for name in shown.values()]
    return [
        Table("experiment", f"Twin accuracy, and what the additive projection keeps of it (EMAP), {over}.",
              [*_APART, *columns], rows),
        Table("experiment_tests", "The hypotheses that were written down before the experiment: A above B in twin "
              f"accuracy, {over.split(':')[0]}; paired differences in points and p of the paired t-test over "
              "replicates, corrected within each pair (Holm).",
              ["Hypothesis", "On", "A", "B", "Difference", "p"], tests),
        Table("experiment_sets", f"The experiment at every size, {data}: twin accuracies in % with {confidence} "
              f"intervals (Student) over {len(values['replicates'])} replicates.", ["Training", *_APART, *pairs],
              [[f"{count(size)} training sets of each family", *_apart(method),
                *(estimate(reached[size][pair][method]) for pair in shown)]
               for size, method in by_size if len(sizes) > 1]),
        Table("experiment_losses", f"The experiment at every size, {data}: cross-entropies of the training clips of "
              "each pair in nats, means over replicates.", ["Training", *_APART, *pairs],
              [[f"{count(size)} training sets of each family", *_apart(method),
                *(significant(losses[size][pair][method]["value"], 2) for pair in shown)] for size, method in by_size]),
    ]  # fmt: skip


_APART = ("Appearance", "Method")


def _apart(method: str) -> list[str]:
    """What a method is given of the appearance, and its kind of fusion, as two cells."""
    return ["averaged over time" if method.endswith(AVERAGED) else "in order", readable(method.removesuffix(AVERAGED))]


def miniatures_table(measured: dict | None, data: str, confidence: str) -> Table:
    """The headline beside published designs in miniature; no rows where nothing was measured."""
    measured = measured or {"methods": {}, "clips": 0, "seeds": [], "comparisons": [], "headline": ""}
    against = {row["b"]: row for row in measured["comparisons"] if row["metric"] == "twin_accuracy"}
    rows = []
    for method, row in measured["methods"].items():
        test = against.get(method)
        rows.append([readable(method), *(estimate(row.get(metric)) for metric in ("top1", "twin_accuracy")),
                     f"{percent(test['difference'], '+')} {interval(test)}" if test else "",
                     millions(row["trained_parameters"]), millions(row["parameters"]), significant(row["gflops"]),
                     count(row["epochs"])])
    notes = notes_of(measured["methods"])
    caption = (f"Ours beside published designs in miniature, from pixels, {data}: {count(measured['clips'])} clips, "
               f"{len(measured['seeds'])} seed(s), {confidence} intervals; the difference in twin accuracy is paired, "
               f"in points. Parameters in millions, GFLOPs of one clip through all of a model.{notes}")
    columns = ["Method", "Top-1", "Twin accuracy", "Headline minus it", "Trained", "All", "GFLOPs", "Epochs"]
    return Table("miniatures", caption, columns, rows)
