"""The paper of a run: every table, number and outcome sentence comes from the run's result files."""

import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcar import files, replicates
from tcar.models.published import PACKAGED
from tcar.params import shown
from tcar.real_plans import PLANS
from tcar.tables import (
    METRICS,
    SOURCES,
    STAGES,
    ReportError,
    Scored,
    Table,
    count,
    estimate,
    interval,
    level_name,
    load_results,
    methods_of,
    millions,
    need,
    outcome,
    parameter,
    percent,
    readable,
    significant,
    tables,
    to_csv,
    to_latex,
    twins_measured,
)

if TYPE_CHECKING:
    from tcar.params import Params

FIGURES = (
    "contact_sheet", "class_balance", "ceilings", "twin_probes", "stream_probes", "concepts", "attention_sanity",
    "training_curves",
    "methods", "per_group", "confusion", "reliability", "ablation_heads", "ablation_fusions", "ablation_windows",
    "replicates", "loss_terms", "umap",
    "attention_spacetime", "saliency", "temporal_importance",
)
HEADLINE = "cross_attention"
LEAST_EPOCHS = 8  # of a training whose last quarter can show a plateau
METRIC_WORDS = {"twin_accuracy": "twin accuracy", "top1": "top-1 accuracy"}
# How a sentence calls the methods that the headline is compared with, the main rivals first.
RIVALS = {
    "semantic": "the semantic stream", "motion": "the motion stream", "late_concat": "late concatenation",
    "late_concat_raw": "late concatenation of raw pooled features",
    "sum": "the sum of both streams' scores",
    "semantic_bag": "the semantic stream with its frames as a set",
}


# --- text ---------------------------------------------------------------------------------------------------


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


def spread(levels: dict[str, dict | float | int | None]) -> str:
    """`from 40.1% (binding) to 92.0% (direction)`, and whether all intervals overlap; empty for one level."""
    known = {k: v if isinstance(v, dict) else {"value": v} for k, v in levels.items()}
    known = {k: v for k, v in known.items() if v.get("value") is not None}
    if len(known) < 2:
        return ""
    ends = [end(known, key=lambda k: known[k]["value"]) for end in (min, max)]
    text = "from {} to {}".format(*(f"{percent(known[k]['value'])}% ({k})" for k in ends))
    if any(v.get("low") is None or v.get("high") is None for v in known.values()):
        return text
    shared = max(v["low"] for v in known.values()) <= min(v["high"] for v in known.values())
    return f"{text}; {'all intervals overlap' if shared else 'not all intervals overlap'}"


def attention_gains(results: dict) -> str:
    """Of each stream, whether what moves gets more attention than an even map would give it."""
    parts = []
    for stream, shares in (results["interpretability"].get("attention_on_moving") or {}).items():
        gain = shares.get("received gain") if isinstance(shares, dict) else None
        if gain and gain.get("low") is not None:
            amount = {"above": "more than", "below": "less than"}.get(outcome(gain), "what cannot be told from")
            parts.append(f"{amount} its share of the area in the {stream} grid "
                         f"({percent(gain['value'], '+')} points {interval(gain)})")
    return " and ".join(parts)


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


def sentences(results: dict, alpha: float) -> dict[str, str]:
    """Every sentence that states an outcome, computed so that it says no more than the numbers bear.

    alpha: the share of intervals that exclude the truth by chance.
    """
    headline = need(results, "evaluation", "methods", HEADLINE)
    metric = "twin_accuracy" if twins_measured(results) else "top1"
    name = METRIC_WORDS[metric]
    said = {
        "abstract": (f"In {name} it is {{}}.", against(results, ["semantic", "motion", "late_concat"], metric)),
        "rivals": (f"In {name}, temporal cross-attention is {{}}.", against(results, list(RIVALS), metric)),
        "groups": ("Across groups, the top-1 accuracy of temporal cross-attention runs {}.",
                   spread(headline.get("per_group") or {})),
        "groups_twin": ("Its twin accuracy runs {}.", spread(headline.get("per_group_twin_accuracy") or {})),
        "attention": ("The moving object receives {}.", attention_gains(results)),
        "converged": ("By this criterion, {}.", plateaus(results)),
    }
    blind = [row for row in need(results, "audit", "twins") if row["blind"] and row["low"] is not None]
    excluded = sum(not row["low"] <= 0.5 <= row["high"] for row in blind)
    said["blind"] = ("Of {}", f"{len(blind)} such intervals {excluded} exclude 50%, where chance alone would "
                     f"exclude about {alpha * len(blind):.0f}." if blind else "")
    summary = need(results, "ablations", "summary")
    for factor in ("heads", "fusion", "window", "streams"):
        levels = {level_name(factor, row["level"]): row.get(metric) for row in summary if row["factor"] == factor}
        said[f"ablation_{factor}"] = (f"{name.capitalize()} runs {{}}.", spread(levels))
    said["replicates"] = ("In twin accuracy, temporal cross-attention is {}.", over_replicates(results))
    said["additive"] = ("Drawn anew with other clips and streams, it is {}.", over_replicates(results, ("sum",)))
    said["loss_terms"] = ("{}.", terms_told(results.get("loss_terms", {})))
    return {key: frame.format(text) if text else "" for key, (frame, text) in said.items()}


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


