"""tcar: temporal cross-attention over two frozen video streams, for naming actions in Something-Something-V2.

Submodules are imported when they are first used, so `import tcar` is cheap.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

from tcar import compat

compat.install()

__version__ = "0.1.0"
_SUBMODULES = (
    "data", "doctor", "evaluate", "execution", "explain", "features", "log", "losses", "models", "notebooks",
    "params", "pipeline", "plots", "report", "results", "stages", "train",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "predict":
        return importlib.import_module("tcar.predict").predict
    if name in _SUBMODULES:
        return importlib.import_module(f"tcar.{name}")
    raise AttributeError(f"module 'tcar' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), "predict", *_SUBMODULES})


class _Package(ModuleType):
    """Keeps `tcar.predict` the function: the import system would put the module of that name in its place as
    soon as something imports it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "predict" and isinstance(value, ModuleType):
            value = value.predict
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
