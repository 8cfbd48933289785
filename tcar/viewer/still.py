"""Contents as one picture, for where nothing plays: frames, the map over them, and the answers."""

import textwrap
from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tcar.viewer.colours import overlay
from tcar.viewer.contents import Contents, ShownClip, ShownMap

SHOWN = 6  # frames of a clip
INK, QUIET, TARGET = "#1d1f23", "#62666d", "#3b5bdb"


def draw(contents: Contents) -> bytes:
    """Return a PNG of the contents, about 1000 pixels wide."""
    rows = len(contents.clips)
    chosen = chosen_map(contents.clips[0])
    aspect = contents.clips[0].frames.shape[1] / contents.clips[0].frames.shape[2]
    figure = Figure(figsize=(10, 0.9 + rows * (1.08 * aspect + 0.25)), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(contents.title, x=0.012, y=0.985, ha="left", va="top", fontsize=11, color=INK, fontweight="bold")
    grid = figure.add_gridspec(
        rows, SHOWN + 3, left=0.012, right=0.985, top=1 - 0.62 / figure.get_figheight(),
        bottom=0.36 / figure.get_figheight(), wspace=0.05, hspace=0.25,
    )  # fmt: skip
    for row, clip in enumerate(contents.clips):
        _strip(figure, grid, row, clip, chosen)
    _answers(figure.add_subplot(grid[:, SHOWN:]), contents)
    figure.text(0.012, 0.02, _line_below(contents, chosen), fontsize=7, color=QUIET)
    file = BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def chosen_map(clip: ShownClip) -> ShownMap | None:
    """The first map whose method passed its test, else the first that was not tested; none that failed."""
    tested = [shown for shown in clip.maps if shown.passed]
    return next(iter(tested + [shown for shown in clip.maps if shown.passed is None]), None)


def _strip(figure: Figure, grid, row: int, clip: ShownClip, chosen: ShownMap | None) -> None:
    """Draw frames evenly over a clip, under the map of the chosen method over the same stream."""
    maps = {(shown.method, shown.stream): shown.values for shown in clip.maps}
    values = maps.get((chosen.method, chosen.stream)) if chosen else None
    for column, at in enumerate((np.arange(SHOWN) + 0.5) / SHOWN):
        axes = figure.add_subplot(grid[row, column])
        axes.set_axis_off()
        height, width = clip.frames.shape[1:3]
        axes.imshow(clip.frames[int(at * len(clip.frames))])
        if values is not None:
            shown = values[int(at * len(values))] / (np.abs(values).max() or 1)
            axes.imshow(overlay(shown), extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="nearest")
        if not column:
            label = f"{clip.name}: {clip.label}" if clip.label else clip.name
            axes.set_title(textwrap.shorten(label, 90), loc="left", fontsize=8, color=INK, pad=3)


def _answers(axes: Axes, contents: Contents) -> None:
    axes.set_axis_off()
    answers = list(contents.answers.get("neither", ()))[: 3 * len(contents.clips)]
    if not answers:
        return
    place = np.arange(len(answers))
    colours = [TARGET if text == contents.target else "#c9ccd1" for text, _ in answers]
    axes.barh(place, [p for _, p in answers], height=0.16, color=colours)
    axes.barh(place, 1, height=0.16, color="#0000000c")
    for row, (text, probability) in enumerate(answers):
        label = f"{textwrap.shorten(text, 44, placeholder='…')}  {probability:.2f}"
        axes.text(0, row - 0.15, label, fontsize=7.5, color=INK, va="bottom")
    axes.set(xlim=(-0.12, 1), ylim=(len(answers) - 0.7, -0.75))


def _line_below(contents: Contents, chosen: ShownMap | None) -> str:
    parts = []
    if chosen:
        tested = "passed its test" if chosen.passed else "not tested"
        parts.append(f"over the frames: {chosen.method} ({tested}), {chosen.stream} stream")
    parts.append(f"commit {contents.footer.commit}")
    parts += ["synthetic"] * contents.footer.synthetic
    return textwrap.shorten(";  ".join(parts), 180)