def over_replicates(results: dict, rivals: tuple[str, ...] = tuple(RIVALS)) -> str:
    """`above the motion stream (+12.3 points [8.0, 16.1], corrected p = 0.002) and …`, over replicates."""
    parts, measured = [], results.get("replicates", {})
    for row in measured.get("comparisons", []):
        if row["metric"] == "twin_accuracy" and row["b"] in rivals and row["holm"] is not None:
            # the corrected test decides the word, so that it holds for all rivals together
            word = outcome(row) if row["holm"] < measured["alpha"] else "not distinguishable from"
            parts.append(f"{word} {RIVALS[row['b']]} ({percent(row['difference'], '+')} points {interval(row)}, "
                         f"corrected p = {significant(row['holm'], 2)})")
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))


def numbers(results: dict, params: "Params", figures: list[str], captions: dict[str, str]) -> dict[str, Any]:
    """All that tcar.typ inserts into its text: finished strings, sentences, captions, parameters, and what the run is
    of, by which whole passages are there or not."""
    from tcar.plots import NAMED

    clips, methods = need(results, "audit", "clips"), need(results, "evaluation", "methods")
    headline, about = need(results, "evaluation", "methods", HEADLINE), Scored.of(results, params)
    values = {f"clips_{split}": count(need(results, "audit", "clips", split))
              for split in ("train", "validation", "test")}
    values["clips"] = count(sum(clips.values()))
    views = [row["clips"] for row in results["evaluation"].get("protocol") or [] if row["views"] == "1"]
    values["clips_scored"] = count(min(views, default=clips[about.split]))
    values["replicates"] = count(len(results.get("replicates", {}).get("replicates", [])))
    for key, stage in (("quarantined", "audit"), ("classes", "evaluation"), ("seeds", "evaluation")):
        values[key] = count(len(need(results, stage, key)))
    values["over_seeds"] = "of one seed" if about.seeds == 1 else f"over {about.seeds} seeds"
    for method, row in methods.items():
        for metric in METRICS:
            if isinstance(row.get(metric), dict) and row[metric].get("value") is not None:
                key = f"{'tca' if method == HEADLINE else method}_{metric.removesuffix('_accuracy')}"
                values |= {key: percent(row[metric]["value"]), f"{key}_interval": interval(row[metric])}
    values["tca_trained"] = millions(headline.get("trained_parameters"))
    values["frozen"] = frozen_share(results, headline.get("trained_parameters"))
    planned = {plan["plan"]: plan["parts"][-1] for plan in results["fusion"].get("plans") or []}
    for plan in PLANS:
        values[f"{plan}_trained"] = millions(planned.get(plan, {}).get("trained"))
        values[f"{plan}_frozen"] = percent(planned.get(plan, {}).get("share_frozen"))
    calibration = results["evaluation"].get("calibration", {})
    values["tca_ece_calibrated"] = estimate(calibration.get("ece"))
    umap = results["interpretability"].get("umap") or {}
    values["neighbours"] = count(umap.get("neighbours"))
    values["same_class_neighbours"] = percent(umap.get("same_class_neighbours"))
    for key in ("attention_rows_sum_error", "fast_path_error"):
        values[key] = significant(need(results, "fusion", key), 2)
    streams, classes = params.streams, len(need(results, "evaluation", "classes"))
    return {
        "material": params.material, "data": about.data, "split": about.split, "twins": about.twins,
        "looked": results["interpretability"].get("split", "test"), "values": values, "captions": captions,
        "calibrated_on": calibration.get("fitted_on", "the validation clips"),
        "many_classes": classes > NAMED, "sheet": count(min(classes, params.data.contact_sheet_clips)),
        "streams": {role: getattr(streams, role) for role in ("semantic", "motion")},
        "packaged": all(getattr(streams, role) in PACKAGED and not getattr(streams, f"{role}_checkpoint")
                        for role in ("semantic", "motion")),
        "text": sentences(results, round(1 - params.evaluation.confidence, 6)), "figures": figures,
        "parameters": {key: parameter(value) for key, value in shown(params.as_dict()).items()},
    }


