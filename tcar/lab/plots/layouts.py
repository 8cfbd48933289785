"""Clips laid out in the plane by what the streams and the readout make of them, coloured by what they are."""

from __future__ import annotations

import re
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tcar.lab.plots import GROUPS, METHODS, canvas, group_colour, in_order, side_label, styled, wrap

FEATURES = ("semantic", "motion", "readout")
CLASS, GROUP = "class", "group"
_NAMED = 6  # values of a nuisance that the legend names, of many
_TITLES = {CLASS: "class", GROUP: "group of classes"}


@styled()
def layouts(
    points: dict[str, Float[np.ndarray, "n 2"]], labels: dict[str, Sequence[str] | Sequence[int]]
) -> Figure:
    """Show the same clips once a row by each of the `points` and once a column by each of the `labels`.

    `labels` are "class", "group" and any nuisances, such as "length": one value a clip. A class is a shade of its
    group's colour, and one of a cycle of colours where there is one group; it has no legend. One group has no column,
    and the panels of a single column stand beside each other. A nuisance has an order, of its first number or its name,
    and its colours run from dark to light in it.
    """
    rows = in_order(points, FEATURES)
    told = [name for name, values in labels.items() if name != GROUP or len(set(values)) > 1]
    columns = in_order(told, (CLASS, GROUP))
    single = len(columns) == 1
    height = 2.4 if single else 0.75 + 1.95 * len(rows)
    fig, axes = canvas(*((1, len(rows)) if single else (len(rows), len(columns))), width="full", height=height)
    axes = axes.reshape(len(rows), len(columns))
    colours = {name: _colours(name, labels) for name in columns}
    for line, features in zip(axes, rows, strict=True):
        for axis, name in zip(line, columns, strict=True):
            _scatter(axis, points[features], [colours[name][value] for value in labels[name]])
        called = METHODS[features][0] if features in METHODS else features.capitalize()
        if single:
            line[0].set_title(f"{called}, by {_TITLES.get(columns[0], columns[0])}")
        else:
            side_label(line[0], called.replace(" ", "\n"))
    if not single:
        for axis, name in zip(axes[0], columns, strict=True):
            axis.set_title(f"by {_TITLES.get(name, name)}")
    _legends(fig, {name: colours[name] for name in columns if name != CLASS and len(colours[name]) > 1})
    return fig


def _scatter(axis, points: Float[np.ndarray, "n 2"], colours: list[str]) -> None:
    # Drawn in an order of chance, so that no class lies on top of the others.
    order = np.random.default_rng(0).permutation(len(points))
    axis.scatter(*points[order].T, s=5, c=mpl.colors.to_rgba_array(colours)[order], linewidth=0)
    axis.set(xticks=[], yticks=[])
    axis.margins(0.04)


def shades(base: str, count: int) -> list[str]:
    """Give so many shades of a colour, from dark to light, the colour itself near the middle."""
    lift = np.linspace(-0.45, 0.5, count) if count != 1 else [0.0]
    rgb = np.array(mpl.colors.to_rgb(base))
    return [mpl.colors.to_hex(rgb + (1 - rgb) * part if part > 0 else rgb * (1 + part)) for part in lift]


def _colours(name: str, labels: dict[str, Sequence]) -> dict[str | int, str]:
    """Give the colour of each value, in the order of the legend."""
    if name == CLASS:
        return _class_colours(labels)
    if name == GROUP:
        return {group: group_colour(group) for group in in_order(set(labels[name]), GROUPS)}
    values = sorted(set(labels[name]), key=_size)
    scale = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(values)))  # its yellow end is lost on white paper
    return {value: mpl.colors.to_hex(colour) for value, colour in zip(values, scale, strict=True)}


def _class_colours(labels: dict[str, Sequence]) -> dict[str, str]:
    group_of = dict(zip(labels[CLASS], labels.get(GROUP) or [""] * len(labels[CLASS]), strict=True))
    if len(set(group_of.values())) < 2:
        cycle = mpl.color_sequences["tab20"]
        return {name: mpl.colors.to_hex(cycle[i % len(cycle)]) for i, name in enumerate(sorted(group_of))}
    found = {}
    for group in set(group_of.values()):
        own = sorted(name for name, of in group_of.items() if of == group)
        found |= dict(zip(own, shades(group_colour(group), len(own)), strict=True))
    return found


def _size(value: str | int) -> tuple[float, str]:
    number = re.search(r"\d+(\.\d+)?", str(value))
    return float(number[0]) if number else np.inf, str(value)


def _legends(fig: Figure, colours: dict[str, dict[str | int, str]]) -> None:
    """Put the legends below, the first at the left and the last at the right."""
    for place, (name, known) in zip(("left", "right"), colours.items(), strict=False):
        values = list(known)
        if name != GROUP and len(values) > _NAMED:
            values = [values[i] for i in np.linspace(0, len(values) - 1, _NAMED).round().astype(int)]
        style = {"marker": "o", "markersize": 4, "linestyle": ""}
        marks = [Line2D([], [], color=known[v], label=wrap(str(v), 24), **style) for v in values]
        fig.legend(
            handles=marks, loc=f"outside lower {place}", ncols=3, title=_TITLES.get(name, name), fontsize=7,
            title_fontsize=7, columnspacing=1, handletextpad=0.2, alignment="left",
        )  # fmt: skip
