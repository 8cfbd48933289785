"""The tables of the paper: finished text from result files, for typst, CSV and LaTeX alike."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from tcar.lab.paper import apart
from tcar.lab.paper.apart import grid_table, notes_of
from tcar.lab.paper.explained import explained_tables
from tcar.lab.paper.given import published_table, real_run_table, streams_tables
from tcar.lab.paper.writing import Table
from tcar.lab.results import outdated

if TYPE_CHECKING:
    from tcar.lab.params import Params

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
        per_class_table(f"Top-1 accuracy of temporal cross-attention by class on the {about.split} clips, {data}, the "
                        f"weakest first: {about.means} {about.intervals()}.", evaluation.get("per_class") or {}),
        ablations_table(f"Ablations on the {ablated.split} clips, {data}: one factor is changed at a time; "
                        f"{ablated.means} {ablated.intervals()}. Paired differences from the headline in points, in "
                        f"{WORDS['twin_accuracy' if about.twins else 'top1']}, with p of the paired t-test over "
                        f"{about.sets}, corrected for the number of variants (Holm). GFLOPs of the fusion for one clip "
                        "(2 a multiply-add).", results, "twin_accuracy" if about.twins else "top1"),
        controls_table(f"What each method loses under the controls, {data}: change in top-1 accuracy against the same "
                       f"{ablated.split} clips as they are, in points with {about.confidence} intervals over "
                       f"{about.sets}. A clip is asked for the class that it has without the control.", results),
        emap_table(f"What each method keeps of its twin accuracy where its two streams may only be added (EMAP), on "
                   f"the {about.split} clips, {data}: {about.means} {about.intervals()}; of two classes of twins every "
                   "clip's semantic stream is put together with every clip's motion stream.",
                   evaluation.get("emap") or []),
        *apart.all_tables(results, data, about.confidence),
        *streams_tables(need(results, "extractors", "streams"), results, params.material == "tabletop"),
        grid_table("ceilings", "Ceilings before any method is trained: how often a probe of one kind of "
                   f"evidence prefers a clip's class to its twin's, {data}: {asked}",
                   "Group", audit.get("ceilings") or {}),
        grid_table("leaks", "Leak checks: how often a probe of one nuisance prefers a clip's class to "
                   f"its twin's, {data}: {asked}", "Group", audit.get("leaks") or {}),
        *explained_tables(results, data, about.confidence),
        published_table(),
        real_run_table(params.common.gpu_hour_price if params.material == "tabletop" else None),
    ]
    return [told(table) for table in made if table.rows]


def told(table: Table) -> Table:
    """The table without columns that say nothing: those that are empty in every row, and those that say the same in
    every row of several, which its caption says once."""
    columns = [[row[i] for row in table.rows] for i in range(len(table.columns))]
    same = [i for i, cells in enumerate(columns)
            if i and len(cells) > 2 and len(set(cells)) == 1 and cells[0] and "[" not in cells[0]]
    kept = [i for i, cells in enumerate(columns) if any(cells) and i not in same]
    once = "".join(f" {table.columns[i]}: {columns[i][0]} in every row." for i in same)
    return replace(table, caption=table.caption + once, columns=[table.columns[i] for i in kept],
                   rows=[[row[i] for i in kept] for row in table.rows])


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


def per_class_table(caption: str, per_class: dict[str, dict]) -> Table:
    """The accuracy of each class with the clips that it rests on; of many classes those that are named weakest."""
    from tcar.lab.plots import NAMED

    ranked = sorted(per_class.items(), key=lambda item: (item[1]["value"] is None, item[1]["value"], item[0]))
    rows = [[name, count(entry["support"]), estimate(entry)] for name, entry in ranked[:NAMED]]
    shown = f" Of {len(ranked)} classes, {NAMED} are shown." if len(ranked) > NAMED else ""
    return Table("per_class", caption + shown, ["Class", "Clips", "Top-1"], rows)


def comparisons_table(caption: str, comparisons: list[dict]) -> Table:
    """Paired differences, and what their intervals allow to say."""
    rows = [
        [readable(c["a"]), readable(c["b"]), METRICS.get(c["metric"], readable(c["metric"])),
         f"{percent(c.get('difference'), '+')} {interval(c)}".strip(), outcome(c)]
        for c in comparisons
    ]
    return Table("comparisons", caption, ["A", "B", "Metric", "Difference", "A is … B"], rows)


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


def emap_table(caption: str, rows: list[dict]) -> Table:
    """The twin accuracy of each method and of its additive projection, over all pairs and by group."""
    shown = [[readable(row["method"]), estimate(row["twin_accuracy"]), estimate(row["emap"]), estimate(row["kept"])]
             for row in rows if row["pair"] == "all" and len(row["streams"]) > 1]
    return Table("emap", caption, ["Method", "Twin accuracy", "Of its projection", "Difference"], shown)


def controls_table(caption: str, results: dict) -> Table:
    """What each method loses or gains under each control, of all clips; no rows where nothing was controlled."""
    values: dict[str, dict] = {}
    for row in (results["ablations"].get("controls") or {}).get("rows", []):
        if row["group"] == "all":
            values.setdefault(row["method"], {})[row["control"]] = row["change"]
    return grid_table("controls", caption, "Method", values)
