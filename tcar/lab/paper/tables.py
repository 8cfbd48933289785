"""The tables of the paper: finished text from result files, for typst, CSV and LaTeX alike."""

import csv
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcar.ground.sources import PACKAGE
from tcar.lab.numerals import (
    ReportError,
    confidence_level,
    count,
    estimate,
    heading,
    interval,
    level_name,
    millions,
    outcome,
    percent,
    readable,
    significant,
)
from tcar.lab.paper.writing import Table
from tcar.lab.results import outdated

if TYPE_CHECKING:
    from tcar.lab.params import Params

SOURCES = PACKAGE.parent / "paper"
PRODUCERS = {
    "audit": "00_data_audit", "extractors": "01_extractors", "fusion": "02_fusion", "training": "03_training",
    "evaluation": "04_evaluation", "ablations": "05_ablations", "interpretability": "06_interpretability",
}
DATA = {
    "tabletop": "synthetic (Tabletop)", "ssv2": "Something-Something V2",
    "rehearsal": "a rendered imitation of Something-Something V2",
}
WORDS = {"twin_accuracy": "twin accuracy", "top1": "top-1 accuracy"}
METRICS = {"top1": "Top-1", "top5": "Top-5", "twin_accuracy": "Twin accuracy", "ece": "ECE"}


def load_results(folder: Path) -> dict[str, dict]:
    """Read the seven result files of a run; one that is missing, broken or was made from an earlier version of another
    is an error naming its notebook."""
    results = {}
    for stage, notebook in PRODUCERS.items():
        path = Path(folder) / f"{stage}.json"
        fix = f"run notebooks/{notebook}.ipynb (`make paper` runs every stage that is due)"
        if not path.is_file():
            raise ReportError(f"{path} is missing: {fix}")
        try:
            results[stage] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ReportError(f"{path} is not JSON ({error}): delete it and {fix}") from None
    for name, changed in outdated(Path(folder)).items():
        if notebook := PRODUCERS.get(name.removesuffix(".json")):
            fix = f"run notebooks/{notebook}.ipynb (`make paper` runs every stage that is due)"
            raise ReportError(f"{folder}/{name} was made from an earlier {', '.join(changed)}: {fix}")
    return results


def need(results: dict[str, dict], stage: str, *keys: str) -> Any:
    """The value at `keys` in a stage's results, or an error that names the file, the key and the notebook."""
    value = results[stage]
    for depth, key in enumerate(keys, 1):
        if not isinstance(value, dict) or key not in value:
            missing = ".".join(keys[:depth])
            raise ReportError(f"{stage}.json has no '{missing}': run notebooks/{PRODUCERS[stage]}.ipynb again")
        value = value[key]
    return value


def methods_of(results: dict) -> dict[str, dict]:
    """The evaluated methods, in the order of the figures."""
    from tcar.lab.plots import METHODS, in_order

    methods = need(results, "evaluation", "methods")
    return {m: methods[m] for m in in_order(methods, METHODS)}


@dataclass(frozen=True)
class Scored:
    """What captions say of the scored clips: whose they are, which split, and what their intervals resample."""

    data: str
    split: str
    twins: bool
    seeds: int
    confidence: str

    @classmethod
    def of(cls, results: dict, params: "Params") -> "Scored":
        """Read it from the results of a run."""
        evaluation = results["evaluation"]
        return cls(DATA[params.material], evaluation.get("split", "test"), twins_measured(results),
                   len(need(results, "evaluation", "seeds")), confidence_level(params.evaluation.confidence))

    @property
    def sets(self) -> str:
        """What a bootstrap draws."""
        return "twin sets" if self.twins else "clips"

    def intervals(self, unit: str = "in %") -> str:
        """`in % with 95% intervals over clips and seeds`."""
        return f"{unit} with {self.confidence} intervals over {self.sets}{' and seeds' * (self.seeds > 1)}"

    @property
    def means(self) -> str:
        """`means over seeds`, or what one seed has instead."""
        return "means over seeds" if self.seeds > 1 else "values of one seed"


