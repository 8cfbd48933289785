"""The main job: seven notebooks and the paper, of which only what is stale runs.

    tcar paper params/demo.yaml            run what is stale
    tcar paper params/demo.yaml --list     say what is stale, and why
    tcar paper params/demo.yaml --only 03_training --force

A step is stale when a parameter of its groups, its code, a module of tcar it imports, a package that decides values, an
input or one of its outputs has changed since it last succeeded. The state of a step is kept as soon as it has. That is
why this is no doit file: doit writes its state when the whole run ends, so a run killed in the fifth notebook would
begin again with the first, and it would keep the order of the steps alone: cells, modules and targets need own hashes.
"""

import os
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tcar.ground import locks, log, sources
from tcar.ground.errors import TcarError, unknown
from tcar.lab import measured, notebooks, params, results
from tcar.lab.notebooks import Notebook, NotebookError
from tcar.lab.params import BY_METHOD, Params
from tcar.lab.real_plans import plan_files
from tcar.streams.packaged import WEIGHTS


class PipelineError(TcarError, RuntimeError):
    """A step failed or cannot run; the message names the step and the fix."""


@dataclass(frozen=True)
class Step:
    """A row of the table: the results a step reads and writes, the groups of parameters it depends on."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: tuple[str, ...]


_AUDITED, _EXTRACTED, _TRAINED = ("audit",), ("audit", "extractors"), ("audit", "extractors", "training")
_CLIPS = ("data", "tabletop")
_LEARNING = (*_CLIPS, "streams", "fusion", "training", "trainer")
TABLE = (
    Step("00_data_audit", (), ("audit",), (*_CLIPS, "evaluation")),
    Step("01_extractors", _AUDITED, ("extractors",), (*_CLIPS, "streams", "full_size", "evaluation")),
    Step("02_fusion", _EXTRACTED, ("fusion",), (*_CLIPS, "streams", "fusion")),
    Step("03_training", _EXTRACTED, ("training",), (*_LEARNING, "baselines", "search", "watching")),
    Step("04_evaluation", _TRAINED, ("evaluation",), (*_LEARNING, "baselines", "evaluation")),
    Step("05_ablations", _TRAINED, ("ablations",), (*_LEARNING, "watching", "evaluation", "ablations")),
    Step(
        "06_interpretability", (*_TRAINED, "evaluation"), ("interpretability",),
        (*_LEARNING, "evaluation", "interpretability"),
    ),
)  # fmt: skip
REPORT = Step("report", tuple(o for s in TABLE for o in s.outputs), (), tuple(params.GROUPS))
STEPS = (*TABLE, REPORT)
# These change the folder that a run's state is in too, or how fast it goes, but neither what comes out nor where.
NEUTRAL = {
    "name", "runs", "workers", "log_level", "publish",
    "trackers", "wandb_project", "webhook", "alert_window", "divergence_margin", "gradient_explosion",
    "disk_reserve_gb", "gpu_hour_price",
}  # fmt: skip
ANNOTATIONS = ("*.json", "*.csv", "ground_truth/index.json")
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def fingerprint(step: Step, run: Params) -> dict[str, Any]:
    """Everything that decides what a step writes: parameters, code, modules of tcar, packages, inputs."""
    if step is REPORT:
        code, modules = "", sources.module_digests("tcar.lab.paper.report")
    else:
        notebook = notebooks.read(notebook_path(step, run))
        code, modules = notebook.digest, sources.module_digests(*notebook.modules)
    return {
        "parameters": _parameters(step, run),
        "code": code,
        "modules": modules,
        "versions": results.versions(),
        "inputs": {results.relative(path, run.root): _content(path) for path in _inputs(step, run)},
    }


def notebook_path(step: Step, run: Params) -> Path:
    """The notebook of a step."""
    return run.root / "notebooks" / f"{step.name}.ipynb"


def _parameters(step: Step, run: Params) -> dict[str, Any]:
    names = {f.name for group in ("common", *step.parameters) for f in fields(params.GROUPS[group])}
    neutral = NEUTRAL - {"name", "publish", "gpu_hour_price"} if step is REPORT else NEUTRAL
    return {name: value for name, value in params.shown(run.as_dict()).items() if name in names - neutral}


def _inputs(step: Step, run: Params) -> list[Path]:
    """The files a step reads that an earlier step or the user has written."""
    found = [run.results_dir / f"{name}.json" for name in step.inputs]
    shown = {
        "03_training": (measured.RECIPES,), "04_evaluation": (measured.MINIATURES,),
        "05_ablations": (measured.FILE, measured.TERMS, measured.PAIRS),
        "06_interpretability": (measured.EXPLANATIONS,), "report": measured.MEASURED,
    }.get(step.name, ())  # fmt: skip
    found += filter(None, (measured.find(run, file) for file in shown))
    if step.name == "04_evaluation" or step is REPORT:
        found += measured.experiment(run).values()
    if step is REPORT:  # says of what took a command of its own by what it was made
        apart = [path for path in found if path.name in measured.MEASURED]
        found += [meta for path in apart if (meta := path.with_suffix(".meta.json")).is_file()]
    if step.name == "02_fusion":
        found += plan_files(run.root).values()
    if step.name == "03_training" and run.search.search_trials:
        found += _files(run.root / "params", "search.yaml")
    elif step.name == "03_training":
        found += filter(None, [measured.find(run, measured.SEARCH)])
    if step is REPORT:
        found += [run.root / path for s in TABLE for path in _state(s, run).get("outputs", {})]
        return sorted({*found, *_files(run.root / "paper", "*.typ", "*.bib", "*.csv")})
    if step.name != "00_data_audit" or run.data.dataset != "tabletop":
        found += _files(run.data_root, *ANNOTATIONS)
    if step.name != "00_data_audit":  # what a later audit has quarantined is left out too
        found += _files(run.run_dir / "audit", "quarantine.json")
    if "streams" in step.parameters:
        stated = (run.streams.semantic_checkpoint, run.streams.motion_checkpoint)
        found += [run.root / Path(path).expanduser() for path in stated if path]
        found += _files(WEIGHTS, "*.safetensors")
    if "baselines" in step.parameters:
        stated = [run.root / Path(given).expanduser() for given in run.baselines.baseline_checkpoints.values()]
        for path in stated:  # a folder, a file, or a name on the Hub, which is neither
            found += [path] if path.is_file() else _files(path, "*.safetensors", "*.bin", "config.json")
    return found


def _outputs(step: Step, run: Params) -> list[Path]:
    """The files a step has to write, besides its figures."""
    found = [run.results_dir / f"{name}.json" for name in step.outputs]
    if step.name == "00_data_audit" and run.data.dataset == "tabletop":
        found += _files(run.data_root, *ANNOTATIONS)
    if step.name == "03_training":
        # Not all that lies there: verdicts on methods of explanation come later, beside the model that they are of.
        found += _files(run.run_dir / "model", "config.json", "*.safetensors", "README.md", "calibration.json")
    return found


def _files(folder: Path, *patterns: str) -> list[Path]:
    found = (path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
    return sorted(path for path in found if not path.name.startswith("."))  # hidden ones may be drafts of the killed


def _content(path: Path) -> str | None:
    """A digest of a file; of a large one (a checkpoint) its size and time, as reading it takes seconds."""
    if not path.is_file():
        return None
    size = path.stat().st_size
    return results.digest(path) if size < 2**26 else f"{size} bytes, {path.stat().st_mtime_ns}"


def reasons(step: Step, run: Params, now: dict[str, Any]) -> list[str]:
    """Why a step has to run again, given its fingerprint of this moment; empty where it is up to date."""
    before = _state(step, run)
    if "code" not in before:
        return ["has not succeeded yet"]
    found = [
        f"{key}: {old} -> {new}"
        for part in ("parameters", "versions")
        for key in sorted(before.get(part, {}).keys() | now[part].keys())
        if results.digest([old := before.get(part, {}).get(key)]) != results.digest([new := now[part].get(key)])
    ]
    found += ["its code changed"] if before["code"] != now["code"] else []
    found += [f"{name} changed" for part in ("modules", "inputs") for name in _differing(before[part], now[part])]
    written = {path: _content(run.root / path) for path in before["outputs"]}
    changed = _differing(before["outputs"], written)
    return found + [f"{p} {'was edited' if written[p] else 'is missing'}" for p in changed]


def _differing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))


def _state_path(step: Step, run: Params) -> Path:
    return run.run_dir / "pipeline" / f"{step.name}.json"


def _state(step: Step, run: Params) -> dict[str, Any]:
    path = _state_path(step, run)
    return results.load(path) if path.is_file() else {}


def run_step(step: Step, run: Params, now: dict[str, Any]) -> None:
    """Run one step and record what it read and wrote. Raises PipelineError, NotebookError, ReportError."""
    absent = [name for name in step.inputs if not (run.results_dir / f"{name}.json").is_file()]
    if absent:
        raise PipelineError(f"needs the results {', '.join(absent)}, which are not there: run the earlier steps")
    earlier = _state(step, run).get("outputs", {})
    results.write(_state_path(step, run), {"outputs": earlier})  # a step that fails has none but the files of before
    before = _figures(run)
    if step is REPORT:
        from tcar.lab.paper import report

        log.configure(run.common.log_level, run.logs_dir / "report.log")
        written = report.build(run, _drawn(run))
    else:
        from tcar.lab import execution

        notebook = notebooks.read(notebook_path(step, run))
        target = run.run_dir / "notebooks" / f"{step.name}.ipynb"
        execution.execute(notebook.path, target, _injected(notebook, run), run.logs_dir / f"{step.name}.log")
        written = _outputs(step, run)
    written += [path for path, changed in _figures(run).items() if before.get(path) != changed]
    if silent := [str(path) for path in written if not path.is_file()]:
        raise PipelineError(f"finished without writing {', '.join(silent)}")
    outputs = {results.relative(path, run.root): _content(path) for path in sorted(set(written))}
    _remove_obsolete(run, {path: content for path, content in earlier.items() if path not in outputs})
    results.write(_state_path(step, run), {**now, "outputs": outputs})


def _drawn(run: Params) -> list[Path]:
    """The figures that the steps have drawn of the results as they are; what else lies in the folder is of others."""
    made = [state["outputs"] for step in TABLE if "code" in (state := _state(step, run))]
    recorded = {run.root / path: content for outputs in made for path, content in outputs.items()}
    return [path for path, content in recorded.items() if content and _content(path) == content]


def _remove_obsolete(run: Params, earlier: dict[str, str]) -> None:
    """Delete figures and tables that a step wrote before and makes no more; never a file that is another's by now.

    What a command of its own has measured stays, and so does what was published once `publish` is off.
    """
    folders = [run.figures_dir, run.run_dir / "paper", *([run.root / "paper"] if run.common.publish else [])]
    for path, content in ((run.root / name, content) for name, content in earlier.items()):
        own = any(path.resolve().is_relative_to(folder.resolve()) for folder in folders)
        if own and path.name.replace(".meta", "") not in measured.MEASURED and _content(path) == content:
            path.unlink()


def _injected(notebook: Notebook, run: Params) -> dict[str, Any]:
    """What a notebook is given: the parameters it declares, and all others that differ from the default."""
    default = Params(root=run.root).as_dict()
    given = {k: v for k, v in run.as_dict().items() if k in notebook.declared or v != default[k]}
    # Epochs that are passed alone would be those of every method, and so would a learning rate.
    return given | {f"{key}_by_method": getattr(run.training, f"{key}_by_method") for key in BY_METHOD if key in given}


def _figures(run: Params) -> dict[Path, int]:
    """The figures of the run and when each was written: what a step has drawn is what is newer after it."""
    return {path: path.stat().st_mtime_ns for path in run.figures_dir.rglob("*") if path.is_file()}


def run_all(run: Params, steps: tuple[Step, ...], *, only: Collection[str] = (), force: bool = False) -> None:
    """Run the stale ones among the steps, or among those named in `only`, in order; stop at the first that fails."""
    for step in steps:
        if step is not REPORT:
            check(step, notebooks.read(notebook_path(step, run)))
    began, count = time.monotonic(), 0
    for number, step in enumerate(steps, 1):
        if only and step.name not in only:
            continue
        now = fingerprint(step, run)
        why = reasons(step, run, now) or (["asked for"] if force else [])
        banner = f"[{number}/{len(steps)}] {step.name}"
        if not why:
            _say(f"{banner}: up to date")
            continue
        more = f" and {len(why) - 3} more" if len(why) > 3 else ""
        _say(f"{banner}: {'; '.join(why[:3])}{more} …", "1")
        start, count = time.monotonic(), count + 1
        try:
            run_step(step, run, now)
        except Exception as error:
            said = str(error) if isinstance(error, TcarError) else f"{type(error).__name__}: {error}"
            raise PipelineError(f"{banner} failed after {_since(start)}\n{said}") from error
        _say(f"{banner}: done in {_since(start)}", "32")
    _say(f"{count} of {len(only or steps)} steps run, the rest up to date, in {_since(began)}", "1")


def check(step: Step, notebook: Notebook) -> None:
    """Raise NotebookError where a notebook uses a group of parameters that its row of the table does not name.

    A change there would not make it stale.
    """
    extra = sorted(notebook.groups - {"common", *step.parameters})
    if extra:
        raise NotebookError(
            f"{notebook.path}: uses parameters of {', '.join(extra)}, which the table in tcar/lab/pipeline.py "
            f"does not list for {step.name}: add them there"
        )


def show(run: Params, steps: tuple[Step, ...]) -> None:
    """Print for every step whether it is stale, and why."""
    rewritten: set[str] = set()
    for step in steps:
        why = reasons(step, run, fingerprint(step, run))
        waits = rewritten & set(step.inputs)
        state = "stale" if why else "may follow" if waits else "up to date"
        rewritten |= set(step.outputs) if why or waits else set()
        detail = why or [f"reads {', '.join(sorted(waits))}, which a stale step writes" for _ in waits][:1]
        _say(f"{step.name:22}{state:12}{'; '.join(detail)}")


def _since(start: float) -> str:
    return log.duration(time.monotonic() - start)


def _say(text: str, colour: str = "") -> None:
    coloured = colour and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(f"\x1b[{colour}m{text}\x1b[0m" if coloured else text, flush=True)


def perform(file: Path, *, only: Collection[str], listed: bool = False, force: bool = False) -> None:
    """Run what is stale of a parameter file's steps, or with `listed` only say what is.

    Raises ParameterError, NotebookError, PipelineError or ResultError: what is wrong, and the fix.
    """
    os.environ.update(OFFLINE | os.environ)  # what is set stays
    run, known = params.load(file), [step.name for step in STEPS]
    for name in only:
        if name not in known:
            raise PipelineError(f"--only {name}: no such step, {unknown(name, known)}")
    if listed:
        show(run, STEPS)
        return
    # Two runs of the same name would write the same files.
    with locks.of_run(run.run_dir, PipelineError):
        run_all(run, STEPS, only=only, force=force)
