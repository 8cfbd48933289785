"""Tables of what no method of a run decides: its streams, what the real dataset takes, and what others report."""

import csv
import io
from typing import Any

from tcar.ground.sources import PACKAGE
from tcar.lab.numerals import count, millions, significant
from tcar.lab.paper.writing import Table

SOURCES = PACKAGE.parent / "paper"


def streams_tables(used: list[dict], results: dict, planning: bool) -> list[Table]:
    """The streams of this run, with `planning` beside those planned for the real dataset, and all that are
    registered at full size."""
    full_size = results["extractors"].get("full_size") or []
    planned = {plan[role] for plan in results["fusion"].get("plans") or [] for role in ("semantic", "motion")}
    shown = ("input, token width and grid (time × height × width), parameters in millions, and GFLOPs for one clip "
             "(2 a multiply-add)")
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
