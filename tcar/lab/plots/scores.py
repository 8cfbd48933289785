"""Figures of results: methods beside each other, groups, classes, calibration, ablations, controls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from tcar.lab.numerals import confidence_level, heading, level_name
from tcar.lab.plots import (
    FUSED,
    GROUPS,
    METHODS,
    MOTION,
    NAMED,
    SEMANTIC,
    canvas,
    colour,
    group_colour,
    in_order,
    label,
    styled,
    wrap,
)

METRICS = {"top1": "top-1 accuracy", "top5": "top-5 accuracy", "twin_accuracy": "twin accuracy"}


@styled()
def methods(
    values: dict[str, dict[str, dict[str, float | None]]],
    metrics: tuple[str, ...] = ("top1", "twin_accuracy"),
    *,
    confidence: float,
) -> Figure:
    """Show each method's metrics with their intervals: `values[method][metric] = {value, low, high}`,
    shares. `confidence` is that of the intervals, here and below.
    """
    fig, axes = canvas(1, len(metrics), height=0.7 + 0.17 * len(values), sharey=True)
    for axis, metric in zip(axes.flat, metrics, strict=True):
        for row, (method, entry) in enumerate(_sorted(values)):
            _dot(axis, row, entry[metric], colour(method))
        axis.set(xlabel=f"{METRICS[metric]}\n({confidence_level(confidence)} interval)", ylim=(len(values) - 0.5, -0.5))
        _few_ticks(axis)
    axes[0, 0].set_yticks(range(len(values)), [label(method) for method, _ in _sorted(values)], fontsize=7.5)
    return fig


def _sorted(values: dict) -> list[tuple[str, dict]]:
    return [(method, values[method]) for method in in_order(values, METHODS)]


def _dot(axis, row: float, entry: dict[str, float | None], color: str) -> None:
    axis.plot([entry["low"], entry["high"]], [row, row], color=color, linewidth=1.4, solid_capstyle="butt")
    axis.plot([entry["value"]], [row], "o", color=color, markersize=3.5)


def _few_ticks(axis) -> None:
    axis.xaxis.set_major_locator(MaxNLocator(3))
    axis.grid(axis="x", linewidth=0.3)


@styled()
def trade_off(
    methods: dict[str, dict], metrics: tuple[str, ...] = ("top1", "twin_accuracy"), *, confidence: float
) -> Figure:
    """Show the accuracy of whole models against their cost: each method has `gflops` and the metrics with intervals.

    The area of a dot grows with what is trained (`trained_parameters`).
    """
    known = [metric for metric in metrics if all(metric in row for row in methods.values())]
    fig, axes = canvas(1, len(known), height=1.9, sharex=True, sharey=True)
    for axis, metric in zip(axes.flat, known, strict=True):
        for method, row in _sorted(methods):
            entry = row[metric]
            axis.plot([row["gflops"]] * 2, [entry["low"], entry["high"]], color=colour(method), linewidth=1.0)
            size = 8 + 20 * row["trained_parameters"] / 1e6
            axis.scatter([row["gflops"]], [entry["value"]], s=size, color=colour(method), label=label(method), zorder=2)
        axis.set(xlabel="GFLOPs a clip", ylabel=f"{METRICS[metric]}\n({confidence_level(confidence)} interval)")
        axis.set_xlim(0, 1.15 * max(row["gflops"] for row in methods.values()))
        axis.grid(linewidth=0.3)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", fontsize=6.5)
    return fig


@styled()
def per_group(values: dict[str, dict[str, dict[str, float | None]]], *, confidence: float) -> Figure:
    """Show every method in every group of classes: `values[method][group] = {value, low, high}`, shares."""
    groups = in_order(next(iter(values.values())), GROUPS)
    fig, axes = canvas(
        1, len(groups), width="full", height=0.75 + 0.14 * len(values), sharey=True, sharex=True
    )
    for axis, group in zip(axes.flat, groups, strict=True):
        for row, (method, entries) in enumerate(_sorted(values)):
            _dot(axis, row, entries[group], colour(method))
        axis.set(title=group, xlim=(-0.03, 1.03), ylim=(len(values) - 0.5, -0.5))
        axis.grid(axis="x", linewidth=0.3)
    axes[0, 0].set_yticks(range(len(values)), [label(method) for method, _ in _sorted(values)], fontsize=7.5)
    fig.supxlabel(f"top-1 accuracy, {confidence_level(confidence)} interval", fontsize=8)
    return fig


@styled()
def confusion(matrix, classes: list[str], order: Sequence[int], groups: list[str] | None = None) -> Figure:
    """Show how often each true class (row) was given each name (column), as a share of the row.

    `order` has the classes as they are shown, kin beside each other (`tcar.evaluate.kinship_order`); lines part the
    `groups`, one a class. Of more than `NAMED` classes, whose matrix has cells too small to see and no room for names,
    the pairs that are confused most are shown.
    """
    counts = np.asarray(matrix, float)
    if len(classes) > NAMED:
        return _confused(counts, classes)
    counts = counts[np.ix_(order, order)]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # Long names beside a square do not settle in the plain constrained layout: it would cut them off.
    fig, axes = canvas(width="full", height=4.6, layout="compressed")
    image = axes[0, 0].imshow(shares, vmin=0, vmax=1, cmap="Greens")
    fig.colorbar(image, ax=axes[0, 0], label="share of the true class", shrink=0.6)
    names = [f"{wrap(classes[index], 56)}  {number}" for number, index in enumerate(order, start=1)]
    axes[0, 0].set(xlabel="predicted class", ylabel="true class")
    axes[0, 0].set_yticks(range(len(order)), names, fontsize=6.5)
    axes[0, 0].set_xticks(range(len(order)), range(1, len(order) + 1), fontsize=6.5)
    if groups:
        _group_marks(axes[0, 0], [groups[index] for index in order])
    return fig


def _confused(counts: Float[np.ndarray, "c c"], classes: list[str], most: int = 20) -> Figure:
    """Show the pairs of classes that are taken for each other in the largest share of their clips, either way."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    clips = counts.sum(axis=1)
    wrong = counts + counts.T
    both = wrong / np.maximum(clips[:, None] + clips[None, :], 1)
    first, second = np.triu_indices(len(classes), 1)
    order = np.argsort(-both[first, second], kind="stable")[:most]
    pairs = [(a, b) for a, b in zip(first[order], second[order], strict=True) if wrong[a, b]]
    fig, axes = canvas(width="full", height=0.6 + 0.21 * max(1, len(pairs)))
    axis, places = axes[0, 0], np.arange(len(pairs))
    for shift, color, way in ((-0.2, SEMANTIC, "upper taken for lower"), (0.2, MOTION, "lower taken for upper")):
        values = [shares[pair if shift < 0 else pair[::-1]] for pair in pairs]
        axis.barh(places + shift, values, height=0.36, color=color, label=way)
    names = [f"{wrap(classes[a], 62)}\n{wrap(classes[b], 62)}" for a, b in pairs]
    axis.set_yticks(places, names, fontsize=6, linespacing=1.0)
    axis.set(xlabel="share of the true class", ylim=(len(pairs) - 0.5, -0.5))
    fig.legend(loc="outside lower center", ncols=2)
    return fig


