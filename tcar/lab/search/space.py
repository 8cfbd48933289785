"""What is searched: the file `params/search.yaml`, its space, and the parameter file of the winner.

A space names parameters of a run, and for each a range (`low`, `high`, `log`, `step`) or a list of choices. Names and
values pass the checks of `tcar.lab.params`, so a search proposes nothing that a run would refuse.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import random
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from tcar.ground import files
from tcar.ground.errors import unknown
from tcar.lab import params, results
from tcar.lab.params import GROUPS, ParameterError, Params
from tcar.lab.params.checks import mistakes

# Others change the tokens, which are computed before a search begins, or only name folders and machines.
SEARCHED = {f.name for group in ("fusion", "training") for f in dataclasses.fields(GROUPS[group])}
_NOT_SEARCHED = {"seeds", "methods", "max_trained_parameters", "fusion_checkpointing"}
_SAMPLERS, _PRUNERS = ("tpe", "random", "grid"), ("median", "halving", "none")


@dataclass(frozen=True)
class SearchSettings:
    """A search, as its file has it; the defaults are those of what the file leaves out."""

    name: str  # of the study, and of the winner's parameter file
    base: Params  # what a trial changes
    base_file: Path
    space: dict[str, BaseDistribution]
    trial: dict[str, Any] = field(default_factory=dict)  # parameters of all trials that differ from the base
    # "" = a journal file in the run's folder; else a journal's path or a database's address, with $NAME for what an
    # environment variable holds, such as a password.
    storage: str = field(default="", repr=False)
    sampler: str = "tpe"
    pruner: str = "median"
    trials: int = 20
    seed: int = 100  # of the proposals, and of the training of every trial
    finalists: int = 3  # best trials that are trained again
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)  # of the finalists and the base
    attempts: int = 3  # of a trial whose worker dies while the search goes on
    patience: float = 60.0  # seconds without a sign of life until a worker elsewhere counts as dead

    @property
    def folder(self) -> Path:
        """Where the search keeps its journal and its outcome."""
        return self.base.run_dir / "search"

    @property
    def address(self) -> str:
        """The storage: an absolute path of a journal file, or a database's address."""
        storage = os.path.expandvars(self.storage)
        if "://" in storage:
            return storage
        stated = Path(storage).expanduser() if storage else self.folder / f"{self.name}.journal"
        return str((self.base.root / stated).resolve())

    @property
    def winner_file(self) -> Path:
        """The parameter file that the chosen configuration is written to."""
        return self.base_file.parent / f"{self.name}.yaml"

    @property
    def shown_space(self) -> dict[str, Any]:
        """The space in plain values: a list of choices, or `low`, `high`, `log` and `step`, for each parameter."""
        return {
            key: list(given.choices) if isinstance(given, CategoricalDistribution)
            else {name: getattr(given, name) for name in ("low", "high", "log", "step")}
            for key, given in self.space.items()
        }  # fmt: skip

    def proposed(self, changes: Mapping[str, Any], final: bool = False) -> Params:
        """The parameters of a trial; `final` leaves out what only trials change. Raises ParameterError."""
        values = params.overlaid(params.overlaid({}, {} if final else self.trial), changes)
        values = params.check_values(values, source=f"{self.name}, {described(changes)}")
        # What the ablations or other methods of the base would say to it is no matter of a trial.
        changed = {
            group: dataclasses.replace(old, **{key: values[key] for key in vars(old) if key in values})
            for group, old in (("fusion", self.base.fusion), ("training", self.base.training))
        }
        return dataclasses.replace(self.base, **changed)

    def definition(self) -> dict[str, Any]:
        """All that decides what a trial is and what it gives: a study goes on only where this is the same."""
        given = {key: value for key, value in self.base.as_dict().items() if key in SEARCHED - _NOT_SEARCHED}
        return {"sampler": self.sampler, "pruner": self.pruner, "seed": self.seed, "trial": self.trial} | {
            f"space.{key}": value for key, value in self.shown_space.items()} | {
            f"base.{key}": value for key, value in given.items()}  # fmt: skip


