"""The published I3D checkpoints, written out again from each code base: names, shapes, containers.

They share nothing with the translation under test.
"""

import pickle
import struct
import sys
import types
from collections import OrderedDict

import numpy as np
import torch

STATISTICS = ("weight", "bias", "running_mean", "running_var")
# --- the published names: place is "stem", "fc", or (stage 2 to 5, block, "a", "b", "c" or "shortcut")


def pytorchvideo(place, kind):
    if place == "stem":
        return f"blocks.0.{kind}."
    stage, block, part = place
    module = f"blocks.{ {2: 1, 3: 3, 4: 4, 5: 5}[stage] }.res_blocks.{block}."
    return f"{module}branch1_{kind}." if part == "shortcut" else f"{module}branch2.{kind}_{part}."


def slowfast(place, kind):
    if place == "stem":
        return "s1.pathway0_stem." + {"conv": "conv.", "norm": "bn."}[kind]
    stage, block, part = place
    module = f"s{stage}.pathway0_res{block}." + ("branch1" if part == "shortcut" else f"branch2.{part}")
    return module + {"conv": ".", "norm": "_bn."}[kind]


def slowfast_caffe2(place, kind):
    if place == "stem":
        return {"conv": "conv1_", "norm": "res_conv1_bn_"}[kind]
    stage, block, part = place
    module = f"res{stage}_{block}_" + ("branch1" if part == "shortcut" else f"branch2{part}")
    return module + {"conv": "_", "norm": "_bn_"}[kind]


def mmaction2(place, kind):
    kind = {"conv": "conv.", "norm": "bn."}[kind]
    if place == "stem":
        return f"backbone.conv1.{kind}"
    stage, block, part = place
    module = {"a": "conv1", "b": "conv2", "c": "conv3", "shortcut": "downsample"}[part]
    return f"backbone.layer{stage - 1}.{block}.{module}.{kind}"


def tushar_n(place, kind):
    prefix = {"conv": "conv", "norm": "bn"}[kind]
    if place == "stem":
        return f"{prefix}1."
    stage, block, part = place
    if part == "shortcut":
        return f"layer{stage - 1}.{block}.downsample." + {"conv": "0.", "norm": "1."}[kind]
    return f"layer{stage - 1}.{block}.{prefix}{'abc'.index(part) + 1}."


NAMES = {name: globals()[name] for name in ("pytorchvideo", "slowfast", "slowfast_caffe2", "mmaction2", "tushar_n")}
CLASSIFIERS = {
    "pytorchvideo": "blocks.6.proj.",
    "slowfast": "head.projection.",
    "slowfast_caffe2": "pred_",
    "mmaction2": "cls_head.fc_cls.",
    "tushar_n": "fc.",
}
CAFFE2 = {"weight": "w", "bias": "b", "running_mean": "rm", "running_var": "riv"}
COUNTED = ("pytorchvideo", "slowfast", "mmaction2")  # with num_batches_tracked


def key(layout, place, kind, parameter):
    if layout == "slowfast_caffe2":
        parameter = "s" if (kind, parameter) == ("norm", "weight") else CAFFE2[parameter]
    if place == "fc":
        head = CLASSIFIERS[layout]
        return head + parameter
    return NAMES[layout](place, kind) + parameter


def convolutions(config):
    """Place and shape of every convolution."""
    yield "stem", (config.stem_width, 3, *config.stem_kernel)
    inputs = config.stem_width
    for stage, (depth, width, stride) in enumerate(
        zip(config.depths, config.widths, config.spatial_strides, strict=True), 2
    ):
        middle = width // config.bottleneck
        for block in range(depth):
            length = 3 if config.inflation[stage - 2][block] else 1
            yield (stage, block, "a"), (middle, inputs, length, 1, 1)
            yield (stage, block, "b"), (middle, middle, 1, 3, 3)
            yield (stage, block, "c"), (width, middle, 1, 1, 1)
            if block == 0 and (inputs != width or stride != 1):
                yield (stage, block, "shortcut"), (width, inputs, 1, 1, 1)
            inputs = width


