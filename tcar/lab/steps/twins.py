"""Notebook 00: a pair of twins as a figure shows it, drawn anew from its seed."""

from pathlib import Path

import numpy as np

from tcar.lab.plots.twins import TwinClip
from tcar.tabletop.dataset import SetPlan, draw, load_index
from tcar.tabletop.scene import REFERENCE_HEIGHT, REFERENCE_WIDTH, Scene, render
from tcar.tabletop.settings import TabletopSettings
from tcar.tabletop.templates import FAMILIES, LABELS

FAMILY = "closer_away"
SCALE = 3  # of the picture over the reference size


def exclusive_pair(root: Path, drawn: TabletopSettings) -> tuple[TwinClip, TwinClip] | None:
    """Give the two clips of the first training set of `closer_away` as they are shown; None where it was not drawn."""
    wanted = f"train-{FAMILY}-0"
    row = next((row for row in load_index(root).values() if row["set"] == wanted), None)
    if row is None:
        return None
    scenes = draw(SetPlan(FAMILY, "train", 0, tuple(row["seed"]), ()), drawn)
    closer, away = (_shown(LABELS[index], scenes[index]) for index in FAMILIES[FAMILY].classes)
    return closer, away


def _shown(name: str, scene: Scene) -> TwinClip:
    movers = [i for i in scene.items if i.kind == "object" and np.ptp(i.track[:, 0]) > 1]
    still = next(i for i in scene.items if i.kind == "object" and np.ptp(i.track[:, 0]) <= 1)
    ways = np.array([i.track[[0, -1], :2] for i in movers]) * SCALE
    picture = render(scene.at(np.array([0])), REFERENCE_WIDTH * SCALE, REFERENCE_HEIGHT * SCALE).frames[0]
    x, y = still.track[0, :2] * SCALE
    return TwinClip(name, picture, ways, [i.instance in scene.moving for i in movers], (float(x), float(y)))
