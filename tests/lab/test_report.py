"""The paper's tables and numbers against the result files, read again by other code."""

import csv
import dataclasses
import json
import random
import re
from pathlib import Path

import pytest

from tcar.ground.sources import PACKAGE
from tcar.lab import numerals, params
from tcar.lab.paper import report, writing

METHODS = {
    "cross_attention": "Cross-attention", "late_concat": "Late concatenation", "motion": "Motion stream",
}
GROUPS = ("direction", "binding")
COLUMNS = {"top1": "Top-1", "top5": "Top-5", "twin_accuracy": "Twin accuracy", "ece": "ECE"}
PAPER = PACKAGE.parent / "paper"


def write_results(folder: Path, seed: int = 0) -> dict[str, dict]:
    """Results in the form that the notebooks write, of random values: only the bookkeeping is under test."""
    draw = random.Random(seed)

    def metric(least=0.0):
        low, value, high = sorted(draw.uniform(least, 1) for _ in range(3))
        return {"value": value, "low": low, "high": high}

    methods = {
        m: {"top1": metric(0.4), "top5": metric(), "twin_accuracy": metric(), "ece": metric(),
            "per_group": {g: metric() for g in GROUPS}, "trained_parameters": draw.randint(10**5, 10**6)}
        for m in METHODS
    }
    del methods["motion"]["top5"]
    stream = {"name": "dinov2_tiny", "role": "semantic", "width": 128, "grid": [8, 4, 4], "frames": 8,
              "input_size": 112, "parameters": 812_345, "trained_parameters": 0, "gflops": 0.8123}
    levels = [("heads", "4"), ("heads", "8"), ("fusion", "late_concat")]
    results = {
        "audit": {"clips": {"train": 1234, "validation": 56, "test": 78}, "quarantined": [],
                  "ceilings": {g: {p: metric() for p in ("first_frame", "bag_of_frames")} for g in GROUPS},
                  "leaks": {g: {"file_size": metric()} for g in GROUPS},
                  "twins": [{"twins": ["a", "b"], "probe": "file size", "blind": blind, "low": low, "high": 0.7}
                            for blind, low in ((True, 0.4), (True, 0.6), (False, 0.6))]},
        "extractors": {"streams": [stream], "full_size": [{**stream, "name": "i3d_r50", "gflops": None},
                                                          {**stream, "name": "dinov2_vitg14"}]},
        "fusion": {"attention_rows_sum_error": 1.23e-7, "fast_path_error": 0,
                   "plans": [{"plan": "ssv2", "semantic": "dinov2_vits14", "motion": "i3d_r50",
                              "parts": [{"part": "sum", "trained": 8_443_566, "share_frozen": 0.8537}]}]},
        "training": {"methods": {m: {"epochs": 17, "converged": m != "motion"} for m in METHODS}},
        "evaluation": {
            "classes": ["a", "b", "c"], "seeds": [0, 1], "synthetic": True, "methods": methods,
            "comparisons": [
                {"a": "cross_attention", "b": "motion", "metric": "twin_accuracy",
                 "difference": 0.21, "low": 0.101, "high": 0.3},
                {"a": "late_concat", "b": "cross_attention", "metric": "twin_accuracy",
                 "difference": 0.021, "low": -0.01, "high": 0.05},
            ],
        },
        "ablations": {
            "rows": [{"factor": f, "level": n, "seed": 0, "trainable_parameters": 280_400, "gflops": 0.07123}
                     for f, n in levels],
            "summary": [{"factor": f, "level": n, "top1": metric(), "twin_accuracy": metric()}
                        for f, n in levels],
            "alpha": 0.05,
            "comparisons": [
                {"factor": "heads", "level": "8", "against": "4", "metric": "twin_accuracy",
                 "difference": -0.123, "low": -0.2, "high": -0.05, "p": 0.001, "holm": 0.002},
                {"factor": "fusion", "level": "late_concat", "against": "cross_attention", "metric": "twin_accuracy",
                 "difference": -0.03, "low": -0.05, "high": -0.01, "p": 0.06, "holm": 0.06},
                {"factor": "heads", "level": "8", "against": "4", "metric": "top1",
                 "difference": 0.5, "low": 0.4, "high": 0.6, "p": 0.001, "holm": 0.002},
            ],
            "controls": {"rows": [
                {"control": control, "method": m, "group": group,
                 "change": {"value": value, "low": value - 0.05, "high": value + 0.05}}
                for m in METHODS for control, value in (("frozen", -0.25), ("conflict", 0.01))
                for group in ("all", *GROUPS)
            ]},
        },
        "interpretability": {"split": "test"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    for stage, values in results.items():
        (folder / f"{stage}.json").write_text(json.dumps(values))
    return results


def run_in(root: Path, **values) -> params.Params:
    return dataclasses.replace(params.from_values({"name": "demo", **values}), root=root)


def read_table(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / f"{name}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_shows(cell: str, metric: dict) -> None:
    shown = [float(x) for x in re.findall(r"[-+\d.]+", cell)]
    assert shown == pytest.approx([100 * metric[k] for k in ("value", "low", "high")], abs=0.0501), cell


def assert_methods_shown(rows: list[dict[str, str]], methods: dict[str, dict], names: dict[str, str]) -> None:
    assert sorted(row["Method"] for row in rows) == sorted(names[m] for m in methods)
    by_name = {row["Method"]: row for row in rows}
    for method, values in methods.items():
        row = by_name[names[method]]
        for metric, column in COLUMNS.items():
            if (values.get(metric) or {}).get("value") is None:
                assert row[column] == ""
            else:
                assert_shows(row[column], values[metric])
        assert float(row["Trained (M)"]) == pytest.approx(values["trained_parameters"] / 1e6, abs=0.00501)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    run = run_in(root)
    results = write_results(run.results_dir)
    draw_figure(run.figures_dir / "methods.pdf")
    return results, build(run)


def build(run: params.Params) -> Path:
    """The PDF of the results and of whatever lies in the run's folder of figures."""
    report.build(run, run.figures_dir.glob("*"))
    return run.run_dir / "paper" / "tcar.pdf"


def draw_figure(path: Path) -> None:
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure = plt.figure(figsize=(3.25, 1))
    figure.savefig(path, metadata={"CreationDate": None})
    plt.close(figure)


def test_tables_equal_the_result_files(built):
    results, pdf = built
    folder, evaluation = pdf.parent / "tables", results["evaluation"]
    assert_methods_shown(read_table(folder, "methods"), evaluation["methods"], METHODS)
    for row in read_table(folder, "per_group"):
        method = next(m for m, name in METHODS.items() if name == row["Method"])
        for group in GROUPS:
            assert_shows(row[group.capitalize()], evaluation["methods"][method]["per_group"][group])
    for table in ("ceilings", "leaks"):
        for row in read_table(folder, table):
            for probe, metric in results["audit"][table][row["Group"].lower()].items():
                assert_shows(row[probe.replace("_", " ").capitalize()], metric)
    for row, summary in zip(read_table(folder, "ablations"), results["ablations"]["summary"], strict=True):
        assert_shows(row["Top-1"], summary["top1"])
        assert_shows(row["Twin accuracy"], summary["twin_accuracy"])
    caption = json.loads((folder / "numbers.json").read_text())["captions"]["ablations"]
    assert float(re.search(r"GFLOPs: ([\d.]+) in every row", caption)[1]) == pytest.approx(0.07123, rel=0.005)


def test_the_text_gets_the_numbers_of_the_result_files(built):
    results, pdf = built
    inserted = json.loads((pdf.parent / "tables" / "numbers.json").read_text())
    values, headline = inserted["values"], results["evaluation"]["methods"]["cross_attention"]
    assert_shows(f"{values['tca_twin']} {values['tca_twin_interval']}", headline["twin_accuracy"])
    counts = [values[key] for key in ("clips_train", "clips", "classes", "seeds")]
    assert counts == ["1,234", "1,368", "3", "2"]
    assert values["attention_rows_sum_error"] == "1.2e-7"
    assert (values["ssv2_trained"], values["ssv2_frozen"]) == ("8.44", "85.4")
    assert values["ssv2_vjepa2_trained"] == values["ssv2_vjepa2_frozen"] == ""
    assert inserted["figures"] == ["methods"]
    assert inserted["parameters"]["heads"] == str(params.Params().fusion.heads)
    assert "2 of 3" in inserted["text"]["converged"]


def test_unknown_values_are_empty_cells(built):
    folder = built[1].parent / "tables"
    motion = next(row for row in read_table(folder, "methods") if row["Method"] == "Motion stream")
    assert motion["Top-5"] == ""
    streams = {row["Stream"]: row for row in read_table(folder, "streams")}
    assert streams["i3d_r50"]["GFLOPs"] == ""
    assert streams["dinov2_tiny"]["Grid"] == "8×4×4"
    assert set(streams) == {"dinov2_tiny", "i3d_r50"}  # of those at full size, only what a plan names
    assert [row["Stream"] for row in read_table(folder, "full_size")] == ["i3d_r50", "dinov2_vitg14"]


def test_a_sentence_says_what_the_interval_allows(built):
    said = json.loads((built[1].parent / "tables" / "numbers.json").read_text())["text"]
    assert "above the motion stream (+21.0 points [10.1, 30.0])" in said["rivals"]
    # The file holds late concatenation minus cross-attention; the sentence turns it round.
    assert "not distinguishable from late concatenation (-2.1 points [-5.0, 1.0])" in said["rivals"]
    assert "semantic" not in said["rivals"]
    told = "Of 2 such probes of single pairs, 0 see the same in both twins; of the intervals of the other 2, 1 excludes"
    assert said["blind"] == f"{told} 50%."


@pytest.mark.parametrize(("low", "high", "words"), [
    (0.001, 0.2, "above"), (-0.2, -0.001, "below"), (-0.1, 0.1, "not distinguishable from"),
    (0.0, 0.1, "not distinguishable from"), (-0.1, 0.0, "not distinguishable from"), (None, None, ""),
])
def test_outcome_follows_the_interval(low, high, words):
    assert numerals.outcome({"difference": 0.1, "low": low, "high": high}) == words


def test_ablations_and_controls_are_said_and_shown_by_what_was_measured(built):
    folder = built[1].parent / "tables"
    said = json.loads((folder / "numbers.json").read_text())["text"]
    assert said["ablations"] == (
        "In twin accuracy, 8 heads is below 4 heads (-12.3 points [-20.0, -5.0]); no difference from the headline "
        "can be told of the others."
    )
    assert said["controls"] == (
        "Cross-attention loses 25.0 points [20.0, 30.0] when one frame stands still; changes by nothing that can be "
        "told when another scene stands behind the action."
    )
    rows = {row["Level"]: (row["Difference"], row["p"]) for row in read_table(folder, "ablations")}
    assert rows == {"4 heads": ("", ""), "8 heads": ("-12.3 [-20.0, -5.0]", "0.0020"),
                    "Late concatenation": ("-3.0 [-5.0, -1.0]", "0.060")}  # fmt: skip
    shown = {row["Method"]: (row["Frozen"], row["Conflict"]) for row in read_table(folder, "controls")}
    assert shown == dict.fromkeys(METHODS.values(), ("-25.0 [-30.0, -20.0]", "1.0 [-4.0, 6.0]"))


def test_every_caption_of_a_synthetic_number_says_so(built):
    captions = json.loads((built[1].parent / "tables" / "numbers.json").read_text())["captions"]
    assert {"methods", "per_group", "ablations", "ceilings", "leaks", "comparisons"} < set(captions)
    for name, caption in captions.items():
        about_others = name in ("streams", "full_size", "published", "real_run")
        assert ("synthetic (Tabletop)" in caption) != about_others, name
    source = "\n".join(path.read_text(encoding="utf-8") for path in PAPER.glob("*.typ"))
    pictures = re.findall(r'^#picture\("(\w+)".*?\)\[(.*?)\]\n', source, re.MULTILINE | re.DOTALL)
    assert {name for name, _ in pictures} == set(report.FIGURES)
    # The sanity of the attention is measured on random tokens, which belong to no dataset.
    assert [name for name, caption in pictures if "#data" not in caption] == ["attention_sanity"]


def test_latex_tables_are_booktabs_and_escaped(built):
    for path in (built[1].parent / "tables").glob("*.tex"):
        text = path.read_text(encoding="utf-8")
        assert [text.count(rf"\{rule}rule") for rule in ("top", "mid", "bottom")] == [1, 1, 1]
        assert not re.search(r"(?<!\\)[%#]", text), path.name
        assert text.isascii(), path.name
        body = text.split(r"\toprule")[1].split(r"\bottomrule")[0].replace(r"\midrule", "")
        lines = [line for line in body.splitlines() if line.strip()]
        columns = len(re.search(r"\\begin\{tabular\}\{(l+)\}", text)[1])
        assert all(len(re.findall(r"(?<!\\)&", line)) == columns - 1 for line in lines), path.name
        assert all(line.endswith(r" \\") for line in lines)
    streams = (built[1].parent / "tables" / "streams.tex").read_text(encoding="utf-8")
    assert r"dinov2\_tiny" in streams


def test_latex_escapes_every_special_character():
    assert writing.latex(r"a_b & 5% of {x} \ ~^ #1 $2 ×") == (
        r"a\_b \& 5\% of \{x\} \textbackslash{} \textasciitilde{}\textasciicircum{} \#1 \$2 $\times$")


@pytest.mark.parametrize("stage", ["audit", "evaluation", "interpretability"])
def test_a_missing_result_file_names_the_notebook_to_run(tmp_path, stage):
    run = run_in(tmp_path)
    write_results(run.results_dir)
    (run.results_dir / f"{stage}.json").unlink()
    message = rf"{stage}\.json is missing: run notebooks/0\d_\w*{stage}\.ipynb"
    with pytest.raises(report.ReportError, match=message):
        build(run)
    assert not (run.run_dir / "paper").exists()


def test_results_of_an_earlier_training_are_no_paper(tmp_path):
    run = run_in(tmp_path)
    write_results(run.results_dir)
    made_from = {"inputs": {"runs/other/results/training.json": "0123456789abcdef"}}
    (run.results_dir / "evaluation.meta.json").write_text(json.dumps(made_from))
    with pytest.raises(report.ReportError, match=r"evaluation\.json was made from an earlier training\.json.*04_eval"):
        build(run)
    assert not (run.run_dir / "paper").exists()


def test_broken_results_are_one_clear_error(tmp_path):
    run = run_in(tmp_path)
    results = write_results(run.results_dir)
    (run.results_dir / "fusion.json").write_text("{")
    with pytest.raises(report.ReportError, match=r"fusion\.json is not JSON .*02_fusion"):
        build(run)
    (run.results_dir / "fusion.json").write_text("{}")
    message = r"fusion\.json has no 'attention_rows_sum_error'.*02_fusion"
    with pytest.raises(report.ReportError, match=message):
        build(run)
    results["evaluation"]["methods"]["motion"]["top1"]["value"] = 81.2
    (run.results_dir / "evaluation.json").write_text(json.dumps(results["evaluation"]))
    with pytest.raises(report.ReportError, match=r"81\.2 is not a fraction"):
        build(run)


@pytest.mark.parametrize(("number", "shown"), [
    (None, ""), (0, "0"), (2048.0, "2048"), (44.12, "44.1"), (0.0712, "0.0712"), (3.44e-6, "3.44e-6"),
])
def test_significant_digits(number, shown):
    assert numerals.significant(number) == shown


def test_the_same_results_give_the_same_pdf(built):
    results, pdf = built
    first, run = pdf.read_bytes(), run_in(pdf.parents[3])
    assert build(run).read_bytes() == first
    assert first.startswith(b"%PDF")
    assert b"CreationDate" not in first
    assert b"CreateDate" not in first


def test_publish_refreshes_the_paper_folder_of_the_project(built):
    root = built[1].parents[3]
    public = root / "paper"
    build(run_in(root))
    assert not public.exists()
    pdf = build(run_in(root, publish=True))
    assert (public / "tcar.pdf").read_bytes() == pdf.read_bytes()
    for part, source in (("results", run_in(root).results_dir), ("tables", pdf.parent / "tables")):
        copied = {path.name: path.read_bytes() for path in (public / part).iterdir()}
        assert copied == {path.name: path.read_bytes() for path in source.iterdir()}


def test_published_results_keep_to_themselves():
    with (PAPER / "published.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len({row["method"] for row in rows}) == len(rows) >= 15
    for row in rows:
        assert 30 < float(row["top-1"]) < 80
        assert not row["top-5"] or float(row["top-5"]) > float(row["top-1"])
        assert row["frozen"] in ("yes", "no")
        assert "?" not in "".join(row.values())


def test_every_reference_is_cited_and_every_citation_exists():
    known = re.findall(r"^@\w+\{([\w-]+),", (PAPER / "refs.bib").read_text(encoding="utf-8"), re.MULTILINE)
    source = "\n".join(path.read_text(encoding="utf-8") for path in PAPER.glob("*.typ"))
    with (PAPER / "published.csv").open(encoding="utf-8") as file:
        cited = {key for row in csv.DictReader(file) for key in row["sources"].split()}
    assert len(known) == len(set(known))
    cited |= {key for key in re.findall(r"@([a-z][\w-]+)", source) if key in known}
    assert cited == set(known)


def test_the_published_tables_equal_the_published_results():
    from tcar.lab.plots import METHODS as entries

    names = {method: entry[0] for method, entry in entries.items()}
    evaluation = json.loads((PAPER / "results" / "evaluation.json").read_text())
    assert_methods_shown(read_table(PAPER / "tables", "methods"), evaluation["methods"], names)
    values = json.loads((PAPER / "tables" / "numbers.json").read_text())["values"]
    headline = evaluation["methods"]["cross_attention"]
    assert_shows(f"{values['tca_top1']} {values['tca_top1_interval']}", headline["top1"])
    clips = json.loads((PAPER / "results" / "audit.json").read_text())["clips"]
    assert values["clips_test"].replace(",", "") == str(clips["test"])
