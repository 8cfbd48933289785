"""Grad-CAM over the tokens of each stream."""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from jaxtyping import Float
from torch import Tensor, nn

from tcar.fusion.blocks import STREAMS
from tcar.models.tca import TCA
from tcar.streams.grids import Tokens, pool_tokens
from tcar.streams.stream import Stream


class _AfterStreams(nn.Module):
    """What is left of a model after its streams: grids of tokens `[b d t y x]`, pooled, fused, and what is explained.

    Each grid passes a layer of its own in `laid`, where Captum finds it.
    """

    def __init__(self, model: TCA, tokens: dict[str, Tokens], chosen: Callable[[Tensor], Tensor]):
        super().__init__()
        self.model, self.tokens, self.chosen = model, tokens, chosen
        self.laid = nn.ModuleDict({s: nn.Identity() for s in STREAMS})

    def forward(self, *grids: Float[Tensor, "b _ _ _ _"]) -> Float[Tensor, " b"]:
        given = []
        for s, grid in zip(STREAMS, grids, strict=True):
            tokens = replace(self.tokens[s], values=self.laid[s](grid).movedim(1, -1).flatten(2, 3))
            pooled = pool_tokens(tokens, getattr(self.model.config, f"{s}_grid"))
            given += [pooled.values.flatten(1, 2), pooled.coordinates.flatten(0, 1)]
        return self.chosen(self.model.fusion(*given))


def grad_cam(
    model: TCA, clip: dict[str, Float[Tensor, "b _ _ _ 3"]], chosen: Callable[[Tensor], Tensor]
) -> dict[str, Float[Tensor, "b _ _ _"]]:
    """Return signed maps `[b t y x]` over the tokens of each stream that the fusion reads, before they are pooled.

    `chosen` takes logits `[b c]` to what is explained, `[b]`. A channel weighs as much as its mean gradient, and a
    token counts the weighted sum of its channels; the sign stays, where the paper cuts off what is below 0. The map of
    a stream that sees the central square alone has the resolution of the frames, and is 0 beside the square.
    Source: Grad-CAM, Selvaraju et al. 2017. Raises ValueError where a stream or the grids refuse the clip.
    """
    with torch.no_grad():  # nothing below the tokens is asked for
        tokens = {s: getattr(model, s)(clip[s]) for s in STREAMS}
    grids = tuple(found.values.unflatten(2, found.grid[1:]).movedim(-1, 1) for found in tokens.values())
    after = _AfterStreams(model, tokens, chosen)
    return {
        s: _over_frame(LayerGradCam(after, after.laid[s]).attribute(grids)[:, 0].detach(), getattr(model, s), clip[s])
        for s in model.fusion.streams
    }


def _over_frame(values: Float[Tensor, "b t y x"], stream: Stream, frames: Tensor) -> Float[Tensor, "b t y2 x2"]:
    """Spread a map of what the stream sees over the whole frame."""
    height, width = frames.shape[2:4]
    if stream.fit != "crop" or height == width:
        return values
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    whole = values.new_zeros(*values.shape[:2], height, width)
    whole[..., top : top + side, left : left + side] = F.interpolate(values, (side, side), mode="nearest-exact")
    return whole
