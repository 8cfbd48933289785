"""Result files: values in `x.json`, their provenance in `x.meta.json`, and digests that tell what is stale.

Values hold nothing that differs between two equal runs (no times, no paths), so equal runs give equal files.
"""

import ast
import datetime
import hashlib
import importlib.metadata
import itertools
import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

from tcar import files, locks, log
from tcar.params import Params, shown

DIGITS = 10  # significant ones kept: below what two machines agree on anyway
PACKAGE = Path(__file__).parent
VERSIONS = (
    "torch", "torchvision", "timm", "transformers", "accelerate", "numpy", "scipy", "scikit-learn", "umap-learn",
    "captum", "optuna", "av", "decord2", "pillow", "opencv-python-headless", "matplotlib", "typst",
)  # fmt: skip
# These carry settings and text but compute no number: a change in them makes no result stale.
PASSIVE = {"tcar", "tcar.compat", "tcar.log", "tcar.params"}


_BEGAN, _written = time.time_ns(), {}  # what this process has written, and when


class ResultError(ValueError):
    """A result file is missing or unreadable, or a value does not belong in one."""


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


def load(path: Path) -> dict[str, Any]:
    """The values of a result file. Raises ResultError where it is missing or broken."""
    path = Path(path)
    if not path.is_file():
        raise ResultError(f"{path}: no such result; the notebook that writes it has not run")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ResultError(f"{path}: not JSON ({error}); delete it and run the pipeline again") from None
    if not isinstance(found, dict):
        raise ResultError(f"{path}: has no named values; delete it and run the pipeline again")
    return found


def digest(source: Any) -> str:
    """16 hexadecimal digits of SHA-256: of a file's content for a Path, else of the value as stable JSON."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return hashlib.sha256(_stable(source).encode()).hexdigest()[:16]


def code_digest(*module_names: str) -> str:
    """A digest of what these modules of tcar do: of their syntax trees, and those of all modules of tcar they
    import, however deep. Comments, docstrings and layout do not count. Raises ResultError: no such module."""
    return digest(module_digests(*module_names))


def module_digests(*module_names: str) -> dict[str, str]:
    """The digest of each module of tcar that is reached from these, but for the passive ones (`PASSIVE`)."""
    missing = [name for name in module_names if _source(name) is None]
    if missing:
        raise ResultError(f"no such module: {', '.join(missing)}")
    reached, queue = {}, list(module_names)
    while queue:
        name = queue.pop()
        if name not in reached and name not in PASSIVE:
            reached[name], imported = _module(name)
            # Importing a.b.c runs a and a.b as well.
            parents = {
                parent for m in (name, *imported) for parent in itertools.accumulate(m.split("."), _join)
            }
            queue += sorted(parents)
    return dict(sorted(reached.items()))


def imported_modules(tree: ast.AST, package: str = "") -> set[str]:
    """The modules of tcar that a syntax tree imports; `package` is where its relative imports begin."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Attribute):
            found.add(ast.unparse(node))  # `tcar.models.create_stream` after a bare `import tcar`
    return {name for name in found if name.partition(".")[0] == "tcar" and _source(name) is not None}


@cache
def _module(name: str) -> tuple[str, frozenset[str]]:
    """The digest of one module and the modules it imports."""
    file = _source(name)
    tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    imported = frozenset(imported_modules(tree, package))
    return hashlib.sha256(ast.dump(_without_docstrings(tree)).encode()).hexdigest()[:16], imported


def _without_docstrings(tree: ast.Module) -> ast.Module:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return tree


def _join(parent: str, child: str) -> str:
    return f"{parent}.{child}"


def _source(name: str) -> Path | None:
    """The file of a module of tcar, found without importing anything."""
    first, *rest = name.split(".")
    stem = PACKAGE.joinpath(*rest)
    files = [stem / "__init__.py", *([stem.with_suffix(".py")] if rest else [])]
    return next((file for file in files if file.is_file()), None) if first == "tcar" else None


def _stable(value: Any) -> str:
    return json.dumps(_plain(value), sort_keys=True, allow_nan=False, separators=(",", ":"))


def write(path: Path, values: Mapping[str, Any]) -> None:
    """Write stable JSON in one step: a run that dies leaves the old file or the new one, not half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_plain(values), sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1)
    files.write_text(path, text + "\n")


def _plain(value: Any, where: str = "values") -> Any:
    """The value in what JSON knows: rounded floats, lists for arrays and tensors, text for keys."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None or isinstance(value, (bool, str, int)):
        return value
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") + 0.0 if math.isfinite(value) else None  # + 0.0: no negative zero
    if isinstance(value, Mapping):
        keys = [str(key) for key in value]
        if len(set(keys)) < len(keys):
            raise ResultError(f"{where}: two keys that read the same as text, among {keys}")
        return {key: _plain(item, f"{where}.{key}") for key, item in zip(keys, value.values(), strict=True)}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise ResultError(f"{where} is a {type(value).__name__}, which a result file cannot hold")


def relative(path: Path, root: Path) -> str:
    """A path as it is recorded: from the project's folder where it lies inside, else in full."""
    inside = path.resolve().is_relative_to(root.resolve())
    return path.resolve().relative_to(root.resolve()).as_posix() if inside else str(path)


def versions() -> dict[str, str]:
    """The installed versions of the packages that decide values and pictures."""
    found = {}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _device() -> str:
    """The accelerator torch has in use in this process, else the processor and the instructions it adds with."""
    torch = sys.modules.get("torch")
    if torch is None:
        return f"cpu ({platform.machine()})"
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"


def revision(root: Path) -> dict[str, Any]:
    """The `commit` of the project and whether tracked files differ from it (`dirty`); null outside git."""

    def git(*command: str) -> str | None:
        try:
            command = ["git", "-C", str(root), *command]
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(changes) if commit else None}