def frozen_share(results: dict, trained: int | None) -> str:
    """The share of all parameters of streams and fusion that is not trained, in percent; empty where not known."""
    sizes = [stream.get("parameters") for stream in need(results, "extractors", "streams")]
    return percent(sum(sizes) / (sum(sizes) + trained)) if trained and all(sizes) else ""


# --- writing --------------------------------------------------------------------------------------------------


def copy(sources: Iterable[Path], folder: Path) -> None:
    """Copy files into a folder, made where there is none, under their own names."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in sources:
        shutil.copyfile(source, folder / source.name)


def install(folder: Path, target: Path, *patterns: str) -> list[Path]:
    """Copy what matches from one folder to another, each file in one step; what else lies there is left alone."""
    written = []
    for source in sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file()):
        written.append(target / source.relative_to(folder))
        written[-1].parent.mkdir(parents=True, exist_ok=True)
        files.replace_file(written[-1], source.read_bytes(), durable=False)
    return written


def build(params: "Params", figures: Iterable[Path]) -> list[Path]:
    """Make the tables and the PDF of a run from its results; with `publish`, refresh the repository's paper/.

    figures: the files that were drawn of these results; what else lies in their folder is of another run. Returns all
    files that were written: `runs/<name>/paper/tcar.pdf`, beside all it was made of, and those of paper/.
    Raises ReportError where a result is missing, naming the notebook that makes it, or where typst fails.
    """
    import typst

    results, given = load_results(params.results_dir), {path.stem: path for path in figures if path.suffix == ".pdf"}
    measured = [path for file in replicates.MEASURED if (path := replicates.find(params, file))]
    for path in measured:
        results[path.stem] = json.loads(path.read_text(encoding="utf-8"))
    made = tables(results, params)
    drawn = [given[name] for name in FIGURES if name in given]
    captions = {table.name: table.caption for table in made}
    inserted = numbers(results, params, [path.stem for path in drawn], captions)
    behind = [*(Path(params.results_dir, f"{stage}.json") for stage in STAGES), *measured]
    behind += [meta for path in behind if (meta := path.with_suffix(".meta.json")).is_file()]

    with tempfile.TemporaryDirectory(prefix="tcar-paper-") as draft:
        folder = Path(draft)
        copy([SOURCES / "tcar.typ", SOURCES / "refs.bib"], folder)
        copy(behind, folder / "results")
        copy(drawn, folder / "figures")
        _write_tables(made, inserted, folder / "tables")
        # Embedded fonts only: a font that happens to be installed would move the page breaks.
        try:
            typst.compile(folder / "tcar.typ", output=folder / "tcar.pdf", root=folder, ignore_system_fonts=True,
                          sys_inputs={"figures": "figures"})
        except typst.TypstError as error:
            raise ReportError(f"{SOURCES / 'tcar.typ'} does not compile: {error}") from error
        written = install(folder, Path(params.run_dir).resolve() / "paper", "**/*")
        if params.common.publish:
            written += install(folder, Path(params.root) / "paper", "tcar.pdf", "tables/*", "results/*")
    return written


def _write_tables(made: list[Table], inserted: dict[str, Any], folder: Path) -> None:
    folder.mkdir()
    for table in made:
        (folder / f"{table.name}.csv").write_text(to_csv(table), encoding="utf-8")
        (folder / f"{table.name}.tex").write_text(to_latex(table), encoding="utf-8")
    (folder / "numbers.json").write_text(json.dumps(inserted, indent=1, sort_keys=True) + "\n")
