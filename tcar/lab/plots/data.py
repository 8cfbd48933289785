"""Figures of a dataset: what its classes look like, how many clips there are, what can be read off
without a model.
"""

from __future__ import annotations

import textwrap

import cv2
import matplotlib as mpl
import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from PIL import Image

from tcar.lab.numerals import confidence_level
from tcar.lab.plots import (
    GROUPS,
    MOTION,
    NAMED,
    SEMANTIC,
    SPLITS,
    canvas,
    group_colour,
    in_order,
    side_label,
    styled,
    wrap,
)  # fmt: skip


@styled()
def contact_sheet(clips: dict[str, UInt8[np.ndarray, "t h w 3"]], columns: int = 2) -> Figure:
    """Show one row of frames over time for each class, the classes in `columns` columns."""
    height, width = _thumbnail(next(iter(clips.values()))).shape[1:3]
    frames = len(next(iter(clips.values())))
    rows = -(-len(clips) // columns)
    picture = 6.875 / columns - 1.1  # what the class names leave of each column, inches
    fig, axes = canvas(
        rows,
        columns,
        width="full",
        height=0.2 + rows * (picture / frames * height / width + 0.02),
    )
    fig.get_layout_engine().set(h_pad=0.005, w_pad=0.14, hspace=0, wspace=0)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], facecolor="none")  # a filled one would cover its neighbour's label
        axis.spines[:].set_visible(False)
    for axis, (name, clip) in zip(axes.T.flat, clips.items(), strict=False):
        axis.imshow(strip(clip), interpolation="none")
        side_label(axis, wrap(name, 27, 3))
    return fig


def previews(
    clips: dict[str, UInt8[np.ndarray, "t h w 3"]], columns: int = 6, width: int = 120
) -> UInt8[np.ndarray, "t H W 3"]:
    """Lay short clips of equal length side by side, each under its name, to be played together.

    All take the shape of the first: clips of the real dataset differ in it.
    """
    tiles, height = [], _thumbnail(next(iter(clips.values())), width).shape[1]
    for name, clip in clips.items():
        small = np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in clip])
        caption = np.full((26, width, 3), 255, np.uint8)
        for row, line in enumerate(textwrap.wrap(name, 27)[:3]):
            place = (2, 8 * (row + 1))
            cv2.putText(caption, line, place, cv2.FONT_HERSHEY_PLAIN, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
        tiles.append(np.concatenate([np.broadcast_to(caption, (len(small), *caption.shape)), small], axis=1))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[i : i + columns], axis=2) for i in range(0, len(tiles), columns)]
    return np.concatenate(rows, axis=1)


