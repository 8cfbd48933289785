"""Figures: one look for all of them, one colour for every stream and method, and the file they are saved
to.

The drawing functions lie in the modules of this package, one for each part of the story (`data`,
`features`, `attention`, `training`, `scores`). Each takes plain arrays and dictionaries, as they stand in
the result files, and gives back a matplotlib figure; none computes a result.
"""

from __future__ import annotations

import contextlib
import io
import json
import textwrap
from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from PIL import Image
from tueplots import figsizes

from tcar.fusion.settings import AVERAGED
from tcar.ground import files

# Okabe and Ito (2008), readable with every common colour blindness; those of methods beyond them were searched for,
# so that any two differ to a deuteranope and a protanope too (tests/test_plots.py). A method that reads one stream
# has that stream's colour or one near it, so the reader learns two colours once.
SEMANTIC, MOTION, FUSED = "#0072B2", "#D55E00", "#009E73"
METHODS: dict[str, tuple[str, str]] = {
    "semantic_bag": ("Semantic, frames as a set", "#56B4E9"),
    "semantic": ("Semantic stream", SEMANTIC),
    "motion": ("Motion stream", MOTION),
    "semantic_probe_1": ("Semantic probe, 1 block", "#6993FB"),
    "semantic_probe_4": ("Semantic probe, 4 blocks", "#122B3C"),
    "motion_probe_1": ("Motion probe, 1 block", "#91553E"),
    "motion_probe_4": ("Motion probe, 4 blocks", "#591404"),
    "semantic_step": ("Semantic STEP probe", "#90E0F8"),
    "motion_step": ("Motion STEP probe", "#A83008"),
    "late_concat_raw": ("Late concatenation, raw", "#E69F00"),
    "late_concat": ("Late concatenation", "#CC79A7"),
    "semantic_from_motion": ("Semantic reads motion", "#93DFCD"),
    "motion_from_semantic": ("Motion reads semantic", "#900377"),
    "cross_attention": ("Cross-attention", FUSED),
    "sum": ("Sum of scores (additive)", "#3D007D"),
    "gated": ("Gated", "#FBD17A"),
    "bottleneck": ("Bottleneck tokens", "#1F4BC2"),
    "cast": ("CAST-style exchange", "#AAD099"),
    "joint": ("Joint transformer", "#A8A058"),
    "timesformer_vitb16": ("TimeSformer (end to end)", "#0E21EC"),
    "cast_b16": ("CAST-B/16 (adapters trained)", "#000000"),
    "cast_tiny": ("CAST, tiny (adapters trained)", "#505051"),
    "timesformer_tiny": ("TimeSformer, tiny (end to end)", "#0103AB"),
}
SPLITS = {"train": "#4D4D4D", "validation": "#999999", "test": "#D0D0D0"}
GROUPS = {
    "one frame": "#E69F00",
    "what and where": "#CC79A7",
    "motion": "#0072B2",
    "order of appearance": "#D55E00",
    "bound": "#009E73",
}
SOURCES = {
    "tabletop": "Tabletop (synthetic)", "ssv2": "Something-Something-V2",
    "rehearsal": "rendered imitation of Something-Something-V2",
}  # fmt: skip
NAMED = 40  # so many classes a figure can name; it has another form where there are more

TYPEFACE = "STIXGeneral"  # of figures and paper alike

_PAGE = {"half": 3.25, "full": 6.875}  # column and page width of a two-column conference paper, inches
_DPI = 150
_RC = {
    **figsizes.cvpr2024_half(),
    # The typeface of the paper, which matplotlib ships: the same glyphs on every machine.
    "font.family": TYPEFACE,
    "mathtext.fontset": "stix",
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "figure.titlesize": 7,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.0,
    "legend.frameon": False,
    "image.cmap": "viridis",
}


@contextlib.contextmanager
def styled():
    """Draw in the look of the paper; used as a decorator of every drawing function."""
    with plt.rc_context(_RC):
        yield
        showing = mpl.is_interactive()
    # A notebook's backend loads with the first figure and has each one shown from then on: that is no part of the look.
    mpl.interactive(showing)