def weights(config, seed=0) -> dict:
    """Random weights that matter everywhere, by place, kind and parameter."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for place, shape in convolutions(config):
        fan_in = shape[1] * shape[2] * shape[3] * shape[4]
        found[place, "conv", "weight"] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        for parameter in STATISTICS:
            value = torch.rand(shape[0], generator=generator)
            scaled = 0.5 + value if parameter in ("weight", "running_var") else 0.4 * (value - 0.5)
            found[place, "norm", parameter] = scaled
    if config.num_classes:
        found["fc", "fc", "weight"] = torch.randn(config.num_classes, config.widths[-1], generator=generator) * 0.05
        found["fc", "fc", "bias"] = torch.randn(config.num_classes, generator=generator)
    return found


def published_state(layout, found) -> OrderedDict:
    state = OrderedDict((key(layout, *slot), value) for slot, value in found.items())
    if layout in COUNTED:
        for place, kind, parameter in found:
            if kind == "norm" and parameter == "running_var":
                state[NAMES[layout](place, kind) + "num_batches_tracked"] = torch.tensor(7)
    return state


# --- the published containers


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes as the one type that Python 2 had, and numpy's functions where numpy 1 had them."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_string(self, value):
        data = value.encode("latin1") if isinstance(value, str) else value
        short = len(data) < 256
        self.write(b"U" + bytes([len(data)]) if short else b"T" + struct.pack("<i", len(data)))
        self.write(data)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string

    def save_global(self, obj, name=None):
        if getattr(obj, "__module__", "") != "numpy._core.multiarray":
            return super().save_global(obj, name)
        self.write(b"cnumpy.core.multiarray\n" + obj.__name__.encode() + b"\n")
        return self.memoize(obj)


def write_pytorchvideo(path, state):
    torch.save({"model_state": state}, path)


def write_slowfast(path, state):
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    torch.save({"epoch": 195, "model_state": state, "optimizer_state": optimizer, "cfg": "MODEL: {ARCH: i3d}\n"}, path)


def write_caffe2(path, state):
    blobs = {name: value.numpy() for name, value in state.items()}
    learnt = [name for name in blobs if not name.endswith(("_rm", "_riv"))]
    blobs |= {f"{name}_momentum": np.zeros_like(blobs[name]) for name in learnt}
    blobs |= {"lr": np.float32(0.0001), "model_iter": 400_000}
    with path.open("wb") as file:
        Python2Pickler(file, 2).dump({"blobs": blobs})


def write_mmaction2(path, state):
    module = types.ModuleType("mmengine_of_another_machine")
    exec(
        "from collections import defaultdict\n"
        "class HistoryBuffer:\n"
        "    def mean(self): raise AssertionError('never called')\n"
        "class Config(dict):\n"
        "    pass\n",
        module.__dict__,
    )
    sys.modules[module.__name__] = module
    try:
        buffer = module.HistoryBuffer()
        buffer._log_history, buffer.statistics = np.arange(3.0), {"mean": module.HistoryBuffer.mean}
        hub = {"log_scalars": {"loss": buffer}, "runtime": module.defaultdict(list, {"a": [np.float64(1)]})}
        meta = {"epoch": 100, "cfg": module.Config(model="Recognizer3D"), "seed": None}
        torch.save({"meta": meta, "state_dict": state, "message_hub": hub}, path)
    finally:
        del sys.modules[module.__name__]


def write_tushar_n(path, state):
    torch.save(dict(state), path, _use_new_zipfile_serialization=False)


WRITERS = {
    "pytorchvideo": write_pytorchvideo,
    "slowfast": write_slowfast,
    "slowfast_caffe2": write_caffe2,
    "mmaction2": write_mmaction2,
    "tushar_n": write_tushar_n,
}
