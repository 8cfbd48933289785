"""What is wrong with what was asked, said so that it can be mended."""

import difflib
from collections.abc import Collection


class TcarError(Exception):
    """What cannot be done as asked; the message names the file or parameter and the fix, and a command prints it."""


class ParameterError(TcarError, ValueError):
    """A parameter is unknown, mistyped or out of range; the message names the key, the file and the fix."""


def unknown(name: object, known: Collection) -> str:
    """What to say of a name that is none of those known: all of them, and the one that is meant."""
    return f"expected one of {', '.join(map(str, known))}{meant(name, known, '; ')}"


def meant(name: object, known: Collection, before: str = ", ") -> str:
    """The question whether the nearest of the known names is meant, or an empty text where none is near."""
    near = difflib.get_close_matches(str(name), list(map(str, known)), n=1)
    return f"{before}did you mean {near[0]!r}?" if near else ""
