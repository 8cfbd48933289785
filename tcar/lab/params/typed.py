"""Each parameter by itself: its type, range, choices and length, which pydantic checks."""

import re
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

from tcar.ground.errors import meant, unknown
from tcar.lab.params.run import HIDDEN
from tcar.lab.params.settings import FIELDS, TYPES

# What is said of a value of the right type that is outside its limits, by the names that pydantic gives the errors.
_SAID = {
    "greater_than_equal": "expected at least {minimum}", "less_than_equal": "expected at most {maximum}",
    "too_short": "expected at least {shortest} of them", "length": "expected {length} numbers",
    "string_pattern_mismatch": "expected {expected}", "value_error": "{error}",
}  # fmt: skip


def check(values: Mapping[Any, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The values that are right by themselves, in their declared types, and what is wrong with each of the others."""
    first = {error["loc"][0]: error for error in reversed(_errors(values))}
    wrong = {
        key: _said(first[key], value) if key in FIELDS else f"unknown parameter {key!r}{meant(key, FIELDS)}"
        for key, value in values.items() if key in first or key not in FIELDS
    }  # fmt: skip
    right = _Flat.model_validate({key: value for key, value in values.items() if key not in wrong})
    return {key: getattr(right, key) for key in values if key not in wrong}, wrong


def as_yaml(passed: Mapping[str, Any]) -> str:
    """How to pass values to papermill that came as text or numbers where lists and the like are expected."""
    given = []
    for error in _errors(passed):
        key, value = error["loc"][0], passed[error["loc"][0]]
        if len(error["loc"]) == 1 and error["type"].endswith("_type") and not _hint(value, TYPES[key]):
            kind, text = typing.get_origin(TYPES[key]) or TYPES[key], str(value).strip("[]{}() ")
            written = {list: f"[{text}]", dict: f"{{{text}}}", str: f"'{text}'", bool: text.lower()}.get(kind, "…")
            given.append(f'-y "{key}: {written}"')
    return f"; papermill takes values as they are in a file by {' '.join(given)}" if given else ""


def _limited(key: str) -> Any:
    """The type of a parameter, with its limits."""
    limits, kind = FIELDS[key].metadata, TYPES[key]
    *_, item = typing.get_args(kind) or [kind]
    if "choices" in limits:
        item = Literal[tuple(limits["choices"])]
    elif limits:
        pattern = f"^(?:{limits['pattern']})$" if "pattern" in limits else None
        item = Annotated[item, Field(ge=limits.get("minimum"), le=limits.get("maximum"), pattern=pattern)]
    if typing.get_origin(kind) is dict:
        return dict[Literal[tuple(limits["keys"])], item]
    if typing.get_origin(kind) is list:
        least, most = limits.get("shortest", limits.get("length")), limits.get("length")
        once = [AfterValidator(_each_once)] if limits.get("distinct") else []
        return Annotated[list[item], Field(min_length=least, max_length=most), *once]
    return item


def _each_once(values: list) -> list:
    if repeated := [value for value in values if values.count(value) > 1]:
        raise ValueError(f"expected each once, {repeated[0]!r} stands there twice")
    return values


# Strict: a text is no number, a truth value is none, but a whole number is a float too.
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)


def model() -> type[BaseModel]:
    """The pydantic model of all parameters, with the choices that there are now."""
    return create_model("Parameters", __config__=_STRICT, **{key: (_limited(key), None) for key in FIELDS})


_Flat = model()


def _errors(values: Mapping[Any, Any]) -> list[dict[str, Any]]:
    try:
        _Flat.model_validate({key: value for key, value in values.items() if key in FIELDS})
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


def _said(error: Mapping[str, Any], value: Any) -> str:
    key, kind = error["loc"][0], error["type"]
    limits, expected = FIELDS[key].metadata, TYPES[key]
    kind = "length" if kind.startswith("too_") and "length" in limits else kind
    told = f"{key} is {HIDDEN if limits.get('secret') else repr(value)}"
    if kind == "literal_error":
        return f"{told}, {unknown(error['input'], limits['keys' if error['loc'][-1] == '[key]' else 'choices'])}"
    if kind in _SAID:
        return f"{told}, {_SAID[kind].format(**{**limits, **error['ctx']})}"
    found = {str: "text", type(None): "nothing"}.get(type(value), type(value).__name__)
    name = str(expected) if typing.get_args(expected) else expected.__name__
    return f"{told} ({found}), expected {name}{_hint(value, expected)}"


def _hint(value: Any, expected: Any) -> str:
    """YAML 1.1 reads 1e-4 as text: say how to write the number it was meant to be."""
    number = re.fullmatch(r"([-+]?\d+)(\.\d*)?[eE]([-+]?)(\d+)", value) if isinstance(value, str) else None
    if expected is not float or number is None:
        return ""
    whole, fraction, sign, power = number.groups()
    return f": YAML reads {value} as text, write {whole}{fraction or '.0'}e{sign or '+'}{power}"
