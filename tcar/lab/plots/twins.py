"""One pair of twins in a figure: what the two clips share, the one thing in which they differ, and what tells them."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from tcar.lab.plots import MOTION, SEMANTIC, group_colour, styled, wrap

GREY = "#6B6B6B"
# The kinds of evidence that are shown, in words.
EVIDENCE = {
    "single frame": "a frame", "bag of frames": "all frames, no order", "true flow": "the motion",
    "additive": "these two added up", "ordered frames": "frames in order", "oracle": "what moved how",
}  # fmt: skip


@dataclass(frozen=True)
class TwinClip:
    """A clip of a pair: the name of its class, its first picture, and the way of each thing that moves.

    `ways` are (x, y) at the first and at the last frame, in pixels of the picture; `acting` says of each whether it is
    the one that counts.
    """

    name: str
    picture: UInt8[np.ndarray, "h w 3"]
    ways: Float[np.ndarray, "m 2 2"]
    acting: list[bool]
    reference: tuple[float, float]


@styled()
def exclusive_or(clips: tuple[TwinClip, TwinClip], probes: dict[str, dict[str, float | None]]) -> Figure:
    """Show two clips with the ways of what moves, the table that decides their class, and what each kind of evidence
    tells.

    probes: of this pair, evidence -> forced-choice accuracy {value, low, high}, as `tcar.tabletop.probes` measures it.
    """
    fig = plt.figure(figsize=(6.875, 1.75))
    left, middle, right = fig.subfigures(1, 3, width_ratios=[3.3, 1.25, 2.3], wspace=0.02)
    for axis, clip in zip(left.subplots(1, 2), clips, strict=True):
        _clip(axis, clip)
    _table(middle.subplots(), clips)
    _bars(right.subplots(), probes)
    return fig


def _clip(axis, clip: TwinClip) -> None:
    axis.imshow(clip.picture, interpolation="bilinear")
    for way, acts in zip(clip.ways, clip.acting, strict=True):
        style = {"color": group_colour("bound") if acts else GREY, "linewidth": 2.2 if acts else 1.4}
        axis.annotate("", way[1], way[0], arrowprops={"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, **style})
    axis.plot(*clip.reference, marker="o", markersize=19, markerfacecolor="none", markeredgecolor="black",
              markeredgewidth=0.8, linestyle="none")  # fmt: skip
    axis.set(xticks=[], yticks=[], xlim=(0, clip.picture.shape[1]), ylim=(clip.picture.shape[0], 0))
    axis.spines[:].set_visible(False)
    axis.set_title(wrap(clip.name, 24, 2), fontsize=8)


def _table(axis, clips: tuple[TwinClip, TwinClip]) -> None:
    """The class as the exclusive-or of where the coloured thing heads and where the other one lies."""
    sides = ("left", "right")
    words = [clip.name.split()[2] if len(clip.name.split()) > 2 else clip.name for clip in clips]
    for row, heads in enumerate(sides):
        for column, lies in enumerate(sides):
            nears = heads == lies
            axis.add_patch(mpl.patches.Rectangle((column, row), 1, 1, facecolor="#CFE8DF" if nears else "#F3F3F3",
                                                 edgecolor="white", linewidth=2))  # fmt: skip
            axis.text(column + 0.5, row + 0.5, words[0 if nears else 1], ha="center", va="center", fontsize=8,
                      fontweight="bold" if nears else "normal")  # fmt: skip
    axis.set(xlim=(0, 2), ylim=(2, 0), aspect="equal")
    axis.set_xticks([0.5, 1.5], sides, fontsize=8)
    axis.set_yticks([0.5, 1.5], sides, fontsize=8)
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.xaxis.set_label_position("top")
    axis.set_xlabel("the circled thing lies", fontsize=8, color=SEMANTIC)
    axis.set_ylabel("the coloured one heads", fontsize=8, color=MOTION)


def _bars(axis, probes: dict[str, dict[str, float | None]]) -> None:
    shown = [name for name in EVIDENCE if name in probes]
    for row, name in enumerate(shown):
        entry = probes[name]
        axis.barh(row, entry["value"], height=0.66, color="#B9D7EA" if entry["value"] < 0.75 else "#7CC3A5")
        if entry["low"] is not None and entry["low"] < entry["high"]:
            axis.plot([entry["low"], entry["high"]], [row, row], color="black", linewidth=0.8)
    axis.axvline(0.5, color="black", linewidth=0.6, linestyle="--")
    axis.set(xlim=(0, 1), ylim=(len(shown) - 0.5, -0.5))
    axis.set_yticks(range(len(shown)), [EVIDENCE[name] for name in shown], fontsize=8)
    axis.tick_params(axis="y", length=0)
    axis.set_xticks([0, 0.5, 1], ["0", "50%\n(guessing)", "100%"], fontsize=8)
    axis.get_xticklabels()[2].set_horizontalalignment("right")
    axis.set_title("which of the two is it?", fontsize=8)
    axis.spines["left"].set_visible(False)