def _group_marks(axis, groups: list[str]) -> None:
    for position in range(1, len(groups)):
        if groups[position] != groups[position - 1]:
            axis.axhline(position - 0.5, color="black", linewidth=0.5)
            axis.axvline(position - 0.5, color="black", linewidth=0.5)
    for tick, group in zip([*axis.get_yticklabels()], groups, strict=False):
        tick.set_color(group_colour(group))


@styled()
def reliability(before: list[dict], after: list[dict]) -> Figure:
    """Show how often the model is right at each confidence, before and after one temperature.

    Each is what `tcar.evaluate.reliability` gives, one row a bin: the `share` of the clips in it, their mean
    `confidence` and `accuracy`. A dot's area is its share; a calibrated model lies on the diagonal.
    """
    fig, axes = canvas(height=3.0)
    axes[0, 0].plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=0.6)
    for bins, color, name in ((before, "#999999", "as trained"), (after, FUSED, "after temperature scaling")):
        confidence, accuracy, share = np.array(
            [[row[key] for row in bins if row["share"] > 0] for key in ("confidence", "accuracy", "share")]
        )
        axes[0, 0].plot(confidence, accuracy, "-", color=color, linewidth=0.8)
        axes[0, 0].scatter(
            confidence, accuracy, 4 + 160 * share, color=color, alpha=0.7, label=name, linewidth=0
        )
    axes[0, 0].set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    fig.legend(loc="outside lower center", ncols=2, markerscale=0.6)
    return fig


@styled()
def risk_coverage(values: dict[str, dict], *, confidence: float) -> Figure:
    """Show how often each method is wrong where it answers only the clips that it is surest of.

    `values[method]` is what `tcar.evaluate.metrics` gives as `selective`. The band is the `confidence` interval.
    """
    fig, axes = canvas(height=2.3)
    for method, found in _sorted(values):
        curve = sorted((float(coverage), entry) for coverage, entry in found["risk_at_coverage"].items())
        coverage = [place for place, _ in curve]
        axes[0, 0].plot(coverage, [entry["value"] for _, entry in curve], color=colour(method), label=label(method))
        ends = [(place, entry["low"], entry["high"]) for place, entry in curve if entry["low"] is not None]
        if ends:
            axes[0, 0].fill_between(*zip(*ends, strict=True), color=colour(method), alpha=0.15, linewidth=0)
    axes[0, 0].set(xlabel="share of the clips answered", ylabel="share of these wrong", xlim=(0, 1))
    axes[0, 0].set_ylim(bottom=0)
    axes[0, 0].grid(linewidth=0.3)
    fig.legend(loc="outside lower center", ncols=2, title=f"bands: {confidence_level(confidence)} interval")
    return fig


