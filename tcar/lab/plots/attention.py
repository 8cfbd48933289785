"""Figures of what the fused model looks at: attention over space-time, embeddings, saliency, importance
of moments.
"""

from __future__ import annotations

import cv2
import matplotlib as mpl
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from tcar.lab.plots import (
    FUSED,
    GROUPS,
    NAMED,
    canvas,
    colour,
    group_colour,
    in_order,
    label,
    side_label,
    styled,
    wrap,
)
from tcar.lab.plots.features import strip, strips_canvas

_COLOURED = 10  # classes, in a figure of many: as many as can be told apart by colour


@styled()
def attention_sanity(
    alignment: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    explicit: Float[np.ndarray, " n"],
    fast: Float[np.ndarray, " n"],
) -> Figure:
    """Show that the positions line up, and that the two ways to compute attention agree.

    `alignment[axis]` is (scores [queries, keys], query coordinates, key coordinates): what equal contents
    score at different places; the best key should lie at the query's own place, whatever the strides of
    the two grids. `explicit` and `fast` are the same logits, with the weights written out and by the
    fused kernel.
    """
    fig, axes = canvas(1, len(alignment) + 1, width="full", height=1.9)
    for axis, (name, (scores, queries, keys)) in zip(axes.flat, alignment.items(), strict=False):
        image = axis.pcolormesh(keys, queries, scores, cmap="viridis", shading="nearest")
        axis.plot([0, 1], [0, 1], color="white", linestyle="--", linewidth=0.7)
        axis.plot(keys[scores.argmax(axis=1)], queries, "o", color="white", markersize=2.5)
        axis.set(xlabel=f"motion token, {name}", ylabel=f"semantic token, {name}", xlim=(0, 1), ylim=(0, 1))
        fig.colorbar(image, ax=axis, label="rotary score")
    axes[0, -1].plot(explicit, fast, ".", color=FUSED, markersize=2)
    axes[0, -1].axline((0, 0), slope=1, color="black", linewidth=0.5)
    axes[0, -1].set(xlabel="logits, weights written out", ylabel="logits, fast path")
    return fig


