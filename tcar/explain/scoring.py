"""The scores of maps of one clip whose truth is known, beside those of maps that know less."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool3d

from tcar.explain.known import Known
from tcar.explain.scores import auc, centre, even, frame_difference, grid_limit, mass_gain, pointing, random, strength

MEASURES = {"mass": mass_gain, "pointing": pointing, "auc": auc}
DECISIVE, MOVER = "decisive", "mover"  # the masks that maps are scored against
FRAME_DIFFERENCE, MOST = "frame_difference", "most"
REFERENCES = ("even", "random", "centre", FRAME_DIFFERENCE)

Key = tuple[str, str]  # a method, a stream


def masks(truth: Known) -> dict[str, Bool[Tensor, "t h w"]]:
    """Return the masks of a clip that can be scored against: those that hold something, and not everything."""
    found = {DECISIVE: truth.decisive, MOVER: truth.roles.get(MOVER)}
    return {name: torch.as_tensor(mask) for name, mask in found.items() if mask is not None and 0 < mask.mean() < 1}


def rows(
    maps: Mapping[Key, Float[Tensor, "_ _ _"]],
    truth: Known,
    frames: Mapping[str, Float[Tensor, "t h w 3"]],
    seed: int = 0,
    references: bool = True,
) -> list[dict]:
    """Return the scores of maps, and with `references` of those on each stream's frames: a row a method, stream and
    mask.

    A row has `method`, `stream`, `mask` and the `MEASURES`: share of mass on the mask less its share of the clip,
    pointing, area under the curve; `most`, the largest share of mass less area that a map of its grid reaches; and
    `frame_difference_mass`, what the frame difference of that stream has, averaged to the map's own grid: pixels must
    not win over cells by being small. A map of zeros says nothing and counts as even. The even map scores 0, the mask's
    share of the clip and 0.5.
    """
    shown = dict(maps)
    changes = {stream: frame_difference(given) if len(given) > 1 else None for stream, given in frames.items()}
    for stream, given in frames.items() if references else ():
        shape = tuple(given.shape[:3])
        made = {"even": even((1, 1, 1)), "random": random(shape, seed), "centre": centre(shape)}
        made |= {FRAME_DIFFERENCE: changes[stream]} if changes[stream] is not None else {}
        shown |= {(name, stream): values for name, values in made.items()}
    found = []
    for name, mask in masks(truth).items():
        for (method, stream), values in shown.items():
            scored = strength(values)
            scored = scored if scored.sum() > 0 else even((1, 1, 1))
            row = {"method": method, "stream": stream, "mask": name}
            row |= {measure: score(scored, mask) for measure, score in MEASURES.items()}
            row[f"{FRAME_DIFFERENCE}_mass"] = mass_gain(_averaged(changes[stream], scored.shape), mask)
            found.append(row | {MOST: grid_limit(mask, tuple(scored.shape)).mass_gain})
    return found


def _averaged(values: Float[Tensor, "t h w"] | None, shape: torch.Size) -> Float[Tensor, "_ _ _"]:
    """The frame difference of a stream on the grid of a map, where that is the coarser; even where nothing changes."""
    if values is None or not values.sum() > 0:
        return even((1, 1, 1))
    return adaptive_avg_pool3d(values[None], [min(a, b) for a, b in zip(values.shape, shape, strict=True)])[0]
