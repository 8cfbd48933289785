"""How a number looks in tables and text: the only place."""

import math
from typing import Any

from tcar.ground.errors import TcarError


class ReportError(TcarError, RuntimeError):
    """A result the paper needs is missing or malformed; the message names the file and the fix."""


def percent(fraction: float | int | None, sign: str = "") -> str:
    """A fraction in [-1, 1] in percent with one decimal; `sign="+"` shows a plus, unknown is empty."""
    if fraction is None:
        return ""
    if not -1 <= fraction <= 1:
        raise ReportError(f"{fraction!r} is not a fraction: result files hold accuracies between 0 and 1")
    # Adding zero turns the -0.0 of a tiny negative difference into 0.0.
    return f"{round(100 * fraction, 1) + 0.0:{sign}.1f}"


def confidence_level(confidence: float) -> str:
    """The confidence of an interval as captions and figures state it: `95%`."""
    return f"{100 * confidence:g}%"


def interval(metric: dict) -> str:
    """The `low` and `high` of an estimate as `[79.0, 83.1]` in percent."""
    low, high = metric.get("low"), metric.get("high")
    return "" if low is None or high is None else f"[{percent(low)}, {percent(high)}]"


def estimate(metric: dict | float | int | None) -> str:
    """`{"value", "low", "high"}` (or a bare fraction) as `81.2 [79.0, 83.1]`."""
    if not isinstance(metric, dict):
        return percent(metric)
    return f"{percent(metric.get('value'))} {interval(metric)}".strip()


def beyond(metric: dict | float | None, sign: str = "") -> str:
    """As `estimate`, of a share that may lie beyond 0 and 1: of a margin that is moved further than to the other side.
    """
    shown = metric if isinstance(metric, dict) else {"value": metric}
    signs = {"value": sign, "low": "", "high": ""}
    value, *bounds = ("" if shown.get(key) is None else f"{round(100 * shown[key], 1) + 0.0:{how}.1f}"
                      for key, how in signs.items())  # fmt: skip
    return f"{value} [{', '.join(bounds)}]" if all(bounds) else value


def count(number: int | None) -> str:
    """An integer with thousands separators."""
    return "" if number is None else f"{number:,}"


def millions(number: int | None) -> str:
    """A number of parameters in millions, with two decimals."""
    return "" if number is None else f"{number / 1e6:.2f}"


def significant(number: float | int | None, digits: int = 3) -> str:
    """A quantity with a few significant digits, a tiny one as `1.20e-7`."""
    if not number:
        return "" if number is None else "0"
    exponent = math.floor(math.log10(abs(number)))
    if exponent < -4:
        return f"{number / 10**exponent:.{digits - 1}f}e{exponent}"
    return f"{number:.{max(0, digits - 1 - exponent)}f}"


def parameter(value: Any) -> str:
    """A parameter of the run as the text shows it."""
    if isinstance(value, dict):
        return ", ".join(f"{readable(k)}: {parameter(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(parameter, value))
    if isinstance(value, int) and value >= 10_000:
        return count(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def readable(name: Any) -> str:
    """A method as the figures call it; any other key with spaces (`bag_of_frames` -> `bag of frames`)."""
    from tcar.fusion.settings import AVERAGED
    from tcar.lab.plots import METHODS, label

    return label(name) if str(name).removesuffix(AVERAGED) in METHODS else str(name).replace("_", " ")


def heading(name: Any) -> str:
    """A readable name that begins with a capital."""
    return capital(readable(name))


def capital(name: Any) -> str:
    """A name with spaces that begins with a capital, of what is no method though one is called so: a group, a probe."""
    spaced = str(name).replace("_", " ")
    return spaced[:1].upper() + spaced[1:]


# What the levels of a factor count or qualify; those of the others are names.
UNITS = {
    "heads": "heads", "window": "window", "positions": "positions", "fusion_blocks": "blocks",
    "self_blocks": "joint blocks",
}  # fmt: skip


def level_name(factor: str, level: Any) -> str:
    """A level of an ablation: `8 heads`, `time window`, `4 × 2 × 2`, or the name of a method."""
    if factor.endswith("_grid"):
        return str(level).replace("x", " × ")
    if factor not in UNITS:
        return readable(level)
    unit = UNITS[factor].removesuffix("s") if str(level) == "1" else UNITS[factor]
    return f"{'no' if level == 'none' else level} {unit}"


def pair_name(level: str) -> str:
    """A pair of streams that `tcar pairs` measures: `untrained streams`, `4 and 8 frames`."""
    if level.startswith("timm:"):
        return f"an untrained {level.removeprefix('timm:')} for appearance"
    if level.startswith("frames:"):
        return f"{level.removeprefix('frames:').replace('x', ' and ')} frames"
    return {
        "as used": "the run's own streams", "seed1": "streams of another training", "untrained": "untrained streams",
    }[level]  # fmt: skip


def outcome(comparison: dict) -> str:
    """What the interval of a paired difference allows to say, as it is shown: above, below, or neither."""
    low, high = comparison.get("low"), comparison.get("high")
    if low is None or high is None:
        return ""
    low, high = round(low, 3), round(high, 3)  # a bound that is shown as 0.0 does not exclude zero to a reader
    return "above" if low > 0 else "below" if high < 0 else "not distinguishable from"
