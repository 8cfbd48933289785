"""Notebook 02: the fusion of a run, its configuration at the parameters, and checks of an untrained module."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tcar.fusion.kinds import FusionConfig
from tcar.fusion.positions import rotary_table
from tcar.fusion.settings import method_settings
from tcar.lab.steps.clips import class_names
from tcar.lab.steps.streams import ROLES, stores

if TYPE_CHECKING:
    from tcar.lab.params import Params


def fusion_config(run: Params, method: str = "", **changes) -> FusionConfig:
    """Give the configuration of a method, or of the run's own fusion, at the parameters of the run; `changes` are
    fields of FusionConfig. Widths and classes that are not among them are read from the run's stores and audit.
    """
    settings = dict(changes)
    if not {"semantic_width", "motion_width"} <= settings.keys():
        settings = {f"{role}_width": store.width for role, store in stores(run).items()} | settings
    if "num_classes" not in settings:
        settings["num_classes"] = len(class_names(run))
    chosen = run.fusion.settings | (method_settings(method) if method else {})
    return FusionConfig(**chosen | settings)


def random_tokens(run: Params, clips: int) -> list[Tensor]:
    """Draw tokens like those of the run's stores: semantic [b n d1], their places [n 3], motion [b m d2], places."""
    generator = torch.Generator().manual_seed(run.common.seed)
    inputs = []
    for store in stores(run).values():
        inputs.append(torch.randn(clips, *store.coordinates.shape[:1], store.width, generator=generator))
        inputs.append(torch.from_numpy(store.coordinates).float())
    return inputs


def rotary_alignment(run: Params) -> dict[str, tuple[Float[np.ndarray, "n m"], np.ndarray, np.ndarray]]:
    """Score equal contents at the places of the two grids, along time and along height, the other axes equal.

    Gives (scores [semantic, motion], semantic coordinates, motion coordinates) for each axis; a score is the mean over
    channel pairs of the cosine between two rotations, 1 where the places are the same.
    """
    heads, grids, scores = run.fusion.heads, {role: store.grid for role, store in stores(run).items()}, {}
    for name, axis in (("time", 0), ("height", 1)):
        centres = {role: (np.arange(grid[axis]) + 0.5) / grid[axis] for role, grid in grids.items()}
        tables = {}
        for role, places in centres.items():
            xyz = torch.full((len(places), 3), 0.5, dtype=torch.float64)
            xyz[:, axis] = torch.from_numpy(places)
            tables[role] = rotary_table(xyz, heads, run.fusion.fusion_width // heads).flatten(1)
        semantic, motion = (tables[role] for role in ROLES)
        scores[name] = (semantic @ motion.T).numpy() / (semantic.shape[1] // 2), *centres.values()
    return scores
