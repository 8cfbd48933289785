"""Notebook 00: a pair of twins as a figure shows it, drawn anew from its seed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from tcar.lab.plots import twins
from tcar.lab.plots.twins import TwinClip
from tcar.tabletop.dataset import SetPlan, draw, load_index
from tcar.tabletop.scene import REFERENCE_HEIGHT, REFERENCE_WIDTH, Scene, render
from tcar.tabletop.settings import TabletopSettings
from tcar.tabletop.templates import FAMILIES, LABELS

FAMILY = "closer_away"
SCALE = 3  # of the picture over the reference size


def exclusive_or(root: Path, drawn: TabletopSettings, probes: Sequence[Mapping]) -> tuple[Figure, dict] | None:
    """Draw the two clips of the first training set of `closer_away` and what tells them; None where it has none.

    probes: rows of `tcar.tabletop.probes.measure`, "twins". Gives the figure and the numbers behind it.
    """
    wanted = f"train-{FAMILY}-0"
    row = next((row for row in load_index(root).values() if row["set"] == wanted), None)
    if row is None:
        return None
    scenes = draw(SetPlan(FAMILY, "train", 0, tuple(row["seed"]), ()), drawn)
    closer, away = (_shown(LABELS[index], scenes[index]) for index in FAMILIES[FAMILY].classes)
    keys = ("value", "low", "high")
    rows = [row for row in probes if row["twins"] == [closer.name, away.name]]
    told = {row["probe"]: {key: row[key] for key in keys} for row in rows}
    return twins.exclusive_or((closer, away), told), told


def _shown(name: str, scene: Scene) -> TwinClip:
    movers = [i for i in scene.items if i.kind == "object" and np.ptp(i.track[:, 0]) > 1]
    still = next(i for i in scene.items if i.kind == "object" and np.ptp(i.track[:, 0]) <= 1)
    ways = np.array([i.track[[0, -1], :2] for i in movers]) * SCALE
    picture = render(scene.at(np.array([0])), REFERENCE_WIDTH * SCALE, REFERENCE_HEIGHT * SCALE).frames[0]
    x, y = still.track[0, :2] * SCALE
    return TwinClip(name, picture, ways, [i.instance in scene.moving for i in movers], (float(x), float(y)))