@styled()
def attention_spacetime(clips: list[dict], columns: int = 2) -> Figure:
    """Show clips as strips over time, and below them how much attention each stream's tokens receive.

    Each clip has `name`, `frames` [t h w 3] and `maps`: {stream: weights [t' h' w']}, the attention that the
    *other* stream pays to this stream's tokens, laid over the frames by `overlay`.
    """
    strips, rows = 1 + len(clips[0]["maps"]), -(-len(clips) // columns)
    fig, axes = strips_canvas(strips * rows, clips[0]["frames"], columns)
    for number, clip in enumerate(clips):
        row, column = number % rows, number // rows
        _clip_strips(axes[row * strips : (row + 1) * strips, column], clip, "attention on\n")
    for axis in axes[:, -1][strips * (len(clips) - rows * (columns - 1)) :]:
        axis.axis("off")
    return fig


def _clip_strips(axes, clip: dict, text: str) -> None:
    strip(axes[0], clip["frames"])
    side_label(axes[0], wrap(clip["name"], 21, 3))
    for axis, (stream, weights) in zip(axes[1:], clip["maps"].items(), strict=True):
        strip(axis, overlay(clip["frames"], weights))
        side_label(axis, f"{text}{label(stream).lower()}", colour(stream))


@styled()
def saliency(
    name: str, frames: UInt8[np.ndarray, "t h w 3"], maps: dict[str, Float[np.ndarray, "_ _ _"]]
) -> Figure:
    """Show which pixels an attribution method finds decisive, one strip a stream, under the frames of one
    clip.
    """
    fig, axes = strips_canvas(1 + len(maps), frames)
    _clip_strips(axes[:, 0], {"name": name, "frames": frames, "maps": maps}, "through the\n")
    return fig


def overlay(
    frames: UInt8[np.ndarray, "t h w 3"], weights: Float[np.ndarray, "t2 h2 w2"], peak: float = 3.0
) -> Float[np.ndarray, "t h w 3"]:
    """Lay a coarse map over grey frames, stretched to their time and size.

    The scale is absolute: where the map is at most its mean, as everywhere in an even map, the frame shows;
    from `peak` times its mean on it is opaque. Maps of different clips and models can so be compared.
    """
    height, width = frames.shape[1:3]
    steps = ((np.arange(len(frames)) + 0.5) / len(frames) * len(weights)).astype(int)
    lift = (weights / max(float(weights.mean()), 1e-12) - 1) / (peak - 1)
    heat = np.stack([cv2.resize(lift[step].astype(np.float32), (width, height)) for step in steps]).clip(0, 1)
    grey = frames.mean(axis=-1, keepdims=True).repeat(3, axis=-1) / 255
    opacity = 0.8 * heat[..., None]
    return (1 - opacity) * grey + opacity * mpl.colormaps["inferno"](0.3 + 0.7 * heat)[..., :3]


@styled()
def temporal_importance(values: dict[str, list[dict[str, float | None]]]) -> Figure:
    """Show how much each moment of a clip matters: `values[group]` has `time` in [0, 1], `value`, `low`,
    `high`.
    """
    fig, axes = canvas(height=2.3)
    for group in in_order(values, GROUPS):
        rows = values[group]
        times, middle, low, high = (
            np.array([row[key] for row in rows], float) for key in ("time", "value", "low", "high")
        )
        axes[0, 0].plot(times, middle, "o-", color=group_colour(group), markersize=2.5, label=group)
        axes[0, 0].fill_between(times, low, high, color=group_colour(group), alpha=0.15, linewidth=0)
    axes[0, 0].axhline(0, color="black", linewidth=0.5)
    axes[0, 0].set(
        xlabel="place in the clip, 0 start, 1 end",
        ylabel="loss of probability\nwithout this moment",
        xlim=(0, 1),
    )
    if len(values) > 1:
        fig.legend(loc="outside lower center", ncols=3, fontsize=7, columnspacing=1, handlelength=1.2)
    return fig


@styled()
def umap(points: Float[np.ndarray, "n 2"], classes: list[str], groups: list[str]) -> Figure:
    """Show clips by the embedding of the readout token, coloured by group; a number stands beside each class's middle.

    Of more than `NAMED` classes, those with the most clips have a colour and a name, and all others are grey.
    """
    fig, axes = canvas(width="full", height=3.7)
    axis, called = axes[0, 0], np.asarray(classes)
    names = sorted(set(classes))
    if len(names) > NAMED:
        largest = sorted(names, key=lambda name: (-np.count_nonzero(called == name), name))[:_COLOURED]
        colours = dict(zip(largest, mpl.color_sequences["tab10"], strict=False))
        axis.scatter(*points[~np.isin(called, largest)].T, s=2, color="#DDDDDD", linewidth=0)
        for name, shade in colours.items():
            axis.scatter(*points[called == name].T, s=5, color=shade, label=wrap(name, 40, 3), linewidth=0)
        fig.legend(loc="outside right center", fontsize=6.5, markerscale=2)
    else:
        _grouped(axis, points, np.asarray(groups))
        middles = np.array([np.median(points[called == name], axis=0) for name in names])
        for numbers, middle in _together(middles, 0.03 * np.ptp(points, axis=0)):
            # Beside the points that are numbered, not on them.
            axis.annotate(numbers, middle, (5, 4), textcoords="offset points", fontsize=7, weight="bold",
                          path_effects=[withStroke(linewidth=1.5, foreground="white")])  # fmt: skip
        key = "\n".join(f"{number} {wrap(name, 46)}" for number, name in enumerate(names, start=1))
        listed = axis.text(1.02, 1.0, key, fontsize=6, linespacing=1.1, va="top", transform=axis.transAxes)
        listed.set_in_layout(False)
        fig.get_layout_engine().set(rect=(0, 0, 0.71, 1))
    axis.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
    return fig


def _together(middles: Float[np.ndarray, "c 2"], near: Float[np.ndarray, " 2"]) -> list[tuple[str, np.ndarray]]:
    """Number classes from 1, those whose middles lie near one another in one label: `10, 11`."""
    labels: list[tuple[list[int], np.ndarray]] = []
    for number, middle in enumerate(middles, start=1):
        beside = [numbers for numbers, place in labels if (np.abs(place - middle) <= near).all()]
        if beside:
            beside[0].append(number)
        else:
            labels.append(([number], middle))
    return [(", ".join(map(str, numbers)), place) for numbers, place in labels]


def _grouped(axis, points: Float[np.ndarray, "n 2"], groups: np.ndarray) -> None:
    for group in in_order(set(groups.tolist()), GROUPS):
        axis.scatter(*points[groups == group].T, s=6, color=group_colour(group), alpha=0.6, label=group, linewidth=0)
    if len(set(groups.tolist())) > 1:
        axis.legend(loc="best", fontsize=7, markerscale=2)
