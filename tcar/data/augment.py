"""Views of clips in training and testing: crops, flips, colours, erasing, mixing.

The transforms are torchvision's, and timm's for RandAugment. Each is drawn once a clip, so that all its frames change
alike, and from a seed made of the clip's id, the epoch and the number of the view: a resumed run, another batch or
another order sees the same views.
"""

import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from tcar.data.sampling import view_seed
from tcar.data.views import AugmentConfig

# Mean and deviation of red, green and blue over ImageNet's images, of 255: noise of these is what normalisation takes
# to standard normal noise.
MEAN, DEVIATION = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


class Augment:
    """Vary clips as a configuration says; a mirrored clip takes the class of its mirror image.

    `mirrored` maps the classes that a horizontal flip changes to what it makes of them ("left to right" to "right to
    left"), each way; all others stay as they are.
    """

    def __init__(self, config: AugmentConfig, mirrored: Mapping[int, int], seed: int = 0):
        self.config, self.mirrored, self.seed = config, dict(mirrored), seed
        if any(self.mirrored.get(other) != label for label, other in self.mirrored.items()):
            raise ValueError(f"mirrored {self.mirrored} must lead back: each class to its mirror image, and that to it")
        size, linear = (config.size, config.size), InterpolationMode.BILINEAR
        self.crop = v2.RandomResizedCrop(size, config.scale, config.ratio, linear, antialias=True)
        self.jitter = v2.ColorJitter(*config.jitter) if any(config.jitter) else v2.Identity()
        self.erase = NoiseErasing(config.erase, scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3))
        self.operations = _rand_augment(config) if config.operations else None

    def __call__(
        self,
        clips: Sequence[UInt8[Tensor, "t _ _ 3"]],
        labels: Int[Tensor, " b"],
        ids: Sequence[str],
        epoch: int,
        view: int = 0,
    ) -> tuple[UInt8[Tensor, "b t s s 3"], Int[Tensor, " b"]]:
        """Return one view of each clip and its class; clips may differ in height and width."""
        if not len(clips) == len(labels) == len(ids):
            raise ValueError(f"{len(clips)} clips, {len(labels)} labels and {len(ids)} ids: as many of each expected")
        made, classes = [], labels.clone()
        for place, (clip, name) in enumerate(zip(clips, ids, strict=True)):
            with torch.random.fork_rng(devices=[]):  # every draw of these transforms is the CPU generator's
                torch.manual_seed(own := view_seed(self.seed, name, epoch, view))
                frames, flipped = self._view(self._operated(clip, own))
            made.append(frames)
            if flipped:
                label = int(labels[place])
                classes[place] = self.mirrored.get(label, label)
        return torch.stack(made), classes

    def _view(self, clip: UInt8[Tensor, "t h w 3"]) -> tuple[UInt8[Tensor, "t s s 3"], bool]:
        # The flip is drawn first and always, so that no other setting changes which clips are mirrored.
        flipped = bool(torch.rand(()) < self.config.flip)
        video = self.crop(tv_tensors.Video(clip.movedim(-1, -3)))
        if flipped:
            video = v2.functional.horizontal_flip(video)
        return self.erase(self.jitter(video)).as_subclass(Tensor).movedim(-3, -1), flipped

    def _operated(self, clip: UInt8[Tensor, "t h w 3"], seed: int) -> UInt8[Tensor, "t h w 3"]:
        if self.operations is None:
            return clip
        kept, made = (random.getstate(), np.random.get_state()), []  # noqa: NPY002
        for frame in clip.numpy(force=True):
            random.seed(seed)  # timm draws from these two: the same for every frame
            np.random.seed(seed % 2**32)  # noqa: NPY002
            made.append(np.asarray(self.operations(Image.fromarray(frame))))
        random.setstate(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
        return torch.from_numpy(np.stack(made)).to(clip.device)


def _rand_augment(config: AugmentConfig) -> Callable[[Image.Image], Image.Image]:
    from timm.data.auto_augment import rand_augment_transform  # takes seconds, and few views need it

    named = f"rand-m{config.magnitude}-n{config.operations}-mstd{config.spread}-inc1"
    return rand_augment_transform(named, {"interpolation": Image.Resampling.BICUBIC})


class NoiseErasing(v2.RandomErasing):
    """torchvision's random erasing with noise of natural colours, another for every frame."""

    def transform(self, inpt: tv_tensors.Video, params: dict) -> tv_tensors.Video:
        """Fill the box that was drawn, in all frames; no box of a fitting shape erases nothing."""
        if params["v"] is None:
            return inpt
        mean, deviation = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, DEVIATION))
        noise = mean + deviation * torch.randn(len(inpt), 3, params["h"], params["w"])
        value = noise.round().clamp(0, 255).to(inpt.dtype).to(inpt.device)
        return v2.functional.erase(inpt, params["i"], params["j"], params["h"], params["w"], value)


class Mix:
    """Mix the clips of a batch in pairs, pixels and labels alike.

    Mixup is of Zhang et al. 2018 (arXiv:1710.09412), cutmix of Yun et al. 2019 (arXiv:1905.04899).
    Of the batches, a share of `probability` is mixed, by one of the two whose alpha is above 0, equally often. One
    share (a draw of Beta(alpha, alpha)) or one box serves a batch, and all frames; each clip is paired with its
    neighbour. Raises ValueError where a probability or alpha cannot be.
    """

    def __init__(
        self, num_classes: int, mixup: float = 0.8, cutmix: float = 0.0, probability: float = 1.0, seed: int = 0
    ):
        if min(mixup, cutmix) < 0 or not 0 <= probability <= 1:
            raise ValueError(
                f"mixup {mixup} and cutmix {cutmix} must be at least 0, probability {probability} in [0, 1]"
            )
        kinds = ((v2.MixUp, mixup), (v2.CutMix, cutmix))
        self.kinds = [kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds if alpha > 0]
        self.num_classes, self.probability, self.seed = num_classes, probability, seed

    def __call__(
        self, frames: UInt8[Tensor, "b t h w 3"], labels: Int[Tensor, " b"], epoch: int, step: int
    ) -> tuple[Float[Tensor, "b t h w 3"], Float[Tensor, "b c"]]:
        """Return float frames in [0, 1] and class probabilities; a batch that is not mixed has whole ones."""
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise ValueError(f"labels {labels.tolist()} must lie in 0 … {self.num_classes - 1}, the classes of the mix")
        videos = tv_tensors.Video(frames.movedim(-1, -3) / 255)
        targets = torch.nn.functional.one_hot(labels.long(), self.num_classes).to(videos.dtype)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(view_seed(self.seed, "mix", epoch, step))
            mixed, kind = torch.rand(()) < self.probability, int(torch.randint(max(1, len(self.kinds)), ()))
            if self.kinds and mixed:
                videos, targets = self.kinds[kind](videos, labels.long())
        return videos.as_subclass(Tensor).movedim(-3, -1), targets
