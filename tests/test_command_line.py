"""The door of the house: a help that fits a screen, an example for each verb, and errors of one line."""

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import pytest

from tcar.__main__ import VERBS, command, main

ROOT = Path(__file__).parents[1]
# What each verb is asked that cannot be done, and what the error names.
WRONG = {
    "doctor": (["wrong.yaml"], "did you mean 'epochs'"),
    "prepare": (["nowhere", "dataset"], "nowhere"),
    "audit": (["nowhere"], "nowhere"),
    "fetch": (["wrong.yaml"], "did you mean 'epochs'"),
    "plan": (["wrong.yaml"], "did you mean 'epochs'"),
    "extract": (["wrong.yaml"], "did you mean 'epochs'"),
    "verify": (["nowhere"], "nowhere"),
    "train": (["wrong.yaml"], "did you mean 'epochs'"),
    "paper": (["wrong.yaml"], "did you mean 'epochs'"),
    "search": (["nowhere.yaml"], "nowhere.yaml"),
    "replicates": (["wrong.yaml"], "did you mean 'epochs'"),
    "recipes": (["wrong.yaml"], "did you mean 'epochs'"),
    "terms": (["wrong.yaml"], "did you mean 'epochs'"),
    "pairs": (["wrong.yaml"], "did you mean 'epochs'"),
    "miniatures": (["wrong.yaml"], "did you mean 'epochs'"),
    "explanations": (["wrong.yaml"], "did you mean 'epochs'"),
    "predict": (["nowhere.mp4", "--model", "nowhere"], "nowhere"),
    "tabletop": (["folder", "--classes", "3"], "3"),
    "rehearse": (["wrong.yaml", "FOLDER"], "did you mean 'epochs'"),
    "streams": (["i3d_tny"], "i3d_tny"),
    "notebooks": (["--no-such-option"], "tcar notebooks --help"),
}


def asked(verb: str, arguments: list[str]) -> argparse.Namespace:
    """What a verb makes of its arguments."""
    module, parser = import_module(f"tcar.lab.commands.{verb}"), argparse.ArgumentParser(exit_on_error=False)
    module.add_arguments(parser)
    return parser.parse_args(arguments)


def status(run, *arguments, **given) -> int:
    """The exit status, whether it is returned or exited with."""
    try:
        return run(*arguments, **given)
    except SystemExit as left:
        return left.code


def test_the_help_fits_a_screen(capsys):
    assert status(main, ["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 23 and max(map(len, lines)) < 80  # and the prompt below it
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(VERBS)


def test_the_help_loads_nothing_that_takes_time():
    code = "import sys; from tcar.__main__ import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit(str({'torch', 'numpy', 'yaml', 'pydantic'} & set(sys.modules) or ''))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_shows_an_example_that_can_be_called(verb, capsys):
    assert status(command, verb, ["--help"]) == 0
    shown = capsys.readouterr().out.partition("example:\n")[2].splitlines()
    calls = [re.search(rf"\btcar {verb}(.*)", line) for line in shown if line]
    assert calls and all(calls)
    for call in calls:
        assert asked(verb, shlex.split(call[1]))


@pytest.mark.parametrize("verb", VERBS)
def test_what_cannot_be_done_is_one_line_and_status_2(verb, project, capsys):
    (project / "wrong.yaml").write_text("epohcs: 3\n")
    arguments, named = WRONG[verb]
    with tempfile.TemporaryDirectory() as short:  # a rehearsal has sockets in its folder, whose names have a limit
        arguments = [f"{short}/f" if argument == "FOLDER" else argument for argument in arguments]
        assert status(command, verb, arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and named in line


@pytest.mark.parametrize(
    ("arguments", "named"),
    [([], "required: VERB"), (["papr"], "did you mean 'paper'?"), (["paper"], "required: params"),
     (["paper", "--lst", "x"], "--lst")],
)  # fmt: skip
def test_a_misspelt_call_is_one_line_and_status_2(arguments, named, capsys):
    assert status(main, arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and named in line
