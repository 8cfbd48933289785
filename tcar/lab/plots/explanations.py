"""Figures of explanations: what changes an answer, where methods look, which of them are of the model, what heads read.

Values that are not known (None) draw nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tcar.explain.methods import LABELS
from tcar.explain.scoring import DECISIVE, REFERENCES
from tcar.explain.showing import STAMP, overlay
from tcar.lab.plots import (
    FUSED,
    GROUPS,
    METHODS,
    MOTION,
    SEMANTIC,
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
from tcar.lab.plots.layouts import shades

STREAMS = ("semantic", "motion")
UNTESTED = "not tested"
MOMENTS = 6  # of a clip, side by side
_RED, _GREY = "#B00020", "#6B6B6B"
_REFERENCES = {
    "even": "Even map", "random": "Random map", "centre": "Middle of the picture",
    "frame_difference": "Frame difference (no model)",
}  # fmt: skip
_TALLEST = 8.6  # inches, of a figure on a page


@styled()
def exchanged(rows: list[dict]) -> Figure:
    """Show, a line a pair of twins, how often taking one stream from the twin flips the answer between them.

    `rows` are `exchange` of interpretability.json; those of all pairs together are left out. The pairs stand by group,
    and within it those that the motion stream flips most come first.
    """
    known = [row for row in rows if row["pair"] != "all"]
    values = {(tuple(row["pair"]), row["stream"]): row["flips"] for row in known}
    group_of = {tuple(row["pair"]): row["group"] or "" for row in known}
    rank = {group: place for place, group in enumerate(in_order(set(group_of.values()), GROUPS))}
    pairs = sorted(group_of, key=lambda pair: (rank[group_of[pair]], _falling(values.get((pair, "motion")))))
    fig, axes = canvas(width="full", height=0.62 + 0.235 * max(2, len(pairs)))
    axis = axes[0, 0]
    for stream, shift, marker in (("semantic", -0.17, "o"), ("motion", 0.17, "s")):
        for place, pair in enumerate(pairs):
            _interval(axis, place + shift, values.get((pair, stream)), colour(stream), marker=marker, markersize=3.5)
    axis.set_yticks(range(len(pairs)), ["\n".join(wrap(name, 76) for name in pair) for pair in pairs],
                    fontsize=6, linespacing=0.95)  # fmt: skip
    axis.tick_params(axis="y", length=0, pad=5)
    for place in range(len(pairs)):  # a brace: the two names are one row, whatever mark stands level with either
        axis.plot([-0.007] * 2, [place - 0.36, place + 0.36], color="#777777", linewidth=0.6, clip_on=False,
                  transform=axis.get_yaxis_transform())  # fmt: skip
    axis.set(xlabel="share of answers that flip", xlim=(-0.02, 1.02), ylim=(len(pairs) - 0.5, -0.5))
    axis.grid(axis="x", linewidth=0.3)
    _groups_beside(axis, [group_of[pair] for pair in pairs])
    marks = [_mark(f"{label(stream)} taken from the twin", color=colour(stream), marker=marker)
             for stream, marker in (("semantic", "o"), ("motion", "s"))]  # fmt: skip
    fig.legend(handles=marks, loc="outside lower center", ncols=2)
    return fig


def _falling(entry: dict | None) -> float:
    return np.inf if entry is None or entry["value"] is None else -entry["value"]


def _interval(axis, place: float, entry: dict | None, color: str, **marker) -> None:
    if entry is None or entry["value"] is None:
        return
    if entry["low"] is not None:
        axis.plot([entry["low"], entry["high"]], [place] * 2, color=color, linewidth=1.2, solid_capstyle="butt")
    axis.plot([entry["value"]], [place], color=color, linestyle="", **{"marker": "o", **marker}, clip_on=False)


def _mark(name: str, **style) -> Line2D:
    return Line2D([], [], label=name, **{"linestyle": "", "marker": "o", "markersize": 4, **style})


def _groups_beside(axis, groups: Sequence[str]) -> None:
    """Name the groups of the rows at the right, each at a bar of its colour over its rows."""
    beside = axis.get_yaxis_transform()
    for group in dict.fromkeys(groups):
        first, last = groups.index(group), len(groups) - 1 - groups[::-1].index(group)
        axis.plot([1.015] * 2, [first - 0.42, last + 0.42], color=group_colour(group), linewidth=3,
                  solid_capstyle="butt", transform=beside, clip_on=False)  # fmt: skip
        axis.text(1.03, (first + last) / 2, wrap(group, 12, 2), fontsize=7, va="center", linespacing=0.9,
                  transform=beside)  # fmt: skip
        if first:
            axis.axhline(first - 0.5, color="#BBBBBB", linewidth=0.5)


@styled()
def maps(clips: list[dict]) -> Figure:
    """Show clips as strips over time, and below each the maps of methods, whose stamp says which are not of the model.

    A clip has its `name` and that of the class it is told `against` ("" for none), `frames` [t h w 3] in bytes,
    `decisive` [t h w], outlined everywhere, or None, `maps` {(method, stream): values [t' h' w']}, of which magnitudes
    are shown as `overlay` scales them, and `passed`, by method and stream, whether the method passed its tests.
    """
    clips = [_shortened(clip) for clip in clips]
    counts = [1 + len(clip["maps"]) for clip in clips]
    fig, axes = strips_canvas(sum(counts), clips[0]["frames"])
    _fit(fig, titles=0.36 * len(clips))
    ends = np.cumsum(counts)
    for clip, end, count in zip(clips, ends, counts, strict=True):
        _clip(axes[end - count : end, 0], clip)
    return fig


def _fit(fig: Figure, titles: float) -> None:
    """Make room for titles and stamps, and narrow what would be taller than a page, so that frames keep their shape."""
    labels, stamps, between = 1.0, 0.5, 0.3 + 0.03 * len(fig.axes)
    width, strips = fig.get_figwidth() - 0.85, fig.get_figheight() - between  # as `strips_canvas` has them
    part = min((fig.get_figwidth() - labels - stamps) / width, (_TALLEST - titles - between) / strips)
    fig.set_figheight(part * strips + titles + between)
    used = (labels + stamps + part * width) / fig.get_figwidth()
    fig.get_layout_engine().set(rect=((1 - used) / 2, 0, used, 1))


def _shortened(clip: dict) -> dict:
    """The moments of a clip that are shown, in frames, mask and overlays."""
    frames, mask = clip["frames"], clip["decisive"]
    count = min(MOMENTS, len(frames))
    chosen = ((np.arange(count) + 0.5) / count * len(frames)).astype(int)
    heat = {key: overlay(frames, np.abs(values))[chosen] for key, values in clip["maps"].items()}
    return clip | {"frames": frames[chosen], "decisive": None if mask is None else mask[chosen], "maps": heat}


def _clip(axes, clip: dict) -> None:
    lines = [clip["name"], *([f"against: {clip['against']}"] if clip["against"] else [])]
    # The empty line holds the strips of the clip before at a distance.
    axes[0].set_title("\n".join(["", *(wrap(line, 90) for line in lines)]), fontsize=7, loc="left", pad=2.5,
                      linespacing=0.9)  # fmt: skip
    side_label(axes[0], "Frames" if clip["decisive"] is None else "Frames; outlined:\nwhere the\ntwin differs")
    strip(axes[0], clip["frames"])
    for axis, (key, pictures) in zip(axes[1:], clip["maps"].items(), strict=True):
        method, stream = key
        strip(axis, pictures)
        side_label(axis, f"{wrap(LABELS[method], 17, 2)}\n{label(stream).lower()}", colour(stream))
        _stamp(axis, clip["passed"].get(key))
    if clip["decisive"] is not None:
        for axis in axes:
            _outline(axis, clip["decisive"])


def _stamp(axis, passed: bool | None) -> None:
    if passed:
        return
    text, color = (UNTESTED, _GREY) if passed is None else (STAMP, _RED)
    # At the end of the strip, where it hides nothing of it.
    axis.text(1.01, 0.5, wrap(text, 9, 2), transform=axis.transAxes, va="center", fontsize=6.5, linespacing=0.9,
              color="white", bbox={"facecolor": color, "edgecolor": "none", "pad": 1.5})  # fmt: skip


def _outline(axis, mask: Bool[np.ndarray, "t h w"]) -> None:
    """Draw the edges of a mask over a strip, white on black, which shows on every picture and every heat."""
    count, height, width = mask.shape
    down = 1 - (np.arange(height) + 0.5) / height
    for index, moment in enumerate(mask):
        if moment.any() and not moment.all():
            across = (index + (np.arange(width) + 0.5) / width) / count
            for color, thick in (("black", 0.9), ("white", 0.4)):
                axis.contour(across, down, moment.astype(float), [0.5], colors=color, linewidths=thick)


@styled()
def scores(scores: list[dict], verdicts: list[dict]) -> Figure:
    """Show how much more of each map's mass lies where the twins differ than of an even map, the most first.

    `scores` and `verdicts` are those of explanations.json, of which the rows of the decisive mask and all groups are
    shown. Filled dots passed their tests, open ones failed, crosses were not tested; references are grey. The tick is
    the most that a map of this grid could have.
    """
    passed = {(row["method"], row["stream"]): row["passed"] for row in verdicts}
    rows = [row for row in scores if row["mask"] == DECISIVE and row["group"] == "all"]
    rows = sorted(rows, key=lambda row: (_falling(row["mass"]), row["method"], row["stream"]))
    fig, axes = canvas(width="full", height=0.95 + 0.142 * len(rows))
    axis = axes[0, 0]
    for place, row in enumerate(rows):
        reference = row["method"] in REFERENCES
        color = "#8A8A8A" if reference else colour(row["stream"])
        style = _verdict_style(reference, passed.get((row["method"], row["stream"])))
        if row["most"]["value"] is not None:
            axis.plot([row["most"]["value"]], [place], "|", color="black", markersize=6, markeredgewidth=0.9)
        _interval(axis, place, row["mass"], color, **style)
    axis.axvline(0, color="black", linewidth=0.5)
    axis.set_yticks(range(len(rows)), [_scored(row, passed) for row in rows], fontsize=6.5)
    axis.set(xlabel="share of the map's mass where the twins differ, less that part's share of the clip",
             ylim=(len(rows) - 0.4, -0.6))  # fmt: skip
    for tick in axis.get_yticklabels():
        tick.set_color(_RED if tick.get_text().endswith(f"({STAMP})") else "black")
    axis.grid(axis="x", linewidth=0.3)
    marks = [_mark(f"{stream} stream", marker="s", color=colour(stream)) for stream in STREAMS]
    marks += [_mark(name, color="black", **_verdict_style(False, said))
              for name, said in (("passed", True), (STAMP, False), (UNTESTED, None))]  # fmt: skip
    marks += [_mark("reference", color="#8A8A8A", **_verdict_style(True, None))]
    marks += [_mark("most that the grid reaches", marker="|", color="black", markersize=6)]
    fig.legend(handles=marks, loc="outside lower center", ncols=4, columnspacing=1.2, handletextpad=0.2)
    return fig


def _verdict_style(reference: bool, passed: bool | None) -> dict:
    if reference:
        return {"marker": "D", "markersize": 3}
    if passed is None:
        return {"marker": "x", "markersize": 4}
    return {"marker": "o", "markersize": 4} | ({} if passed else {"markerfacecolor": "white"})


def _scored(row: dict, passed: dict) -> str:
    name = f"{LABELS.get(row['method'], _REFERENCES.get(row['method'], row['method']))}, {row['stream']}"
    said = True if row["method"] in REFERENCES else passed.get((row["method"], row["stream"]))
    return name if said else f"{name} ({UNTESTED if said is None else STAMP})"


@styled()
def growing(curves: dict[str, dict]) -> Figure:
    """Show how likely the true class is to the model in clips that stop early, by group.

    A curve has `times` in (0, 1], `values` with `low` and `high`, and `event_end`, where the last event ends, or None:
    these are the ticks below.
    """
    groups = in_order(curves, GROUPS)
    ends = [group for group in groups if curves[group]["event_end"] is not None]
    heights = [8, max(1.0, 0.45 * len(ends))] if ends else [1]
    fig, axes = canvas(len(heights), height=2.7 + 0.06 * len(ends), sharex=True, height_ratios=heights)
    for group in groups:
        times, middle, low, high = (np.array(curves[group][key], float) for key in ("times", "values", "low", "high"))
        axes[0, 0].plot(times, middle, "o-", color=group_colour(group), markersize=2, label=group)
        axes[0, 0].fill_between(times, low, high, color=group_colour(group), alpha=0.15, linewidth=0)
    axes[0, 0].axhline(0.5, color="black", linestyle="--", linewidth=0.5)
    axes[0, 0].set(ylabel="probability of\nthe true class", xlim=(0, 1.01), ylim=(-0.02, 1.02))
    axes[-1, 0].set_xlabel("share of the clip that is seen")
    if ends:
        for place, group in enumerate(ends):
            axes[1, 0].plot([curves[group]["event_end"]] * 2, [place - 0.42, place + 0.42], color=group_colour(group),
                            linewidth=1.8, solid_capstyle="butt")  # fmt: skip
        axes[1, 0].set(ylim=(len(ends) - 0.4, -0.6), yticks=[])
        side_label(axes[1, 0], "last event\nends")
    if len(groups) > 1:
        fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7,
                   columnspacing=1, handlelength=1.2)  # fmt: skip
    return fig


@styled()
def heads(rows: list[dict]) -> Figure:
    """Show how widely each head reads, of what is within its reach, against how far, in space and in time.

    `rows` are `heads` of interpretability.json; a head without one of the two measures has no dot in that panel. Marks
    tell the fusions, colours the attentions: a hue for each direction, lighter from block to block.
    """
    rows = [row for row in rows if row["relative_entropy"] is not None]
    rows = [row for row in rows if row["space"] is not None or row["time"] is not None]
    blocks = _block_colours({row["block"] for row in rows})
    markers = dict(zip(dict.fromkeys(row["fusion"] for row in rows), "o^sD", strict=False))
    fig, axes = canvas(1, 2, width="full", height=2.3, sharey=True)
    for axis, measure in zip(axes[0], ("space", "time"), strict=True):
        for row in rows:
            if row[measure] is not None:
                axis.plot([row[measure]], [row["relative_entropy"]], markers[row["fusion"]], color=blocks[row["block"]],
                          markersize=4, alpha=0.85, markeredgewidth=0, clip_on=False)  # fmt: skip
        axis.set(ylim=(0, 1.03))
        axis.set_xlim(left=0)
        axis.grid(linewidth=0.3)
    axes[0, 0].set_xlabel("mean distance in space, sides of the frame")
    axes[0, 1].set_xlabel("mean distance in time, lengths of the clip")
    axes[0, 0].set_ylabel("entropy, share of\nthat of even reading")
    marks = [_mark(fusion, color="black", marker=marker) for fusion, marker in markers.items()]
    marks += [_mark(_block(name), color=shade, marker="s") for name, shade in blocks.items()]
    fig.legend(handles=marks, loc="outside right center", fontsize=7, handletextpad=0.2)
    return fig


def _block_colours(names: set[str]) -> dict[str, str]:
    kinds = [(SEMANTIC, "semantic_from_"), (MOTION, "motion_from_"), (FUSED, "")]
    of = {name: next(base for base, start in kinds if name.partition(".")[2].startswith(start)) for name in names}
    found = {}
    for base, _ in kinds:
        own = sorted(name for name in names if of[name] == base)
        found |= dict(zip(own, shades(base, len(own)), strict=True))
    return found


def _block(name: str) -> str:
    """Name an attention for people: `block1.semantic_from_motion` as "block 1, semantic reads motion"."""
    first, _, of = name.partition(".")
    number = first.lstrip("abcdefghijklmnopqrstuvwxyz")
    first = f"{first.removesuffix(number)} {number}".strip()
    told = label(of).lower() if of in METHODS else of
    return f"{first}, {told}" if of else first.replace("self", "readout")


@styled()
def frames_read(maps: dict[str, Float[np.ndarray, "t u"]]) -> Figure:
    """Show how much the frames of one stream read of each of those of the other, a panel a direction and fusion, all on
    one scale of colours.
    """
    across = min(4, len(maps))
    down = -(-len(maps) // across)
    fig, axes = canvas(down, across, width="full", height=0.35 + 1.65 * down)
    most = max(float(values.max()) for values in maps.values())
    for axis in axes.flat[len(maps) :]:
        axis.set_visible(False)
    for axis, (title, values) in zip(axes.flat, maps.items(), strict=False):
        reads, read = values.shape
        image = axis.imshow(values, vmin=0, vmax=most, aspect="auto", interpolation="nearest",
                            extent=(0.5, read + 0.5, reads + 0.5, 0.5))  # fmt: skip
        axis.set_title("\n".join(wrap(part, 27) for part in title.split(", ", 1)), fontsize=7, linespacing=0.95)
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    fig.supxlabel("frame that is read", fontsize=8)
    fig.supylabel("frame that reads", fontsize=8)
    fig.colorbar(image, ax=axes, label="share of what is read", fraction=0.03, pad=0.02)
    return fig
