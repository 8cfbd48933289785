"""Tabletop: the embedded synthetic benchmark, in the file formats of Something-Something-V2.

What the renderer knows of a clip hangs here and is imported when it is first used.
"""

from importlib import import_module
from typing import Any

__all__ = ["ROLES", "decisive", "event_times", "role_masks", "roles", "truth_at"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("tcar.tabletop.truth"), name)
    raise AttributeError(f"module 'tcar.tabletop' has no attribute {name!r}")
