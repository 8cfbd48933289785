"""Figures of training: curves, and how far each model was from converged."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from tcar.lab.numerals import confidence_level
from tcar.lab.plots import FUSED, METHODS, MOTION, SPLITS, canvas, colour, in_order, label, styled, wrap


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
        axes[0, column].set_title(wrap(label(method), 14, 3), fontsize=7.5)
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


@styled()
def watched(
    steps: list[dict[str, float]], epochs: list[dict[str, float]], alerts: list[tuple[str, float]], name: str = ""
) -> Figure:
    """Show what a training wrote down while it ran, against the epoch: a panel for each value, a line for every alert.

    `steps` and `epochs` are the rows of `tcar.train.tracking.read`; `alerts` holds kind and epoch (fraction) of each.
    Speed and memory have panels of their own, unless there are rows and none says how fast it was.
    """
    machine = not (steps or epochs) or any("clips_per_second" in row for row in steps)
    fig, axes = canvas(2, 3 if machine else 2, width="full", height=3.0, sharex=True)
    loss, top1, rate, norm, *others = axes.flat
    _line(loss, steps, "loss", "#BBBBBB", "a step", linewidth=0.5)
    _line(loss, epochs, "train_loss", SPLITS["train"], "training")
    _line(loss, epochs, "validation_loss", FUSED, "validation")
    _line(top1, epochs, "train_top1", SPLITS["train"], "training")
    _line(top1, epochs, "validation_top1", FUSED, "validation")
    _line(top1, epochs, "validation_top5", FUSED, "validation, top-5", linestyle=":")
    _line(rate, steps or epochs, "learning_rate", SPLITS["train"])
    _line(norm, steps or epochs, "gradient_norm", SPLITS["train"])
    if any(row.get("gradient_norm", 0) > 0 for row in steps or epochs):
        norm.set_yscale("log")
    if machine:
        _machine(*others, steps)
    labels = "loss", "top-1", "learning rate", "gradient norm", "clips a second", "memory (MB)"
    for axis, text in zip(axes.flat, labels, strict=False):
        axis.set_ylabel(text)
        for _, when in alerts:
            axis.axvline(when, color="#CC0000", linewidth=0.6, linestyle="--")
    for kind, when in alerts:
        loss.annotate(kind, (when, 1.0), xycoords=("data", "axes fraction"), rotation=90, ha="right", va="top",
                      fontsize=6, color="#CC0000")  # fmt: skip
    for axis in (loss, top1):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=6.5)
    for axis in axes[1]:
        axis.set_xlabel("epoch")
    loss.set_title(name, fontsize=7.5, loc="left")
    return fig


def _machine(speed, memory, steps: list[dict[str, float]]) -> None:
    """Draw how fast a training was, how much of that it waited for data, and how much memory it held."""
    _line(speed, steps, "clips_per_second", SPLITS["train"], "clips a second")
    _line(memory, steps, "memory_mb", SPLITS["train"], "memory")
    if any("data_wait" in row for row in steps):
        waiting = speed.twinx()
        _line(waiting, steps, "data_wait", MOTION, linewidth=0.5)
        waiting.set(ylim=(0, 1))
        waiting.set_ylabel("waiting for data", color=MOTION)


def _line(axes, rows: list[dict[str, float]], key: str, color: str, text: str | None = None, **style) -> None:
    """Draw one value over the epochs, where it was measured."""
    points = [(row["epoch"], row[key]) for row in rows if key in row]
    if points:
        axes.plot(*zip(*points, strict=True), color=color, label=text, **{"linewidth": 0.8, **style})


@styled()
def compared(histories: dict[str, list[dict[str, float]]], *, named: int = 8) -> Figure:
    """Show the validation accuracy of many trainings over their epochs; the best have names, the others are grey."""
    fig, axes = canvas(width="full", height=2.2)
    best = sorted(
        (name for name in histories if histories[name]),
        key=lambda name: max(row["validation_top1"] for row in histories[name]),
        reverse=True,
    )
    for rank, name in reversed(list(enumerate(best))):
        color, label_ = (f"C{rank % 10}", name) if rank < named else ("#CCCCCC", None)
        _line(axes[0, 0], histories[name], "validation_top1", color, label_)
    axes[0, 0].set(xlabel="epoch", ylabel="validation top-1")
    if best:
        handles, names = axes[0, 0].get_legend_handles_labels()
        axes[0, 0].legend(handles[::-1], names[::-1], fontsize=6.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


@styled()
def loss_terms(rows: list[dict], *, confidence: float) -> Figure:
    """Show what each term adds to validation top-1: with minus without, in points, with its interval over seeds.

    `rows` are the `terms` of loss_terms.json. A filled dot is a term that the recipe has, an open one that it lacks.
    `confidence` is that of the intervals.
    """
    fig, axes = canvas(height=0.8 + 0.17 * len(rows))
    axis = axes[0, 0]
    axis.axvline(0, color="black", linewidth=0.6)
    for place, row in enumerate(rows):
        axis.plot([100 * row["low"], 100 * row["high"]], [place, place], color=FUSED, linewidth=1.0)
        filled = "full" if row["on_by_default"] else "none"
        axis.plot(100 * row["difference"], place, "o", color=FUSED, markersize=3.5, fillstyle=filled)
    names = [f"{row['term'].replace('_', ' ')} {row['value']:g}" for row in rows]
    axis.set_yticks(range(len(rows)), names, fontsize=7.5)
    axis.set_xlabel(f"points of validation top-1\ngained ({confidence_level(confidence)} interval)")
    axis.set(ylim=(len(rows) - 0.5, -0.5))
    return fig
