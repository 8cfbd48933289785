"""I3D ResNet-50 in the layouts it is published in, and inflated from an image network.

The layouts name weights of the same shapes differently, and belong to networks of different strides, trained on frames
of different normalisation: a file read as another layout would load without an error and be silently wrong. So
`load_i3d` tells a file's layout by its keys, and the layout sets everything else.

Keys cannot tell two files of one code base apart. mmaction2's "heavy" 8x8 and the 32x2 Caffe2 files of
video-nonlocal-net carry the same names as the files below: give `load_i3d` their `config`.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from tcar.streams.i3d import I3D, I3DConfig
from tcar.streams.weights import CheckpointError, load_strict, read_state, unwrapped

COUNTER = "num_batches_tracked"  # a batch norm's training steps: no weight, and many files leave it out
# A convolution or norm inside a block, as our own keys (pytorchvideo's) name it.
_BLOCK = re.compile(r"blocks\.(\d+)\.res_blocks\.(\d+)\.(?:branch2\.(conv|norm)_([abc])|branch1_(conv|norm))")


@dataclass(frozen=True)
class Layout:
    """A published checkpoint: the network it belongs to, the frames it was trained on, and how it names its weights.

    `mean` and `std` are of RGB frames in [0, 1]; a clip is `frames` frames, every `step`th of the video. `top1` and
    `top5` are the published accuracies on Kinetics-400 in percent; `address` is where `file` is published.
    `modules` names the modules: `{layer}` counts stages from 1 and `{res}` from 2, `{letter}` and `{number}` are the
    convolution's place in its block; empty, the names are our own. `parameters` names what a module holds, where that
    is not `.weight` and so on. `left_out` are patterns of what a file holds beside the weights.
    """

    name: str
    file: str
    address: str
    config: I3DConfig
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    frames: int
    step: int
    top1: float
    top5: float
    modules: Mapping[str, str] = field(default_factory=dict, hash=False)
    parameters: Mapping[str, str] = field(default_factory=dict, hash=False)
    left_out: tuple[str, ...] = ()

    def key(self, own: str) -> str:
        """Return the name that the layout gives to a key of our network."""
        if not self.modules:
            return own
        module, parameter = own.rsplit(".", 1)
        if match := _BLOCK.fullmatch(module):
            stage, block, inner, letter, shortcut = match.groups()
            layer = max(int(stage) - 1, 1)  # blocks.2 is the temporal pooling
            kind, part = inner or shortcut, inner or f"shortcut_{shortcut}"
            place = {"layer": layer, "res": layer + 1, "block": block}
            if letter:
                place |= {"letter": letter, "number": "abc".index(letter) + 1}
        else:
            kind, place = module.rsplit(".", 1)[-1], {}
            part = {"conv": "stem_conv", "norm": "stem_norm", "proj": "classifier"}[kind]
        suffix = self.parameters.get(f"{kind}.{parameter}", f".{parameter}")
        return self.modules[part].format(**place) + suffix


_SLOWFAST = {
    "stem_conv": "s1.pathway0_stem.conv",
    "stem_norm": "s1.pathway0_stem.bn",
    "conv": "s{res}.pathway0_res{block}.branch2.{letter}",
    "norm": "s{res}.pathway0_res{block}.branch2.{letter}_bn",
    "shortcut_conv": "s{res}.pathway0_res{block}.branch1",
    "shortcut_norm": "s{res}.pathway0_res{block}.branch1_bn",
    "classifier": "head.projection",
}
_CAFFE2 = {
    "stem_conv": "conv1",
    "stem_norm": "res_conv1_bn",
    "conv": "res{res}_{block}_branch2{letter}",
    "norm": "res{res}_{block}_branch2{letter}_bn",
    "shortcut_conv": "res{res}_{block}_branch1",
    "shortcut_norm": "res{res}_{block}_branch1_bn",
    "classifier": "pred",
}
_CAFFE2_PARAMETERS = {
    "conv.weight": "_w",
    "norm.weight": "_s",
    "norm.bias": "_b",
    "norm.running_mean": "_rm",
    "norm.running_var": "_riv",  # despite its name the variance itself
    "proj.weight": "_w",
    "proj.bias": "_b",
}
_MMACTION2 = {
    "stem_conv": "backbone.conv1.conv",
    "stem_norm": "backbone.conv1.bn",
    "conv": "backbone.layer{layer}.{block}.conv{number}.conv",
    "norm": "backbone.layer{layer}.{block}.conv{number}.bn",
    "shortcut_conv": "backbone.layer{layer}.{block}.downsample.conv",
    "shortcut_norm": "backbone.layer{layer}.{block}.downsample.bn",
    "classifier": "cls_head.fc_cls",
}
_TORCHVISION = {
    "stem_conv": "conv1",
    "stem_norm": "bn1",
    "conv": "layer{layer}.{block}.conv{number}",
    "norm": "layer{layer}.{block}.bn{number}",
    "shortcut_conv": "layer{layer}.{block}.downsample.0",
    "shortcut_norm": "layer{layer}.{block}.downsample.1",
    "classifier": "fc",
}

_8X8_CONFIG = I3DConfig()
_8X8 = {"config": _8X8_CONFIG, "mean": (0.45,) * 3, "std": (0.225,) * 3, "frames": 8, "step": 8}
_32X2 = I3DConfig(stem_stride=(2, 2, 2), pool_stride=(2, 2, 2), head_window=None)
_FBAI = "https://dl.fbaipublicfiles.com"
_MMLAB = (
    "https://download.openmmlab.com/mmaction/v1.0/recognition/i3d/"
    "i3d_imagenet-pretrained-r50_8xb8-32x2x1-100e_kinetics400-rgb"
)

# Sources: pytorchvideo models/hub/resnet.py; SlowFast MODEL_ZOO.md, models/video_model_builder.py and
# utils/c2_model_loading.py; mmaction2 configs/_base_/models/i3d_r50.py, backbones/resnet3d.py and heads/i3d_head.py;
# Tushar-N/pytorch-resnet3d models/resnet.py and utils/convert_weights.py.
LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            "pytorchvideo",
            "I3D_8x8_R50.pyth",
            f"{_FBAI}/pytorchvideo/model_zoo/kinetics/I3D_8x8_R50.pyth",
            **_8X8,
            top1=73.27,
            top5=90.70,
        ),
        # What SlowFast itself trains and saves; its published I3D is the Caffe2 file.
        Layout(
            "slowfast",
            "checkpoint_epoch_00196.pyth",
            "https://github.com/facebookresearch/SlowFast",
            **_8X8,
            top1=73.5,
            top5=90.8,
            modules=_SLOWFAST,
        ),
        Layout(
            "slowfast_caffe2",
            "I3D_8x8_R50.pkl",
            f"{_FBAI}/pyslowfast/model_zoo/kinetics400/I3D_8x8_R50.pkl",
            **_8X8,
            top1=73.5,
            top5=90.8,
            modules=_CAFFE2,
            parameters=_CAFFE2_PARAMETERS,
            left_out=("lr", "model_iter", "*_momentum"),
        ),
        Layout(
            "mmaction2",
            "i3d_imagenet-pretrained-r50_8xb8-32x2x1-100e_kinetics400-rgb_20220812-e213c223.pth",
            f"{_MMLAB}/i3d_imagenet-pretrained-r50_8xb8-32x2x1-100e_kinetics400-rgb_20220812-e213c223.pth",
            _32X2,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            frames=32,
            step=2,
            top1=73.47,
            top5=91.27,
            modules=_MMACTION2,
        ),
        Layout(
            "tushar_n",
            "i3d_r50_kinetics.pth",
            "https://github.com/Tushar-N/pytorch-resnet3d",
            replace(_32X2, pool_kernel=(2, 3, 3), pool_padding=(0, 0, 0)),
            mean=(0.45,) * 3,
            std=(0.225,) * 3,
            frames=32,
            step=2,
            top1=72.1,
            top5=90.2,
            modules=_TORCHVISION,
        ),
    )
}


@lru_cache
def _published_keys(name: str) -> frozenset[str]:
    with torch.device("meta"):
        return frozenset(map(LAYOUTS[name].key, I3D().state_dict()))


def _without_extras(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    return {
        key: value for key, value in state.items() if not any(fnmatchcase(key, pattern) for pattern in layout.left_out)
    }


def _known(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Return how many of a state dict's keys each layout knows."""
    return {name: len(state.keys() & _published_keys(name)) for name in LAYOUTS}


