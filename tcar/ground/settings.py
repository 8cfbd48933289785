"""Settings: fields of dataclasses that say between which limits their values are."""

from dataclasses import field
from typing import Any


def bounded(default: Any, **limits) -> Any:
    """A field with limits, which `tcar.lab.params.typed` has pydantic check.

    `minimum` and `maximum` (of each item of a list or mapping), `choices`, `keys` (of a mapping), `length`, `shortest`
    and `distinct` (of a list), and `pattern`, for which `expected` says what it stands for. `secret=True`: no file is
    to hold its value.
    """
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=limits)
    return field(default=default, metadata=limits, repr=not limits.get("secret"))
