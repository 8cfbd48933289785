"""V-JEPA 2.1 against published counts and angles, a slow reference by the published keys, and V-JEPA 2 itself."""

import math

import pytest
import torch
from torch import Tensor

from tcar.fusion.positions import rotate
from tcar.streams.vjepa2_1 import SIZES, VJepa21Config, VJepa21Encoder, rope_table

SMALL = VJepa21Config(width=128, depth=5, heads=2, hidden=320)


def random_state(config: VJepa21Config, seed: int = 0) -> dict[str, Tensor]:
    """Weights of every key that all matter: norms off one, biases off zero, attention that is not uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in VJepa21Encoder(config).state_dict().items()}
    state = {}
    for key, shape in shapes.items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        if "norm" in key and key.endswith("weight"):
            state[key] = 1 + 0.2 * noise
        elif key.endswith("bias") or "mod_embed" in key:
            state[key] = 0.3 * noise
        else:
            state[key] = noise * (1.5 / math.sqrt(shape[1:].numel()))
    return state


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return random_state(SMALL)


@pytest.fixture(scope="module")
def encoder(state) -> VJepa21Encoder:
    encoder = VJepa21Encoder(SMALL).double()
    encoder.load_state_dict(state)
    return encoder.eval()


def clips(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the slow reference


def turns(place, head_dim: int, layout: str) -> Tensor:
    """The matrix that turns one head's channels of the token at (time, row, column), two by two."""
    axis = 2 * ((head_dim // 3) // 2)
    matrix = torch.eye(head_dim, dtype=torch.float64)
    for number, position in enumerate(place):
        for k in range(axis // 2):
            even = number * axis + 2 * k
            # V-JEPA 2 repeats a ... j, a ... j over the channels, so the two of a pair take different angles.
            steps = (k, k) if layout == "interleaved" else (2 * k % (axis // 2), (2 * k + 1) % (axis // 2))
            first, second = (position / 10000 ** (step / (axis // 2)) for step in steps)
            matrix[even, even], matrix[even, even + 1] = math.cos(first), -math.sin(first)
            matrix[even + 1, even], matrix[even + 1, even + 1] = math.sin(second), math.cos(second)
    return matrix


def reference(state, x, config=SMALL, layout="interleaved", rescale=True) -> Tensor:
    """The last block's tokens before any norm, from the tensors of a checkpoint alone."""
    frames, height, width = x.shape[2:]
    stem, mode, long = ("patch_embed_img", "img", 1) if frames == 1 else ("patch_embed", "video", 2)
    rows, columns = height // 16, width // 16
    tokens, matrices = [], []
    for time in range(frames // long):
        for row in range(rows):
            for column in range(columns):
                box = x[:, :, time * long :][:, :, :long, row * 16 :, column * 16 :][..., :16, :16]
                tokens.append(torch.einsum("bcthw,dcthw->bd", box, state[f"{stem}.proj.weight"]))
                place = [time, row, column]
                if rescale:
                    place = [time, row * 15 / (rows - 1 or 1), column * 15 / (columns - 1 or 1)]
                matrices.append(turns(place, config.width // config.heads, layout))
    x = torch.stack(tokens, dim=1) + state[f"{stem}.proj.bias"] + state[f"{mode}_mod_embed"][0, 0]
    matrices, size = torch.stack(matrices), config.width // config.heads

    def linear(x, name):
        return torch.einsum("bni,oi->bno", x, state[f"{name}.weight"]) + state[f"{name}.bias"]

    for block in (f"blocks.{i}" for i in range(config.depth)):
        qkv = linear(normed(state, x, f"{block}.norm1"), f"{block}.attn.qkv")
        read = []
        for head in range(config.heads):
            q, k, v = (qkv[..., part * config.width + head * size :][..., :size] for part in range(3))
            q, k = (torch.einsum("nij,bnj->bni", matrices, part) for part in (q, k))
            score = torch.einsum("bni,bmi->bnm", q, k) / math.sqrt(size)
            read.append(score.exp() / score.exp().sum(-1, keepdim=True) @ v)
        x = x + linear(torch.cat(read, dim=-1), f"{block}.attn.proj")
        y = linear(normed(state, x, f"{block}.norm2"), f"{block}.mlp.fc1")
        x = x + linear(y * (1 + torch.erf(y / math.sqrt(2))) / 2, f"{block}.mlp.fc2")
    return x


def normed(state, x, name) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * state[f"{name}.weight"]
        + (state[f"{name}.bias"])
    )


# --- published facts


@pytest.mark.parametrize(("size", "width", "heads", "parameters", "tensors"), [
    ("b", 768, 12, 86_833_152, 158),
    ("l", 1024, 16, 304_680_960, 302),
    ("g", 1408, 22, 1_013_267_968, 494),
    ("G", 1664, 26, 1_845_216_768, 590),
])  # fmt: skip
def test_the_published_sizes(size, width, heads, parameters, tensors):
    with torch.device("meta"):
        encoder = VJepa21Encoder(SIZES[size])
    assert sum(p.numel() for p in encoder.parameters()) == parameters
    assert len(encoder.state_dict()) == tensors == 12 * SIZES[size].depth + 14
    assert SIZES[size].heads == heads and width == 64 * heads
    # 16 frames of 384 px are 8 x 24 x 24 tokens.
    assert encoder(torch.empty(1, 3, 16, 384, 384, device="meta")).shape == (1, 4608, width)


def test_the_published_keys_of_the_large_size():
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in VJepa21Encoder(SIZES["l"]).state_dict().items()}
    expected = {"patch_embed.proj.weight": (1024, 3, 2, 16, 16), "patch_embed_img.proj.weight": (1024, 3, 1, 16, 16)}
    expected |= dict.fromkeys(("img_mod_embed", "video_mod_embed"), (1, 1, 1024))
    linears = {"attn.qkv": (3072, 1024), "attn.proj": (1024, 1024), "mlp.fc1": (4096, 1024), "mlp.fc2": (1024, 4096)}
    for block in range(24):
        expected |= {f"blocks.{block}.{name}.weight": shape for name, shape in linears.items()}
        expected |= {f"blocks.{block}.{name}.bias": shape[:1] for name, shape in linears.items()}
    norms = [f"blocks.{block}.norm{i}" for block in range(24) for i in (1, 2)] + [f"norms_block.{i}" for i in range(4)]
    expected |= {f"{name}.{kind}": (1024,) for name in norms for kind in ("weight", "bias")}
    expected |= dict.fromkeys(("patch_embed.proj.bias", "patch_embed_img.proj.bias"), (1024,))
    assert shapes == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("channel", "token", "expected"), [
    (0, (1, 0, 0), (0.540302, 0.841471)),
    (2, (1, 0, 0), (0.921796, 0.387674)),
    (40, (0, 0, 1), (0.794766, 0.606916)),
    (20, (0, 1, 0), (0.794766, 0.606916)),
    (60, (1, 1, 1), (1, 0)),
    (62, (1, 23, 23), (1, 0)),
])  # fmt: skip
def test_the_published_angles(dtype, channel, token, expected):
    x = torch.zeros(1, 2 * 24 * 24, 1, 64, dtype=dtype)
    time, row, column = token
    index = (time * 24 + row) * 24 + column
    x[0, index, 0, channel] = 1
    turned = rotate(x, rope_table((2, 24, 24), 64, dtype, x.device))[0, index, 0]
    assert turned.dtype == dtype
    assert turned[channel : channel + 2].tolist() == pytest.approx(expected, abs=max(1e-6, torch.finfo(dtype).eps / 2))
    assert turned.count_nonzero() == sum(value != 0 for value in expected)


def test_half_precision_keeps_the_angles_of_late_tubelets():
    # cos and sin of 31 * 10000^(-k/10), which bfloat16 frequencies would miss by up to 0.01.
    table = rope_table((32, 1, 1), 64, torch.bfloat16, torch.device("cpu"))[31, :10]
    angles = [31 * 10000 ** (-k / 10) for k in range(10)]
    assert table[:, 0].tolist() == pytest.approx(list(map(math.cos, angles)), abs=1e-6)
    assert table[:, 1].tolist() == pytest.approx(list(map(math.sin, angles)), abs=1e-6)


# --- the whole encoder

SHAPES = {
    "still": (2, 3, 1, 64, 96),
    "the reference grid": (1, 3, 2, 256, 256),
    "four frames": (2, 3, 4, 48, 80),
    "ten frames, one row": (1, 3, 10, 16, 64),
    "one column": (1, 3, 4, 32, 16),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_agrees_with_the_slow_reference(encoder, state, shape):
    x = clips(*shape)
    with torch.no_grad():
        expected = normed(state, reference(state, x), "norms_block.3")
        torch.testing.assert_close(encoder(x), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("layout", "rescale"), [("tiled", True), ("interleaved", False)])
def test_the_reference_would_see_the_rotation_of_v_jepa_2(encoder, state, layout, rescale):
    x = clips(1, 3, 4, 80, 48)
    right, wrong = (reference(state, x, **how) for how in ({}, {"layout": layout, "rescale": rescale}))
    assert (normed(state, wrong, "norms_block.3") - encoder(x)).abs().max() > 0.1
    assert (normed(state, right, "norms_block.3") - encoder(x)).abs().max() < 1e-9


def test_the_reference_is_v_jepa_2_but_for_the_differences(state):
    """With the rotation of V-JEPA 2 and no modality vector, the reference is transformers' V-JEPA 2."""
    from transformers import VJEPA2Config, VJEPA2Model  # seconds to import, and only after tcar

    config = VJEPA2Config(
        crop_size=80, frames_per_clip=4, hidden_size=128, num_attention_heads=2, num_hidden_layers=5, mlp_ratio=2.5,
        pred_hidden_size=12, pred_num_attention_heads=2, pred_num_hidden_layers=1,
    )  # fmt: skip
    model = VJEPA2Model(config).double().eval()
    own = {key: value for key, value in state.items() if not key.startswith("norms_block") and "img" not in key}
    own["video_mod_embed"] = torch.zeros(1, 1, 128, dtype=torch.float64)
    theirs = {}
    for key, value in own.items():
        if key.startswith("patch_embed"):
            theirs[key.replace("patch_embed", "encoder.embeddings.patch_embeddings")] = value
        elif ".attn.qkv." in key:
            for name, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                theirs["encoder." + key.replace("blocks", "layer").replace("attn.qkv", f"attention.{name}")] = part
        elif key.startswith("blocks"):
            theirs["encoder." + key.replace("blocks", "layer").replace("attn", "attention")] = value
    theirs |= {f"encoder.layernorm.{kind}": state[f"norms_block.3.{kind}"] for kind in ("weight", "bias")}
    missing = model.load_state_dict(theirs, strict=False)
    assert not missing.unexpected_keys and all(key.startswith("predictor") for key in missing.missing_keys)
    x = clips(2, 3, 4, 80, 80)
    with torch.no_grad():
        expected = model(x.transpose(1, 2), skip_predictor=True).last_hidden_state
    tokens = reference(own, x, layout="tiled", rescale=False)
    # Its final norm is in float64 too; its softmax runs in float32.
    torch.testing.assert_close(normed(state, tokens, "norms_block.3"), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("frames", "long"), [(1, 1), (4, 2)])
def test_a_box_of_pixels_is_one_token(encoder, frames, long):
    before, after = clips(1, 3, frames, 48, 80), clips(1, 3, frames, 48, 80)
    time, row, column = frames // long - 1, 1, 3
    after[:, :, time * long :, row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] += 1
    seen = []
    hook = encoder.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    encoder(before), encoder(after)
    hook.remove()
    changed = (seen[0] != seen[1]).any(dim=-1)[0]
    assert encoder.grid(frames, 48, 80) == (frames // long, 3, 5)
    assert changed.nonzero().tolist() == [[(time * 3 + row) * 5 + column]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("shape", [(1, 3, 4, 48, 80), (1, 3, 1, 48, 80)])
def test_half_precision_stays_close(encoder, state, dtype, autocast, shape):
    half = VJepa21Encoder(SMALL)
    half.load_state_dict(state)
    half = half if autocast else half.to(dtype)
    x = clips(*shape)
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=autocast):
        tokens = half(x.float())
    assert tokens.dtype == (torch.float32 if autocast else dtype)
    exact = encoder(x)
    error = (tokens - exact).square().mean().sqrt() / exact.std()
    assert error < {torch.bfloat16: 0.1, torch.float16: 0.01}[dtype]


def test_single_precision_is_exact_to_its_digits(encoder, state):
    single = VJepa21Encoder(SMALL)
    single.load_state_dict(state)
    x = clips(1, 3, 8, 80, 48)
    torch.testing.assert_close(single(x.float()).double(), encoder(x), rtol=0, atol=1e-4)


def test_tables_of_an_inference_serve_a_gradient(state):
    encoder = VJepa21Encoder(SMALL)
    encoder.load_state_dict(state)
    x = clips(1, 3, 2, 112, 16).float()
    with torch.inference_mode():
        expected = encoder(x)
    x.requires_grad_()
    tokens = encoder(x)
    tokens.square().sum().backward()
    assert torch.equal(tokens, expected)
    assert x.grad.abs().amin(dim=(0, 1, 2)).min() > 0
    unused = {key for key, p in encoder.named_parameters() if p.grad is None}
    levels = {f"norms_block.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")}
    assert unused == levels | {"img_mod_embed", "patch_embed_img.proj.weight", "patch_embed_img.proj.bias"}
