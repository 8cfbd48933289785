"""Figures of training: curves, and how far each model was from converged."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from tcar.plots import METHODS, canvas, colour, in_order, label, styled


@styled()
def curves(methods: dict[str, dict[int, list[dict]]], best: dict[str, list[int]]) -> Figure:
    """Show loss and validation accuracy over the epochs, one column a method, one line a seed.

    `methods[method][seed]` is the history of a fit: `epoch`, `train_loss`, `validation_loss` and
    `validation_top1` for every epoch. `best[method]` holds the kept epochs, marked by a dot.
    """
    fig, axes = canvas(2, len(methods), width="full", height=2.4, sharey="row", sharex="col")
    for column, method in enumerate(in_order(methods, METHODS)):
        for history, kept in zip(methods[method].values(), best[method], strict=True):
            _curve(axes[:, column], history, kept, colour(method))
        axes[0, column].set_title(label(method).replace(" ", "\n", 1), fontsize=6)
        axes[1, column].set_xlabel("epoch")
    axes[0, 0].set_ylabel("loss\n(solid: training,\ndotted: validation)")
    axes[1, 0].set_ylabel("validation\ntop-1")
    return fig


def _curve(axes, history: list[dict[str, float]], kept: int, color: str) -> None:
    epochs = np.array([row["epoch"] for row in history])
    for key, style in (("train_loss", "-"), ("validation_loss", ":")):
        axes[0].plot(epochs, [row[key] for row in history], style, color=color, linewidth=0.8)
    top1 = np.array([row["validation_top1"] for row in history])
    axes[1].plot(epochs, top1, color=color, linewidth=0.8)
    axes[1].plot(kept, top1[epochs == kept], "o", color=color, markersize=3)
