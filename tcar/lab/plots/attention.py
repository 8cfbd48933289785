"""Figures of attention: that it is computed right, and how much each moment of a clip matters to the fused model."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from tcar.lab.plots import FUSED, GROUPS, canvas, group_colour, in_order, styled


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
