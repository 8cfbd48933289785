"""I3D ResNet: a residual image network inflated in time (Carreira and Zisserman 2017; Wang et al. 2018).

One class builds the published I3D-R50 and its miniature; only the configuration differs. Modules are named as
pytorchvideo publishes them (`blocks.0.conv`, `blocks.1.res_blocks.0.branch2.conv_a`, `blocks.6.proj`), so a
checkpoint of that layout loads key by key, without a renaming in between.
"""

from collections import OrderedDict
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class I3DConfig:
    """Shape of an I3D ResNet; the defaults are I3D-R50 8x8 as pytorchvideo and SlowFast publish it.

    `inflation` has one entry a block: 1 gives its first convolution a temporal kernel of 3, 0 one of 1.
    Kernels, strides, paddings and windows are (time, height, width). `temporal_pool` is the kernel and stride
    in time of the max-pooling after the first stage.
    `spatial_strides` is the stride of each stage. `head_window` is the feature map of the training clip, over
    which the classifier averages; None averages over the whole map, whatever its size.
    `num_classes` 0 builds the network without a classifier. Raises ValueError where the stages disagree.
    """

    stem_width: int = 64
    stem_kernel: Triple = (5, 7, 7)
    stem_stride: Triple = (1, 2, 2)
    pool_kernel: Triple = (1, 3, 3)
    pool_stride: Triple = (1, 2, 2)
    pool_padding: Triple = (0, 1, 1)
    temporal_pool: int = 2
    depths: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    spatial_strides: tuple[int, ...] = (1, 2, 2, 2)
    bottleneck: int = 4
    inflation: tuple[tuple[int, ...], ...] = ((1, 1, 1), (1, 0, 1, 0), (1, 0, 1, 0, 1, 0), (0, 1, 0))
    head_window: Triple | None = (4, 7, 7)
    num_classes: int = 400

    def __post_init__(self):
        stages = {len(self.depths), len(self.widths), len(self.spatial_strides), len(self.inflation)}
        if len(stages) != 1:
            raise ValueError("I3DConfig: depths, widths, spatial_strides and inflation need one entry for each stage")
        if tuple(map(len, self.inflation)) != tuple(self.depths):
            raise ValueError(
                f"I3DConfig: inflation needs one entry for each block, {self.depths}, got {self.inflation}"
            )
        if any(width % self.bottleneck for width in self.widths):
            raise ValueError(f"I3DConfig: widths {self.widths} are not multiples of bottleneck={self.bottleneck}")


# The same network in miniature: 16 frames of 80 px in, a grid of 8x5x5 tokens of width 128 out.
TINY = I3DConfig(
    stem_width=16,
    stem_stride=(2, 2, 2),
    temporal_pool=1,
    depths=(1, 2, 2),
    widths=(64, 96, 128),
    spatial_strides=(1, 2, 2),
    bottleneck=2,
    inflation=((1,), (1, 1), (1, 1)),
    num_classes=0,
)


