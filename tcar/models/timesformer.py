"""TimeSformer, the published baseline: a video transformer whose attention is divided into time and space.

Source: Bertasius et al. 2021 (Is Space-Time Attention All You Need for Video Understanding?, ICML, arXiv:2102.05095).
On Something-Something-V2, 8 frames, 1 x 3 views: 59.1 top-1 as published, trained whole (121 M).
"""

from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from transformers import TimesformerConfig

from tcar.streams import pretrained
from tcar.streams.catalogue import KINETICS

NETWORK = "TimesformerForVideoClassification"  # of transformers

Frames = UInt8[Tensor, "b t h w 3"] | Float[Tensor, "b t h w 3"]


class TimeSformer(nn.Module):
    """The library's model behind the project's frames: `[b t h w 3]` in, logits `[b c]` out; all of it is trained.

    The number of classes is that of the configuration (`num_labels`). Weights are drawn from `seed`;
    `load_published` gives it others.
    """

    def __init__(self, config: TimesformerConfig, *, seed: int = 0):
        super().__init__()
        self.seed = seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = pretrained.build(NETWORK, config)
        for name, values in KINETICS.items():
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, frames: Frames) -> Float[Tensor, "b c"]:
        """Return logits of clips, uint8 or float in [0, 1]; raises ValueError on frames of another number or size."""
        config = self.network.config
        wanted = [config.num_frames, config.image_size, config.image_size, 3]
        if frames.ndim != 5 or list(frames.shape[1:]) != wanted:
            raise ValueError(f"TimeSformer: frames must be [batch, *{wanted}], got {list(frames.shape)}")
        pixels = frames.movedim(-1, 2).to(self.mean)
        if frames.dtype == torch.uint8:
            pixels = pixels / 255
        return self.network((pixels - self.mean) / self.std).logits

    def load_published(self, checkpoint: str, classes: int) -> bool:
        """Take all weights of a file with that many classes; of another number than its own, all but the classifier.

        Returns whether the classifier is the file's; where it is not, a fresh one is drawn from `seed`. Raises
        CheckpointError where nothing is found, or listing the keys that do not match.
        """
        config = type(self.network.config).from_dict(self.network.config.to_dict() | {"num_labels": classes})
        found = pretrained.load(NETWORK, config, checkpoint, local_files_only=True)
        whole = classes == self.network.config.num_labels
        if not whole:
            found.classifier = self.network.classifier
        self.network.load_state_dict(found.state_dict())
        return whole

    def load_body(self, checkpoint: str | Path) -> None:
        """Take all but the classifier from a file of the library's TimesformerModel.

        Raises CheckpointError as `load_published` does.
        """
        found = pretrained.load("TimesformerModel", self.network.config, checkpoint, local_files_only=True)
        self.network.timesformer.load_state_dict(found.state_dict())
