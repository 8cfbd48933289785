"""A gallery of clips that anybody can open: one of each pair of twins, with what explains the model's answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tcar.explain.embedding import embed
from tcar.explain.methods import ATTENTION, CELLS
from tcar.fusion.settings import WITHOUT_ATTENTION
from tcar.lab.steps.clips import class_names, ground_truth
from tcar.lab.steps.fits import tokens_of
from tcar.lab.steps.interpretability import choose, look
from tcar.lab.steps.layouts import NEIGHBOURS
from tcar.lab.steps.model import open_model
from tcar.lab.steps.studies import for_gallery
from tcar.viewer import gallery

if TYPE_CHECKING:
    from tcar.lab.params import Params

FILE = "gallery.html"
METHODS = (CELLS, "rollout", "gradient_rollout", "grad_cam", "frame_ablation")  # a second or two a clip


def build(run: Params) -> Path:
    """Write the gallery into the figures of a Tabletop run: the first clip of each pair of twins, its place in the
    scatter that of its readout among all clips that are laid out (UMAP). Gives the path."""
    split = run.evaluation.evaluation_split
    tokens = tokens_of(run, split)[split]
    places = choose(run, tokens, run.interpretability.umap_clips)
    fusion = open_model(run).fusion
    if fusion.config.kind in WITHOUT_ATTENTION:
        methods = tuple(method for method in METHODS if method not in ATTENTION)
    else:
        methods = METHODS
    readouts = look(run, fusion, tokens, places).features["readout"]
    points = embed(readouts, "umap", run.common.seed, neighbours=min(NEIGHBOURS, len(places) - 1))
    index, names = ground_truth(run), class_names(run)
    first: dict[tuple[str, ...], tuple[str, tuple[float, float]]] = {}
    for place, point in zip(places, points.tolist(), strict=True):
        clip = tokens.ids[place]
        pair = tuple(sorted([names[tokens.labels[place]], index[index[clip]["twin"]]["class"]]))
        first.setdefault(pair, (clip, tuple(point)))
    shown = [first[pair] for pair in sorted(first)]
    path = Path(run.figures_dir) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    studied = list(for_gallery(run, shown, methods=methods))
    return gallery(studied, path, title="Tabletop (synthetic): clips and answers")