def twins_measured(results: dict) -> bool:
    """Whether the clips have twins, and methods so a twin accuracy."""
    return any((row.get("twin_accuracy") or {}).get("value") is not None for row in methods_of(results).values())


def tables(results: dict, params: "Params") -> list[Table]:
    """All tables of the paper that have a row, without columns in which no row has a value."""
    evaluation, audit, about = results["evaluation"], results["audit"], Scored.of(results, params)
    data, methods = about.data, methods_of(results)
    asked = f"in % with {about.confidence} intervals over {about.sets}; chance is 50."
    twin_accuracy = "Twin accuracy counts a pair only if both clips are right; " if about.twins else ""
    ablated = replace(about, split=results["ablations"].get("split", "test"),
                      seeds=len({row["seed"] for row in need(results, "ablations", "rows")}))
    made = [
        methods_table(f"Methods on the {about.split} clips, {data}: {about.means} {about.intervals()}. "
                      f"{twin_accuracy}ECE is the expected calibration error.{notes_of(methods)}",
                      methods, results["training"].get("methods", {}) | results["training"].get("baselines", {})),
        protocol_table(f"Our methods by the views that a clip is scored with, on the {about.split} clips, {data}: "
                       f"{about.means} {about.intervals()}. A × B views are A samplings in time and B crops.",
                       evaluation.get("protocol") or []),
        comparisons_table(f"Paired differences, A minus B, on the same {about.split} clips, {data}: "
                          f"{about.intervals('in percentage points')}.", evaluation.get("comparisons", [])),
        grid_table("per_group", f"Top-1 accuracy per group of classes, {data}: {about.intervals()}.",
                   "Method", {m: row.get("per_group") or {} for m, row in methods.items()}),
        grid_table("per_group_twin_accuracy", f"Twin accuracy per group, {data}: {about.intervals()}.",
                   "Method", {m: row.get("per_group_twin_accuracy") or {} for m, row in methods.items()}),
        ablations_table(f"Ablations on the {ablated.split} clips, {data}: one factor is changed at a time; "
                        f"{ablated.means} {ablated.intervals()}. Paired differences from the headline in points, in "
                        f"{WORDS['twin_accuracy' if about.twins else 'top1']}, with p of the paired t-test over "
                        f"{about.sets}, corrected for the number of variants (Holm). GFLOPs of the fusion for one clip "
                        "(2 a multiply-add).", results, "twin_accuracy" if about.twins else "top1"),
        controls_table(f"What each method loses under the controls, {data}: change in top-1 accuracy against the same "
                       f"{ablated.split} clips as they are, in points with {about.confidence} intervals over "
                       f"{about.sets}. A clip is asked for the class that it has without the control.", results),
        *replicate_tables(results.get("replicates"), data, about.confidence),
        terms_table(results.get("loss_terms"), data, about.confidence),
        miniatures_table(results.get("miniatures"), data, about.confidence),
        *streams_tables(results, params.material == "tabletop"),
        grid_table("ceilings", "Ceilings before any method is trained: how often a probe of one kind of "
                   f"evidence prefers a clip's class to its twin's, {data}: {asked}",
                   "Group", audit.get("ceilings") or {}),
        grid_table("leaks", "Leak checks: how often a probe of one nuisance prefers a clip's class to "
                   f"its twin's, {data}: {asked}", "Group", audit.get("leaks") or {}),
        Table("interpretability", f"Attention on the moving object, against its ground-truth masks, {data}.",
              ["Quantity", "Value"], leaves(results["interpretability"].get("attention_on_moving") or {})),
        published_table(),
        real_run_table(params.common.gpu_hour_price if params.material == "tabletop" else None),
    ]
    return [told(table) for table in made if table.rows]


def told(table: Table) -> Table:
    """The table without the columns that are empty in every row."""
    kept = [i for i in range(len(table.columns)) if any(row[i] for row in table.rows)]
    return replace(table, columns=[table.columns[i] for i in kept], rows=[[row[i] for i in kept] for row in table.rows])


