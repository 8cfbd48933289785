"""I3D against published facts, and a slow reference written from the published keys."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tcar.streams.i3d import I3D, TINY, I3DConfig


def randomise_norms(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm weights and statistics that matter: as built they can hide what a block does."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.weight.data.uniform_(0.25, 0.75, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias, module.running_mean):
                tensor.data.normal_(0, 0.2, generator=generator)
    return model.eval()


def reference_map(state: dict, x: torch.Tensor, stem_stride, pool, temporal_pool, stages) -> torch.Tensor:
    """The published forward pass, from the tensors of a checkpoint alone; stages: [(blocks, stride), …]."""

    def norm(x, name):
        mean, var, weight, bias = (
            state[f"{name}.{key}"].view(1, -1, 1, 1, 1) for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias

    def conv(x, name, stride=(1, 1, 1)):
        weight = state[f"{name}.weight"]
        return F.conv3d(x, weight, stride=stride, padding=[size // 2 for size in weight.shape[2:]])

    kernel, stride, padding = pool
    x = F.max_pool3d(norm(conv(x, "blocks.0.conv", stem_stride), "blocks.0.norm").relu(), kernel, stride, padding)
    for index, (blocks, stride) in zip((1, 3, 4, 5), stages, strict=False):
        for block in range(blocks):
            name, strides = f"blocks.{index}.res_blocks.{block}", (1, 1, 1) if block else (1, stride, stride)
            shortcut = x
            if f"{name}.branch1_conv.weight" in state:
                shortcut = norm(conv(x, f"{name}.branch1_conv", strides), f"{name}.branch1_norm")
            y = norm(conv(x, f"{name}.branch2.conv_a"), f"{name}.branch2.norm_a").relu()
            y = norm(conv(y, f"{name}.branch2.conv_b", strides), f"{name}.branch2.norm_b").relu()
            y = norm(conv(y, f"{name}.branch2.conv_c"), f"{name}.branch2.norm_c")
            x = (y + shortcut).relu()
        if index == 1:
            x = F.max_pool3d(x, (temporal_pool, 1, 1))
    return x


@pytest.fixture(scope="module")
def published() -> I3D:
    with torch.device("meta"):
        return I3D()


def test_published_parameter_and_key_counts(published):
    assert sum(p.numel() for p in published.parameters()) == 28_043_472
    keys = list(published.state_dict())
    assert len(keys) == 320
    assert sum(key.endswith("num_batches_tracked") for key in keys) == 53


def test_feature_map_after_each_published_stage(published):
    x, shapes = torch.empty(1, 3, 8, 224, 224, device="meta"), []
    for block in published.trunk:
        x = block(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [
        (64, 8, 56, 56), (256, 8, 56, 56), (256, 4, 56, 56),
        (512, 4, 28, 28), (1024, 4, 14, 14), (2048, 4, 7, 7),
    ]  # fmt: skip


def test_published_cost(published):
    with FlopCounterMode(display=False) as counter:
        published(torch.empty(1, 3, 8, 224, 224, device="meta"))
    # 28.54 GMACs by fvcore, which counts 0.13 of it for batch norms; two operations a multiply-add.
    assert counter.get_total_flops() / 2e9 == pytest.approx(28.54 - 0.13, abs=0.01)


def test_inflation_and_strides_sit_where_published(published):
    pattern = [[1, 1, 1], [1, 0, 1, 0], [1, 0, 1, 0, 1, 0], [0, 1, 0]]
    stages = [block for block in published.blocks if hasattr(block, "res_blocks")]
    found = [[(block.branch2.conv_a.kernel_size[0] - 1) // 2 for block in stage.res_blocks] for stage in stages]
    assert found == pattern
    for stage, stride in zip(stages, (1, 2, 2, 2), strict=True):
        first = stage.res_blocks[0]
        assert first.branch2.conv_a.stride == first.branch2.conv_c.stride == (1, 1, 1)
        assert first.branch2.conv_b.stride == first.branch1_conv.stride == (1, stride, stride)


STRIDE_2 = {"stem_stride": (2, 2, 2), "pool_stride": (2, 2, 2)}
VARIANTS = {
    "8x8": I3DConfig(),
    "mmaction2": I3DConfig(**STRIDE_2),
    "tushar-n": I3DConfig(**STRIDE_2, pool_kernel=(2, 3, 3), pool_padding=(0, 0, 0)),
    "tiny": TINY,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_against_a_slow_reference(variant):
    config = VARIANTS[variant]
    model = randomise_norms(I3D(config))
    clip = torch.randn(1, 3, 16, 48, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        pool = (config.pool_kernel, config.pool_stride, config.pool_padding)
        stages = list(zip(config.depths, config.spatial_strides, strict=True))
        expected = reference_map(model.state_dict(), clip, config.stem_stride, pool, config.temporal_pool, stages)
        features = model.features(clip)
    assert features.shape == expected.shape
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_pooling_in_time_takes_steps_in_twos_and_drops_an_odd_one():
    model = randomise_norms(I3D(replace(TINY, temporal_pool=2)))
    clip = torch.randn(1, 3, 18, 32, 32, generator=torch.Generator().manual_seed(0))
    before = model.blocks[1](model.blocks[0](clip))
    pooled = torch.stack([before[:, :, t : t + 2].amax(dim=2) for t in range(0, 8, 2)], dim=2)
    for stage in model.blocks[3:]:
        pooled = stage(pooled)
    torch.testing.assert_close(model.features(clip), pooled)
    assert pooled.shape == (1, 128, 4, 2, 2)


def test_head_without_a_window_averages_all():
    head = I3D(replace(TINY, num_classes=5, head_window=None)).blocks[-1]
    x = torch.randn(2, 128, 6, 9, 8, generator=torch.Generator().manual_seed(0))
    means = torch.stack([image.flatten(1).sum(1) / (6 * 9 * 8) for image in x])
    torch.testing.assert_close(head(x), means @ head.proj.weight.T + head.proj.bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("size", "window"), [((4, 7, 7), (4, 7, 7)), ((8, 8, 9), (4, 7, 7)), ((1, 4, 3), (1, 4, 3))])
def test_head_averages_windows(size, window):
    head = I3D(replace(TINY, num_classes=5)).blocks[-1]
    x = torch.randn(2, 128, *size, generator=torch.Generator().manual_seed(0))
    scores = [
        head.proj(x[:, :, t:t + window[0], i:i + window[1], j:j + window[2]].mean(dim=(2, 3, 4)))
        for t in range(size[0] - window[0] + 1)
        for i in range(size[1] - window[1] + 1)
        for j in range(size[2] - window[2] + 1)
    ]  # fmt: skip
    torch.testing.assert_close(head(x), torch.stack(scores).mean(0), rtol=1e-4, atol=1e-5)


def test_miniature_is_the_same_network_in_small():
    model = I3D(TINY)
    assert 0.2e6 < sum(p.numel() for p in model.parameters()) < 0.4e6
    assert model.features(torch.zeros(1, 3, 16, 80, 80)).shape == (1, 128, 8, 5, 5)
    with pytest.raises(ValueError, match=r"no classifier.*num_classes"):
        model(torch.zeros(1, 3, 16, 80, 80))


def test_training_reaches_every_parameter():
    model = I3D(replace(TINY, num_classes=3)).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if name.endswith("running_mean")}
    clips = torch.randn(2, 3, 8, 48, 48, generator=torch.Generator().manual_seed(0))
    F.cross_entropy(model(clips), torch.tensor([0, 2])).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert all(not torch.equal(before[name], dict(model.named_buffers())[name]) for name in before)


def test_dropping_the_classifier_keeps_the_features():
    model = randomise_norms(I3D(replace(TINY, num_classes=3)))
    clip = torch.randn(1, 3, 8, 48, 48, generator=torch.Generator().manual_seed(0))
    features, total = model.features(clip), sum(p.numel() for p in model.parameters())
    assert torch.equal(model.without_classifier().features(clip), features)
    assert total - sum(p.numel() for p in model.parameters()) == 128 * 3 + 3


@pytest.mark.parametrize(("change", "message"), [
    ({"depths": (1, 2)}, "one entry for each stage"),
    ({"inflation": ((1,), (1,), (1, 1))}, "one entry for each block"),
    ({"widths": (63, 96, 128)}, "multiples of bottleneck"),
])  # fmt: skip
def test_impossible_configuration_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)
