"""What the viewer shows, as plain data: clips, answers, maps and attention, each checked when it is made.

Everything over a clip is spread over the whole of it, at any resolution: cell i of T covers times i/T to (i+1)/T, and
so do rows and columns. Times are in [0, 1] of the clip.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, UInt8

from tcar.ground.errors import TcarError, unknown
from tcar.viewer.tokens import Grid, reading, size

SWAPS = ("neither", "semantic", "motion", "both")
Series = tuple[Float[np.ndarray, " _"], Float[np.ndarray, " _"]]
Answers = Mapping[str, Sequence[tuple[str, float]]]


class ViewerError(TcarError, ValueError):
    """What was given to the viewer cannot be shown, or not be written; the message says what would fit."""


@dataclass(frozen=True)
class ShownMap:
    """What a method says of the places of a clip, cell by cell, over one stream.

    `signed` values count against the answer where they are negative; without it they are at least 0. `passed` is the
    verdict of a test of the method on this model, None where there was none: what did not pass is stamped. At most 28
    cells a side are drawn; finer maps are averaged to that, and the footer says so.
    """

    method: str
    stream: str
    values: Float[np.ndarray, "t y x"]
    signed: bool = False
    passed: bool | None = None
    note: str = ""

    def __post_init__(self):
        where = f"the map of {self.method!r} over {self.stream!r}"
        _array(where, self.values, "[t, y, x]", 3, np.floating)
        if not self.signed and (self.values < 0).any():
            raise ViewerError(f"{where}: it has negative values; give it signed=True")


@dataclass(frozen=True)
class ShownClip:
    """One clip with all that is drawn on it and under it.

    `events` are (name, start, end) and `moment` the deciding one, in [0, 1]; `seconds` the length of the clip in time.
    `roles` and `decisive` are masks, `probability` is the target's in the clip as it grows, and `importance` tells by
    method how much each moment matters: both (times, values). `attention` is [h n m] by the name of its block, as the
    fusion names it: "block1.semantic_from_motion", "self0".
    """

    name: str
    frames: UInt8[np.ndarray, "_ _ _ 3"]
    label: str | None = None
    seconds: float | None = None
    events: tuple[tuple[str, float, float], ...] = ()
    roles: Mapping[str, Bool[np.ndarray, "_ _ _"]] = field(default_factory=dict)
    decisive: Bool[np.ndarray, "_ _ _"] | None = None
    probability: Series | None = None
    moment: float | None = None
    importance: Mapping[str, Series] = field(default_factory=dict)
    maps: tuple[ShownMap, ...] = ()
    attention: Mapping[str, Float[np.ndarray, "_ _ _"]] = field(default_factory=dict)

    def __post_init__(self):
        where = f"clip {self.name!r}"
        _array(f"{where}: frames", self.frames, "[t, h, w, 3] of uint8", 4, np.uint8)
        if self.frames.shape[3] != 3:
            raise ViewerError(f"{where}: frames must be [t, h, w, 3]; got {list(self.frames.shape)}")
        if self.seconds is not None and not self.seconds > 0:
            raise ViewerError(f"{where}: seconds must be above 0; got {self.seconds}")
        for name, start, end in self.events:
            if not 0 <= start <= end <= 1:
                raise ViewerError(f"{where}: event {name!r} must have 0 <= start <= end <= 1; got {start}, {end}")
        if self.moment is not None and not 0 <= self.moment <= 1:
            raise ViewerError(f"{where}: moment must lie in [0, 1] of the clip; got {self.moment}")
        for name, mask in self.masks().items():
            _array(f"{where}: mask {name!r}", mask, "[t, h, w] of bool", 3, np.bool_)
        for name, series in self.series().items():
            _check_series(f"{where}: {name}", series)
        for name, weights in self.attention.items():
            what = f"{where}: attention {name!r}"
            _array(what, weights, "[heads, readers, read]", 3, np.floating)
            if (weights < 0).any():
                raise ViewerError(f"{what}: weights are at least 0")
        places = [(shown.method, shown.stream) for shown in self.maps]
        if twice := sorted({place for place in places if places.count(place) > 1}):
            raise ViewerError(f"{where}: more than one map of {' and '.join(map(repr, twice))}")

    def masks(self) -> dict[str, np.ndarray]:
        """The masks by name, the decisive one as "decisive"."""
        return dict(self.roles) | ({} if self.decisive is None else {"decisive": self.decisive})

    def series(self) -> dict[str, Series]:
        """All that has values along time."""
        growing = {} if self.probability is None else {"probability": self.probability}
        return growing | {f"importance by {method}": values for method, values in self.importance.items()}


@dataclass(frozen=True)
class Footer:
    """Where it comes from: the commit, the parameters, whether the clips are rendered, and what else has to be said."""

    commit: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    synthetic: bool = False
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contents:
    """One view: a clip, and beside it its twin or another, with the answers of a model that reads `streams`.

    `answers` are (class, probability), in the order to be shown: what the model says of the first clip with the named
    stream taken from the second one; "neither" is the clip as it is. Where no model was asked they are {}, and `target`
    is "". `grids` are (t, y, x) of each stream's tokens. `windows` say which tokens a token may read, by direction
    ("semantic_from_motion"), None: all. `point` is the place in a gallery's scatter.
    """

    title: str
    clips: tuple[ShownClip, ...]
    streams: tuple[str, ...]
    grids: Mapping[str, Grid]
    answers: Answers
    target: str
    footer: Footer
    against: str | None = None
    windows: Mapping[str, Bool[np.ndarray, "_ _"] | None] = field(default_factory=dict)
    point: tuple[float, float] | None = None
    group: str = ""
    wrong: bool | None = None

    def __post_init__(self):
        if not 1 <= len(self.clips) <= 2:
            raise ViewerError(f"{self.title!r}: one or two clips can be shown; got {len(self.clips)}")
        for check in (_check_streams, _check_answers, _check_windows, _check_clips):
            check(self)
        if self.point is not None and not np.isfinite(self.point).all():
            raise ViewerError(f"{self.title!r}: point must be finite; got {self.point}")


def _check_streams(contents: Contents) -> None:
    if missing := sorted({*contents.streams} - {*contents.grids}):
        raise ViewerError(f"{contents.title!r}: grids has no (t, y, x) for {', '.join(missing)}")
    for stream, grid in contents.grids.items():
        if len(grid) != 3 or min(grid) < 1:
            raise ViewerError(f"{contents.title!r}: the grid of {stream!r} must be (t, y, x) from 1 on; got {grid}")


def _check_answers(contents: Contents) -> None:
    if contents.answers and "neither" not in contents.answers:
        raise ViewerError(f"{contents.title!r}: answers needs 'neither', what the model says of the clip as it is")
    for swap, answers in contents.answers.items():
        where = f"{contents.title!r}: answers {swap!r}"
        if swap not in SWAPS:
            raise ViewerError(f"{where}: {unknown(swap, SWAPS)}")
        if swap != "neither" and len(contents.clips) < 2:
            raise ViewerError(f"{where}: there is one clip, so nothing can be swapped; give 'neither' alone")
        if any(not 0 <= probability <= 1 for _, probability in answers):
            raise ViewerError(f"{where}: probabilities lie in [0, 1]")
        if not answers:
            raise ViewerError(f"{where}: there is none; give at least the target")


def _check_windows(contents: Contents) -> None:
    for direction, window in contents.windows.items():
        where = f"{contents.title!r}: window {direction!r}"
        reader, _, read = direction.partition("_from_")
        if not {reader, read} <= {*contents.grids}:
            raise ViewerError(f"{where}: expected '<reader>_from_<read>' of {', '.join(contents.grids)}")
        wanted = size(contents.grids[reader]), size(contents.grids[read])
        if window is not None and window.shape != wanted:
            raise ViewerError(f"{where}: it must be {list(wanted)} for the grids; got {list(window.shape)}")


def _check_clips(contents: Contents) -> None:
    for clip in contents.clips:
        for shown in clip.maps:
            if shown.stream not in contents.grids:
                where = f"clip {clip.name!r}: the map of {shown.method!r} is over {shown.stream!r}"
                raise ViewerError(f"{where}: {unknown(shown.stream, contents.grids)}")
        for name, weights in clip.attention.items():
            try:
                reading(name, weights.shape, contents.streams, contents.grids)
            except ValueError as error:
                raise ViewerError(f"clip {clip.name!r}: {error}") from None


def _array(where: str, given: np.ndarray, shape: str, axes: int, kind: type) -> None:
    """Refuse what is no array of so many axes and this kind of numbers, has no element, or is not finite."""
    if not isinstance(given, np.ndarray) or given.ndim != axes or not np.issubdtype(given.dtype, kind):
        got = f"{given.dtype} {list(given.shape)}" if isinstance(given, np.ndarray) else type(given).__name__
        raise ViewerError(f"{where}: expected a numpy array {shape}; got {got}")
    if not given.size:
        raise ViewerError(f"{where}: it is empty, {list(given.shape)}")
    if not np.isfinite(given).all():
        raise ViewerError(f"{where}: it has values that are not finite")


def _check_series(where: str, series: Series) -> None:
    if len(series) != 2:
        raise ViewerError(f"{where}: expected (times, values); got {len(series)} parts")
    for part in series:
        _array(where, part, "[k] of times and one of values", 1, np.floating)
    times, values = series
    if len(times) != len(values):
        raise ViewerError(f"{where}: {len(times)} times, but {len(values)} values")
    if times.min() < 0 or times.max() > 1 or any(a >= b for a, b in pairwise(times)):
        raise ViewerError(f"{where}: times must rise within [0, 1] of the clip")
