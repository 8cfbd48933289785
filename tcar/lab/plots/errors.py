"""The figure of what a method gets wrong: a clip of each kind of error, what it shows and what it was taken for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

from tcar.lab.plots import MOTION, canvas, styled, wrap
from tcar.lab.plots.data import strip

_ROW, _LINE = 0.74, 8.4  # the height of a row in inches, and of a line of text in points
_FRAME = 112  # the width of a frame in pixels


@styled()
def gallery(rows: Sequence[dict], clips: Sequence[UInt8[np.ndarray, "t _ _ 3"]]) -> Figure:
    """Show moments of clips, and beside them the kind of error, the true class, the answer and its confidence.

    rows: the `examples` of `tcar.lab.steps.errors.error_analysis`, one for each clip.
    """
    fig, axes = canvas(len(rows), 2, width="full", height=0.2 + _ROW * len(rows), width_ratios=[1, 2.2])
    fig.get_layout_engine().set(h_pad=0.02, w_pad=0.03, hspace=0, wspace=0)
    for (text, picture), row, clip in zip(axes, rows, clips, strict=True):
        picture.imshow(strip(clip, _FRAME), interpolation="none")
        picture.set_anchor("NW")
        for edge in range(1, len(clip)):
            picture.axvline(edge * _FRAME - 0.5, color="white", linewidth=1.2)
        for axis in (text, picture):
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        traits = f" ({', '.join(row['conditions'])})" if row["conditions"] else ""
        told = [
            (f"{row['kind'] or 'wrong'}{traits}", {"fontweight": "bold"}),
            (wrap(row["true"], 42, 2), {}),
            (wrap(f"taken for: {row['predicted']}, {row['confidence']:.1%}", 42, 3), {"color": MOTION}),
        ]
        line = 0
        for said, look in told:
            place = {"xytext": (0, -_LINE * line), "textcoords": "offset points"}
            text.annotate(said, (0, 1), **place, xycoords="axes fraction", va="top", fontsize=7, linespacing=1.1,
                          **look)  # fmt: skip
            line += said.count("\n") + 1.15
    return fig
