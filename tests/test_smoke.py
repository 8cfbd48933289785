"""The whole pipeline in small, as the user starts it: from nothing to the paper, then nothing to do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tcar.lab import pipeline, results

ROOT = Path(__file__).parents[1]
WIDGET = "application/vnd.jupyter.widget-view+json"


def start(params: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run the pipeline with one thread a process, as many tests share the cores."""
    command = [sys.executable, "-m", "tcar", "paper", str(params), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> Path:
    """The run's folder, after the smoke pipeline has written it."""
    folder = tmp_path_factory.mktemp("smoke")
    values = yaml.safe_load((ROOT / "params" / "smoke.yaml").read_text())
    places = {"runs": str(folder / "runs"), "figures": str(folder / "figures")}
    (folder / "smoke.yaml").write_text(yaml.safe_dump({**values, **places}))
    done = start(folder / "smoke.yaml")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return folder


def test_every_notebook_leaves_its_result_and_itself(smoke):
    run = smoke / "runs" / "smoke"
    for step in pipeline.TABLE:
        assert (run / "notebooks" / f"{step.name}.ipynb").is_file()
        assert (run / "logs" / f"{step.name}.log").is_file()
        for name in step.outputs:
            assert results.load(run / "results" / f"{name}.json")
            assert results.load(run / "results" / f"{name}.meta.json")["parameters"]["name"] == "smoke"


def test_every_figure_is_seen_in_a_notebook(smoke):
    """A figure that is only saved is none that a reader of the notebooks sees."""
    seen = 0
    for path in (smoke / "runs" / "smoke" / "notebooks").glob("*.ipynb"):
        outputs = [output for cell in json.loads(path.read_text())["cells"] for output in cell.get("outputs", [])]
        # A widget brings a picture of itself, for who has no widgets; it is no figure.
        shown = [set(output.get("data", {})) for output in outputs]
        seen += sum(bool({"image/png", "image/gif"} & kinds) and WIDGET not in kinds for kinds in shown)
    figures = smoke / "figures" / "smoke"
    assert seen == len([*figures.glob("*.pdf"), *figures.glob("*.gif")])


def test_results_hold_what_others_rely_on(smoke):
    folder = smoke / "runs" / "smoke" / "results"
    evaluation = results.load(folder / "evaluation.json")
    assert {"top1", "top5", "twin_accuracy", "ece", "per_class", "per_group", "seeds"} <= evaluation.keys()
    assert evaluation["synthetic"] is True
    for name in ("top1", "top5", "twin_accuracy"):
        assert 0 <= evaluation[name]["low"] <= evaluation[name]["value"] <= evaluation[name]["high"] <= 1
    assert {"clips", "quarantined", "ceilings", "leaks"} <= results.load(folder / "audit.json").keys()
    row = results.load(folder / "ablations.json")["rows"][0]
    assert {
        "factor",
        "level",
        "seed",
        "top1",
        "twin_accuracy",
        "trainable_parameters",
        "gflops",
    } <= row.keys()


def test_figures_come_as_pdf_png_and_numbers(smoke):
    figures = smoke / "figures" / "smoke"
    stems = {path.stem for path in figures.glob("*.pdf")}
    assert len(stems) >= 7
    for stem in stems:
        assert (figures / f"{stem}.png").stat().st_size > 0
        assert json.loads((figures / f"{stem}.json").read_text())


def test_the_paper_is_a_pdf_with_its_tables(smoke):
    paper = smoke / "runs" / "smoke" / "paper"
    assert (paper / "tcar.pdf").read_bytes()[:5] == b"%PDF-"
    assert list(paper.rglob("*.tex"))


def test_the_second_run_does_nothing(smoke):
    done = start(smoke / "smoke.yaml")
    assert done.returncode == 0
    assert done.stdout.count("up to date") >= len(pipeline.TABLE) + 1
    assert "done in" not in done.stdout


def test_a_clip_and_its_twin_can_be_played_in_the_executed_notebook(smoke):
    path = smoke / "runs" / "smoke" / "notebooks" / "06_interpretability.ipynb"
    outputs = [output for cell in json.loads(path.read_text())["cells"] for output in cell.get("outputs", [])]
    (viewer,) = [output["data"] for output in outputs if WIDGET in output.get("data", {})]
    assert "image/png" in viewer
    kept = json.loads(path.read_text())["metadata"]["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    (state,) = [one["state"] for key, one in kept.items() if key == viewer[WIDGET]["model_id"]]
    assert len(state["contents"]["clips"]) == 2


def test_explanations_are_judged_and_then_shown(smoke):
    command = [sys.executable, "-m", "tcar", "explanations", str(smoke / "smoke.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = smoke / "runs" / "smoke"
    found = results.load(run / "results" / "explanations.json")
    judged = {(row["method"], row["stream"]): row["passed"] for row in found["verdicts"]}
    assert {("exchanged_cells", "semantic"), ("gradient_rollout", "motion")} <= judged.keys()
    even = [row for row in found["scores"] if row["method"] == "even" and row["mask"] == "decisive"]
    assert all(abs(row["mass"]["value"]) < 1e-9 and row["auc"]["value"] == 0.5 for row in even)
    kept = json.loads((run / "model" / "explained.json").read_text())["verdicts"]
    assert {(row["method"], row["stream"]): row["passed"] for row in kept} == judged
    done = start(smoke / "smoke.yaml")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("done in") == 2  # the notebook that shows them, and the paper
    assert (smoke / "figures" / "smoke" / "explanation_scores.pdf").is_file()
    assert (smoke / "figures" / "smoke" / "gallery.html").stat().st_size > 100_000


def test_replicates_are_measured_and_then_shown(smoke):
    command = [sys.executable, "-m", "tcar", "replicates", str(smoke / "smoke.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for _ in range(2):  # the second time nothing is made again, and nothing comes out differently
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        measured = results.load(smoke / "runs" / "smoke" / "results" / "replicates.json")
        assert len(measured["replicates"]) == 2
        # the first replicate is the run itself: its scores are those of the evaluation
        evaluated = results.load(smoke / "runs" / "smoke" / "results" / "evaluation.json")["methods"]
        for method, scores in measured["replicates"][0].items():
            if method in evaluated:
                assert scores["top1"] == pytest.approx(evaluated[method]["per_seed"]["top1"][0])
    assert "2 trainings, 0 of them to do" in done.stdout + done.stderr
    done = start(smoke / "smoke.yaml")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("done in") == 2  # the notebook that draws them, and the paper
    assert (smoke / "figures" / "smoke" / "replicates.pdf").is_file()
    table = (smoke / "runs" / "smoke" / "paper" / "tables" / "replicates.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in table] == ["Method", "Cross-attention", "Semantic stream"]
