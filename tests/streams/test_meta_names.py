"""DINOv2 and V-JEPA 2 in the names of Meta's own files, and DINOv2's positions against their formula."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    VJEPA2Config,
    VJEPA2Model,
)

from tcar.streams import image, meta_names, pretrained
from tcar.streams.catalogue import STREAMS
from tcar.streams.registry import create_stream
from tcar.streams.weights import CheckpointError


def cut(config, **sizes):
    config = deepcopy(config)
    for name, value in {"num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 2, **sizes}.items():
        setattr(config, name, value)
    return config


def drawn(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {key: torch.randn(shape, generator=generator) / 5 for key, shape in shapes.items()}


def meta_dinov2(registers: int = 0, gated: bool = False, chunk: str = "") -> dict[str, torch.Tensor]:
    """A file of the published layout, 24 wide with two blocks."""
    shapes = {"cls_token": (1, 1, 24), "pos_embed": (1, 1370, 24), "mask_token": (1, 24),
              "patch_embed.proj.weight": (24, 3, 14, 14), "patch_embed.proj.bias": (24,)}  # fmt: skip
    if registers:
        shapes["register_tokens"] = (1, registers, 24)
    hidden = 64 if gated else 96
    linear = {"attn.qkv": (72, 24), "attn.proj": (24, 24)}
    linear |= {"mlp.w12": (2 * hidden, 24), "mlp.w3": (24, hidden)} if gated else {
        "mlp.fc1": (hidden, 24), "mlp.fc2": (24, hidden)}  # fmt: skip
    for block in range(2):
        before = f"blocks.{chunk}{block}."
        for name, (rows, columns) in linear.items():
            shapes |= {f"{before}{name}.weight": (rows, columns), f"{before}{name}.bias": (rows,)}
        for name in ("norm1.weight", "norm1.bias", "ls1.gamma", "norm2.weight", "norm2.bias", "ls2.gamma"):
            shapes[before + name] = (24,)
    return drawn(shapes | {"norm.weight": (24,), "norm.bias": (24,)})


def cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic kernel with a = -0.75."""
    x, a = np.abs(distance), -0.75
    near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def resampling(old: int, new: int, offset: float) -> np.ndarray:
    """The matrix [new, old] that resamples a row with the scale (new + offset) / old, its ends repeated."""
    matrix = np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) * old / (new + offset) - 0.5
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            matrix[i, np.clip(tap, 0, old - 1)] += cubic(np.array(centre - tap))
    return matrix


def antialiased(old: int, new: int) -> np.ndarray:
    """The matrix of a smaller row where the kernel (a = -0.5) is as wide as the step, and left out at the ends."""
    matrix, step = np.zeros((new, old)), max(old / new, 1)
    for i in range(new):
        x = np.abs((np.arange(old) + 0.5 - (i + 0.5) * old / new) / step)
        near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * (x**3 - 5 * x**2 + 8 * x - 4)
        matrix[i] = np.where(x < 1, near, np.where(x < 2, far, 0))
    return matrix / matrix.sum(axis=1, keepdims=True)


