"""The project as a whole: one set of pins for every way to install it, and a help that names every target."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FILE = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = FILE["project"]


def test_every_dependency_is_pinned():
    wanted = PROJECT["dependencies"] + [name for group in PROJECT["optional-dependencies"].values() for name in group]
    assert [name for name in wanted if not re.fullmatch(r"[\w.-]+==[\w.]+", name)] == []


def test_the_package_takes_all_its_files_along():
    """What is no module has to be named in pyproject.toml, or the installed package lacks it."""
    declared = FILE["tool"]["setuptools"]["package-data"]
    named = {file for package, patterns in declared.items() for pattern in patterns
             for file in ROOT.joinpath(*package.split(".")).glob(pattern)}  # fmt: skip
    files = {file for file in (ROOT / "tcar").rglob("*") if file.is_file() and "__pycache__" not in file.parts}
    assert {file for file in files if file.suffix != ".py"} == named
    assert all((file.parent / "__init__.py").is_file() for file in files if file.suffix == ".py")


def test_conda_installs_the_same_pins_and_nothing_beside_them():
    """Every package comes from pyproject.toml: conda gives Python and pip alone."""
    python, pip, own = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert (python, pip, own) == ("python=3.11", "pip", {"pip": ["-e .[dev]"]})
    assert "dev" in PROJECT["optional-dependencies"]
    assert PROJECT["requires-python"] == ">=3.11"


def test_every_name_is_defined_and_the_style_kept():
    """A name that no import brings is found out only where it is used, which may be late in a long run."""
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "-q", "."], cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stdout


def test_the_help_of_make_names_every_target_and_no_other():
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):(?!=)", text, re.MULTILINE))
    assert set(re.search(r"^\.PHONY: (.*)", text, re.MULTILINE)[1].split()) == targets
    assert set(re.findall(r'@echo "make ([a-z-]+)', text)) == targets - {"help"}


@pytest.mark.parametrize("verb", ["paper", "doctor", "terms", "replicates"])
def test_folders_and_parameter_files_may_have_spaces_in_their_names(tmp_path, verb):
    """With a command that only writes down what it is given, in an installation that is up to date."""
    project = tmp_path / "my project"
    (project / ".venv" / "bin").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, project)
    tcar = project / ".venv" / "bin" / "tcar"
    tcar.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > told\n')
    tcar.chmod(0o755)
    (project / ".venv" / ".installed").write_text(f"{project}\n{(project / 'pyproject.toml').read_text()}")
    # Where the tests were started by make, that has left words for this one.
    made = ("MAKE", "MFLAGS", "PARAMS")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(made)}
    subprocess.run(["make", verb, "PARAMS=params/my run.yaml"], cwd=project, env=environment, check=True)
    assert (project / "told").read_text().splitlines() == [verb, "params/my run.yaml"]
