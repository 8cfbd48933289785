"""Mixing of clips in training so that neither the number of processes nor a broken clip changes who is mixed with whom.

The clips of a total batch are mixed in pairs by their place in it: the first with the second, the third with the
fourth. A clip whose partner cannot be read, or is not there, stays as it is.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tcar.data.sampling import view_seed


def partners(places: Sequence[int]) -> Int[Tensor, " b"]:
    """Return for each clip, by its place in the total batch, the row of the clip that it is mixed with, or its own."""
    row_of = {place: row for row, place in enumerate(places)}
    return torch.tensor([row_of.get(place ^ 1, row) for row, place in enumerate(places)], dtype=torch.int64)


def soft_targets(
    labels: Int[Tensor, " b"],
    other_labels: Int[Tensor, " b"],
    share: float | Float[Tensor, " b"],
    num_classes: int,
) -> Float[Tensor, "b c"]:
    """Class probabilities of clips that were mixed of two: share * onehot(label) + (1 - share) * onehot(other).

    `share` in [0, 1] is the first clip's, one for the batch or one a clip: the weight of its pixels for mixup
    (Zhang et al. 2018, arXiv:1710.09412), the part of the area that was kept of it for cutmix (Yun et al. 2019,
    arXiv:1905.04899). Cross entropy is linear in its target, so that of these targets is
    share * loss(label) + (1 - share) * loss(other) for every smoothing.
    """
    share = torch.as_tensor(share, dtype=torch.get_default_dtype(), device=labels.device)
    first, second = (F.one_hot(values.long(), num_classes).to(share.dtype) for values in (labels, other_labels))
    return torch.lerp(second, first, share.expand(labels.shape)[:, None])


def mix_frames(
    mix: Callable, frames: Tensor, labels: Int[Tensor, " b"], places: Sequence[int], epoch: int, step: int
) -> tuple[Float[Tensor, "b t h w 3"], Float[Tensor, "b c"]]:
    """Mix frames as `tcar.data.augment.Mix` does, but pair by pair; return them in [0, 1], and class probabilities."""
    groups = [sorted({row, other}) for row, other in enumerate(partners(places).tolist()) if row <= other]
    clips, targets = zip(*(mix(frames[rows], labels[rows], epoch, step) for rows in groups), strict=True)
    back = torch.tensor([row for rows in groups for row in rows]).argsort().to(frames.device)
    return torch.cat(clips)[back], torch.cat(targets)[back]


class TokenMix:
    """Mix the token grids of a batch in pairs, tokens and labels alike.

    Mixup adds the tokens of two clips by a share from Beta(alpha, alpha) (Zhang et al. 2018, arXiv:1710.09412). Cutmix
    takes from the other clip all tokens, of both streams and at all times, whose centres lie in one box of the frame
    (Yun et al. 2019, arXiv:1905.04899); the label's share is that of the tokens kept, the mean of both streams. Of the
    batches a share of `probability` is mixed, by one of the two whose alpha is above 0, equally often. One draw serves
    a whole batch. Coordinates are (t, y, x) in [0, 1].
    """

    def __init__(
        self,
        num_classes: int,
        coordinates: Sequence[Float[Tensor, "_ 3"]],
        mixup: float,
        cutmix: float,
        probability: float,
        seed: int,
    ):
        self.num_classes, self.coordinates, self.seed = num_classes, list(coordinates), seed
        self.alphas = [(kind, alpha) for kind, alpha in (("mixup", mixup), ("cutmix", cutmix)) if alpha > 0]
        self.probability = probability

    def __call__(
        self, streams: Sequence[Float[Tensor, "b _ _"]], labels: Int[Tensor, " b"], places: Sequence[int], epoch: int,
        step: int,
    ) -> tuple[list[Float[Tensor, "b _ _"]], Float[Tensor, "b c"]]:  # fmt: skip
        """Return the mixed tokens of each stream in float32, and class probabilities."""
        rng = np.random.default_rng(view_seed(self.seed, "mix", epoch, step))
        streams, others = [tokens.float() for tokens in streams], partners(places).to(labels.device)
        share = 1.0
        if self.alphas and rng.random() < self.probability:
            kind, alpha = self.alphas[rng.integers(len(self.alphas))]
            share = float(rng.beta(alpha, alpha))
            if kind == "mixup":
                streams = [torch.lerp(tokens[others], tokens, share) for tokens in streams]
            else:
                kept = [~inside for inside in self._inside(share, rng.random(2))]
                share = float(np.mean([here.float().mean().item() for here in kept]))
                streams = [
                    torch.where(here.to(tokens.device)[None, :, None], tokens, tokens[others])
                    for here, tokens in zip(kept, streams, strict=True)
                ]
        return streams, soft_targets(labels, labels[others], share, self.num_classes)

    def _inside(self, share: float, centre: np.ndarray) -> list[Bool[Tensor, " _"]]:
        """Return which tokens of each stream lie in a box around `centre` (y, x) of 1 - share of the frame, cut at its
        edges."""
        reach = (1 - share) ** 0.5 / 2
        middle = torch.from_numpy(centre)
        return [((xyz[:, 1:].cpu() - middle).abs() <= reach).all(dim=1) for xyz in self.coordinates]