def by_hand(state: dict[str, torch.Tensor], images: torch.Tensor, heads: int, positions: np.ndarray) -> np.ndarray:
    """Tokens of DINOv2 by its formulas, in double, from a file in Meta's names."""
    p = {key: value.double().numpy() for key, value in state.items()}
    rows = images.shape[-1] // 14
    boxes = images.double().numpy().reshape(-1, 3, rows, 14, rows, 14).transpose(0, 2, 4, 1, 3, 5)
    x = boxes.reshape(len(images), rows**2, -1) @ p["patch_embed.proj.weight"].reshape(24, -1).T
    x = x + p["patch_embed.proj.bias"]
    x = np.concatenate([np.broadcast_to(p["cls_token"], (len(x), 1, 24)), x], axis=1) + positions
    if "register_tokens" in p:
        registers = np.broadcast_to(p["register_tokens"], (len(x), p["register_tokens"].shape[1], 24))
        x = np.concatenate([x[:, :1], registers, x[:, 1:]], axis=1)

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * p[f"{name}.weight"] + p[f"{name}.bias"]

    def linear(x, name):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def gelu(x):
        return x * (1 + torch.erf(torch.from_numpy(x) / 2**0.5).numpy()) / 2

    for i in range(2):
        b = f"blocks.{i}."
        joined = linear(norm(x, b + "norm1"), b + "attn.qkv").reshape(*x.shape[:2], 3, heads, -1)
        q, k, v = joined.transpose(2, 0, 3, 1, 4)
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(24 // heads)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        read = (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(1, 2).reshape(x.shape)
        x = x + p[b + "ls1.gamma"] * linear(read, b + "attn.proj")
        h = norm(x, b + "norm2")
        if f"{b}mlp.w12.weight" in p:
            gate, value = np.split(linear(h, b + "mlp.w12"), 2, axis=-1)
            inner = linear(gate / (1 + np.exp(-gate)) * value, b + "mlp.w3")
        else:
            inner = linear(gelu(linear(h, b + "mlp.fc1")), b + "mlp.fc2")
        x = x + p[b + "ls2.gamma"] * inner
    return norm(x, "norm")


def placed(state: dict[str, torch.Tensor], matrix: np.ndarray) -> np.ndarray:
    """Positions resampled along rows and columns by a matrix, the class token's as they are."""
    first, rest = np.split(state["pos_embed"].double().numpy(), [1], axis=1)
    side = matrix.shape[1]
    square = np.einsum("ir,jc,rcd->ijd", matrix, matrix, rest.reshape(side, side, -1))
    return np.concatenate([first, square.reshape(1, -1, 24)], axis=1)


@pytest.mark.parametrize(
    ("kind", "pixels"), [("plain", 224), ("plain", 448), ("plain", 518), ("gated", 56), ("chunked", 56)]
)
def test_a_file_in_metas_names_is_the_published_dinov2_at_every_size(kind, pixels, tmp_path):
    gated = kind == "gated"
    state = meta_dinov2(gated=gated)
    config = cut(Dinov2Config(**STREAMS["dinov2_vits14"].shape), use_swiglu_ffn=gated)
    path = tmp_path / "dinov2_vits14_pretrain.pth"
    torch.save(meta_dinov2(chunk="1.") if kind == "chunked" else state, path)
    model = image.as_published(pretrained.load(Dinov2Model, config, path, names=meta_names.DINOV2)).eval()
    images = torch.randn(1, 3, pixels, pixels, generator=torch.Generator().manual_seed(1))
    positions = placed(state, resampling(37, pixels // 14, 0.1)) if pixels != 518 else state["pos_embed"].numpy()
    with torch.inference_mode():
        found = model(images).last_hidden_state
    np.testing.assert_allclose(found, by_hand(state, images, 2, positions), atol=1e-5, rtol=1e-5)
    whole = dict(model.state_dict())
    with torch.inference_mode():  # what a size alone makes of the positions is another network
        library = pretrained.build(Dinov2Model, config).eval()
        library.load_state_dict(whole)
        assert torch.allclose(library(images).last_hidden_state, found, atol=1e-5) == (pixels == 518)


@pytest.mark.parametrize("pixels", [224, 518])
def test_a_file_in_metas_names_is_the_published_dinov2_with_registers(pixels, tmp_path):
    state = meta_dinov2(registers=4)
    config = cut(Dinov2WithRegistersConfig(**STREAMS["dinov2_vits14_reg"].shape))
    torch.save(state, tmp_path / "weights.pth")
    model = pretrained.load(Dinov2WithRegistersModel, config, tmp_path / "weights.pth", names=meta_names.DINOV2).eval()
    images = torch.randn(1, 3, pixels, pixels, generator=torch.Generator().manual_seed(1))
    positions = placed(state, antialiased(37, pixels // 14)) if pixels != 518 else state["pos_embed"].numpy()
    with torch.inference_mode():
        found = model(images).last_hidden_state
    np.testing.assert_allclose(found, by_hand(state, images, 2, positions), atol=1e-5, rtol=1e-5)


def test_the_registered_stream_is_the_published_network():
    stream = create_stream("dinov2_vits14", input_size=42)
    places = stream.backbone.embeddings.position_embeddings.detach()
    found = stream.backbone.embeddings.interpolate_pos_encoding(torch.empty(1, 10, 384), 42, 42)
    first, rest = np.split(places.double().numpy(), [1], axis=1)
    matrix = resampling(37, 3, 0.1)
    expected = np.einsum("ir,jc,rcd->ijd", matrix, matrix, rest.reshape(37, 37, -1)).reshape(1, 9, -1)
    np.testing.assert_allclose(found.detach(), np.concatenate([first, expected], axis=1), atol=1e-5)


def test_the_packaged_stream_reads_its_own_grid():
    """Its weights were trained on 112 pixels, where no position is resampled."""
    stream = create_stream("dinov2_tiny", pretrained=True)
    assert (stream.input_size // stream.patch) ** 2 + 1 == stream.backbone.embeddings.position_embeddings.shape[1]


# --- V-JEPA 2


def meta_vjepa2(width: int = 96) -> dict[str, torch.Tensor]:
    shapes = {"patch_embed.proj.weight": (width, 3, 2, 16, 16), "patch_embed.proj.bias": (width,)}
    shapes["pos_embed"] = (1, 5, width)
    linear = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
    for block in range(2):
        for name, (rows, columns) in linear.items():
            shapes |= {f"blocks.{block}.{name}.weight": (rows * width, columns * width)}
            shapes |= {f"blocks.{block}.{name}.bias": (rows * width,)}
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            shapes[f"blocks.{block}.{name}"] = (width,)
    return drawn(shapes | {"norm.weight": (width,), "norm.bias": (width,)})


VJEPA2 = VJEPA2Config(crop_size=32, hidden_size=96, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=4,
                      pred_hidden_size=24, pred_num_hidden_layers=1, pred_num_attention_heads=2)  # fmt: skip


def load_vjepa2(path):
    return pretrained.load(VJEPA2Model, VJEPA2, path, left_out=("predictor",), names=meta_names.VJEPA2).encoder


def test_a_file_in_metas_names_is_the_averaged_encoder_of_vjepa2(tmp_path):
    state = meta_vjepa2()
    online = {f"module.backbone.{key}": value + 1 for key, value in state.items()}
    target = {f"module.backbone.{key}": value for key, value in state.items()}
    held = {"encoder": online, "predictor": {"module.backbone.x": torch.zeros(1)}, "opt": {}, "target_encoder": target}
    torch.save(held | {"epoch": 3}, tmp_path / "vitl.pt")
    encoder = load_vjepa2(tmp_path / "vitl.pt")
    own = encoder.state_dict()
    assert torch.equal(own["embeddings.patch_embeddings.proj.weight"], state["patch_embed.proj.weight"])
    assert torch.equal(own["layernorm.bias"], state["norm.bias"])
    for i in range(2):
        layer, theirs = encoder.layer[i], f"blocks.{i}."
        x = torch.randn(1, 7, 96)
        joined = torch.nn.functional.linear(x, state[f"{theirs}attn.qkv.weight"], state[f"{theirs}attn.qkv.bias"])
        for part, name in zip(joined.chunk(3, dim=-1), ("query", "key", "value"), strict=True):
            torch.testing.assert_close(getattr(layer.attention, name)(x), part)
        assert torch.equal(layer.attention.proj.weight, state[f"{theirs}attn.proj.weight"])
        assert torch.equal(layer.mlp.fc2.weight, state[f"{theirs}mlp.fc2.weight"])


def test_vjepa2_1_is_refused_by_its_name(tmp_path):
    state = meta_vjepa2()
    for level in range(4):
        state |= {f"norms_block.{level}.{part}": state.get(f"norm.{part}") for part in ("weight", "bias")}
    state = {key: value for key, value in state.items() if not key.startswith("norm.")}
    torch.save({"ema_encoder": {f"module.backbone.{key}": value for key, value in state.items()}}, tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match=r"file.pt: does not match.*\n(.*\n)*  it looks like V-JEPA 2.1"):
        load_vjepa2(tmp_path / "file.pt")
