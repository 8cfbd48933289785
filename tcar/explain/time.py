"""Which moments of a clip the decision depends on."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


@torch.no_grad()
def temporal_importance(
    fusion: nn.Module,
    semantic: Float[Tensor, "b n d1"],
    semantic_xyz: Float[Tensor, "n 3"],
    motion: Float[Tensor, "b m d2"],
    motion_xyz: Float[Tensor, "m 3"],
    target: Int[Tensor, " b"],
) -> tuple[Float[Tensor, " t"], Float[Tensor, "b t"]]:
    """Return the moments, in [0, 1] of the clip, and how far the target's probability falls without the tokens of each.

    The moments are those of the coarsest of the streams that the fusion reads; a finer stream's tokens count with the
    nearest one. Source: occlusion sensitivity, Zeiler and Fergus 2014, over time. Raises ValueError for grids
    of one moment.
    """
    tokens, xyz = {"semantic": semantic, "motion": motion}, {"semantic": semantic_xyz, "motion": motion_xyz}
    moments = min((xyz[s][:, 0].unique() for s in fusion.streams), key=len)
    if len(moments) < 2:
        raise ValueError("temporal importance needs at least two moments in every stream it looks at")

    def probability(left: dict[str, Tensor]) -> Float[Tensor, " b"]:
        """Return the target's probability with the tokens that are left of each stream."""
        given = [part for s in tokens for part in (tokens[s][:, left[s]], xyz[s][left[s]])]
        return fusion(*given).softmax(dim=-1).gather(1, target[:, None])[:, 0]

    everything = {s: torch.ones_like(xyz[s][:, 0], dtype=torch.bool) for s in tokens}
    nearest = {s: (xyz[s][:, :1] - moments).abs().argmin(dim=1) for s in fusion.streams}
    whole = probability(everything)
    falls = [
        whole - probability(everything | {s: nearest[s] != moment for s in nearest}) for moment in range(len(moments))
    ]
    return moments, torch.stack(falls, dim=1)
