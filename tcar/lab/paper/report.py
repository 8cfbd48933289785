"""The paper of a run: every table, number and outcome sentence comes from the run's result files."""

import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcar.ground import files
from tcar.lab import measured
from tcar.lab.numerals import ReportError, count, estimate, interval, millions, parameter, percent, significant
from tcar.lab.paper import card
from tcar.lab.paper.claims import ablated, claims, reached
from tcar.lab.paper.given import SOURCES
from tcar.lab.paper.sentences import HEADLINE, sentences
from tcar.lab.paper.tables import METRICS, PRODUCERS, Scored, load_results, need, tables
from tcar.lab.paper.writing import Table, to_csv, to_latex
from tcar.lab.params import shown
from tcar.lab.real_plans import PLANS
from tcar.streams.published import PACKAGED

if TYPE_CHECKING:
    from tcar.lab.params import Params

FIGURES = (
    "twins", "contact_sheet", "class_balance", "ceilings", "twin_probes", "stream_probes", "concepts",
    "attention_sanity", "training_curves", "methods", "per_group", "confusion", "errors", "reliability", "ablations",
    "controls", "experiment_pairs", "experiment_movers", "experiment_sets", "replicates", "loss_terms", "miniatures",
    "exchanged", "explanation_maps", "explanation_scores", "growing", "heads", "frames_read", "layouts", "layouts_tsne",
    "temporal_importance",
)


def numbers(results: dict, params: "Params", figures: list[str], captions: dict[str, str]) -> dict[str, Any]:
    """All that tcar.typ inserts into its text: finished strings, sentences, captions, parameters, and what the run is
    of, by which whole passages are there or not."""
    from tcar.lab.plots import NAMED

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
    for key in ("attention_rows_sum_error", "fast_path_error"):
        values[key] = significant(need(results, "fusion", key), 2)
    streams, classes = params.streams, len(need(results, "evaluation", "classes"))
    sizes = results.get("experiment") or {}
    return {
        "material": params.material, "data": about.data, "split": about.split, "twins": about.twins,
        "looked": results["interpretability"].get("split", "test"), "values": values, "captions": captions,
        "calibrated_on": "the validation clips" if about.split == "test" else "half of the clips, scored on the others",
        "many_classes": classes > NAMED, "sheet": count(min(classes, params.data.contact_sheet_clips)),
        "streams": {role: getattr(streams, role) for role in ("semantic", "motion")},
        "packaged": all(getattr(streams, role) in PACKAGED and not getattr(streams, f"{role}_checkpoint")
                        for role in ("semantic", "motion")),
        "text": sentences(results), "figures": figures,
        "claims": claims(sizes) | ablated(results["ablations"], "twin_accuracy" if about.twins else "top1"),
        "experiment": reached(sizes, results.get("experiment_recipes")),
        "parameters": {key: parameter(value) for key, value in shown(params.as_dict()).items()},
    }


def provenance(params: "Params") -> dict[str, dict]:
    """The provenance of every result that took a command of its own, by its name: `pairs`, `bound_120/replicates`.

    That of the notebooks' results is another after each run, and the paper is not.
    """
    found = [path for file in measured.MEASURED if (path := measured.find(params, file))]
    for path in measured.experiment(params).values():
        found += [one for one in (path.with_name(measured.RECIPES), path) if one.is_file()]
    named = {}
    for path in found:
        made = json.loads(path.with_suffix(".meta.json").read_text(encoding="utf-8"))
        own = made["parameters"]["name"] == params.common.name
        named[path.stem if own else f"{made['parameters']['name']}/{path.stem}"] = made
    return named


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
    """Make tables, model card and PDF of a run from its results; with `publish`, refresh the repository's paper/.

    figures: the files that were drawn of these results; what else lies in their folder is of another run. Returns all
    files that were written: `runs/<name>/paper/tcar.pdf`, beside all it was made of, and those of paper/.
    Raises ReportError where a result is missing, naming the notebook that makes it, or where typst fails.
    """
    import matplotlib
    import typst

    from tcar.lab.steps import experiment

    results, given = load_results(params.results_dir), {path.stem: path for path in figures if path.suffix == ".pdf"}
    apart = [path for file in measured.MEASURED if (path := measured.find(params, file))]
    for path in apart:
        results[path.stem] = json.loads(path.read_text(encoding="utf-8"))
    results["experiment"] = experiment.found(params)
    results["experiment_recipes"] = experiment.recipes(params)
    results["provenance"] = provenance(params)
    made = tables(results, params)
    drawn = [given[name] for name in FIGURES if name in given]
    captions = {table.name: table.caption for table in made}
    inserted = numbers(results, params, [path.stem for path in drawn], captions)
    behind = [*(Path(params.results_dir, f"{name}.json") for name in PRODUCERS), *apart]
    behind += [meta for path in behind if (meta := path.with_suffix(".meta.json")).is_file()]

    with tempfile.TemporaryDirectory(prefix="tcar-paper-") as draft:
        folder = Path(draft)
        copy([*SOURCES.glob("*.typ"), SOURCES / "refs.bib"], folder)
        copy(behind, folder / "results")
        copy(drawn, folder / "figures")
        _write_tables(made, inserted, folder / "tables")
        (folder / card.FILE).write_text(card.model_card(folder / "results", params), encoding="utf-8")
        # Fonts that come with typst and matplotlib only: one that happens to be installed would move the page breaks.
        try:
            typst.compile(folder / "tcar.typ", output=folder / "tcar.pdf", root=folder, ignore_system_fonts=True,
                          font_paths=[Path(matplotlib.get_data_path()) / "fonts" / "ttf"],
                          sys_inputs={"figures": "figures"})
        except typst.TypstError as error:
            raise ReportError(f"{SOURCES / 'tcar.typ'} does not compile: {error}") from error
        written = install(folder, Path(params.run_dir).resolve() / "paper", "**/*")
        if params.common.publish:
            written += install(folder, Path(params.root) / "paper", "tcar.pdf", card.FILE, "tables/*", "results/*")
    return written


def _write_tables(made: list[Table], inserted: dict[str, Any], folder: Path) -> None:
    folder.mkdir()
    for table in made:
        (folder / f"{table.name}.csv").write_text(to_csv(table), encoding="utf-8")
        (folder / f"{table.name}.tex").write_text(to_latex(table), encoding="utf-8")
    (folder / "numbers.json").write_text(json.dumps(inserted, indent=1, sort_keys=True) + "\n")
