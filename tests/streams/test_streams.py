"""Streams: published weights load strictly, tokens match plain calls, pooling matches a loop, names and seeds hold."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Dinov2Model

from tcar.streams import pretrained
from tcar.streams.grids import Tokens, pool_tokens
from tcar.streams.i3d import I3D, I3DConfig
from tcar.streams.image import DINOV2_TINY
from tcar.streams.packaged import SEEDS, packaged
from tcar.streams.registry import create_stream, register_stream, stream_cost, stream_spec, weights_digest
from tcar.streams.weights import CheckpointError

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
SIZES = {"dinov2_tiny": 112, "dinov2_vits14": 42, "dinov2_vits14_reg": 42, "i3d_r50": 48, "i3d_tiny": 80}


def frames(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


@pytest.fixture(scope="module")
def built():
    """One stream of each cheap name, at a small input size where the network allows it."""
    return {name: create_stream(name, input_size=size) for name, size in SIZES.items()}


# --- sizes


def test_full_size_defaults():
    with torch.device("meta"):
        motion, semantic = create_stream("i3d_r50"), create_stream("dinov2_vits14")
    assert stream_cost(motion)["grid"] == [4, 7, 7]
    assert motion.width == 2048
    assert stream_cost(motion)["parameters"] == 28_043_472 - (2048 * 400 + 400)
    assert semantic.width == 384
    assert semantic.backbone.config._attn_implementation == "sdpa"


def test_cost_counts_the_multiplications(built):
    width, layers, tokens = 128, 4, 65
    layer = tokens * 12 * width**2 + 2 * tokens**2 * width
    expected = 8 * (layers * layer + 64 * width * 3 * 14**2)
    assert stream_cost(built["dinov2_tiny"])["gflops"] == pytest.approx(2e-9 * expected, rel=1e-6)


# --- what the backbone is given


def capture(stream, clip) -> np.ndarray:
    """The images a backbone receives, back in [0, 255]."""
    entrance = stream.backbone.blocks[0] if hasattr(stream.backbone, "blocks") else stream.backbone
    seen = []
    hook = entrance.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    stream(clip)
    hook.remove()
    images = seen[0] if seen[0].ndim == 4 else seen[0][0].transpose(0, 1)
    mean, std = (MEAN, STD) if stream.role == "semantic" else (0.45, 0.225)
    return (images.permute(0, 2, 3, 1).numpy() * std + mean) * 255


@pytest.mark.parametrize(("name", "method"), [("dinov2_tiny", "BICUBIC"), ("i3d_tiny", "BILINEAR")])
@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_resize_agrees_with_pillow(name, method, fit):
    stream = create_stream(name, fit=fit)
    clip = frames(1, 2, 120, 160, 3) // 2 + 64  # away from the ends, where Pillow clips between its two passes
    image = Image.fromarray(clip[0, 1].numpy())
    box = (20, 0, 140, 120) if fit == "crop" else None
    size = (stream.input_size, stream.input_size)
    expected = np.asarray(image.crop(box or (0, 0, 160, 120)).resize(size, Image.Resampling[method]))
    # Pillow also rounds to integers after each pass.
    assert np.abs(capture(stream, clip)[1] - expected).max() < 1.6


def test_crop_keeps_the_place_in_the_whole_frame():
    x = create_stream("i3d_tiny", fit="crop")(frames(1, 4, 120, 160, 3)).coordinates[0, :5, 2]
    torch.testing.assert_close(x, (20 + 120 * (torch.arange(5) + 0.5) / 5) / 160)


def test_dinov2_tokens_are_the_plain_model_with_imagenet_normalisation(built):
    stream, clip = built["dinov2_vits14_reg"], frames(1, 2, 42, 42, 3)
    pixels = torch.from_numpy((clip[0].numpy() / 255 - MEAN) / STD).float().permute(0, 3, 1, 2)
    hidden = stream.backbone(pixel_values=pixels).last_hidden_state
    tokens = stream(clip)
    torch.testing.assert_close(tokens.class_token[0], hidden[:, 0])
    torch.testing.assert_close(tokens.values[0], hidden[:, 5:])  # class token and four registers come first


def test_i3d_tokens_are_the_plain_map_with_kinetics_normalisation(built):
    stream, clip = built["i3d_r50"], frames(1, 8, 48, 48, 3)
    pixels = torch.from_numpy((clip.numpy() / 255 - 0.45) / 0.225).float().permute(0, 4, 1, 2, 3)
    feature_map = stream.backbone.features(pixels)
    tokens = stream(clip)
    t, h, w = tokens.grid
    torch.testing.assert_close(tokens.values[0, 3, 1 * w + 0], feature_map[0, :, 3, 1, 0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(tokens.coordinates[3, 1 * w + 0], torch.tensor([3.5 / t, 1.5 / h, 0.5 / w]))


# --- pooling


@pytest.mark.parametrize("grid", [(8, 4, 4), (4, 2, 3), (1, 1, 1), (8, 5, 5)])
def test_pooling_against_a_loop(grid):
    generator = torch.Generator().manual_seed(0)
    values, class_token = (
        torch.randn(2, 8, 25, 6, generator=generator),
        torch.randn(2, 8, 6, generator=generator),
    )
    coordinates = torch.rand(8, 25, 3, generator=generator)
    pooled = pool_tokens(Tokens(values, coordinates, class_token, (8, 5, 5)), grid)

    def window(cell, cells, size):
        return slice(cell * size // cells, -(-(cell + 1) * size // cells))

    volume, places = values.view(2, 8, 5, 5, 6), coordinates.view(8, 5, 5, 3)
    for i, j, k in np.ndindex(*grid):
        t, y, x = window(i, grid[0], 8), window(j, grid[1], 5), window(k, grid[2], 5)
        n = j * grid[2] + k
        torch.testing.assert_close(pooled.values[:, i, n], volume[:, t, y, x].mean(dim=(1, 2, 3)))
        torch.testing.assert_close(pooled.coordinates[i, n], places[t, y, x].mean(dim=(0, 1, 2)))
        torch.testing.assert_close(pooled.class_token[:, i], class_token[:, t].mean(dim=1))
    assert pooled.grid == grid


@pytest.mark.parametrize("grid", [(16, 4, 4), (8, 6, 5), (0, 1, 1), (8, 5)])
def test_pooling_never_invents_tokens(unchecked, grid):
    tokens = Tokens(torch.zeros(1, 8, 25, 6), torch.zeros(8, 25, 3), None, (8, 5, 5))
    with pytest.raises(ValueError, match=r"cannot pool a token grid \(8, 5, 5\)"):
        pool_tokens(tokens, grid)


# --- names, seeds and weights


def test_unknown_and_taken_names():
    with pytest.raises(ValueError, match=r"unknown stream 'i3d_r5'; did you mean i3d_r50"):
        create_stream("i3d_r5")
    with pytest.raises(ValueError, match="'i3d_r50' is registered already"):
        register_stream(stream_spec("i3d_r50"))


def test_random_weights_follow_the_seed_and_leave_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    digests = [weights_digest(create_stream("i3d_tiny", seed=seed)) for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(3), expected)
    assert digests[0] == digests[1] != digests[2]


def test_digest_sees_one_changed_number():
    stream = create_stream("dinov2_tiny")
    before = weights_digest(stream)
    stream.backbone.layernorm.bias[7] += 1e-6
    assert weights_digest(stream) != before


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["dinov2_tiny", "i3d_tiny"])
def test_packaged_weights(name, seed):
    stream = create_stream(name, checkpoint=packaged(name, seed))
    stored = load_file(packaged(name, seed))
    assert stream.pretrained
    assert all(torch.equal(value, stored[key].to(value)) for key, value in stream.backbone.state_dict().items())
    assert packaged(name, seed).with_suffix(".json").is_file()
    assert weights_digest(stream) != weights_digest(create_stream(name))
    default = create_stream(name, pretrained=True)
    assert (weights_digest(stream) == weights_digest(default)) == (seed == 0)


def test_published_dinov2_folder_and_file_load_exactly(tmp_path):
    model = pretrained.build(Dinov2Model, DINOV2_TINY)
    model.save_pretrained(tmp_path)  # transformers writes the published key names
    assert any("attention.attention.query" in key for key in load_file(tmp_path / "model.safetensors"))
    for checkpoint in (tmp_path, tmp_path / "model.safetensors"):
        loaded = pretrained.load(Dinov2Model, DINOV2_TINY, checkpoint).state_dict()
        assert loaded.keys() == model.state_dict().keys()
        assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())


def test_dinov2_checkpoint_that_does_not_match_is_listed(tmp_path):
    pretrained.build(Dinov2Model, DINOV2_TINY).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["surplus.weight"] = state.pop("layernorm.weight")
    state["embeddings.cls_token"] = torch.zeros(1, 1, 64)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    faults = r"missing \(1\): layernorm.weight\n.*unexpected \(1\): surplus.weight\n.*misshapen \(1\): .*cls_token"
    with pytest.raises(CheckpointError, match=faults):
        pretrained.load(Dinov2Model, DINOV2_TINY, tmp_path)


def test_i3d_checkpoint_in_pytorchvideo_layout(tmp_path):
    path = tmp_path / "I3D_8x8_R50.pyth"
    model = I3D(I3DConfig(num_classes=174))
    torch.save({"model_state": model.state_dict()}, path)
    stream = create_stream("i3d_r50", checkpoint=path)
    assert stream.pretrained
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in stream.backbone.state_dict().items())


class Harmful:
    def __reduce__(self):
        return print, ("code ran while loading",)


@pytest.mark.parametrize("fault", ["absent", "empty", "cut", "text", "code", "list"])
def test_unreadable_checkpoints(tmp_path, capsys, fault):
    path = tmp_path / "weights.pyth"
    torch.save({"model_state": I3D(I3DConfig()).blocks[0].state_dict()}, path)
    whole = path.read_bytes()
    contents = {
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "text": b"hello",
        "code": pickle.dumps(Harmful(), 2),
    }
    if fault == "absent":
        path.unlink()
    elif fault == "list":
        torch.save([torch.zeros(2)], path)
    else:
        path.write_bytes(contents[fault])
    with pytest.raises(CheckpointError, match=r"i3d_r50: .*weights.pyth: (no such|not a readable|holds no)"):
        create_stream("i3d_r50", checkpoint=path)
    assert "code ran" not in capsys.readouterr().out


def test_pretrained_without_weights_says_what_to_fetch(tmp_path):
    with pytest.raises(CheckpointError, match=r"i3d_r50: give checkpoint=PATH; download https://.*I3D_8x8_R50.pyth"):
        create_stream("i3d_r50", pretrained=True)
    with pytest.raises(CheckpointError, match=r"no-such/model: .*hf download no-such/model"):
        pretrained.load(Dinov2Model, DINOV2_TINY, "no-such/model")
    with pytest.raises(CheckpointError, match="no such checkpoint file or folder"):
        pretrained.load(Dinov2Model, DINOV2_TINY, tmp_path / "nowhere")


def test_a_backbone_of_another_width_is_refused():
    spec = stream_spec("dinov2_vits14")
    with pytest.raises(ValueError, match="dinov2_vits14: its backbone is 128 wide, 384 expected"):
        spec.stream_class(pretrained.build(Dinov2Model, DINOV2_TINY), spec)
    with pytest.raises(ValueError, match="input_size 100 is not a multiple of its patch 14"):
        create_stream("dinov2_tiny", input_size=100)
