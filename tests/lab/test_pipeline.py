"""The pipeline re-runs what is stale and nothing else, says why, and stops where something is wrong."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from notebook_files import SETUP, write_notebook

from tcar.__main__ import command
from tcar.ground import sources
from tcar.lab import execution, notebooks, pipeline, results
from tcar.lab.notebooks import NotebookError
from tcar.lab.paper import report
from tcar.lab.pipeline import Step
from tcar.train.settings import Recipe

ROOT = Path(__file__).parents[2]
EPOCHS = Recipe().epochs
STEPS = (
    Step("a", (), ("first",), ("data", "tabletop")),
    Step("b", ("first",), ("second",), ("data", "tabletop", "training")),
    Step("c", (), ("third",), ("evaluation",)),
)
SAVE = "results.save(run.results_dir / '{}.json', {}, params=run)"
DRAW = "run.figures_dir.mkdir(parents=True, exist_ok=True)\n(run.figures_dir / '{}.png').write_text(str({}))"


def write_a(folder: Path, setup: str = SETUP, value: str = "{'odd': run.tabletop.train_sets % 2}") -> None:
    cells = [
        setup,
        "from tcar.lab import plots",
        SAVE.format("first", value),
        DRAW.format("a", "run.tabletop.train_sets"),
    ]
    write_notebook(folder / "notebooks" / "a.ipynb", "train_sets = 100", *cells)


def write_b(folder: Path, extra: str = "") -> None:
    read = "odd = results.load(run.results_dir / 'first.json')['odd']" + extra
    save = SAVE.format("second", "{'odd': odd, 'epochs': run.training.epochs}")
    write_notebook(folder / "notebooks" / "b.ipynb", "epochs = 40", SETUP, read, save)


@pytest.fixture
def toy(project, monkeypatch):
    """Three small notebooks, run in this process: what runs, and with what, is in the list it gives."""
    write_a(project)
    write_b(project)
    write_notebook(project / "notebooks" / "c.ipynb", "confidence = 0.95", SETUP, SAVE.format("third", "{}"))
    (project / "toy.yaml").write_text("name: toy\ntrain_sets: 3\n")
    ran: list[str] = []

    def in_this_process(source, target, parameters, logfile):
        ran.append(source.stem)
        namespace = {}
        notebook = notebooks.read(source)
        with execution._environment(TCAR_NOTEBOOK=source.stem):
            for cell in notebook.cells:
                exec(cell, namespace)
                if cell == notebook.declaration:
                    namespace.update(parameters)

    monkeypatch.setattr(execution, "execute", in_this_process)
    return ran


def run(ran: list[str], *arguments: str, steps=STEPS) -> tuple[int, list[str]]:
    """The exit status and which notebooks ran."""
    ran.clear()
    return command("paper", ["toy.yaml", *arguments], steps=steps), list(ran)


def say(**values) -> None:
    Path("toy.yaml").write_text(
        "".join(f"{k}: {json.dumps(v)}\n" for k, v in {"name": "toy", **values}.items())
    )


def test_all_run_in_order_once(toy, project):
    assert run(toy) == (0, ["a", "b", "c"])
    assert run(toy) == (0, [])
    assert results.load(project / "runs/toy/results/second.json") == {"odd": 1, "epochs": EPOCHS}


def test_a_changed_parameter_concerns_the_steps_of_its_stage(toy, capsys):
    run(toy)
    say(train_sets=3, epochs=5)
    capsys.readouterr()
    assert run(toy) == (0, ["b"])
    assert f"[2/3] b: epochs: {EPOCHS} -> 5" in "".join(capsys.readouterr())
    say(train_sets=3, epochs=5, confidence=0.9, workers=1, log_level="ERROR")
    assert run(toy) == (0, ["c"])


def test_a_folder_that_is_written_to_is_no_matter_of_indifference(toy, project):
    run(toy)
    say(train_sets=3, data_root="elsewhere")  # where the first step renders the clips
    assert run(toy) == (0, ["a", "b"])
    say(train_sets=3, data_root="elsewhere", figures="drawn")
    assert run(toy) == (0, ["a", "b", "c"])
    assert (project / "drawn" / "toy" / "a.png").is_file()


def test_another_version_of_a_package_that_decides_values_makes_stale(toy, monkeypatch, capsys):
    run(toy)
    newer = results.versions() | {"torch": "99.0"}
    monkeypatch.setattr(results, "versions", lambda: newer)
    assert run(toy) == (0, ["a", "b", "c"])
    assert "-> 99.0" in "".join(capsys.readouterr())
    assert run(toy) == (0, [])


def test_what_a_later_audit_leaves_out_concerns_all_that_read_the_clips(toy, project):
    run(toy)
    results.write(project / "runs" / "toy" / "audit" / "quarantine.json", {"broken": []})
    assert run(toy) == (0, ["a", "b", "c"])
    assert run(toy) == (0, [])


def test_a_step_that_runs_again_to_the_same_values_makes_nothing_else_stale(toy, project):
    run(toy)
    write_a(project, value="{'odd': 1}")
    assert run(toy) == (0, ["a"])
    write_a(project, value="{'odd': 0}")
    assert run(toy) == (0, ["a", "b"])


def test_comments_and_outputs_do_not_count_code_does(toy, project):
    run(toy)
    path = project / "notebooks" / "b.ipynb"
    notebook = json.loads(path.read_text())
    notebook["cells"][-1]["outputs"] = [{"name": "stdout", "output_type": "stream", "text": "x"}]
    notebook["cells"][-1]["execution_count"] = 7
    path.write_text(json.dumps(notebook))
    assert run(toy) == (0, [])
    write_b(project, extra="  # why")
    assert run(toy) == (0, [])
    write_b(project, extra="\nodd = odd + 0")
    assert run(toy) == (0, ["b"])


def test_a_changed_module_concerns_those_that_import_it(toy, tmp_path, monkeypatch):
    package = tmp_path / "copy" / "tcar"
    shutil.copytree(ROOT / "tcar", package, ignore=shutil.ignore_patterns("__pycache__", "weights"))
    monkeypatch.setattr(sources, "PACKAGE", package)
    sources._module.cache_clear()
    run(toy)
    with (package / "lab" / "plots" / "__init__.py").open("a") as file:
        file.write("\nEXTRA = 1\n")
    sources._module.cache_clear()
    assert run(toy) == (0, ["a"])
    sources._module.cache_clear()


@pytest.mark.parametrize("name", ["runs/toy/results/first.json", "figures/toy/a.png"])
def test_an_edited_or_missing_output_is_made_again(toy, project, capsys, name):
    run(toy)
    original = (project / name).read_bytes()
    (project / name).write_text('{"odd": 5}')
    assert run(toy) == (0, ["a"])
    assert f"{name} was edited" in "".join(capsys.readouterr())
    assert (project / name).read_bytes() == original
    (project / name).unlink()
    assert run(toy) == (0, ["a"])
    assert f"{name} is missing" in "".join(capsys.readouterr())
    assert run(toy) == (0, [])


def test_a_failure_ends_the_run_and_the_next_continues_there(toy, project, capsys):
    write_b(project, extra="\n1 / 0")
    assert run(toy) == (2, ["a", "b"])
    assert "[2/3] b failed" in "".join(capsys.readouterr())
    assert run(toy) == (2, ["b"])
    write_b(project)
    assert run(toy) == (0, ["b", "c"])


def test_a_failed_step_is_stale_even_when_its_old_outputs_are_whole(toy, project):
    run(toy)
    write_b(project, extra="\n1 / 0")
    assert run(toy)[0] == 2
    write_b(project)
    assert run(toy) == (0, ["b"])


def test_a_step_that_writes_no_result_has_failed(toy, project, capsys):
    write_notebook(project / "notebooks" / "a.ipynb", "train_sets = 100", SETUP)
    assert run(toy) == (2, ["a"])
    assert "without writing" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("text", "named"), [("epohcs: 3", "'epohcs', did you mean 'epochs'"), ("epochs: x", "epochs is 'x'")]
)
def test_a_wrong_parameter_file_runs_nothing(toy, project, capsys, text, named):
    (project / "toy.yaml").write_text(text)
    assert run(toy) == (2, [])
    assert named in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("parameters", "cells", "named"),
    [
        (None, ["x = 1"], "0 cells are tagged"),
        ("confidenec = 0.5", [], "unknown parameter 'confidenec', did you mean 'confidence'"),
        ("confidence = '0.5'", [], "confidence is '0.5'"),
        ("confidence = f()", [], "more than `name = value`"),
        ("epochs = 4", [], "uses parameters of training"),
        ("confidence = 0.5", ["x = run.streams.motion"], "uses parameters of streams"),
        ("confidence = 0.5", ["x ="], "code cell 2, line 1"),
    ],
)
def test_a_malformed_notebook_runs_nothing_not_even_those_before_it(
    toy, project, capsys, parameters, cells, named
):
    write_notebook(project / "notebooks" / "c.ipynb", parameters, *cells)
    assert run(toy) == (2, [])
    output = "".join(capsys.readouterr())
    assert "c.ipynb" in output
    assert named in output


def test_two_cells_tagged_parameters_are_one_too_many(project):
    path = write_notebook(project / "x.ipynb", "seed = 0")
    notebook = json.loads(path.read_text())
    notebook["cells"].append(notebook["cells"][1])
    path.write_text(json.dumps(notebook))
    with pytest.raises(NotebookError, match="2 cells are tagged"):
        notebooks.read(path)


def test_list_says_why_and_runs_nothing(toy, capsys):
    run(toy)
    say(train_sets=4)
    capsys.readouterr()
    assert run(toy, "--list") == (0, [])
    lines = [line.split(maxsplit=1) for line in "".join(capsys.readouterr()).splitlines()]
    assert [name for name, _ in lines] == ["a", "b", "c"]
    assert "train_sets: 3 -> 4" in lines[0][1]
    assert lines[2][1].startswith("up to date")


def test_only_and_force(toy, capsys):
    assert run(toy, "--only", "b") == (2, [])
    assert "needs the results first" in "".join(capsys.readouterr())
    run(toy)
    assert run(toy, "--only", "b") == (0, [])
    assert run(toy, "--only", "b", "--force") == (0, ["b"])
    assert run(toy, "--force") == (0, ["a", "b", "c"])
    assert run(toy, "--only", "d") == (2, [])


def test_the_report_follows_results_figures_and_its_own_sources(toy, project, monkeypatch):
    built = []

    def build(run, figures):
        built.append(1)
        path = run.run_dir / "paper" / "tcar.pdf"
        path.parent.mkdir(exist_ok=True)
        path.write_text("pdf")
        return [path]

    monkeypatch.setattr(report, "build", build)
    steps = (*STEPS, pipeline.REPORT)
    for name in pipeline.REPORT.inputs:
        results.write(project / f"runs/toy/results/{name}.json", {})
    (project / "paper").mkdir()
    (project / "paper" / "tcar.typ").write_text("= Title")
    assert (run(toy, steps=steps)[0], len(built)) == (0, 1)
    assert (run(toy, steps=steps)[0], len(built)) == (0, 1)
    (project / "paper" / "tcar.typ").write_text("= Other")
    assert (run(toy, steps=steps)[0], len(built)) == (0, 2)
    results.write(project / "runs/toy/results/ablations.json", {"rows": []})
    assert (run(toy, steps=steps)[0], len(built)) == (0, 3)
    (project / "runs/toy/paper/tcar.pdf").unlink()
    assert (run(toy, steps=steps)[0], len(built)) == (0, 4)


def test_two_runs_of_one_name_do_not_mix(toy, project):
    held = "import fcntl, sys\nf = open(sys.argv[1], 'w')\nfcntl.flock(f, fcntl.LOCK_EX)\n"
    held += "print('held', flush=True)\nsys.stdin.read()"
    run(toy)
    lock = str(project / "runs/toy/pipeline/lock")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", held, lock], **pipes) as other:
        other.stdout.readline()
        assert run(toy, "--force") == (2, [])
    assert run(toy) == (0, [])


def test_values_given_to_a_notebook_are_all_that_differ_and_all_it_declares(toy, project):
    say(train_sets=3, epochs=5, umap_clips=77)
    notebook = notebooks.read(project / "notebooks" / "b.ipynb")
    given = pipeline._injected(notebook, pipeline.params.load("toy.yaml"))
    assert given == {"name": "toy", "train_sets": 3, "epochs": 5, "epochs_by_method": {}, "umap_clips": 77}


def test_the_check_needs_neither_torch_nor_papermill():
    heavy = "{'torch', 'papermill', 'matplotlib', 'numpy'} & set(sys.modules)"
    code = f"import sys, tcar.lab.pipeline, tcar.lab.paper.report; sys.exit(str({heavy} or ''))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


@pytest.mark.parametrize("step", pipeline.TABLE, ids=lambda step: step.name)
def test_the_table_fits_the_notebooks(step):
    notebook = notebooks.read(ROOT / "notebooks" / f"{step.name}.ipynb")
    pipeline.check(step, notebook)
    code = "\n".join(notebook.cells)
    written = {name for name in pipeline.REPORT.inputs if f'"{name}.json"' in code}
    assert set(step.outputs) <= written
    assert written - set(step.outputs) <= set(step.inputs)


def test_what_a_step_reads_is_written_before():
    there: set[str] = set()
    for step in (*pipeline.TABLE, pipeline.REPORT):
        assert set(step.inputs) <= there
        there |= set(step.outputs)
