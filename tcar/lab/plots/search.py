"""Figures of a search: how the scores came in, what mattered, and which values went with which score."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from tcar.lab.plots import FUSED, canvas, styled

_PRUNED = "#999999"
_BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8}  # text stays legible over lines


@styled()
def history(trials: Sequence[dict[str, Any]]) -> Figure:
    """Show the score of every trial in the order of their slots, and the best one so far.

    `trials` are those of a search's outcome: `slot`, `state`, `score`. A failed one has no score and is a cross at the
    bottom.
    """
    fig, axes = canvas()
    axis = axes[0, 0]
    done = [trial for trial in trials if trial["state"] == "complete"]
    pruned = [trial for trial in trials if trial["state"] == "pruned"]
    axis.plot([t["slot"] for t in done], [t["score"] for t in done], "o", color=FUSED, markersize=3, label="finished")
    if pruned:
        at = [t["slot"] for t in pruned], [t["score"] for t in pruned]
        axis.plot(*at, "o", color=_PRUNED, markersize=3, fillstyle="none", label="pruned")
    if done:
        best = np.maximum.accumulate([trial["score"] for trial in done])
        axis.step([t["slot"] for t in done], best, where="post", color=FUSED, linewidth=0.8, label="best so far")
    if failed := [trial["slot"] for trial in trials if trial["state"] == "fail"]:
        bottom = axis.get_ylim()[0]
        axis.plot(failed, [bottom] * len(failed), "x", color="black", markersize=4, label="failed", clip_on=False)
    axis.set_xlabel("trial")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_ylabel("validation top-1")
    axis.legend(fontsize=6.5)
    return fig


@styled()
def importance(shares: dict[str, float], trials: int) -> Figure:
    """Show the share of each parameter in how the scores differ, the largest on top; `trials`: how many it is from."""
    fig, axes = canvas(height=max(0.8, 0.18 * len(shares) + 0.5))
    axis = axes[0, 0]
    names = sorted(shares, key=shares.get)
    axis.barh([name.replace("_", " ") for name in names], [shares[name] for name in names], color=FUSED, height=0.6)
    axis.set_xlabel(f"share of the variance of the scores ({trials} trials)")
    axis.set_xlim(0, None)
    return fig


@styled()
def parallel(trials: Sequence[dict[str, Any]], space: dict[str, Any]) -> Figure:
    """Show each trial as a line over its parameters, coloured by its score; pruned trials are grey and thin.

    `trials` are those of a search's outcome: `state`, `score`, `changes`. `space` has a list of choices or a range
    (`low`, `high`, `log`) for each parameter, whose ends are the ends of its axis.
    """
    keys = [key for key in space if any(key in trial["changes"] for trial in trials)]
    fig, axes = canvas(width="full", height=2.2)
    axis = axes[0, 0]
    done = [trial for trial in trials if trial["state"] == "complete"]
    scores = [trial["score"] for trial in done]
    norm = mpl.colors.Normalize(min(scores, default=0.0), max(scores, default=1.0))
    colours = mpl.colormaps["viridis"]
    for trial in trials:
        heights = [_height(trial["changes"][key], space[key]) for key in keys if key in trial["changes"]]
        whole = trial in done
        colour = colours(norm(trial["score"])) if whole else _PRUNED
        axis.plot(heights, color=colour, linewidth=1.0 if whole else 0.4, zorder=2 if whole else 1)
    for place, key in enumerate(keys):
        axis.axvline(place, color="black", linewidth=0.5, zorder=0)
        for value in _marks(space[key]):
            height = _height(value, space[key])
            shown = f"{value:.3g}" if isinstance(value, Real) else str(value)
            axis.text(place + 0.03, height, shown, fontsize=6.5, zorder=3, va="center", bbox=_BEHIND)
    axis.set_xticks(range(len(keys)), [key.replace("_", "\n", 1) for key in keys], fontsize=7.5)
    axis.set_xlim(-0.1, len(keys) - 0.6)
    axis.set_yticks([])
    axis.spines[["left", "bottom"]].set_visible(False)
    fig.colorbar(mpl.cm.ScalarMappable(norm, colours), ax=axis, label="validation top-1", pad=0.01)
    return fig


def _height(value: Any, given: Any) -> float:
    """Where a value lies on its axis, from 0 to 1."""
    if isinstance(given, list):
        return given.index(value) / max(1, len(given) - 1)
    if given["low"] == given["high"]:
        return 0.5
    scale = np.log if given["log"] else float
    low, high = scale(given["low"]), scale(given["high"])
    return float((scale(value) - low) / (high - low))


def _marks(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [given["low"], given["high"]]