def detect_layout(state: Mapping[str, Tensor], source: str | Path = "the checkpoint") -> Layout:
    """Return the layout whose names most keys of a state dict bear.

    Raises CheckpointError naming the source, the layouts known and some of the keys where no layout knows half of them.
    """
    known = _known(state)
    best = max(known, key=known.__getitem__)
    if not known[best] or 2 * known[best] < len(_without_extras(state, LAYOUTS[best])):
        some = ", ".join(sorted(state)[:5]) or "none"
        raise CheckpointError(
            f"{source}: its keys are of no layout of I3D ResNet-50 that is known ({', '.join(LAYOUTS)}); "
            f"{len(state)} keys found: {some}{', …' if len(state) > 5 else ''}"
        )
    return LAYOUTS[best]


def load_i3d(
    checkpoint: str | Path,
    layout: str = "",
    *,
    config: I3DConfig | None = None,
    expect_classes: int | None = None,
) -> tuple[I3D, Layout]:
    """Load an I3D ResNet strictly from a published checkpoint; returns it in evaluation mode, and its layout.

    `layout` insists on one of `LAYOUTS`, otherwise the keys tell. `config` is for a network other than the layout's;
    the number of classes is always that of the file's classifier, 0 without one, and `expect_classes` insists on it.
    Raises CheckpointError where the file cannot be read, is of another layout, has another number of classes, or does
    not match, listing the keys that are missing, left over or misshapen as the file names them; ValueError for an
    unknown layout.
    """
    if layout and layout not in LAYOUTS:
        close = difflib.get_close_matches(layout, LAYOUTS, n=1, cutoff=0.4) or LAYOUTS
        raise ValueError(f"unknown layout {layout!r}; did you mean {', '.join(close)}? LAYOUTS has them all")
    state = read_state(checkpoint)
    # A wrapper's name before every key, which is taken off, hides the layout.
    state = max(unwrapped(state), key=lambda given: max(_known(given).values()))
    found = detect_layout(state, checkpoint)
    if layout and found.name != layout:
        raise CheckpointError(
            f"{checkpoint}: its keys are of the layout {found.name!r}, not {layout!r}; "
            f"give layout={found.name!r}, or none"
        )
    network = _load(_without_extras(state, found), found, config or found.config, checkpoint)
    classes = network.config.num_classes
    if expect_classes not in (None, classes):
        raise CheckpointError(
            f"{checkpoint}: its classifier has {classes} classes, {expect_classes} expected; expect {classes}, "
            "or take its features (.without_classifier()) and train a classifier of your own on them"
        )
    return network, found


