"""Augmented views of a clip for a feature store; apart from the plain ones, as torchvision takes seconds to import."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8

from tcar.data.augment import Augment, AugmentConfig
from tcar.data.ssv2 import Clip
from tcar.features.views import SegmentView


@dataclass(frozen=True)
class AugmentedView:
    """As `SegmentView`, and every view but 0 cropped, coloured and erased as `config` says.

    A cached view has no class of its own, so `config.flip` must be 0: a mirrored clip may change its class.
    """

    frames: int
    config: AugmentConfig

    def __post_init__(self):
        if self.config.flip:
            raise ValueError(f"AugmentConfig.flip is {self.config.flip}, and cached views cannot change their class: 0")

    @property
    def key(self) -> str:
        """What enters the key of a store."""
        return f"segment middles, {self.config}"

    def __call__(self, clip: Clip, number: int, seed: int) -> UInt8[np.ndarray, "t _ _ 3"]:
        """Read the frames of one view and vary them."""
        frames = SegmentView(self.frames)(clip, number, seed)
        if number == 0:
            return frames
        vary = Augment(self.config, {}, seed)
        varied, _ = vary([torch.from_numpy(frames)], torch.zeros(1, dtype=torch.int64), [clip.id], 0, number)
        return varied[0].numpy()
