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


def check_whole(config: Any, **least: int) -> None:
    """Raise ValueError naming the field of a configuration that is no whole number of at least what is given for it."""
    for name, minimum in least.items():
        value = getattr(config, name)
        if not isinstance(value, int) or value < minimum:
            kind = type(config).__name__
            raise ValueError(f"{kind}.{name} must be a whole number of at least {minimum}, got {value!r}")