def notes_of(methods: dict[str, dict]) -> str:
    """What must be said beside the numbers of methods that read frames: a sentence each, empty where there are none."""
    return "".join(f" {readable(m)}: {'; '.join(row['notes'])}." for m, row in methods.items() if row.get("notes"))


def methods_table(caption: str, methods: dict[str, dict], trained: dict[str, dict]) -> Table:
    """Accuracy, calibration and training of every method."""
    rows = [
        [readable(m), *(estimate(row.get(metric)) for metric in METRICS),
         millions(row.get("trained_parameters")), count(trained.get(m, {}).get("epochs"))]
        for m, row in methods.items()
    ]
    return Table("methods", caption, ["Method", *METRICS.values(), "Trained (M)", "Epochs"], rows)


def protocol_table(caption: str, rows: list[dict]) -> Table:
    """Accuracy by method and number of views; no rows where a clip has only ever one view."""
    several = len({row["views"] for row in rows}) > 1
    shown = [[readable(row["method"]), row["views"].replace("x", " × "), count(row.get("clips")),
              estimate(row["top1"]), estimate(row.get("top5"))] for row in rows] if several else []
    return Table("protocol", caption, ["Method", "Views", "Clips", "Top-1", "Top-5"], shown)


def comparisons_table(caption: str, comparisons: list[dict]) -> Table:
    """Paired differences, and what their intervals allow to say."""
    rows = [
        [readable(c["a"]), readable(c["b"]), METRICS.get(c["metric"], readable(c["metric"])),
         f"{percent(c.get('difference'), '+')} {interval(c)}".strip(), outcome(c)]
        for c in comparisons
    ]
    return Table("comparisons", caption, ["A", "B", "Metric", "Difference", "A is … B"], rows)


def grid_table(name: str, caption: str, corner: str, values: dict[str, dict]) -> Table:
    """Estimates by row and column; no rows where there are no columns."""
    columns = list(dict.fromkeys(column for row in values.values() for column in row))
    rows = [[heading(key), *(estimate(row.get(c)) for c in columns)] for key, row in values.items()]
    return Table(name, caption, [corner, *map(heading, columns)], rows if columns else [])


def ablations_table(caption: str, results: dict, metric: str) -> Table:
    """Every level of every ablated factor, with what it costs, and its difference from the headline in a metric."""
    costs = {(row["factor"], row["level"]): row for row in need(results, "ablations", "rows")}
    against = {(row["factor"], row["level"]): row for row in results["ablations"].get("comparisons", [])
               if row["metric"] == metric}
    rows = []
    for row in need(results, "ablations", "summary"):
        key = row["factor"], row["level"]
        cost, test = costs.get(key, {}), against.get(key)
        rows.append([heading(row["factor"]), level_name(*key), estimate(row.get("top1")),
                     estimate(row.get("twin_accuracy")),
                     f"{percent(test['difference'], '+')} {interval(test)}".strip() if test else "",
                     significant(test["holm"], 2) if test else "",
                     millions(cost.get("trainable_parameters")), significant(cost.get("gflops"))])
    columns = ["Factor", "Level", "Top-1", "Twin accuracy", "Difference", "p", "Trained (M)", "GFLOPs"]
    return Table("ablations", caption, columns, rows)


def controls_table(caption: str, results: dict) -> Table:
    """What each method loses or gains under each control, of all clips; no rows where nothing was controlled."""
    values: dict[str, dict] = {}
    for row in (results["ablations"].get("controls") or {}).get("rows", []):
        if row["group"] == "all":
            values.setdefault(row["method"], {})[row["control"]] = row["change"]
    return grid_table("controls", caption, "Method", values)


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
              f"of the twin accuracy, and how far {readable(measured['headline'])} is above in it: paired differences "
              "in points and p of the paired t-test, corrected for the number of rivals (Holm).",
              ["Method", "Top-1", "Twin accuracy", "Deviation", "Headline minus it", "p"], rows),
        grid_table("replicates_per_group", f"Twin accuracy per group {over}: means in % with {confidence} intervals.",
                   "Method", {method: {group: entry["twin_accuracy"] for group, entry in row["per_group"].items()}
                              for method, row in measured["methods"].items()}),
    ]


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