@styled()
def replicates(values: list[dict[str, dict[str, float | None]]], metrics: tuple[str, ...]) -> Figure:
    """Show each replicate as a dot for every method, and their mean as a bar: `values[replicate][method][metric]`."""
    names = list(values[0])
    fig, axes = canvas(1, len(metrics), height=0.7 + 0.17 * len(names), sharey=True)
    for axis, metric in zip(axes.flat, metrics, strict=True):
        for position, method in enumerate(names):
            found = [one[method][metric] for one in values if one[method][metric] is not None]
            axis.plot(found, [position] * len(found), "o", color=colour(method), markersize=3, alpha=0.6)
            if found:
                ends = [position - 0.3, position + 0.3]
                axis.plot([np.mean(found)] * 2, ends, color=colour(method), linewidth=1.5)
        axis.set(xlabel=METRICS[metric], ylim=(len(names) - 0.5, -0.5))
        _few_ticks(axis)
    axes[0, 0].set_yticks(range(len(names)), [label(name) for name in names], fontsize=7.5)
    return fig


@styled()
def ablations(summary: list[dict], metrics: tuple[str, ...], *, confidence: float) -> Figure:
    """Show every level of every factor with its interval, factor by factor; a line marks the headline method, whose own
    levels are filled.

    `summary` is that of ablations.json.
    """
    factors = list(dict.fromkeys(row["factor"] for row in summary))
    rows = [entry for factor in factors for entry in (factor, *(row for row in summary if row["factor"] == factor))]
    fig, axes = canvas(1, len(metrics), width="full", height=0.7 + 0.125 * len(rows), sharey=True)
    for axis, metric in zip(axes.flat, metrics, strict=True):
        for place, row in enumerate(rows):
            if not isinstance(row, str) and row[metric]["value"] is not None:
                _dot(axis, place, row[metric], FUSED if row["headline"] else "#666666")
        own = next((row[metric]["value"] for row in summary if row["headline"]), None)
        if own is not None:
            axis.axvline(own, color=FUSED, linestyle="--", linewidth=0.6)
        axis.set(xlabel=f"{METRICS[metric]}, {confidence_level(confidence)} interval", ylim=(len(rows) - 0.5, -0.8))
        _few_ticks(axis)
    names = [heading(row) if isinstance(row, str) else level_name(row["factor"], row["level"]) for row in rows]
    axes[0, 0].set_yticks(range(len(rows)), names, fontsize=7)
    for tick, row in zip(axes[0, 0].get_yticklabels(), rows, strict=True):
        tick.set_fontweight("bold" if isinstance(row, str) else "normal")
    return fig


@styled()
def controls(rows: list[dict]) -> Figure:
    """Show how much one method's accuracy changes under each control, in all and in each group, in points.

    `rows` are those of a method in ablations.json; a frame marks changes whose interval excludes 0.
    """
    names = list(dict.fromkeys(row["control"] for row in rows))
    groups = in_order({row["group"] for row in rows}, ("all", *GROUPS))
    table = np.full((len(names), len(groups)), np.nan)
    fig, axes = canvas(width="full", height=0.9 + 0.24 * len(names))
    axis = axes[0, 0]
    for row in rows:
        y, x, change = names.index(row["control"]), groups.index(row["group"]), row["change"]
        if change["value"] is None:
            continue
        table[y, x] = 100 * change["value"]
        axis.text(x, y, f"{100 * change['value']:+.0f}".replace("-", "\u2212"), ha="center", va="center", fontsize=7.5)
        if change["low"] is not None and (change["low"] > 0 or change["high"] < 0):
            axis.add_patch(Rectangle((x - 0.46, y - 0.42), 0.92, 0.84, fill=False, linewidth=0.9))
    image = axis.imshow(table, cmap="RdBu", vmin=-100, vmax=100, alpha=0.75, aspect="auto")
    axis.set_xticks(range(len(groups)), [wrap(group, 14, 2) for group in groups])
    axis.set_yticks(range(len(names)), names)
    axis.tick_params(length=0)
    fig.colorbar(image, ax=axis, label="change, points")
    return fig
