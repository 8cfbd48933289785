"""The published I3D checkpoints: files written as published, against a forward pass from their own keys."""

from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from i3d_files import COUNTED, STATISTICS, WRITERS, key, published_state, weights

from tcar.streams.i3d import I3D, TINY, I3DConfig
from tcar.streams.i3d_layouts import CONFIGS, LAYOUTS, detect_layout, inflate_resnet50, load_i3d
from tcar.streams.weights import CheckpointError

SMALL = replace(TINY, num_classes=7)
# Stem stride; kernel, stride and padding of the first pooling; window of the head (none: the whole map).
EIGHT = ((1, 2, 2), ((1, 3, 3), (1, 2, 2), (0, 1, 1)), (4, 7, 7))
NETWORKS = {
    "pytorchvideo": EIGHT,
    "slowfast": EIGHT,
    "slowfast_caffe2": EIGHT,
    "mmaction2": ((2, 2, 2), ((1, 3, 3), (2, 2, 2), (0, 1, 1)), None),
    "tushar_n": ((2, 2, 2), ((2, 3, 3), (2, 2, 2), (0, 0, 0)), None),
    "tiny": ((2, 2, 2), ((1, 3, 3), (1, 2, 2), (0, 1, 1)), (4, 7, 7)),
}


def reference_features(layout, state, x, network=None, depths=(3, 4, 6, 3)):
    """The published network's feature map, or that of another network, from the published keys."""
    stem_stride, (kernel, stride, padding), _ = NETWORKS[network or layout]

    def norm(x, place):
        weight, bias, mean, var = (state[key(layout, place, "norm", name)].view(1, -1, 1, 1, 1) for name in STATISTICS)
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias

    def conv(x, place, stride=(1, 1, 1)):
        weight = state[key(layout, place, "conv", "weight")]
        return norm(F.conv3d(x, weight, stride=stride, padding=[size // 2 for size in weight.shape[2:]]), place)

    x = F.max_pool3d(conv(x, "stem", stem_stride).relu(), kernel, stride, padding)
    for stage, depth in enumerate(depths, 2):
        for block in range(depth):
            strides = (1, 2, 2) if stage > 2 and block == 0 else (1, 1, 1)
            shortcut = conv(x, (stage, block, "shortcut"), strides) if block == 0 else x
            y = conv(x, (stage, block, "a")).relu()
            y = conv(y, (stage, block, "b"), strides).relu()
            x = (conv(y, (stage, block, "c")) + shortcut).relu()
        if stage == 2 and network != "tiny":
            x = F.max_pool3d(x, (2, 1, 1))
    return x


def reference_scores(layout, state, x):
    """The published class scores of a feature map, from the published keys."""
    window = NETWORKS[layout][2] or x.shape[2:]
    starts = [range(max(size - length, 0) + 1) for size, length in zip(x.shape[2:], window, strict=True)]
    means = [
        x[:, :, t : t + window[0], i : i + window[1], j : j + window[2]].mean(dim=(2, 3, 4))
        for t, i, j in product(*starts)
    ]
    weight, bias = (state[key(layout, "fc", "fc", name)] for name in ("weight", "bias"))
    return torch.stack(means).mean(0) @ weight.T + bias


def close(found, expected, rtol=1e-4, share=1e-5):
    """Compare, allowing a share of the largest value."""
    torch.testing.assert_close(found, expected, rtol=rtol, atol=share * expected.abs().max().item())


@pytest.fixture(scope="module")
def full_size():
    return weights(I3DConfig())


@pytest.fixture
def miniature(monkeypatch):
    """Every layout's network in small."""
    for stream in CONFIGS:
        monkeypatch.setitem(CONFIGS, stream, TINY)


@pytest.fixture
def small_file(tmp_path, miniature):
    """Write a small file of a layout, after a change to its state."""

    def write(layout, change=lambda state: None, config=SMALL):
        state = published_state(layout, weights(config))
        if config.num_classes and layout == "pytorchvideo":  # the small network has a stage less
            for parameter in ("weight", "bias"):
                state[f"blocks.5.proj.{parameter}"] = state.pop(f"blocks.6.proj.{parameter}")
        change(state)
        WRITERS[layout](tmp_path / "small.pth", state)
        return tmp_path / "small.pth"

    return write


@pytest.mark.parametrize("layout", LAYOUTS)
def test_file_as_published_computes_what_is_published(layout, full_size, tmp_path):
    state, path = published_state(layout, full_size), tmp_path / "published.pth"
    assert sum(v.numel() for slot, v in full_size.items() if "running" not in slot[2]) == 28_043_472
    assert len(state) == (320 if layout in COUNTED else 267)
    WRITERS[layout](path, state)
    generator_state = torch.get_rng_state()
    model, found = load_i3d(path)
    path.unlink()
    assert found is LAYOUTS[layout] and not model.training
    assert torch.equal(torch.get_rng_state(), generator_state)
    assert sum(p.numel() for p in model.parameters()) == 28_043_472
    clip = torch.randn(1, 3, 16, 48, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = reference_features(layout, state, clip)
        features = model.features(clip)
        assert features.shape == expected.shape == (1, 2048, 8 if found.facts.step == 8 else 2, 2, 2)
        close(features, expected)
        close(model(clip), reference_scores(layout, state, expected))
        larger = torch.rand(1, 2048, 5, 8, 9, generator=torch.Generator().manual_seed(2))
        close(model.blocks[-1](larger), reference_scores(layout, state, larger))
    counted = 7 if layout in COUNTED else 0
    assert all(value == counted for name, value in model.named_buffers() if name.endswith("num_batches_tracked"))


@pytest.mark.parametrize(("layout", "mean", "std", "frames", "step"), [
    ("pytorchvideo", (114.75,) * 3, (57.375,) * 3, 8, 8),
    ("slowfast", (114.75,) * 3, (57.375,) * 3, 8, 8),
    ("slowfast_caffe2", (114.75,) * 3, (57.375,) * 3, 8, 8),
    ("mmaction2", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), 32, 2),
    ("tushar_n", (114.75,) * 3, (57.375,) * 3, 32, 2),
])  # fmt: skip
def test_frames_are_prepared_as_published(layout, mean, std, frames, step):
    found = LAYOUTS[layout].facts
    assert [255 * value for value in found.mean] == pytest.approx(mean)  # as published, for frames of 0 to 255
    assert [255 * value for value in found.std] == pytest.approx(std)
    assert (found.frames, found.step) == (frames, step)
    # Every published network sees the clip it was trained on as the same map.
    with torch.device("meta"):
        assert I3D(LAYOUTS[layout].config).features(torch.empty(1, 3, frames, 224, 224)).shape == (1, 2048, 4, 7, 7)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_is_told_by_the_keys(layout, small_file):
    classes = []
    for config in (SMALL, TINY):
        model, found = load_i3d(small_file(layout, config=config))
        assert found.name == layout
        classes.append(model.config.num_classes)
    assert classes == [7, 0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_named_layout_must_fit_the_keys(layout, small_file):
    path = small_file(layout)
    load_i3d(path, layout)
    for other in LAYOUTS.keys() - {layout}:
        with pytest.raises(CheckpointError, match=rf"small.pth: its keys .* '{layout}', not '{other}'"):
            load_i3d(path, other)


def test_unknown_layouts_are_refused():
    with pytest.raises(CheckpointError, match=r"pytorchvideo, slowfast.*tushar_n.*1 keys found: encoder.weight"):
        detect_layout({"encoder.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"4 keys found: conv1.weight, conv2.weight"):  # of one name, by chance
        detect_layout(dict.fromkeys(("conv1.weight", "conv2.weight", "conv3.weight", "head.weight"), torch.zeros(1)))
    with pytest.raises(CheckpointError, match="0 keys found: none"):
        detect_layout({})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_mismatch_is_listed_in_the_names_of_the_file(layout, small_file):
    gone = key(layout, (3, 1, "b"), "norm", "running_var")
    reshaped = key(layout, (4, 0, "shortcut"), "conv", "weight")

    def spoil(state):
        del state[gone]
        state["nonlocal_conv3_1_theta_w"] = torch.zeros(2)
        state[reshaped] = state[reshaped][..., None].expand(-1, -1, -1, -1, -1, 2)[:, :, :, :, 0]

    with pytest.raises(CheckpointError) as error:
        load_i3d(small_file(layout, spoil))
    assert str(error.value).split("\n")[1:] == [
        f"  missing (1): {gone}",
        "  unexpected (1): nonlocal_conv3_1_theta_w",
        f"  misshapen (1): {reshaped} [128, 96, 1, 1, 2], expected [128, 96, 1, 1, 1]",
    ]


@pytest.mark.parametrize("parameter", ["weight", "bias"])
def test_half_a_classifier_is_refused(small_file, parameter):
    gone = f"cls_head.fc_cls.{parameter}"
    with pytest.raises(CheckpointError, match=rf"missing \(1\): {gone}$"):
        load_i3d(small_file("mmaction2", lambda state: state.pop(gone)))


def test_counters_are_there_all_or_none(small_file):
    def drop(state, keep):
        counters = [name for name in state if name.endswith("num_batches_tracked")]
        for name in counters[keep:]:
            del state[name]

    model, _ = load_i3d(small_file("pytorchvideo", lambda state: drop(state, 0)))
    assert all(value == 0 for name, value in model.named_buffers() if name.endswith("num_batches_tracked"))
    with pytest.raises(CheckpointError, match=r"missing \(18\): .*num_batches_tracked"):
        load_i3d(small_file("pytorchvideo", lambda state: drop(state, 1)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_truncated_file_is_refused(layout, small_file):
    path = small_file(layout)
    whole = path.read_bytes()
    for part in (0.02, 0.5, 0.99):
        path.write_bytes(whole[: int(part * len(whole))])
        with pytest.raises(CheckpointError, match=r"small.pth: not a readable checkpoint \(truncated"):
            load_i3d(path)


def test_small_network_keeps_its_weights_and_computes_what_its_keys_say(miniature, tmp_path):
    state = published_state("pytorchvideo", weights(TINY))
    torch.save(state, tmp_path / "tiny.pth")
    loaded, found = load_i3d(tmp_path / "tiny.pth")
    assert found.name == "pytorchvideo" and loaded.config == TINY
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in state.items())
    clip = torch.randn(1, 3, 16, 80, 80, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        features = loaded.features(clip)
    assert features.shape == (1, 128, 8, 5, 5)
    close(features, reference_features("pytorchvideo", state, clip, "tiny", TINY.depths))


# --- inflation


def image_network(classes=10):
    import timm  # after tcar, which makes torchvision's import safe

    torch.manual_seed(0)
    network = timm.create_model("resnet50", num_classes=classes).eval()
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # fresh ones hide what a block does
            module.weight.data.uniform_(0.25, 0.75, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias, module.running_mean):
                tensor.data.normal_(0, 0.2, generator=generator)
    return network


def test_a_still_clip_has_the_features_of_its_image():
    network = image_network()
    inflated = inflate_resnet50(network.state_dict()).double()
    network.double()
    image = torch.randn(1, 3, 48, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    # Zero padding reaches 2 frames through the stem and 3 through res2, so 3 steps after the pooling, and 6 further
    # ones through the inflated blocks of res3 to res5: of 40 frames, 20 steps, the two in the middle are free of it.
    with torch.inference_mode():
        expected = network.forward_features(image)
        steps = inflated.features(image[:, :, None].expand(-1, -1, 40, -1, -1)).unbind(2)
        scores = [inflated.blocks[-1](step[:, :, None]) for step in steps[9:11]]
        logits = network(image)
    assert len(steps) == 20 and expected.shape == (1, 2048, 2, 2)
    for step, score in zip(steps[9:11], scores, strict=True):
        close(step, expected, rtol=1e-5)
        close(score, logits, rtol=1e-5)
    assert (steps[0] - expected).abs().max() > 1e-2 * expected.abs().max()


def test_inflated_kernels_are_the_image_kernels_shared_out_in_time():
    state = image_network(0).state_dict()
    inflated = inflate_resnet50(state).state_dict()
    for own, image, length in (
        ("blocks.0.conv", "conv1", 5),
        ("blocks.3.res_blocks.2.branch2.conv_a", "layer2.2.conv1", 3),
        ("blocks.3.res_blocks.1.branch2.conv_a", "layer2.1.conv1", 1),
    ):
        kernel = inflated[f"{own}.weight"]
        assert kernel.shape[2] == length
        torch.testing.assert_close(kernel.sum(2), state[f"{image}.weight"])
        assert (kernel == kernel[:, :, :1]).all()


def test_another_image_network_is_not_inflated():
    state = image_network(0).state_dict()
    state["layer1.0.conv1.weight"] = state.pop("layer1.0.conv1.weight")[:, :32]
    del state["layer4.2.bn3.bias"]
    faults = r"image network: .*\n.*missing \(1\): layer4.2.bn3.bias\n.*misshapen \(1\): layer1.0.conv1.weight"
    with pytest.raises(CheckpointError, match=faults):
        inflate_resnet50(state)