def streams_tables(results: dict, planning: bool) -> list[Table]:
    """The streams of this run, with `planning` beside those planned for the real dataset, and all that are
    registered at full size."""
    full_size = results["extractors"].get("full_size") or []
    planned = {plan[role] for plan in results["fusion"].get("plans") or [] for role in ("semantic", "motion")}
    shown = ("input, token width and grid (time × height × width), parameters in millions, and GFLOPs for one clip "
             "(2 a multiply-add)")
    used = need(results, "extractors", "streams")
    if planning:
        used = [*used, *(s for s in full_size if s["name"] in planned)]
    those = "The frozen streams of this run"
    those += ", then those that are planned for the real dataset" if planning else ""
    return [
        streams_table("streams", f"{those}: {shown}.", used),
        streams_table("full_size", f"Every published stream that can be named, as counted from its architecture: "
                      f"{shown}.", full_size),
    ]


def streams_table(name: str, caption: str, streams: list[dict]) -> Table:
    """Dimensions and cost of frozen streams."""
    def sides(value: Any) -> str:
        return "×".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)

    rows = [
        [s.get("name", ""), s.get("role", ""), count(s.get("frames")), sides(s.get("input_size")),
         count(s.get("width")), sides(s.get("grid")), millions(s.get("parameters")),
         millions(s.get("trained_parameters")), significant(s.get("gflops"))]
        for s in streams
    ]
    columns = ["Stream", "Role", "Frames", "Pixels", "Width", "Grid", "Parameters", "Trained", "GFLOPs"]
    return Table(name, caption, columns, rows)


def leaves(values: dict, path: str = "") -> list[list[str]]:
    """A nested dictionary as rows of path and value: estimates and shares in percent, other numbers as is."""
    rows = []
    for key, value in values.items():
        name = f"{path}, {readable(key)}" if path else heading(key)
        if isinstance(value, dict) and "value" not in value:
            rows += leaves(value, name)
        elif isinstance(value, dict):
            rows.append([name, estimate(value)])
        elif isinstance(value, (int, float)):
            is_share = isinstance(value, float) and abs(value) <= 1
            rows.append([name, percent(value) if is_share else significant(value)])
    return rows


def real_run_table(price: float | None) -> Table:
    """What the planned runs on the real dataset take, with hours at this price in USD; no rows where it is None."""
    from tcar.lab.demand.bill import GPU, real_run  # builds the streams, which no other table needs

    items = [] if price is None else real_run()
    rows = [[item.run, item.work, item.source, significant(item.gigabytes), significant(item.hours),
             "" if item.hours is None else f"{item.hours * price:.2f}"] for item in items]
    caption = (f"What the planned runs on the real dataset take, by multiplication of speeds that were measured on one "
               f"{GPU} with rendered clips; what was not measured is empty. USD: hours times an assumed price of "
               f"{price or 0:g} USD for an hour of one GPU, which is nobody's offer.")
    return Table("real_run", caption, ["Run", "Work", "Multiplied from", "GB", "Hours", "USD"], rows)


def published_table() -> Table:
    """Results of others on the real dataset, as paper/published.csv has them; unknown cells are empty."""
    header, *rows = csv.reader(io.StringIO((SOURCES / "published.csv").read_text(encoding="utf-8")))
    caption = ("Published results on the validation set of Something-Something V2 (real videos), in %, as "
               "the cited sources state them; what was not found is left empty. Trained parameters of "
               "attentive probes are computed from their published configuration. None of these is ours.")
    return Table("published", caption, [c[:1].upper() + c[1:] for c in header], rows)
