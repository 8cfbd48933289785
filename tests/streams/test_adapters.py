"""Adapters: nothing changes at first, only they learn, nothing is kept below them, and they come back exactly."""

import copy
from dataclasses import replace

import pytest
import tiny
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from tcar.fusion.kinds import FusionConfig
from tcar.lab import params
from tcar.lab.steps import streams
from tcar.models.budget import BudgetError
from tcar.models.tca import TCA, TCAConfig
from tcar.streams import pretrained
from tcar.streams.adapters import SCALE, add_adapters
from tcar.streams.registry import create_stream, stream_cost, weights_digest
from tcar.streams.weights import CheckpointError

CLIP = torch.randint(0, 256, (2, 8, 40, 56, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
STREAMS = {"dinov2_tiny": 28, "timm:vit_tiny_patch16_224": 32, "dinov3_vits16": 32}  # name: pixels at which it is cheap


def adapted(name: str = "dinov2_tiny", blocks: int = 2, width: int = 8, **options):
    return add_adapters(create_stream(name, input_size=STREAMS[name]), blocks, width, **options)


def disturb(stream, seed: int = 1) -> None:
    """Give the adapters other values than those they start with."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in stream.adapters.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) / 4)


@pytest.fixture(scope="module")
def config() -> TCAConfig:
    fusion = FusionConfig(num_classes=3, width=16, heads=2, blocks=1, dropout=0, drop_path=0)
    return replace(tiny.config(fusion, ("a", "b", "c"), {"semantic": 4, "motion": 8}), semantic_adapters=2)


@pytest.mark.parametrize("name", STREAMS)
def test_the_stream_starts_unchanged_and_changes_with_them(name):
    plain, stream = create_stream(name, input_size=STREAMS[name]), adapted(name)
    before = plain(CLIP)
    assert torch.equal(stream(CLIP).values, before.values)
    digest = weights_digest(stream)
    assert digest == weights_digest(plain)
    disturb(stream)
    assert (stream(CLIP).values - before.values).abs().max() > 0.1
    assert weights_digest(stream) == digest  # of the frozen weights, whatever the adapters are


def test_they_stand_beside_the_feed_forward_of_the_last_blocks():
    """Against the blocks of the backbone, written out one sublayer after the other."""
    stream = adapted(blocks=3)
    disturb(stream)
    images, batch = stream._prepare(CLIP)
    x = stream.backbone.embeddings(images)
    with torch.no_grad():
        for index, block in enumerate(stream.blocks):
            x = x + block.layer_scale1(block.attention(block.norm1(x))[0])
            normed = block.norm2(x)
            added = block.mlp.fc2(F.gelu(block.mlp.fc1(normed)))
            if index >= 1:  # of four blocks, the last three
                weights = dict(stream.adapters[index - 1].named_parameters())
                hidden = F.relu(F.linear(normed, weights["down.weight"], weights["down.bias"]))
                added = added + SCALE * F.linear(hidden, weights["up.weight"], weights["up.bias"])
            x = x + block.layer_scale2(added)
        expected = stream.backbone.layernorm(x)[:, 1:].unflatten(0, (batch, -1))
    torch.testing.assert_close(stream(CLIP).values.detach(), expected)


def test_only_they_get_a_gradient_and_the_stream_stays_in_evaluation_mode():
    stream = adapted()
    disturb(stream)
    stream.train()
    assert not any(module.training for module in stream.modules())
    stream(CLIP).values.square().sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in stream.backbone.parameters())
    assert all(p.grad.abs().sum() > 0 for p in stream.adapters.parameters())
    with torch.no_grad():
        assert not stream(CLIP).values.requires_grad


def test_nothing_is_kept_below_the_first_adapted_block():
    """As many bytes are saved for the backward pass whether three, one or no block comes before the adapted one."""

    def saved(depth: int) -> int:
        config = copy.deepcopy(create_stream("dinov2_tiny").backbone.config)
        config.num_hidden_layers = depth
        stream = create_stream("dinov2_tiny", input_size=28)
        stream.backbone = pretrained.build(type(stream.backbone), config).requires_grad_(False).eval()
        add_adapters(stream, 1, 8)
        seen, storages = 0, set()

        def pack(kept):
            nonlocal seen
            if kept.untyped_storage().data_ptr() not in storages:
                storages.add(kept.untyped_storage().data_ptr())
                seen += kept.untyped_storage().nbytes()
            return kept

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
            tokens = stream(CLIP)
        assert tokens.values.requires_grad
        return seen

    assert saved(1) == saved(2) == saved(4) > 0


def test_they_come_from_a_seed_and_leave_the_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first, again, other = (adapted(seed=seed).adapters.state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["0.down.weight"], other["0.down.weight"])
    assert not torch.equal(first["0.down.weight"], first["1.down.weight"])


def test_a_copy_of_the_stream_has_adapters_of_its_own():
    stream = adapted()
    twin = copy.deepcopy(stream)
    disturb(twin)
    plain = create_stream("dinov2_tiny", input_size=28)(CLIP).values
    assert torch.equal(stream(CLIP).values, plain)
    assert not torch.allclose(twin(CLIP).values, plain)


def test_they_count_in_the_cost():
    plain, stream = create_stream("dinov2_tiny"), add_adapters(create_stream("dinov2_tiny"), 2, 8)
    added = 2 * (128 * 8 + 8 + 8 * 128 + 128)
    assert stream_cost(stream)["trained_parameters"] == added
    assert stream_cost(stream)["parameters"] - stream_cost(plain)["parameters"] == added
    flops = 2 * 2 * (8 * 65) * 2 * 128 * 8  # blocks, multiply and add, frames with their tokens, two layers
    assert stream_cost(stream)["gflops"] - stream_cost(plain)["gflops"] == pytest.approx(flops / 1e9)


def test_they_count_in_the_budget(config):
    model = TCA.create(replace(config, adapter_width=8, semantic_frames=8))
    rows = {row["part"]: row for row in model.parameter_table()}
    row = rows["semantic adapters (last 2 blocks)"]
    assert row["trained"] == row["total"] == 2 * (128 * 8 + 8 + 8 * 128 + 128)
    assert row["gflops"] == pytest.approx(2 * 2 * (8 * 65) * 2 * 128 * 8 / 1e9)
    assert rows["semantic stream (dinov2_tiny)"]["trained"] == 0
    assert rows["sum"]["trained"] == row["trained"] + sum(p.numel() for p in model.fusion.parameters())
    limit = rows["sum"]["trained"] - 1
    with pytest.raises(BudgetError, match=rf"(?s)is {limit:,}; lower .*adapter_width\n.*semantic adapters"):
        TCA.create(replace(config, adapter_width=8, max_trained_parameters=limit))


def test_training_the_model_moves_adapters_and_fusion_alone(config):
    torch.manual_seed(0)
    model = TCA.create(config).train()
    frozen = {s: weights_digest(getattr(model, s)) for s in ("semantic", "motion")}
    labels, trained = torch.tensor([0, 1]), [p for p in model.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.AdamW(trained, lr=1e-2), []
    for _ in range(6):
        loss = F.cross_entropy(model(CLIP), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert all(p.abs().sum() > 0 for p in model.semantic.adapters.parameters())  # the last layers began at zero
    assert frozen == {s: weights_digest(getattr(model, s)) for s in ("semantic", "motion")}


def test_saving_and_loading_is_exact(config, tmp_path):
    model = TCA.create(config, seed=5).eval()
    disturb(model.semantic)
    model.save_pretrained(tmp_path)
    loaded = TCA.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded(CLIP), model(CLIP))
    first, second = model.state_dict(), loaded.state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    kept = load_file(tmp_path / "model.safetensors")
    adapters = {f"semantic_adapters.{key}" for key in model.semantic.adapters.state_dict()}
    assert kept.keys() == model.fusion.state_dict().keys() | adapters
    assert "Adapters of 64 channels in the last 2 blocks" in (tmp_path / "README.md").read_text()


def test_a_kept_model_without_its_adapters_is_refused(config, tmp_path):
    TCA.create(config).save_pretrained(tmp_path)
    kept = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in kept.items() if "adapters.1" not in k}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"(?s)missing \(4\): semantic_adapters.1.down.bias.*fetch both"):
        TCA.from_pretrained(tmp_path)


def test_streams_that_cannot_have_them_say_so(config):
    fix = "set semantic_adapters to 0, or take a vision transformer"
    with pytest.raises(ValueError, match=f"i3d_tiny is a motion stream.*{fix}"):
        add_adapters(create_stream("i3d_tiny"), 1, 8)
    with torch.device("meta"):
        convnet, windows = create_stream("timm:convnext_atto"), create_stream("timm:swin_tiny_patch4_window7_224")
    for stream in (convnet, windows):
        with pytest.raises(ValueError, match=f"{stream.name} has no blocks with global attention.*{fix}"):
            add_adapters(stream, 1, 8)
    with pytest.raises(ValueError, match="dinov2_tiny has 4 blocks, semantic_adapters is 5; set it to 4 at most"):
        adapted(blocks=5)
    with pytest.raises(ValueError, match="at least 1 block and 1 channel, got 2 and 0"):
        adapted(width=0)
    with pytest.raises(ValueError, match="has 2 adapters already"):
        add_adapters(adapted(), 1, 8)
    streams = create_stream("dinov2_tiny"), create_stream("i3d_tiny")
    with pytest.raises(ValueError, match=r"dinov2_tiny has 0 adapters, TCAConfig.semantic_adapters is 2; TCA.create"):
        TCA(config, *streams)
    with pytest.raises(ValueError, match="TCAConfig.semantic_adapters must be a whole number of at least 0, got -1"):
        replace(config, semantic_adapters=-1)


def test_tokens_that_change_with_them_are_not_cached(project):
    run = params.from_values({"name": "t", "semantic_adapters": 1, "task": "clips"})
    with pytest.raises(params.ParameterError, match="semantic_adapters is 1.*set it to 0, or train end to end"):
        streams.extract(run, {"train": [], "validation": [], "test": []})
