"""`make lab`: copies to work on that git does not see, and that stay their user's."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from notebook_files import write_notebook

from tcar.lab import jupyter as lab

ROOT = Path(__file__).parents[2]


@pytest.fixture
def notebooks(project) -> Path:
    for name in ("00_a", "01_b"):
        write_notebook(project / "notebooks" / f"{name}.ipynb", "epochs = 3", "print('seen')")
    return project / "notebooks"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.ipynb")}


def test_a_copy_follows_its_original_until_it_is_its_users(notebooks, project):
    copies = project / "runs" / "lab"
    assert lab.copy_notebooks(project) == []
    assert contents(copies) == contents(notebooks)
    mine = (copies / "00_a.ipynb").read_bytes().replace(b"seen", b"mine")
    (copies / "00_a.ipynb").write_bytes(mine)
    assert lab.copy_notebooks(project) == []
    for path in notebooks.iterdir():
        path.write_bytes(path.read_bytes().replace(b"seen", b"newer"))
    assert lab.copy_notebooks(project) == [copies / "00_a.ipynb"]
    assert (copies / "00_a.ipynb").read_bytes() == mine
    assert (copies / "01_b.ipynb").read_bytes() == (notebooks / "01_b.ipynb").read_bytes()
    (copies / "00_a.ipynb").unlink()
    (copies / lab.COPIED).unlink()  # what was copied as what is not known any more: nothing is overwritten
    (copies / "01_b.ipynb").write_bytes(mine)
    assert lab.copy_notebooks(project) == [copies / "01_b.ipynb"]
    assert (copies / "00_a.ipynb").read_bytes() == (notebooks / "00_a.ipynb").read_bytes()


@pytest.mark.parametrize("user", [0, 1000])
def test_jupyterlab_opens_the_project_at_the_copies_for_root_too(notebooks, project, monkeypatch, user):
    started = []
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(os, "execv", lambda program, command: started.append((program, command)))
    monkeypatch.chdir(notebooks)
    lab.open_lab(["--no-browser"])
    [(program, command)] = started
    assert program == sys.executable and command[1:3] == ["-m", "jupyterlab"] and command[-1] == "--no-browser"
    assert ("--allow-root" in command) == (user == 0)
    # As the server itself reads them.
    from jupyterlab.labapp import LabApp

    app = LabApp()
    app.parse_command_line(command[3:])
    assert app.config.ServerApp.root_dir == str(project.resolve())
    assert (project / app.config.LabApp.default_url.removeprefix("/lab/tree/")).is_dir()


def test_git_sees_nothing_of_what_is_tried():
    tried = ["runs/lab/00_data_audit.ipynb", "runs/demo/figures/methods.pdf", "notebooks/.ipynb_checkpoints/x.ipynb"]
    command = ["git", "check-ignore", "--no-index", *tried]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 128:
        pytest.skip("not a git checkout")
    assert done.stdout.split() == tried


def test_a_copy_runs_as_the_notebook_does(notebooks, project, monkeypatch):
    """Its kernel works in runs/lab/; the parameters still find the project, and figures stay in the run."""
    from nbclient import NotebookClient
    from nbformat import read

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    setup = "from tcar.lab import params\nrun = params.from_notebook(globals())\nprint(run.root, run.figures_dir)"
    write_notebook(notebooks / "02_c.ipynb", 'name = "x"', setup)
    lab.copy_notebooks(project)
    copy = read(project / "runs" / "lab" / "02_c.ipynb", as_version=4)
    client = NotebookClient(copy, kernel_name="python3", resources={"metadata": {"path": project / "runs" / "lab"}})
    asyncio.run(client.async_execute())
    assert copy.cells[-1].outputs[0].text.split() == [str(project), str(project / "runs" / "x" / "figures")]
    assert json.loads((notebooks / "02_c.ipynb").read_text())["cells"][-1]["outputs"] == []
