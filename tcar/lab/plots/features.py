"""Figures of the frozen streams: what their tokens look like, and what a linear reader finds in them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

from tcar.lab.numerals import confidence_level
from tcar.lab.plots import canvas, colour, label, side_label, styled, wrap


@styled()
def stream_probes(rows: list[dict], *, confidence: float) -> Figure:
    """Show the accuracy of linear probes, one panel a target.

    Each row has `stream`, `target`, `pooling` (what was done to the tokens), `value`, `low`, `high` and
    `chance`. `confidence` is that of the intervals.
    """
    targets = list(dict.fromkeys(row["target"] for row in rows))
    names = list(dict.fromkeys((row["stream"], row["pooling"]) for row in rows))
    fig, axes = canvas(1, len(targets), height=0.75 + 0.2 * len(names), sharey=True)
    for axis, target in zip(axes.flat, targets, strict=True):
        for row in (row for row in rows if row["target"] == target):
            position = names.index((row["stream"], row["pooling"]))
            axis.plot([row["low"], row["high"]], [position] * 2, color=colour(row["stream"]), linewidth=1.4)
            axis.plot([row["value"]], [position], "o", color=colour(row["stream"]), markersize=3.5)
            axis.axvline(row["chance"], color="black", linestyle="--", linewidth=0.6)
        axis.set(xlabel=f"{target}, accuracy\n({confidence_level(confidence)} interval)", xlim=(0, 1))
        axis.set(ylim=(len(names) - 0.5, -0.5))
        axis.grid(axis="x", linewidth=0.3)
    axes[0, 0].set_yticks(
        range(len(names)), [f"{label(stream)}, {pooling}" for stream, pooling in names], fontsize=7.5
    )
    return fig


@styled()
def concepts(rows: list[dict]) -> Figure:
    """Show what linear readers of single tokens reach, one panel a concept; the lines are streams and their variants.

    Each row has `stream`, `variant`, `concept`, `measure`, `value`, `low`, `high` and `chance`.
    """
    names = list(dict.fromkeys((row["stream"], row["variant"]) for row in rows))
    asked = list(dict.fromkeys(row["concept"] for row in rows))
    across = 4
    down = -(-len(asked) // across)
    fig, axes = canvas(
        down, across, width="full", height=0.3 + down * (0.55 + 0.13 * len(names)), sharey=True, sharex=True
    )
    for axis in axes.flat[len(asked) :]:
        axis.set_visible(False)
    for axis, concept in zip(axes.flat, asked, strict=False):
        for row in (row for row in rows if row["concept"] == concept):
            position = names.index((row["stream"], row["variant"]))
            # a reader that is worse than the mean has a negative R2, however far below: the edge stands for it
            low, value, high = np.maximum(np.array([row[key] for key in ("low", "value", "high")], float), -0.02)
            axis.plot([low, high], [position] * 2, color=colour(row["stream"]), linewidth=1.4)
            marker, size = ("o", 3.5) if row["variant"] == names[0][1] else ("s", 2.5)
            axis.plot(value, position, marker, color=colour(row["stream"]), markersize=size)
            axis.plot([row["chance"]] * 2, [position - 0.5, position + 0.5], "--", color="black", linewidth=0.6)
        axis.set(title=f"{concept} ({row['measure'].replace('R2', 'R²')})", xlim=(-0.05, 1.03))
        axis.set(ylim=(len(names) - 0.5, -0.5))
        axis.grid(axis="x", linewidth=0.3)
    for axis in axes[:, 0]:
        axis.set_yticks(range(len(names)), [f"{stream}, {variant}" for stream, variant in names], fontsize=7.5)
    return fig


def pca_colours(
    tokens: Float[np.ndarray, "clips t h w d"],
) -> Float[np.ndarray, "clips t h w 3"]:
    """Project tokens on their first three principal components and scale them to colours in [0, 1].

    The components are those of all given tokens together, so a colour means the same in every clip; the
    sign of each is fixed by its largest weight. Where there are fewer than three, the other colours are 0.
    """
    flat = tokens.reshape(-1, tokens.shape[-1]).astype(np.float64)
    flat = flat - flat.mean(axis=0)
    _, _, axes = np.linalg.svd(flat, full_matrices=False)
    axes = axes[:3]
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
    scores = np.zeros((len(flat), 3))
    scores[:, : len(axes)] = flat @ axes.T
    low, high = np.quantile(scores, (0.02, 0.98), axis=0)
    return np.clip((scores - low) / np.maximum(high - low, 1e-12), 0, 1).reshape(*tokens.shape[:-1], 3)


@styled()
def token_pca(
    clips: dict[str, UInt8[np.ndarray, "t h w 3"]],
    colours: dict[str, Float[np.ndarray, "clips t h w 3"]],
) -> Figure:
    """Show clips as strips over time: the frames, and below them each stream's tokens as colours of
    `pca_colours`.

    The strips of one clip span the same time, so that grids of different strides can be compared by eye.
    """
    strips = 1 + len(colours)
    fig, axes = strips_canvas(strips * len(clips), next(iter(clips.values())))
    for number, (name, frames) in enumerate(clips.items()):
        rows = axes[number * strips : (number + 1) * strips, 0]
        strip(rows[0], frames)
        side_label(rows[0], wrap(name, 21, 3))
        for axis, (stream, grids) in zip(rows[1:], colours.items(), strict=True):
            strip(axis, grids[number])
            side_label(axis, wrap(label(stream), 16, 2), colour(stream))
    return fig


def strips_canvas(count: int, frames: UInt8[np.ndarray, "t h w 3"], columns: int = 1):
    """Give a page-wide figure of `count` strips under each other, high enough to keep the shape of the
    frames.
    """
    width = 6.875 / columns - 0.85  # what the labels leave of each column, inches
    height = width / len(frames) * frames.shape[1] / frames.shape[2]
    fig, axes = canvas(count, columns, width="full", height=0.3 + (height + 0.03) * count)
    fig.get_layout_engine().set(h_pad=0.01, hspace=0)
    for axis in axes[-1]:
        axis.set_xlabel("time →", fontsize=7.5)
    return fig, axes


def strip(axis, frames: np.ndarray, **options) -> None:
    """Lay frames side by side across the whole axis, thin white lines between them."""
    step = 1 / len(frames)
    for index, frame in enumerate(frames):
        axis.imshow(
            frame,
            extent=(index * step, (index + 1) * step, 0, 1),
            aspect="auto",
            interpolation="nearest",
            **options,
        )
        axis.axvline(index * step, color="white", linewidth=0.6)
    axis.set(xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
