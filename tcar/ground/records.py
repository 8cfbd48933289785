"""Records: named values as stable JSON, and digests of values and files.

Values hold nothing that differs between two equal runs (no times, no paths), so equal runs give equal files.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tcar.ground import files
from tcar.ground.errors import TcarError

DIGITS = 10  # significant ones kept: below what two machines agree on anyway


class ResultError(TcarError, ValueError):
    """A result file is missing or unreadable, or a value does not belong in one."""


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


def write(path: Path, values: Mapping[str, Any]) -> None:
    """Write stable JSON in one step: a run that dies leaves the old file or the new one, not half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_plain(values), sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1)
    files.write_text(path, text + "\n")


def digest(source: Any) -> str:
    """16 hexadecimal digits of SHA-256: of a file's content for a Path, else of the value as stable JSON."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return hashlib.sha256(_stable(source).encode()).hexdigest()[:16]


def relative(path: Path, root: Path) -> str:
    """A path as it is recorded: from the project's folder where it lies inside, else in full."""
    inside = path.resolve().is_relative_to(root.resolve())
    return path.resolve().relative_to(root.resolve()).as_posix() if inside else str(path)


def _stable(value: Any) -> str:
    return json.dumps(_plain(value), sort_keys=True, allow_nan=False, separators=(",", ":"))


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
