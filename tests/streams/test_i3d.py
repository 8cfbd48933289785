"""I3D against published facts (`test_i3d_layouts`: against a slow reference), in training, and without classifier."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tcar.streams.i3d import I3D, TINY


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


def test_pooling_in_time_takes_steps_in_twos_and_drops_an_odd_one():
    model = randomise_norms(I3D(replace(TINY, temporal_pool=2)))
    clip = torch.randn(1, 3, 18, 32, 32, generator=torch.Generator().manual_seed(0))
    before = model.blocks[1](model.blocks[0](clip))
    pooled = torch.stack([before[:, :, t : t + 2].amax(dim=2) for t in range(0, 8, 2)], dim=2)
    for stage in model.blocks[3:]:
        pooled = stage(pooled)
    torch.testing.assert_close(model.features(clip), pooled)
    assert pooled.shape == (1, 128, 4, 2, 2)


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