def strip(clip: UInt8[np.ndarray, "t h w 3"], width: int = 72) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Lay the frames of a clip side by side, each `width` pixels wide.

    They are one image with a palette of 256 colours: matplotlib then writes an indexed image into the PDF.
    """
    return _palette(np.concatenate(list(_thumbnail(clip, width)), axis=1))


def _thumbnail(clip: np.ndarray, width: int = 72) -> np.ndarray:
    """Shrink every frame to `width` pixels across, by area."""
    height = max(1, round(width * clip.shape[1] / clip.shape[2]))
    return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in clip])


def _palette(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).quantize(256, dither=Image.Dither.NONE).convert("RGB"))


@styled()
def class_balance(counts: dict[str, dict[str, int]]) -> Figure:
    """Show how many clips each class has, by split; `counts[split][class]`.

    Up to `NAMED` classes are named, one bar each; more are ranked by size on a logarithmic axis.
    """
    names = sorted({name for split in counts.values() for name in split})
    totals = {name: sum(split.get(name, 0) for split in counts.values()) for name in names}
    names.sort(key=lambda name: (-totals[name], name))
    if len(names) > NAMED:
        return _ranked_balance(counts, names)
    fig, axes = canvas(height=0.5 + 0.11 * len(names))
    left = np.zeros(len(names))
    for split, classes in counts.items():
        values = np.array([classes.get(name, 0) for name in names])
        axes[0, 0].barh(range(len(names)), values, left=left, color=SPLITS[split], label=split)
        left += values
    axes[0, 0].set_yticks(range(len(names)), [wrap(name, 54) for name in names], fontsize=6)
    axes[0, 0].invert_yaxis()
    axes[0, 0].set(xlabel="clips")
    fig.legend(loc="outside lower center", ncols=3)
    return fig


def _ranked_balance(counts: dict[str, dict[str, int]], names: list[str]) -> Figure:
    fig, axes = canvas()
    for split, classes in counts.items():
        ranked = sorted((classes.get(name, 0) for name in names), reverse=True)
        axes[0, 0].plot(ranked, color=SPLITS[split], label=split)
    axes[0, 0].set(xlabel="class, ranked by its clips in the split", ylabel="clips", yscale="log")
    axes[0, 0].yaxis.set_major_formatter(LogFormatter())  # plain numbers
    axes[0, 0].yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.5)))  # where there are few others
    fig.legend(loc="outside lower center", ncols=3)
    return fig


@styled()
def durations(seconds: dict[str, list[float]]) -> Figure:
    """Show how long the clips of each split last, as shares of the split; seconds."""
    fig, axes = canvas(height=1.6)
    everything = np.concatenate([np.asarray(values, float) for values in seconds.values()])
    bins = np.histogram_bin_edges(everything, bins=24)
    for split, values in seconds.items():
        weights = np.full(len(values), 1 / max(len(values), 1))
        axes[0, 0].hist(
            values,
            bins,
            weights=weights,
            histtype="step",
            label=split,
            color={**SPLITS, "validation": SEMANTIC, "test": MOTION}[split],
        )
    axes[0, 0].set(xlabel="duration, seconds", ylabel="share of the split")
    fig.legend(loc="outside lower center", ncols=3)
    return fig


@styled()
def frame_differences(spread: dict[str, dict[str, float]]) -> Figure:
    """Show how much changes from one frame to the next in each class: `spread[class]` of {low, median, high}.

    In grey levels of 255, the quantiles 5, 50 and 95%. More than `NAMED` classes have no names, but their rank.
    """
    names = sorted(spread, key=lambda name: (-spread[name]["median"], name))
    few = len(names) <= NAMED
    fig, axes = canvas(height=0.5 + 0.11 * len(names) if few else 1.8)
    axis, places = axes[0, 0], np.arange(len(names))
    low, median, high = (np.array([spread[name][key] for name in names]) for key in ("low", "median", "high"))
    if few:
        axis.hlines(places, low, high, color="#999999", linewidth=1.2)
        axis.plot(median, places, "o", color="black", markersize=2.5)
        axis.set_yticks(places, [wrap(name, 54) for name in names], fontsize=6)
        axis.invert_yaxis()
        axis.set(xlabel="change between frames, of 255")
    else:
        axis.fill_between(places, low, high, color="#CCCCCC", linewidth=0)
        axis.plot(places, median, color="black")
        axis.set(xlabel="class, ranked by its median", ylabel="change between\nframes, of 255")
    return fig


@styled()
def words(templates: dict[str, int], groups: dict[str, int], most: int = 16) -> Figure:
    """Show the commonest words of the templates, in clips, and the classes that begin with the same word."""
    fig, axes = canvas(1, 2, height=0.45 + 0.14 * most)
    for axis, counts, label in zip(axes.flat, (templates, groups), ("clips", "classes"), strict=True):
        shown = list(counts.items())[:most]
        axis.barh(range(len(shown)), [count for _, count in shown], color=SPLITS["train"])
        axis.set_yticks(range(len(shown)), [word for word, _ in shown], fontsize=7)
        axis.set(xlabel=label, ylim=(most - 0.5, -0.5))
        axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4, integer=True))
    axes[0, 0].set_title("words of the templates")
    axes[0, 1].set_title("classes by first word")
    return fig


@styled()
def probes(
    values: dict[str, dict[str, dict[str, float | None]]],
    *,
    confidence: float,
    chance: float | None = None,
) -> Figure:
    """Show what simple probes reach in each group: `values[group][probe] = {value, low, high}`, shares.

    Used for the ceilings (what each kind of information can reach at best) and for the leaks (what must
    not be predictable: there every interval should hold the dashed line, `chance`). `confidence` is that of the
    intervals.
    """
    names = list(dict.fromkeys(name for group in values.values() for name in group))
    fig, axes = canvas(
        1, len(values), width="full", height=0.75 + 0.13 * len(names), sharey=True, sharex=True
    )
    for axis, group in zip(axes.flat, in_order(values, GROUPS), strict=True):
        for row, name in enumerate(names):
            if name in values[group]:
                _interval(axis, row, values[group][name])
        if chance is not None:
            axis.axvline(chance, color="black", linestyle="--", linewidth=0.6)
        axis.set(title=group, xlim=(-0.03, 1.03), ylim=(len(names) - 0.5, -0.5))
        axis.xaxis.set_major_locator(mpl.ticker.MultipleLocator(0.5))
        axis.grid(axis="x", linewidth=0.3)
    axes[0, 0].set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    fig.supxlabel(f"accuracy, {confidence_level(confidence)} interval", fontsize=8)
    return fig


@styled()
def twin_probes(rows: list[dict]) -> Figure:
    """Show what every probe reaches on every pair of twins, `rows` of {twins, group, probe, value, blind, sufficient},
    group by group: a thin frame marks where theory puts a probe at one half, a bold number where it says that the
    probe decides the pair."""
    rows = sorted(rows, key=lambda row: in_order({row["group"] for row in rows}, GROUPS).index(row["group"]))
    pairs = list(dict.fromkeys((row["group"], tuple(row["twins"])) for row in rows))
    names = list(dict.fromkeys(row["probe"] for row in rows))
    fig, axes = canvas(width="full", height=1.0 + 0.21 * len(pairs))
    axis, table = axes[0, 0], np.full((len(pairs), len(names)), np.nan)
    for row in rows:
        y, x = pairs.index((row["group"], tuple(row["twins"]))), names.index(row["probe"])
        table[y, x] = row["value"]
        weight = "bold" if row["sufficient"] else "normal"
        axis.text(x, y, f"{100 * row['value']:.0f}", ha="center", va="center", fontsize=7.5, fontweight=weight)
        if row["blind"]:
            place = (x - 0.46, y - 0.42)
            axis.add_patch(mpl.patches.Rectangle(place, 0.92, 0.84, fill=False, linewidth=0.9))
    image = axis.imshow(table, cmap="RdBu_r", vmin=0, vmax=1, alpha=0.75, aspect="auto")
    axis.set_xticks(range(len(names)), names, fontsize=7, rotation=35, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(pairs)), ["\n".join(pair) for _, pair in pairs], fontsize=6, linespacing=1.0)
    axis.tick_params(length=0)
    groups = [group for group, _ in pairs]
    for place in [i for i in range(1, len(groups)) if groups[i] != groups[i - 1]]:
        axis.axhline(place - 0.5, color="white", linewidth=2.5)
    for group in dict.fromkeys(groups):
        middle = groups.index(group) + (groups.count(group) - 1) / 2
        axis.text(len(names) - 0.4, middle, group.replace(" ", "\n"), color=group_colour(group), fontsize=7,
                  va="center", ha="left", fontweight="bold")
    fig.colorbar(image, ax=axis, label="forced choice within twins", pad=0.12)
    return fig


def _interval(axis, row: int, entry: dict[str, float | None], color: str = "#333333") -> None:
    axis.plot([entry["low"], entry["high"]], [row, row], color=color, linewidth=1.2, solid_capstyle="butt")
    axis.plot([entry["value"]], [row], "o", color=color, markersize=3)
