"""From steps to paper: only what the results of the moment made is shown, and nothing that is another's is deleted."""

import json
import subprocess
from pathlib import Path

import pytest
from notebook_files import SETUP, write_notebook
from test_report import draw_figure, write_results

from tcar.__main__ import command
from tcar.ground import sources
from tcar.lab import execution, notebooks, params, pipeline, results
from tcar.lab import measured as replicates
from tcar.lab.pipeline import REPORT, Step

TRAINING = Step("03_training", (), ("training",), ("training", "search"))
STEPS = (TRAINING, REPORT)
DRAW = """
from pathlib import Path
from test_report import draw_figure
for name in ['methods', *(['confusion'] if run.training.epochs > 5 else [])]:
    draw_figure(Path(run.figures_dir, name + '.pdf'))
"""
SAVE = "results.save(run.results_dir / 'training.json', {'methods': {}}, params=run)"


@pytest.fixture
def published(project, monkeypatch) -> Path:
    """A project under git as it is cloned: figures, and results that were measured, but no run."""
    write_notebook(project / "notebooks" / "03_training.ipynb", "epochs = 14", SETUP, DRAW, SAVE)
    say(epochs=14)
    run = params.load("toy.yaml")
    for file in replicates.MEASURED:
        results.save(project / "paper" / "results" / file, {}, params=run)
    draw_figure(project / "figures" / "toy" / "layouts.pdf")
    (project / ".gitignore").write_text("/runs/\n")
    monkeypatch.setattr(execution, "execute", in_this_process)
    monkeypatch.setattr(pipeline, "STEPS", STEPS)
    git("init", "-q")
    commit()
    write_results(run.results_dir)
    return project


def in_this_process(source, target, parameters, logfile) -> None:
    namespace, notebook = {}, notebooks.read(source)
    with execution._environment(TCAR_NOTEBOOK=source.stem):
        for cell in notebook.cells:
            exec(cell, namespace)
            if cell == notebook.declaration:
                namespace.update(parameters)


def say(**values) -> None:
    lines = {"name": "toy", "publish": True, **values}
    Path("toy.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in lines.items()))


def git(*command: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(["git", *identity, *command], check=True, capture_output=True, text=True).stdout


def commit() -> None:
    git("add", ".")
    git("commit", "-qm", "x")


def run(capsys) -> int:
    """Run the pipeline; how many of the two steps were stale."""
    assert command("paper", ["toy.yaml"]) == 0
    return capsys.readouterr().out.count("done in")


def figures_of_the_paper(project: Path) -> list[str]:
    return json.loads((project / "paper" / "tables" / "numbers.json").read_text())["figures"]


def test_a_clean_clone_keeps_what_was_measured_and_is_made_once(published, capsys):
    assert run(capsys) == 2
    changed = [line for line in git("status", "--porcelain").splitlines() if not line.startswith("??")]
    assert changed == []  # the small project publishes no tables before; what is there stays as it is
    assert run(capsys) == 0


def test_what_is_made_again_changes_provenance_alone(published, capsys):
    run(capsys)
    commit()
    (published / "runs" / "toy" / "pipeline" / "03_training.json").unlink()
    (published / "runs" / "toy" / "pipeline" / "report.json").unlink()
    sources._module.cache_clear()
    assert run(capsys) == 2
    changed = [line[3:] for line in git("status", "--porcelain").splitlines()]
    assert all(name.endswith(".meta.json") for name in changed), changed


def test_the_paper_shows_only_figures_that_the_steps_have_drawn(published, capsys):
    run(capsys)
    assert figures_of_the_paper(published) == ["methods", "confusion"]  # layouts.pdf is of whoever cloned
    say(epochs=3)
    assert run(capsys) == 2
    assert figures_of_the_paper(published) == ["methods"]
    assert not (published / "figures" / "toy" / "confusion.pdf").exists()
    assert not (published / "runs" / "toy" / "paper" / "figures" / "confusion.pdf").exists()
    assert (published / "figures" / "toy" / "layouts.pdf").exists()


def test_files_that_are_not_of_the_pipeline_stay(published, capsys):
    run(capsys)
    mine = [published / "paper" / "tables" / "mine.csv", published / "runs" / "toy" / "paper" / "notes.txt"]
    for path in mine:
        path.write_text("mine")
    confusion = published / "figures" / "toy" / "confusion.pdf"
    confusion.write_text("drawn by hand")
    say(epochs=3, publish=False)
    run(capsys)
    assert all(path.read_text() == "mine" for path in mine)
    assert confusion.read_text() == "drawn by hand"
    for file in replicates.MEASURED:  # they no longer fit, and took half an hour
        assert (published / "paper" / "results" / file).is_file()
    assert (published / "paper" / "tcar.pdf").is_file()


def test_what_an_interrupted_step_drew_is_not_shown_and_goes_when_it_is_made_no_more(published, capsys):
    run(capsys)
    notebook = published / "notebooks" / "03_training.ipynb"
    write_notebook(notebook, "epochs = 14", SETUP, DRAW, "1 / 0", SAVE)
    say(epochs=3)
    assert command("paper", ["toy.yaml"]) == 2
    assert command("paper", ["toy.yaml", "--only", "report", "--force"]) == 0
    assert figures_of_the_paper(published) == []
    write_notebook(notebook, "epochs = 14", SETUP, DRAW, SAVE)
    run(capsys)
    assert figures_of_the_paper(published) == ["methods"]
    assert not (published / "figures" / "toy" / "confusion.pdf").exists()


def test_a_run_that_measured_for_other_parameters_does_not_publish_it(published, capsys):
    file = replicates.SEARCH
    before = (published / "paper" / "results" / file).read_bytes()
    other = params.load("toy.yaml", learning_rate=0.5)
    results.save(other.results_dir / file, {"of": "others"}, params=other)
    run(capsys)
    assert (published / "paper" / "results" / file).read_bytes() == before
