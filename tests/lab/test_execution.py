"""One notebook run headless: parameters arrive, output is seen as it comes, failures are short and kept."""

import io
import json
import os
import sys
import time
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
from nbformat.sign import NotebookNotary
from notebook_files import SETUP, write_notebook

from tcar.lab import execution
from tcar.lab.notebooks import NotebookError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(project, monkeypatch):
    """Executes a notebook of these cells in the empty project."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def execute(*cells: str, **parameters):
        source = write_notebook(project / "notebooks" / "x.ipynb", "epochs = 40", *cells)
        execution.execute(source, project / "out" / "x.ipynb", parameters, project / "x.log")
        return nbformat.read(project / "out" / "x.ipynb", as_version=4)

    return execute


def test_parameters_arrive_and_the_notebook_is_kept(run, project, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")  # figures are shown in the notebook whatever the shell says
    values = "[run.training.epochs, run.tabletop.test_sets, sys.executable, os.getcwd(), os.environ['TCAR_NOTEBOOK']]"
    write = f"import json, os, sys\njson.dump({values}, open('o.json', 'w'))"
    loop = "from tcar.ground import log\nlist(log.progress(range(3), description='rendering', unit='clips'))"
    draw = "import matplotlib.pyplot as plt\nplt.plot([1, 2]);"
    notebook = run(SETUP, write, loop, "print('seen')", draw, epochs=3, test_sets=4)
    found = json.loads((project / "notebooks" / "o.json").read_text())
    assert found == [3, 4, sys.executable, str(project / "notebooks"), "x"]
    assert "TCAR_NOTEBOOK" not in os.environ
    assert notebook.cells[-2].outputs[0].text == "seen\n"
    assert "image/png" in notebook.cells[-1].outputs[-1].data
    assert [p.name for p in (project / "out").iterdir()] == ["x.ipynb"]
    progress = (project / "x.log").read_text()
    assert "rendering: 3 clips in" in progress and "%|" not in progress  # lines, where nobody sees a bar


def test_jupyter_trusts_what_was_executed_and_no_more_once_it_is_edited(run, monkeypatch, tmp_path):
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    notebook = run(SETUP, "import ipywidgets\nipywidgets.IntSlider(7)")
    assert NotebookNotary().check_signature(notebook)
    assert any(state["state"].get("value") == 7 for state in
               notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"].values())  # fmt: skip
    notebook.cells[-1].outputs[0].data["text/html"] = "<script>1</script>"
    assert not NotebookNotary().check_signature(notebook)


def test_an_executed_notebook_says_what_has_ended_and_the_log_how_it_went(run, project):
    """Half-time lines are for who waits; what else a cell says, and in what order, stays."""
    loop = (
        "import time\nfrom tcar.ground import log\nlog.INTERVAL = 0.0\nlog.SHARE = 0.0\nprint('first')\n"
        "for n in log.progress(range(4), description='rendering', unit='clips'):\n    time.sleep(0.01)\nprint('last')"
    )
    silent = "waiting = log.progress(range(3), description='reading')\nnext(waiting), next(waiting)\nNone"
    cells = run(SETUP, loop, silent).cells
    text = "".join(output.text for output in cells[-2].outputs)
    assert text.startswith("first\n") and text.endswith("last\n")
    assert "rendering: 4 clips in" in text and "(50%)" not in text
    assert "rendering: 2/4 (50%) clips" in (project / "x.log").read_text()
    assert cells[-1].outputs == []


def test_output_is_shown_while_the_cell_runs_and_kept_in_the_log(run, project, monkeypatch):
    moments = []

    class Terminal(io.StringIO):
        def write(self, text):
            moments.append((text, time.monotonic()))
            return len(text)

    monkeypatch.setattr(sys, "stdout", Terminal())
    run("import time\nprint('first', flush=True)\ntime.sleep(1.5)\nprint('half', end='')")
    shown = {text.strip(): moment for text, moment in moments if text.strip()}
    assert shown["half"] - shown["first"] > 1.0
    assert (project / "x.log").read_text() == "first\nhalf\n"


def test_a_failed_cell_is_named_with_its_line_and_error(run, project):
    with pytest.raises(NotebookError) as error:
        run("ok = 1", "a = 1\nb = 0\na / b\nc = 2", epochs=3)
    text = str(error.value)
    assert "code cell 4: ZeroDivisionError: division by zero" in text
    assert ">   3 | a / b" in text
    assert "\x1b" not in text
    assert [p.name for p in (project / "out").iterdir()] == ["x.failed.ipynb"]
    assert "Traceback" in (project / "x.log").read_text()


def test_a_misspelt_parameter_fails_in_the_setup_cell(run, project):
    with pytest.raises(NotebookError, match="unknown parameter 'epohcs', did you mean 'epochs'"):
        run(SETUP, epohcs=3)


def test_success_after_failure_leaves_one_notebook_and_failure_after_success_both(run, project):
    with pytest.raises(NotebookError):
        run("1 / 0")
    run("1")
    assert [p.name for p in (project / "out").iterdir()] == ["x.ipynb"]
    before = (project / "out" / "x.ipynb").read_bytes()
    with pytest.raises(NotebookError):
        run("1 / 0")
    assert sorted(p.name for p in (project / "out").iterdir()) == ["x.failed.ipynb", "x.ipynb"]
    assert (project / "out" / "x.ipynb").read_bytes() == before


def test_a_kernel_that_dies_is_said_to_have_died_and_in_which_cell(run, project):
    with pytest.raises(NotebookError, match="code cell 2: the kernel died"):
        run("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")


def test_a_kernel_that_does_not_start_is_tried_once_more(run, monkeypatch):
    attempts = []

    def failing_first(*arguments, **settings):
        attempts.append(1)
        if len(attempts) == 1:
            raise RuntimeError("Kernel died before replying to kernel_info")
        return original(*arguments, **settings)

    original = execution.papermill.execute_notebook
    monkeypatch.setattr(execution.papermill, "execute_notebook", failing_first)
    run("1")
    assert len(attempts) == 2
    monkeypatch.setattr(
        execution.papermill,
        "execute_notebook",
        lambda *a, **s: (_ for _ in ()).throw(RuntimeError("no port")),
    )
    with pytest.raises(NotebookError, match="did not start: no port"):
        run("1")


def test_a_foreign_kernelspec_of_the_same_name_is_not_used(run, project, monkeypatch):
    folder = project / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(
        '{"argv": ["/nonexistent/python"], "display_name": "x", "language": "python"}'
    )
    monkeypatch.setenv("JUPYTER_PATH", str(project / "jupyter"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    assert KernelSpecManager().get_kernel_spec("python3").argv == ["/nonexistent/python"]
    run("1")


def test_what_jupyterlab_calls_python3_is_this_interpreter():
    program = KernelManager(kernel_name="python3").format_kernel_cmd()[0]
    assert Path(program).parent.samefile(Path(sys.executable).parent)
