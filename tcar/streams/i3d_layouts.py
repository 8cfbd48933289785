"""I3D ResNet-50 in the layouts it is published in, and inflated from an image network.

The layouts name weights of the same shapes differently, and belong to networks of different strides, trained on frames
of different normalisation: a file read as another layout would load without an error and be silently wrong. So
`load_i3d` tells a file's layout by its keys, and the layout sets everything else.

Keys cannot tell two files of one code base apart. mmaction2's "heavy" 8x8 and the 32x2 Caffe2 files of
video-nonlocal-net carry the same names as the files below, and are not for these networks.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from tcar.streams.catalogue import STREAMS, StreamFacts
from tcar.streams.i3d import I3D, I3DConfig
from tcar.streams.weights import CheckpointError, load_strict, read_state, unwrapped

COUNTER = "num_batches_tracked"  # a batch norm's training steps: no weight, and many files leave it out
# A convolution or norm inside a block, as our own keys (pytorchvideo's) name it.
_BLOCK = re.compile(r"blocks\.(\d+)\.res_blocks\.(\d+)\.(?:branch2\.(conv|norm)_([abc])|branch1_(conv|norm))")


@dataclass(frozen=True)
class Layout:
    """How a code base names the weights of I3D ResNet-50, and the `stream` whose network and frames its files have.

    `modules` names the modules: `{layer}` counts stages from 1 and `{res}` from 2, `{letter}` and `{number}` are the
    convolution's place in its block; empty, the names are our own. `parameters` names what a module holds, where that
    is not `.weight` and so on. `left_out` are patterns of what a file holds beside the weights.
    """

    name: str
    stream: str
    modules: Mapping[str, str] = field(default_factory=dict, hash=False)
    parameters: Mapping[str, str] = field(default_factory=dict, hash=False)
    left_out: tuple[str, ...] = ()

    @property
    def config(self) -> I3DConfig:
        """The shape of its network."""
        return CONFIGS[self.stream]

    @property
    def facts(self) -> StreamFacts:
        """The frames that its network was trained on."""
        return STREAMS[self.stream]

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

# Sources: pytorchvideo models/hub/resnet.py; SlowFast models/video_model_builder.py and utils/c2_model_loading.py;
# mmaction2 configs/_base_/models/i3d_r50.py, backbones/resnet3d.py and heads/i3d_head.py; Tushar-N/pytorch-resnet3d
# models/resnet.py and utils/convert_weights.py.
_32X2 = I3DConfig(stem_stride=(2, 2, 2), pool_stride=(2, 2, 2), head_window=None)
CONFIGS = {
    "i3d_r50": I3DConfig(),
    "i3d_r50_mmaction2": _32X2,
    "i3d_r50_tushar_n": replace(_32X2, pool_kernel=(2, 3, 3), pool_padding=(0, 0, 0)),
}
LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout("pytorchvideo", "i3d_r50"),
        # What SlowFast itself trains and saves; its published I3D is the Caffe2 file.
        Layout("slowfast", "i3d_r50", _SLOWFAST),
        Layout("slowfast_caffe2", "i3d_r50", _CAFFE2, _CAFFE2_PARAMETERS, ("lr", "model_iter", "*_momentum")),
        Layout("mmaction2", "i3d_r50_mmaction2", _MMACTION2),
        Layout("tushar_n", "i3d_r50_tushar_n", _TORCHVISION),
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


def load_i3d(checkpoint: str | Path, layout: str = "") -> tuple[I3D, Layout]:
    """Load an I3D ResNet strictly from a published checkpoint; returns it in evaluation mode, and its layout.

    `layout` insists on one of `LAYOUTS`, otherwise the keys tell. The number of classes is that of the file's
    classifier, 0 without one.
    Raises CheckpointError where the file cannot be read, is of another layout, or does not match, listing the keys that
    are missing, left over or misshapen as the file names them.
    """
    state = read_state(checkpoint)
    # A wrapper's name before every key, which is taken off, hides the layout.
    state = max(unwrapped(state), key=lambda given: max(_known(given).values()))
    found = detect_layout(state, checkpoint)
    if layout and found.name != layout:
        raise CheckpointError(
            f"{checkpoint}: its keys are of the layout {found.name!r}, not {layout!r}; "
            f"give layout={found.name!r}, or none"
        )
    return _load(_without_extras(state, found), found, found.config, checkpoint), found


def inflate_resnet50(state: Mapping[str, Tensor]) -> I3D:
    """Inflate an image ResNet-50 in time: every kernel repeated, and divided by its length (Carreira, Zisserman 2017).

    Takes the weights of timm's `resnet50` (or torchvision's); the classifier comes along, if there is one. Where zero
    padding in time does not reach, the features of one image repeated are those of the image. Returns the network in
    evaluation mode; raises CheckpointError listing the keys that do not fit.
    """
    layout = LAYOUTS["tushar_n"]  # names its modules as image ResNets do
    with torch.device("meta"):
        kernels = {key: value for key, value in I3D().state_dict().items() if value.ndim == 5}
    lengths = {layout.key(key): kernel.shape[2] for key, kernel in kernels.items()}
    inflated = {
        key: value[:, :, None].expand(-1, -1, lengths[key], -1, -1) / lengths[key]
        if key in lengths and value.ndim == 4
        else value
        for key, value in state.items()
    }
    return _load(inflated, layout, I3DConfig(), "the image network")


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
