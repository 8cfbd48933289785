"""What writes in a run does so alone: the pipeline, the commands beside it, and notebooks run by hand."""

import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from searches import file

from tcar.__main__ import command
from tcar.ground import locks
from tcar.ground.records import ResultError
from tcar.lab import params, pipeline, results
from tcar.lab.params import ParameterError
from tcar.lab.search.space import load_settings
from tcar.lab.steps import replicates, search

ROOT = Path(__file__).parents[2]
NOTEBOOK = """
import sys
from tcar.lab import params, results
passed = [f"# Parameters\\nname = {sys.argv[2]!r}\\n"] if sys.argv[1] == "papermill" else []
namespace = {"In": ["", *passed], "name": sys.argv[2]}
run = params.from_notebook(namespace)
print("held", flush=True)
for line in sys.stdin:
    results.save(run.results_dir / "x.json", {"by": "the other"}, params=run)
    print("saved", flush=True)
"""


@contextmanager
def notebook(how: str, name: str = "toy"):
    """A kernel of its own that has read its parameters, and saves a result at every line it is sent."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    script = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}){NOTEBOOK}", how, name]
    with subprocess.Popen(script, **pipes) as other:
        assert other.stdout.readline() == "held\n"
        yield other
        if other.poll() is None:
            other.stdin.close()


@pytest.fixture
def toy(project, monkeypatch) -> params.Params:
    monkeypatch.setattr(locks, "WRITING", 0.0)
    monkeypatch.setattr(pipeline, "STEPS", ())
    (project / "toy.yaml").write_text("name: toy\n")
    return params.load("toy.yaml")


def by_hand(name: str = "toy") -> params.Params:
    return params.from_notebook({"In": [], "Out": {}, "name": name})


def test_nothing_begins_in_a_run_where_papermill_is_at_work(toy, monkeypatch, capsys):
    with notebook("papermill") as other:
        monkeypatch.setattr(replicates, "build", lambda run: pytest.fail("began"))
        assert command("paper", ["toy.yaml"]) == 2
        assert command("replicates", ["toy.yaml"]) == 2
        told = capsys.readouterr().err
        assert told.count(f"held by process {other.pid}") == 2 and "another `name`" in told
        with pytest.raises(ParameterError, match=f"held by process {other.pid}"):
            by_hand()
        by_hand("another")
    assert command("paper", ["toy.yaml"]) == 0


def test_two_open_notebooks_share_a_run_and_neither_replaces_the_others_result_without_a_word(toy, caplog):
    with notebook("jupyter") as other:
        run = by_hand()
        path = results.save(run.results_dir / "x.json", {"by": "this"}, params=run)
        results.save(path, {"by": "this, again"}, params=run)
        assert "another process" not in caplog.text
        print(file=other.stdin, flush=True)
        assert other.stdout.readline() == "saved\n"
        results.save(path, {"by": "this"}, params=run)
        assert f"{path}: another process wrote it at" in caplog.text
        assert command("paper", ["toy.yaml"]) == 0  # which idle notebooks do not keep out


def test_an_open_notebook_does_not_write_into_a_run_of_the_pipeline(toy):
    run = by_hand()
    with notebook("papermill"), pytest.raises(ResultError, match="another run of this name"):
        results.save(run.results_dir / "x.json", {}, params=run)
    results.save(run.results_dir / "x.json", {}, params=run)


def test_a_process_holds_its_run_once_and_a_notebook_of_the_pipeline_is_inside(toy, monkeypatch):
    with locks.of_run(toy.run_dir, ResultError), locks.of_run(toy.run_dir, ResultError):
        results.save(toy.results_dir / "x.json", {}, params=toy)
    with notebook("papermill"):
        monkeypatch.setenv("TCAR_NOTEBOOK", "03_training")
        results.save(toy.results_dir / "x.json", {}, params=toy)


def test_a_search_waits_with_its_outcome_until_the_run_is_free(here, monkeypatch, caplog):
    settings = load_settings(file(here))
    with notebook("papermill", "small") as other:

        def free(seconds):
            assert not (settings.base.results_dir / "search.json").exists()
            other.kill()
            other.wait()

        monkeypatch.setattr(locks, "time", SimpleNamespace(sleep=free, monotonic=time.monotonic))
        caplog.set_level("INFO", "tcar")
        written = search.publish(settings, {"trials": []})
        assert results.load(written) == {"trials": []}
        assert f"waiting: {settings.base.run_dir}" in caplog.text and f"held by process {other.pid}" in caplog.text