def canvas(rows: int = 1, columns: int = 1, *, width: str = "half", height: float = 1.9, **options):
    """Give a figure of one column (`half`) or of the page (`full`) and its axes as a 2-D array; height in
    inches.
    """
    return plt.subplots(rows, columns, figsize=(_PAGE[width], height), squeeze=False, **options)


def label(method: str) -> str:
    """Name a method (or stream) as the paper does; raises KeyError naming the missing entry."""
    kind = method.removesuffix(AVERAGED)
    return _entry(kind)[0] + (", appearance averaged" if kind != method else "")


def colour(method: str) -> str:
    """Give the one colour of a method (or stream); raises KeyError naming the missing entry.

    A method whose appearance is averaged has the colour of its kind: figures name each method beside its marks.
    """
    return _entry(method.removesuffix(AVERAGED))[1]


def _entry(method: str) -> tuple[str, str]:
    if method not in METHODS:
        raise KeyError(f"{method!r} has no name and colour yet: add it to METHODS in tcar/lab/plots/__init__.py")
    return METHODS[method]


def in_order(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Sort names as a list of known ones has them, the others behind: JSON files keep no order of their
    own. A method whose appearance is averaged follows its kind.
    """
    rank = {name: position for position, name in enumerate(known)}
    return sorted(names, key=lambda name: (rank.get(name.removesuffix(AVERAGED), len(rank)), name))


def group_colour(group: str) -> str:
    """Give the colour of a class group; groups that are not of Tabletop are grey."""
    return GROUPS.get(group, "#777777")


def wrap(text: str, width: int, lines: int = 1) -> str:
    """Break a class name into at most `lines` lines of `width` characters; what does not fit becomes an
    ellipsis.
    """
    return "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder="…"))


def side_label(axis, text: str, color: str = "black") -> None:
    """Write a label at the left of an axis, level with its middle."""
    axis.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=6.5, linespacing=0.85, color=color)


def save(fig: Figure, run, name: str, data, *, source: str | None = None) -> None:
    """Save a figure as PDF and PNG, and the numbers behind it as JSON, in the figure folder of a run.

    `run` is a tcar.lab.params.Params; `data` is anything JSON can hold, numpy numbers and arrays included.
    `source` is written above the figure and defaults to the name of the run's dataset, so that what is
    synthetic says so on the figure itself. No file holds a date: the same numbers give the same bytes.
    """
    folder = Path(run.figures_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with styled():
        title = SOURCES[run.material] if source is None else source
        fig.suptitle(title, x=0.995, ha="right", color="#666666")
        with files.drafted(folder / f"{name}.pdf") as draft:
            fig.savefig(draft, metadata={"CreationDate": None}, dpi=_DPI)
        files.replace_file(folder / f"{name}.png", _small_png(fig), durable=False)
    _save_numbers(folder / f"{name}.json", data)


def save_animation(
    frames: UInt8[np.ndarray, "t h w 3"], run, name: str, data, *, frame_rate: float = 8.0
) -> Path:
    """Save moving pictures as an endless GIF of 128 colours, and the numbers behind it as JSON; return its path."""
    folder = Path(run.figures_dir)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [Image.fromarray(frame).quantize(128, dither=Image.Dither.NONE) for frame in frames]
    path, pause = folder / f"{name}.gif", round(1000 / frame_rate)
    with files.drafted(path) as draft:
        pictures[0].save(draft, save_all=True, append_images=pictures[1:], duration=pause, loop=0, optimize=True)
    _save_numbers(folder / f"{name}.json", data)
    return path


def _save_numbers(path: Path, data) -> None:
    files.write_text(path, json.dumps(_plain(data), sort_keys=True, ensure_ascii=False) + "\n")


def _small_png(fig: Figure) -> bytes:
    """Render to a PNG of 256 colours: a third of the size, and no difference to the eye in these figures."""
    full, small = io.BytesIO(), io.BytesIO()
    fig.savefig(full, format="png", dpi=_DPI)
    full.seek(0)
    # An octree keeps rare colours, such as a label's beside a picture of frames; median cut loses them.
    image = Image.open(full).convert("RGB").quantize(256, Image.Quantize.FASTOCTREE)
    image.save(small, "PNG", optimize=True)
    return small.getvalue()


def _plain(value):
    """Turn numpy values into what JSON holds, floats rounded to four digits, keys into text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return float(f"{value:.4g}") if np.isfinite(value) else None
    return value
