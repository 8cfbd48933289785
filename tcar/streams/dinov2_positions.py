"""The positions of the published DINOv2 at other sizes of image than its own."""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings

OFFSET = 0.1  # patches by which the published DINOv2 lengthens a side before it resamples its positions


class OffsetEmbeddings(Dinov2Embeddings):
    """Embeddings whose positions are resampled for another size of image as those of the published DINOv2 are.

    The library resamples to the size alone, which changes tokens by up to 6%. DINOv2 with registers has no offset, and
    the library's own class is the published network. Source: facebookresearch/dinov2, `interpolate_offset`.
    """

    def interpolate_pos_encoding(self, embeddings: Tensor, height: int, width: int) -> Tensor:
        """Return the positions [1 1+n d] of an image of that many pixels, class token first."""
        first, rest = self.position_embeddings.tensor_split([1], dim=1)
        side = round(rest.shape[1] ** 0.5)
        sides = (height // self.patch_size, width // self.patch_size)
        if sides == (side, side):
            return self.position_embeddings
        square = rest.float().unflatten(1, (side, side)).movedim(-1, 1)
        scales = tuple((new + OFFSET) / side for new in sides)
        resampled = F.interpolate(square, scale_factor=scales, mode="bicubic").flatten(2).transpose(1, 2)
        return torch.cat([first, resampled.to(first.dtype)], dim=1)
