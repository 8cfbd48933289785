"""A stream so small that a feature store of it is made in milliseconds, and clips for it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from videos import write_video

from tcar.data.ssv2 import Clip
from tcar.data.views import SegmentView
from tcar.features import ExtractionSettings, FeatureStore, TokenSpec, extract
from tcar.streams.grids import Tokens
from tcar.streams.stream import Stream

GRID, FRAMES = (2, 3, 4), 4


class Brightness(Stream):
    """A stand-in stream: the mean colour of each cell of 6 x 8 in each frame, times a weight."""

    def __init__(self, scale: float = 1.0):
        nn.Module.__init__(self)
        self.name, self.input_size, self.fit, self.width = "brightness", 0, "", 3
        self.backbone = nn.Module()
        self.backbone.scale = nn.Parameter(torch.tensor(scale), requires_grad=False)

    def forward(self, frames):
        b, t, h, w, _ = frames.shape
        cells = frames.float().view(b, t, 6, h // 6, 8, w // 8, 3).mean((3, 5)) / 255 * self.backbone.scale
        axes = [(torch.arange(n) + 0.5) / n for n in (t, 6, 8)]
        centres = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(1, 2)
        return Tokens(cells.flatten(2, 3), centres, None, (t, 6, 8))


def clip(path: Path) -> Clip:
    """A clip named as its file."""
    return Clip(path.stem, path, 0, "template", "", ())


def seven_clips(folder: Path) -> list[Clip]:
    """Seven videos of two sizes, mixed."""
    return [
        clip(write_video(folder / f"{n}.webm", 9 + 3 * n, width=160 if n % 3 else 128, height=96)) for n in range(7)
    ]


def extract_one(
    clips: Sequence[Clip], build: Callable[[], nn.Module], root: Path, view: SegmentView | None = None, **settings
) -> FeatureStore:
    """The store of one stream; of four frames unless the view has others."""
    wanted = [TokenSpec(build, settings.pop("grid", GRID), view or SegmentView(FRAMES))]
    return extract(clips, wanted, root, ExtractionSettings(**settings))[0]


def contents(store: FeatureStore) -> dict[str, bytes]:
    """Every file of a store but its lock and the one that says how fast it was made."""
    others = {".lock", "store.meta.json"}
    return {path.name: path.read_bytes() for path in store.root.iterdir() if path.name not in others}


def in_this_process(function, items, **_):
    """Stand in for `isolated_map` where a test is not about processes."""
    for number, item in enumerate(items):
        yield number, function(item)
