"""Parameters of a run: one flat YAML file, whose keys are the fields of all settings (`tcar.lab.params.settings`).

The defaults are those of `params/demo.yaml`. Every key, type, name and range is checked, and whether all fit together
(`tcar.lab.params.checks`): a misspelt or mistyped parameter would otherwise be a run with a default nobody asked for,
and one that cannot work would fail hours later.
"""

import contextlib
import dataclasses
import os
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from tcar.ground import locks, log
from tcar.ground.errors import ParameterError
from tcar.ground.project import find_root
from tcar.lab.params import typed
from tcar.lab.params.checks import mistakes
from tcar.lab.params.run import REHEARSAL, SECRETS, Params, secrets, shown
from tcar.lab.params.settings import FIELDS, GROUPS, Common

__all__ = [
    "FIELDS", "GROUPS", "REHEARSAL", "SECRETS", "Common", "ParameterError", "Params", "find_root", "secrets", "shown",
]  # fmt: skip

FILE = "params_file"  # the variable by which a notebook names its parameter file
BY_METHOD = ("epochs", "learning_rate")  # what a method may have of its own, in the parameter of this name _by_method


def load(path: str | Path, **overrides) -> Params:
    """Parameters from a flat YAML file; what it leaves out has the default, `overrides` win (see `overlaid`).

    Raises ParameterError: no such file, not flat YAML, a repeated or unknown key, a wrong type or value.
    """
    return from_values(overlaid(overlaid({}, read_yaml(path)), overrides), source=str(path))


def overlaid(values: Mapping[str, typing.Any], changes: Mapping[str, typing.Any]) -> dict[str, typing.Any]:
    """The values with changes put over them; `epochs` alone is that of every method, and so is `learning_rate`.

    `epochs_by_method` says which methods converge later than with the `epochs` beside it: with other epochs it would
    train some methods for 36 epochs and some for 3.
    """
    alone = [key for key in BY_METHOD if key in changes and f"{key}_by_method" not in changes]
    return {**values, **changes, **{f"{key}_by_method": {} for key in alone}}


def read_yaml(path: str | Path) -> dict[str, typing.Any]:
    """The keys and values of a YAML file, unchecked. Raises ParameterError: no such file, no YAML, a repeated key."""
    path = Path(path)
    if not path.is_file():
        near = sorted(p.as_posix() for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        there = f"; there are {', '.join(near)}" if near else ""
        raise ParameterError(f"{path}: no such parameter file{there}")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParameterError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ParameterError(f"{path}: expected lines `key: value`, found a {type(values).__name__}")
    return values


def from_values(values: Mapping[str, typing.Any], source: str = "parameters") -> Params:
    """Parameters from a flat mapping; `source` is named in every error.

    Raises ParameterError with all that is wrong: keys and values by themselves, and what does not fit together.
    """
    right, wrong = typed.check(values)
    groups = {
        name: group(**{f.name: right[f.name] for f in dataclasses.fields(group) if f.name in right})
        for name, group in GROUPS.items()
    }
    run = Params(**groups)
    # What is wrong by itself has the default here, of which no more need be said.
    _refuse([*wrong.values(), *(text for keys, text in mistakes(run) if not keys & wrong.keys())], source)
    return run


def check_values(values: Mapping[str, typing.Any], source: str = "parameters") -> dict[str, typing.Any]:
    """Values of some parameters, each right by itself, in their declared types. Raises ParameterError otherwise."""
    right, wrong = typed.check(values)
    _refuse(list(wrong.values()), source)
    return right


def _refuse(wrong: list[str], source: str) -> None:
    if wrong:
        raise ParameterError(f"{source}: " + "; ".join(wrong))


def from_notebook(namespace: Mapping[str, typing.Any]) -> Params:
    """Parameters from the variables of a notebook, read in the cell after its `parameters` cell.

    namespace: the notebook's `globals()`. What papermill passed wins, then what the cell has other than the default,
    then the file that the variable `params_file` names (from the project's folder; "" = none), then the default. Also
    sets up logging, once for the whole notebook. Raises ParameterError: a wrong type or value, a passed name that is
    none.
    """
    stem = source = os.environ.get("TCAR_NOTEBOOK") or Path(os.environ.get("JPY_SESSION_NAME", "notebook")).stem
    # Of a notebook that is run again in the same kernel, what it has imported under such a name (`figures`) is none.
    namespace = {name: value for name, value in namespace.items() if not isinstance(value, types.ModuleType)}
    passed = {name: namespace[name] for name in log.injected(namespace) if name in namespace and name != FILE}
    values = {key: namespace[key] for key in FIELDS if key in namespace and key not in passed}
    if file := namespace.get(FILE):
        default = Params().as_dict()
        values = {key: value for key, value in values.items() if value != default[key]}
        values = overlaid(overlaid({}, read_yaml(find_root(Path.cwd()) / str(file))), values)
        source = f"{stem}, {file}"
    refuse_secrets({key: namespace[key] for key in FIELDS if key in namespace}, stem)
    try:
        run = from_values(overlaid(values, passed), source=source)
    except ParameterError as error:
        raise ParameterError(f"{error}{typed.as_yaml(passed)}") from None
    if "TCAR_NOTEBOOK" not in os.environ:
        run = dataclasses.replace(run, by_hand=True)
        _claim(run, to_the_end=bool(log.injected(namespace)))
    # The pipeline keeps everything a notebook prints, so there the kernel writes no file of its own.
    logfile = None if "TCAR_NOTEBOOK" in os.environ else run.logs_dir / f"{stem}.log"
    log.configure(run.common.log_level, logfile)
    for key in BY_METHOD:
        if key in namespace and (stated := getattr(run.training, f"{key}_by_method")):
            others = ", ".join(f"{method} {value}" for method, value in stated.items())
            log.get(__name__).info(f"{key}: {getattr(run.training, key)}, but of {others} ({key}_by_method)")
    return run


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys without a word; here that is an error."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                problem = f"the key {key!r} stands there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep)


_held = contextlib.ExitStack()


def _claim(run: Params, to_the_end: bool) -> None:
    """Raise ParameterError where another process is at work on the run.

    A notebook that papermill runs keeps others out until it ends. Of those open in JupyterLab any number may be of one
    run, as most are idle: each takes the lock while it writes a result.
    """
    _held.close()
    taken = locks.of_run(run.run_dir, ParameterError, locks.WRITING)
    if to_the_end:
        _held.enter_context(taken)
        return
    with taken:
        pass


def changes(texts: Iterable[str]) -> dict[str, typing.Any]:
    """Parameters as a command line states them, each `key=value` with a value of YAML; raises ParameterError."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ParameterError(f"{text!r} is not of the form key=value")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ParameterError(f"{text!r}: {value!r} is not a value as YAML has it") from None
    return found


def refuse_secrets(values: Mapping[str, typing.Any], place: str) -> None:
    """Raise ParameterError where a secret is stated in a place that is kept or that others can read."""
    for key in secrets(values):
        raise ParameterError(
            f"{place}: {key} is stated where it is kept and others can read it; put it into an environment variable "
            f'and state its name, as in {key} = "$MY_{key.upper()}"'
        )