def load_settings(path: str | Path, **overrides) -> SearchSettings:
    """Read a search file; `overrides` (trials, base: a Params, …) win.

    Raises ParameterError: no such file, an unknown key, a parameter that is none or cannot be searched, a value out of
    its range; the message names the file and the key.
    """
    path = Path(path)
    values = params.read_yaml(path)
    known = {f.name: f for f in dataclasses.fields(SearchSettings)} | {"base": None}
    for key in values:
        if key not in known or key == "base_file":
            raise ParameterError(f"{path}: unknown key {key!r}, {unknown(key, known)}")
    for key in ("name", "base", "space"):
        if key not in values:
            raise ParameterError(f"{path}: the key {key!r} is missing")
    base_file = params.find_root(path.resolve().parent) / str(values["base"])
    base = overrides.pop("base", None) or params.load(base_file)
    values |= {key: value for key, value in overrides.items() if value is not None}
    space, trial = values["space"], values.get("trial", {})
    if not isinstance(space, dict) or not space:
        raise ParameterError(f"{path}: space is {space!r}, expected parameters with a range or choices each")
    values["space"] = {key: _distribution(key, given, f"{path}, space") for key, given in space.items()}
    if not isinstance(trial, dict):
        raise ParameterError(f"{path}: trial is {trial!r}, expected parameters with a value each")
    _searchable(trial, f"{path}, trial")
    params.check_values(trial, source=f"{path}, trial")
    if both := sorted(trial.keys() & space.keys()):
        raise ParameterError(f"{path}: {both[0]} stands in space and in trial; leave it in one of them")
    _check(values, path)
    values["seeds"] = tuple(values.get("seeds", SearchSettings.seeds))
    made = SearchSettings(**values | {"base": base, "base_file": base_file})
    if made.seed in made.seeds:
        raise ParameterError(f"{path}: seed {made.seed} is also among seeds; the trainings that choose the finalists "
                             "would judge them, take another")
    for key, given in made.space.items():  # the winner's file has to be one that can be loaded
        for value in given.choices if isinstance(given, CategoricalDistribution) else (given.low, given.high):
            for keys, text in mistakes(made.proposed({key: value}, final=True)):
                if keys & made.space.keys() == {key}:
                    raise ParameterError(f"{path}, space: {text}")
    if made.sampler == "grid" and (points := len(grid(made))) < made.trials:
        raise ParameterError(f"{path}: the grid has {points} points, fewer than trials, which is {made.trials}")
    return made


def grid(settings: SearchSettings) -> list[dict[str, Any]]:
    """All points of the space in an order that the seed decides, so that the first few lie everywhere.

    Raises ParameterError: a range of fractions without a step.
    """
    axes = {}
    for key, distribution in settings.space.items():
        if isinstance(distribution, CategoricalDistribution):
            axes[key] = list(distribution.choices)
        elif isinstance(distribution, IntDistribution):
            axes[key] = list(range(distribution.low, distribution.high + 1, distribution.step))
        elif distribution.step is None:
            raise ParameterError(f"{settings.name}, space: {key} has no step, and a grid needs one (or choices)")
        else:
            steps = round((distribution.high - distribution.low) / distribution.step)
            axes[key] = [distribution.low + step * distribution.step for step in range(steps + 1)]
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    random.Random(settings.seed).shuffle(points)
    return points


def described(changes: Mapping[str, Any]) -> str:
    """Parameters as text: `learning_rate 0.001, heads 8`."""
    return ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                     for key, value in changes.items()) or "the base"  # fmt: skip


def write_params(settings: SearchSettings, changes: Mapping[str, Any], remarks: list[str]) -> Path:
    """Write the base's parameter file with the winner's values under the name of the search, and give its path.

    remarks: lines of comment at its head. Comments of the base stay; each changed line says what it was. The run does
    not publish: what the project's paper shows is decided by hand. A secret that the base states is left out.
    Raises ParameterError: a file of that name that no search has written, or that was edited since.
    """
    target = settings.winner_file
    if target.exists():
        first, _, rest = target.read_text(encoding="utf-8").partition("\n")
        if first != _mark(rest):
            raise ParameterError(
                f"{target}: was not written by a search, or edited since, and is left alone; move it away, or give the "
                "search another name"
            )
    base, changes = params.load(settings.base_file), params.overlaid({}, changes)
    text = settings.base_file.read_text(encoding="utf-8")
    # What was decided at the call (the run that a notebook is of) differs from the file as well.
    called = {key: value for key, value in settings.base.as_dict().items() if value != base.as_dict()[key]}
    own = {"publish": False, **dict(changes), "name": settings.name}
    own |= {key: base.as_dict()[key] for key in params.SECRETS}
    for key in params.secrets(own):
        own[key], text = "", re.sub(rf"^{key}:.*", f'{key}: ""', text, flags=re.MULTILINE)
    for key, value in (called | own).items():
        if value != (before := base.as_dict()[key]):
            text = _replaced(text, key, value, f"was {before}" if key in changes else "")
    head = [f"# {line}" for remark in remarks for line in textwrap.wrap(remark, 116)]
    text = "\n".join([*head, text])
    wanted = settings.base.as_dict() | own
    with files.drafted(target) as draft:
        draft.write_text(f"{_mark(text)}\n{text}", encoding="utf-8")
        if (written := params.load(draft).as_dict()) != wanted:
            wrong = [key for key in wanted if wanted[key] != written[key]]
            raise ParameterError(
                f"{settings.base_file}: the line of {wrong[0]} cannot be replaced, write it on one line"
            )
    return target