def inflate_resnet50(image_network: nn.Module | Mapping[str, Tensor], config: I3DConfig = _8X8_CONFIG) -> I3D:
    """Inflate an image ResNet-50 in time: every kernel repeated, and divided by its length (Carreira, Zisserman 2017).

    Takes timm's `resnet50` (or torchvision's), or its state dict; the classifier comes along, if there is one. Where
    zero padding in time does not reach, the features of one image repeated are those of the image. Returns the network
    in evaluation mode; raises CheckpointError listing the keys that do not fit.
    """
    state = image_network.state_dict() if isinstance(image_network, nn.Module) else image_network
    layout = LAYOUTS["tushar_n"]  # names its modules as image ResNets do
    with torch.device("meta"):
        kernels = {key: value for key, value in I3D(config).state_dict().items() if value.ndim == 5}
    lengths = {layout.key(key): kernel.shape[2] for key, kernel in kernels.items()}
    inflated = {
        key: value[:, :, None].expand(-1, -1, lengths[key], -1, -1) / lengths[key]
        if key in lengths and value.ndim == 4
        else value
        for key, value in state.items()
    }
    return _load(inflated, layout, config, "the image network")


def _load(state: Mapping[str, Tensor], layout: Layout, config: I3DConfig, source: str | Path) -> I3D:
    """Build the network with the classifier that a state dict has, and load it strictly."""
    head = f"blocks.{len(config.depths) + 2}.proj"
    classifier = [state[key] for part in ("weight", "bias") if (key := layout.key(f"{head}.{part}")) in state]
    classes = len(classifier[0]) if classifier and classifier[0].ndim else 0
    # Every weight comes from the file, so drawing random ones first would only cost time and disturb the generator.
    with torch.device("meta"):
        network = I3D(replace(config, num_classes=classes))
    network.to_empty(device="cpu")
    names = {key: layout.key(key) for key in network.state_dict()}
    if not any(key.endswith(COUNTER) for key in state):
        names = {key: name for key, name in names.items() if not key.endswith(COUNTER)}
        for key, buffer in network.named_buffers():
            if key.endswith(COUNTER):
                buffer.zero_()
    return load_strict(network, state, source, names).eval()
