"""The whole model: frames to logits, the budget, frozen streams, and keeping it without loss."""

import json
from dataclasses import replace

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from tcar.data.video import segment_indices
from tcar.models.checkpoints import CheckpointError
from tcar.models.fusion import FusionConfig
from tcar.models.streams import create_stream
from tcar.models.tca import TCA, BudgetError, TCAConfig, segment_middles

FUSION = FusionConfig(semantic_width=128, motion_width=96, num_classes=3, width=16, heads=2)


@pytest.fixture(scope="module")
def config() -> TCAConfig:
    return tiny.config(FUSION, ("push", "pull", "hold"), {"semantic": 4, "motion": 8})


@pytest.fixture(scope="module")
def model(config) -> TCA:
    torch.manual_seed(0)
    return TCA.create(config).eval()


@pytest.fixture(scope="module")
def clip() -> torch.Tensor:
    return torch.randint(
        0, 256, (2, 11, 48, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize("count", [1, 4, 8, 31, 50])
def test_the_middles_of_segments_are_those_of_the_feature_store(count):
    assert segment_middles(count, 4).tolist() == segment_indices(count, 4)


def test_one_clip_gives_what_each_streams_own_frames_give(model, clip):
    logits = model(clip)
    assert logits.shape == (2, 3)
    picked = clip[:, segment_indices(11, 4)], clip[:, segment_indices(11, 8)]
    torch.testing.assert_close(model(*picked), logits)
    semantic, semantic_xyz = model.tokens("semantic", picked[0])
    assert semantic.shape == (2, 16, 128)
    assert semantic_xyz.shape == (16, 3)
    motion = model.tokens("motion", picked[1])
    torch.testing.assert_close(model.fusion(semantic, semantic_xyz, *motion), logits)


def test_intermediates_come_only_when_asked_for_and_change_nothing(model, clip):
    logits, steps = model(clip, return_intermediates=True)
    torch.testing.assert_close(logits, model(clip), atol=1e-5, rtol=1e-4)
    assert steps["block0.semantic_from_motion.weights"].shape == (2, 2, 16, 8)


def test_float_frames_mean_the_same_as_bytes(model, clip):
    torch.testing.assert_close(model(clip / 255), model(clip), atol=1e-4, rtol=1e-4)


def test_a_clip_of_too_few_frames_is_refused_by_name(model, clip):
    with pytest.raises(ValueError, match="motion stream needs clips .* of at least 8 frames"):
        model(clip[:, :7])


def test_only_the_fusion_learns_and_the_streams_stay_in_evaluation_mode(model, clip):
    before = {key: value.clone() for key, value in model.motion.state_dict().items()}
    model.train()
    model(clip).sum().backward()
    model.eval()
    assert not model.motion.training
    after = model.motion.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)  # batch-norm statistics among them
    assert all(p.grad is None for s in (model.semantic, model.motion) for p in s.parameters())
    assert all(p.grad is not None for p in model.fusion.parameters())
    model.zero_grad()


def test_the_table_adds_up(model):
    *parts, total = model.parameter_table()
    assert total["part"] == "sum"
    for column in ("total", "trained"):
        assert sum(row[column] for row in parts) == total[column]
    assert total["total"] == sum(p.numel() for p in model.parameters())
    assert {row["trained"] for row in parts if "stream" in row["part"]} == {0}
    assert total["trained"] == sum(p.numel() for p in model.fusion.parameters())


def test_a_model_over_budget_is_refused_with_its_table(config):
    with pytest.raises(
        BudgetError, match="(?s)max_trained_parameters is 1,000.*dinov2_tiny.*fusion.blocks.*sum"
    ):
        TCA.create(replace(config, max_trained_parameters=1000))


def test_wrong_streams_and_widths_are_refused(config):
    semantic, motion = create_stream("dinov2_tiny"), create_stream("i3d_tiny")
    with pytest.raises(ValueError, match="semantic stream is i3d_tiny, the configuration says dinov2_tiny"):
        TCA(config, motion, semantic)
    with pytest.raises(
        ValueError, match="dinov2_tiny is 128 wide, FusionConfig.semantic_width is 64; set it to 128"
    ):
        TCA(replace(config, fusion=replace(config.fusion, semantic_width=64)), semantic, motion)
    with pytest.raises(ValueError, match="holds 2 names, FusionConfig.num_classes is 3"):
        replace(config, class_names=("a", "b"))


@pytest.mark.parametrize("kind", ["cross_attention", "late_concat"])
def test_saving_and_loading_is_exact(config, clip, kind, tmp_path):
    model = TCA.create(replace(config, fusion=replace(config.fusion, kind=kind))).eval()
    model.save_pretrained(tmp_path / "kept")
    loaded = TCA.from_pretrained(tmp_path / "kept")
    assert loaded.config == model.config
    assert not loaded.training
    assert torch.equal(loaded(clip), model(clip))
    first, second = model.state_dict(), loaded.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    weights = load_file(tmp_path / "kept" / "model.safetensors")
    assert weights.keys() == model.fusion.state_dict().keys()  # frozen weights are not kept a second time


def test_a_folder_that_does_not_match_is_refused(model, tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json: not found"):
        TCA.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    kept = json.loads((tmp_path / "config.json").read_text())

    def rewrite(**changes):
        (tmp_path / "config.json").write_text(json.dumps(kept | changes))

    rewrite(config=kept["config"] | {"colour": 1})
    with pytest.raises(CheckpointError, match="TCAConfig has no colour"):
        TCA.from_pretrained(tmp_path)
    rewrite(config={key: value for key, value in kept["config"].items() if key != "motion"})
    with pytest.raises(CheckpointError, match="motion"):
        TCA.from_pretrained(tmp_path)
    rewrite(streams=kept["streams"] | {"motion": kept["streams"]["motion"] | {"digest": "0"}})
    with pytest.raises(CheckpointError, match="motion stream i3d_tiny was saved with other weights"):
        TCA.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a TCA configuration"):
        TCA.from_pretrained(tmp_path)
    rewrite()
    state = load_file(tmp_path / "model.safetensors")
    state["extra"] = state.pop("head.1.bias")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"(?s)missing \(1\): head.1.bias.*unexpected \(1\): extra"):
        TCA.from_pretrained(tmp_path)


def test_the_full_size_pair_stays_in_budget_with_most_parameters_frozen():
    """Widths, shares and budget of DINOv2-S with I3D-R50, without their weights in memory."""
    names, grids = tuple(map(str, range(174))), ((8, 4, 4), (4, 4, 4))
    config = TCAConfig("dinov2_vits14", "i3d_r50", 8, 8, *grids, names, FusionConfig())
    with torch.device("meta"):
        table = TCA.create(config).parameter_table()
    assert table[-1]["trained"] < 17.2e6
    assert (
        table[-1]["trained"] + sum(r["total"] for r in table if "stream" in r["part"]) == table[-1]["total"]
    )
