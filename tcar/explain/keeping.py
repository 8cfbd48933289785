"""The verdicts on methods of explanation, kept beside the model that they are of."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from tcar.explain.errors import ExplanationError
from tcar.ground import files

EXPLAINED = "explained.json"
Verdicts = dict[tuple[str, str], bool | None]  # by method and stream; None: too few clips to say


def keep(folder: Path, weights: str, verdicts: Iterable[Mapping]) -> Path:
    """Write verdicts (rows of method, stream, passed) beside a model whose weights have this digest; gives the path."""
    rows = [{key: row[key] for key in ("method", "stream", "passed")} for row in verdicts]
    path = folder / EXPLAINED
    files.write_text(path, json.dumps({"weights": weights, "verdicts": rows}, indent=1) + "\n")
    return path


def kept(folder: Path, weights: str) -> Verdicts:
    """Return the verdicts beside a model; none where there are none, or where they are of other weights.

    Raises ExplanationError for a damaged file.
    """
    path = folder / EXPLAINED
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["weights"] != weights:
            return {}
        return {(row["method"], row["stream"]): row["passed"] for row in found["verdicts"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ExplanationError(f"{path}: damaged ({error!r}); delete it, or run `make explanations` again") from error
