"""Augmented views of a clip for a feature store; apart from the plain ones, as torchvision takes seconds to import."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import UInt8

from tcar.data.augment import Augment
from tcar.data.views import AugmentConfig
from tcar.features.views import SegmentView, View


@dataclass(frozen=True)
class AugmentedView(View):
    """As `SegmentView`, and every view but 0 cropped, coloured and erased as `config` says.

    `config.flip` mirrors the same views as that of a `SegmentView`, before anything else; `upright` is that of one.
    """

    frames: int
    config: AugmentConfig
    upright: bool = True

    @property
    def key(self) -> str:
        """What enters the key of a store."""
        return f"segment middles, {self.config}" + ("" if self.upright else ", as stored")

    def flipped(self, name: str, number: int, seed: int) -> bool:
        """Whether view `number` of the clip of this id is mirrored."""
        return self._plain.flipped(name, number, seed)

    def places(self, name: str, count: int, number: int, seed: int) -> list[int]:
        """The frames of a `SegmentView`."""
        return self._plain.places(name, count, number, seed)

    def shown(
        self, frames: UInt8[np.ndarray, "t h w 3"], name: str, number: int, seed: int
    ) -> UInt8[np.ndarray, "t _ _ 3"]:
        """Mirror the frames and vary them."""
        frames = super().shown(frames, name, number, seed)
        if number == 0:
            return frames
        vary = Augment(replace(self.config, flip=0.0), {}, seed)
        varied, _ = vary([torch.from_numpy(frames)], torch.zeros(1, dtype=torch.int64), [name], 0, number)
        return varied[0].numpy()

    @property
    def _plain(self) -> SegmentView:
        return SegmentView(self.frames, self.config.flip, self.upright)
