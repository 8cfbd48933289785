"""Result files of a run: values in `x.json` (tcar.ground.records), and their provenance in `x.meta.json`."""

import datetime
import importlib.metadata
import platform
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from tcar.ground import locks, log
from tcar.ground.project import revision
from tcar.ground.records import ResultError, digest, load, relative, write
from tcar.lab.params import Params, shown

VERSIONS = (
    "torch", "torchvision", "timm", "transformers", "accelerate", "numpy", "scipy", "scikit-learn", "umap-learn",
    "captum", "optuna", "av", "decord2", "pillow", "opencv-python-headless", "matplotlib", "typst",
)  # fmt: skip
_BEGAN, _written = time.time_ns(), {}  # what this process has written, and when


def save(
    path: Path,
    values: Mapping[str, Any],
    *,
    params: Params,
    inputs: Iterable[Path] = (),
    seeds: Sequence[int] = (),
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write values to `path` and their provenance to `<stem>.meta.json` beside it.

    values: nested dictionaries, lists, arrays, numbers and text; floats are rounded to 10 significant digits,
    a NaN or infinity becomes null. extra: what was measured but differs from run to run, such as seconds.
    Warns of results beside it that were made from it as it was before. Raises ResultError for a value that JSON cannot
    hold, and where another process is at work on the run.
    """
    path = Path(path)
    meta = {
        **revision(params.root),
        "parameters": shown(params.as_dict()),
        "inputs": {relative(p, params.root): digest(p) for p in map(Path, inputs)},
        "seeds": list(seeds),
        "versions": {"python": platform.python_version(), **versions()},
        "device": _device(),
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "extra": dict(extra or {}),
    }
    inside = path.is_relative_to(params.run_dir)
    with locks.of_run(params.run_dir, ResultError, locks.WRITING) if inside else nullcontext():
        _tell_of_others(path)
        write(path, values)
        write(path.with_suffix(".meta.json"), meta)
        _written[path] = path.stat().st_mtime_ns
    if late := [name for name, changed in outdated(path.parent).items() if path.name in changed]:
        log.get(__name__).warning(f"of an earlier {path.name}, so run their notebooks again: {', '.join(late)}")
    return path


def _tell_of_others(path: Path) -> None:
    """Say that a result is replaced which another process has written since this one began."""
    there = path.stat().st_mtime_ns if path.is_file() else 0
    if there > _BEGAN and there != _written.get(path):
        when = datetime.datetime.fromtimestamp(there / 1e9).isoformat(sep=" ", timespec="seconds")
        log.get(__name__).warning(f"{path}: another process wrote it at {when}, after this one began; it is replaced")


def outdated(folder: Path) -> dict[str, list[str]]:
    """The results of a folder that were made from others there as these are no more: name -> those that changed."""
    found = {}
    for meta in sorted(folder.glob("*.meta.json")):
        # By name alone: in a copy of a run, provenance names the folder of the original.
        made_from = {Path(name).name: made for name, made in load(meta).get("inputs", {}).items()}
        here = {name: folder / name for name in made_from if (folder / name).is_file()}
        if changed := [name for name, path in here.items() if digest(path) != made_from[name]]:
            found[meta.name.replace(".meta.json", ".json")] = changed
    return found


def versions() -> dict[str, str]:
    """The installed versions of the packages that decide values and pictures."""
    found = {}
    for name in VERSIONS:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _device() -> str:
    """The accelerator torch has in use in this process, else the processor and the instructions it adds with."""
    torch = sys.modules.get("torch")
    if torch is None:
        return f"cpu ({platform.machine()})"
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"
