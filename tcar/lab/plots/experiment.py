"""Figures of the deciding experiment: what each fusion knows with appearance in order, and averaged over time."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tcar.fusion.settings import AVERAGED
from tcar.lab.numerals import confidence_level
from tcar.lab.plots import canvas, colour, label, styled

Entry = Mapping[str, float | None]
FORMS = {"": "appearance in order", AVERAGED: "averaged over time"}


@styled()
def by_pair(
    accuracy: Mapping[str, Mapping[str, Entry]],
    projected: Mapping[str, Mapping[str, Entry]],
    kinds: tuple[str, ...],
    names: Mapping[str, str],
    *,
    confidence: float,
) -> Figure:
    """Show the twin accuracy of each kind of fusion on each pair, filled with appearance in order, open with it
    averaged; a bar marks what its additive projection keeps. `names` are the titles of the pairs, in their order.
    """
    shown = [pair for pair in names if pair in accuracy]
    fig, axes = canvas(1, len(shown), width="full", height=1.75, sharex=True, sharey=True)
    for axis, pair in zip(axes.flat, shown, strict=True):
        for row, kind in enumerate(kinds):
            for shift, form in zip((-0.17, 0.17), FORMS, strict=True):
                if entry := accuracy[pair].get(kind + form):
                    _dot(axis, row + shift, entry, colour(kind), filled=not form)
                    kept = projected[pair][kind + form]["value"]
                    axis.plot([100 * kept] * 2, [row + shift - 0.13, row + shift + 0.13], color=colour(kind))
        axis.set_title(names[pair])
        axis.set(xlim=(-4, 104), xticks=[0, 50, 100], ylim=(len(kinds) - 0.5, -0.5))
        axis.grid(axis="x", color="#DDDDDD", linewidth=0.5)
    axes[0, 0].set_yticks(range(len(kinds)), [label(kind) for kind in kinds])
    fig.supxlabel(f"twin accuracy (%), {confidence_level(confidence)} intervals over replicates", fontsize=8)
    handles = [
        Line2D([], [], marker="o", linestyle="none", markersize=4, color="#333333",
               markerfacecolor="#333333" if not form else "white", label=name)
        for form, name in FORMS.items()
    ]  # fmt: skip
    handles.append(Line2D([], [], marker="|", linestyle="none", markersize=7, color="#333333",
                          label="kept by its additive projection"))  # fmt: skip
    fig.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=8)
    return fig


@styled()
def by_count(panels: Mapping[str, Mapping[str, Mapping[str, Entry]]], kinds: tuple[str, ...], *, axis_label: str,
             confidence: float, log: bool = False) -> Figure:  # fmt: skip
    """Show how the twin accuracy of each kind of fusion changes with a number: panel -> count -> kind -> entry."""
    fig, axes = canvas(1, len(panels), width="half", height=1.95, sharey=True)
    for axis, (name, values) in zip(axes.flat, panels.items(), strict=True):
        counts = sorted(values, key=int)
        for kind in kinds:
            told = [(int(count), values[count][kind]) for count in counts if kind in values[count]]
            x = [count for count, _ in told]
            axis.plot(x, [100 * entry["value"] for _, entry in told], "o-", markersize=3, color=colour(kind))
            for place, entry in told:
                if entry["low"] is not None:
                    axis.plot([place] * 2, [100 * entry["low"], 100 * entry["high"]], color=colour(kind), alpha=0.45)
        if log:
            axis.set_xscale("log")
            axis.minorticks_off()
        axis.set_xticks([int(count) for count in counts], counts)
        axis.set(title=name, ylim=(-4, 104), xlabel=axis_label)
        axis.grid(axis="y", color="#DDDDDD", linewidth=0.5)
    axes[0, 0].set_ylabel(f"twin accuracy (%)\n{confidence_level(confidence)} over replicates")
    handles = [Line2D([], [], marker="o", markersize=3, color=colour(kind), label=label(kind)) for kind in kinds]
    fig.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=7.5)
    return fig


def _dot(axis, row: float, entry: Entry, color: str, *, filled: bool) -> None:
    if entry["low"] is not None:
        axis.plot([100 * entry["low"], 100 * entry["high"]], [row, row], color=color, linewidth=1.1)
    inside = color if filled else "white"
    axis.plot([100 * entry["value"]], [row], "o", markersize=4, color=color, markerfacecolor=inside)