def _conv(inputs: int, outputs: int, kernel: Triple, stride: Triple = (1, 1, 1)) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, kernel, stride, padding=tuple(k // 2 for k in kernel), bias=False)


class Stem(nn.Module):
    """Convolution, batch norm and max-pool before the first stage."""

    def __init__(self, config: I3DConfig):
        super().__init__()
        self.conv = _conv(3, config.stem_width, config.stem_kernel, config.stem_stride)
        self.norm = nn.BatchNorm3d(config.stem_width)
        self.pool = nn.MaxPool3d(config.pool_kernel, config.pool_stride, config.pool_padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(torch.relu_(self.norm(self.conv(x))))


class Bottleneck(nn.Module):
    """Residual block: a (temporal) 1x1, a spatial 3x3 that carries the stride, and a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, middle: int, temporal_kernel: int, stride: int):
        super().__init__()
        strides = (1, stride, stride)
        if inputs != outputs or stride != 1:
            self.branch1_conv = _conv(inputs, outputs, (1, 1, 1), strides)
            self.branch1_norm = nn.BatchNorm3d(outputs)
        else:
            self.branch1_conv = None
        self.branch2 = nn.Sequential(
            OrderedDict(
                conv_a=_conv(inputs, middle, (temporal_kernel, 1, 1)),
                norm_a=nn.BatchNorm3d(middle),
                act_a=nn.ReLU(inplace=True),
                conv_b=_conv(middle, middle, (1, 3, 3), strides),
                norm_b=nn.BatchNorm3d(middle),
                act_b=nn.ReLU(inplace=True),
                conv_c=_conv(middle, outputs, (1, 1, 1)),
                norm_c=nn.BatchNorm3d(outputs),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.branch1_conv is None else self.branch1_norm(self.branch1_conv(x))
        return torch.relu_(self.branch2(x) + shortcut)


class Stage(nn.Module):
    """Blocks of one resolution; the first of them carries the stride."""

    def __init__(self, inputs: int, outputs: int, middle: int, inflation: tuple[int, ...], stride: int):
        super().__init__()
        self.res_blocks = nn.Sequential(
            *(
                Bottleneck(outputs if i else inputs, outputs, middle, 3 if inflated else 1, 1 if i else stride)
                for i, inflated in enumerate(inflation)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.res_blocks(x)


class Head(nn.Module):
    """Average over space and time, then the classifier.

    Like the head of pytorchvideo and SlowFast it slides a window of the training clip's map (4x7x7) over a
    larger map and averages what it finds, which weighs the middle more than a plain mean. A smaller map shrinks
    the window; without one the mean is plain, as in the other published heads.
    """

    def __init__(self, width: int, num_classes: int, window: Triple | None):
        super().__init__()
        self.window = window
        self.proj = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if self.window:
            x = F.avg_pool3d(x, tuple(map(min, self.window, x.shape[2:])), stride=1)
        return self.proj(x.mean(dim=(2, 3, 4)))


class I3D(nn.Module):
    """I3D ResNet over clips, as a feature map or as class scores.

    `forward(clips)` takes normalised clips `Float[Tensor, "b 3 t h w"]` and returns logits `[b classes]`;
    `features(clips)` returns the last stage's map `[b width t' h' w']`, 2048x4x7x7 for I3D-R50 at 8x224x224.
    """

    def __init__(self, config: I3DConfig = I3DConfig()):
        super().__init__()
        self.config = config
        self.width = config.widths[-1]
        inputs = (config.stem_width, *config.widths[:-1])
        stages = [
            Stage(i, o, o // config.bottleneck, inflation, stride)
            for i, o, inflation, stride in zip(
                inputs, config.widths, config.inflation, config.spatial_strides, strict=True
            )
        ]
        temporal_pool = nn.MaxPool3d((config.temporal_pool, 1, 1)) if config.temporal_pool > 1 else nn.Identity()
        blocks = [Stem(config), stages[0], temporal_pool, *stages[1:]]
        if config.num_classes:
            blocks.append(Head(self.width, config.num_classes, config.head_window))
        self.blocks = nn.ModuleList(blocks)
        self.apply(_initialise)

    @property
    def trunk(self) -> list[nn.Module]:
        """The blocks that make the feature map, classifier excluded."""
        return list(self.blocks[: 3 + len(self.config.depths) - 1])

    @property
    def temporal_stride(self) -> int:
        """Input frames behind each time step of the feature map."""
        return self.config.stem_stride[0] * self.config.pool_stride[0] * self.config.temporal_pool

    def features(self, clips: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b d t2 h2 w2"]:
        """Return the feature map of the last stage."""
        for block in self.trunk:
            clips = block(clips)
        return clips

    def forward(self, clips: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b classes"]:
        """Return class scores; raises ValueError on a network that was built without a classifier."""
        if not self.config.num_classes:
            raise ValueError("this I3D has no classifier: build it with num_classes > 0, or call .features(clips)")
        return self.blocks[-1](self.features(clips))

    def without_classifier(self) -> "I3D":
        """Drop the classifier in place and return the network, for use as a feature extractor."""
        if self.config.num_classes:
            self.blocks = self.blocks[:-1]
            self.config = replace(self.config, num_classes=0)
        return self


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
