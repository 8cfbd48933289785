"""Who reads whom in a block of attention, from its name and its size."""

import re
from collections.abc import Mapping, Sequence
from math import prod

Grid = tuple[int, int, int]
Parts = list[tuple[str, int]]


def size(grid: Grid) -> int:
    """The number of tokens of a grid."""
    return prod(grid)


def reading(
    name: str, shape: Sequence[int], streams: Sequence[str], grids: Mapping[str, Grid]
) -> tuple[Parts, Parts]:
    """Return the parts of the readers and of what they read, each (stream, tokens), in the order of the tokens.

    `shape` is (heads, readers, read) of the weights. Names are those of the fusion: "<block>.<reader>_from_<read>",
    "<block>.<stream>" and "<block>.joint" within streams, "self<i>" with a readout before all others, "mean" and
    "cross" with a readout that reads from outside. What a block within streams has beyond their tokens are fusion
    tokens, after them. Raises ValueError for sizes that do not fit.
    """
    block, _, rest = name.partition(".")
    reader, across, read = rest.partition("_from_")
    if across:
        parts = [_parts(name, count, [stream], grids) for stream, count in zip((reader, read), shape[1:], strict=True)]
        return parts[0], parts[1]
    within = [rest] if rest in grids else list(streams)
    first = re.fullmatch(r"self\d+", block) is not None
    keys = _parts(name, shape[2], within, grids, first)
    return ([("readout", 1)] if shape[1] == 1 else _parts(name, shape[1], within, grids, first)), keys


def _parts(name: str, count: int, streams: list[str], grids: Mapping[str, Grid], readout: bool = False) -> Parts:
    missing = [stream for stream in streams if stream not in grids]
    if missing:
        raise ValueError(f"attention {name!r} names {', '.join(missing)}, and the grids are of {', '.join(grids)}")
    parts = [(stream, size(grids[stream])) for stream in streams]
    beyond = count - sum(tokens for _, tokens in parts)
    if readout and beyond == 1:
        return [("readout", 1), *parts]
    if beyond < 0 or (readout and beyond) or (beyond and "_from_" in name):
        told = " and ".join(f"{tokens} of {stream}" for stream, tokens in parts)
        raise ValueError(f"attention {name!r} is over {count} tokens, but the grids have {told}")
    return [*parts, ("fusion tokens", beyond)] if beyond else parts