def _mark(text: str) -> str:
    """The first line before such a text, by which an edited one is known."""
    return f"# Written by `tcar search`, which leaves it alone once it is edited ({results.digest(text)})"


def _replaced(text: str, key: str, value: Any, note: str) -> str:
    """The text with one line changed, or with a new one at its end; its comment stays, with a note behind it."""
    shown = yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("...\n").strip()
    if isinstance(value, float) and "e" in shown and "." not in shown:
        shown = shown.replace("e", ".0e")  # YAML 1.1 reads 1e-05 as text
    line = re.compile(rf"^{key}:[^#\n]*(#[^\n]*)?$", re.MULTILINE)
    found = line.search(text)
    comment = ", ".join(filter(None, [found and (found[1] or "").strip("# "), note]))
    new = f"{key}: {shown}" + (f" # {comment}" if comment else "")
    return text[: found.start()] + new + text[found.end() :] if found else f"{text.rstrip()}\n{new}\n"


def _searchable(keys: Mapping[str, Any], source: str) -> None:
    for key in keys:
        if key not in params.FIELDS:
            params.check_values({key: None}, source=source)  # says which it may have meant
        if key not in SEARCHED - _NOT_SEARCHED:
            raise ParameterError(f"{source}: {key} cannot be searched: a search trains on tokens that are there "
                                 "already, so only parameters of the fusion and of its training are open to it")


def _distribution(key: str, given: Any, source: str) -> BaseDistribution:
    """A range or choices as Optuna knows them, each value checked as the parameter's own."""
    _searchable({key: given}, source)
    kind = params.FIELDS[key].type
    if isinstance(given, list):
        if not given or not all(isinstance(value, (bool, int, float, str)) for value in given):
            raise ParameterError(f"{source}: {key} is {given!r}, expected numbers, texts or truth values")
        values = [params.check_values({key: value}, source)[key] for value in given]
        if len(set(values)) < len(values):
            raise ParameterError(f"{source}: {key} has a choice twice: {given!r}")
        return CategoricalDistribution(values)
    if not isinstance(given, dict) or not {"low", "high"} <= given.keys() <= {"low", "high", "log", "step"}:
        raise ParameterError(f"{source}: {key} is {given!r}, expected {{low, high, log, step}} or a list of choices")
    if kind not in (int, float):
        raise ParameterError(f"{source}: {key} is no number, so it has choices, not a range")
    ends = {end: params.check_values({key: given[end]}, source)[key] for end in ("low", "high")}
    log, step = given.get("log", False), given.get("step", 1 if kind is int else None)
    if not isinstance(log, bool):
        raise ParameterError(f"{source}: {key}.log is {log!r}, expected true or false")
    if step is not None and (isinstance(step, bool) or not isinstance(step, (int, kind)) or step <= 0):
        raise ParameterError(f"{source}: {key}.step is {step!r}, expected a {kind.__name__} above 0")
    try:
        return (IntDistribution if kind is int else FloatDistribution)(**ends, log=log, step=step)
    except ValueError as error:
        raise ParameterError(f"{source}: {key} is {given!r}: {error}") from None


def _check(values: Mapping[str, Any], path: Path) -> None:
    """The keys that are neither base nor space: their types and limits."""
    expected = {"name": str, "storage": str, "sampler": str, "pruner": str, "trials": int, "seed": int,
                "finalists": int, "seeds": list, "attempts": int, "patience": (int, float)}  # fmt: skip
    least = {"trials": 1, "seed": 0, "finalists": 1, "attempts": 1, "patience": 1}
    for key, kind in expected.items():
        value = values.get(key, least.get(key))
        if key in values and (not isinstance(value, kind) or isinstance(value, bool)):
            raise ParameterError(f"{path}: {key} is {value!r}, expected {getattr(kind, '__name__', 'a number')}")
        if key in least and value < least[key]:
            raise ParameterError(f"{path}: {key} is {value!r}, expected at least {least[key]}")
    for key, choices in (("sampler", _SAMPLERS), ("pruner", _PRUNERS)):
        if values.get(key, choices[0]) not in choices:
            raise ParameterError(f"{path}: {key} is {values[key]!r}, expected one of {', '.join(choices)}")
    params.check_values({"name": values["name"]}, source=str(path))
    seeds = values.get("seeds", [0, 1])
    params.check_values({"seeds": seeds}, source=str(path))
    if len(set(seeds)) < max(2, len(seeds)):
        raise ParameterError(f"{path}: seeds is {seeds!r}, expected at least two different ones")
    if unset := re.search(r"\$\w+", os.path.expandvars(storage := values.get("storage", ""))):
        raise ParameterError(f"{path}: storage names {unset[0]}, but there is no such environment variable")
    if os.path.expandvars(storage).startswith("sqlite"):
        raise ParameterError(f"{path}: storage is SQLite, where two workers can take the same trial; "
                             "leave it empty for a journal file, or name a database server")
