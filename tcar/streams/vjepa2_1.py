"""V-JEPA 2.1 (Meta FAIR), the video encoder: every published size, and strict loading of the published files.

A pre-norm vision transformer over tubelets of 2 x 16 x 16 pixels, with rotary positions over time, height and width
in every block and one LayerNorm for each of four output levels, of which only the last is read here. Modules carry
the published names, so a checkpoint loads key by key.
Source: https://github.com/facebookresearch/vjepa2 (its `vision_transformer.py` and `modules.py`).
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tcar.fusion.positions import rotate
from tcar.streams.weights import CheckpointError, mismatch, read_checkpoint, read_state, unwrapped

# Rows and columns are measured on the grid of the 256-px pretraining: a larger frame has a finer step.
REFERENCE_CELLS = 16
ROPE_BASE = 10_000
EPS = 1e-6


@dataclass(frozen=True)
class VJepa21Config:
    """Shape of a V-JEPA 2.1 encoder: `hidden` is the width inside a feed-forward layer, `norms` the output levels."""

    width: int
    depth: int
    heads: int
    hidden: int
    patch: int = 16
    tubelet: int = 2
    norms: int = 4


# The published encoders.
SIZES = {
    "b": VJepa21Config(width=768, depth=12, heads=12, hidden=3072),
    "l": VJepa21Config(width=1024, depth=24, heads=16, hidden=4096),
    "g": VJepa21Config(width=1408, depth=40, heads=22, hidden=6144),
    "G": VJepa21Config(width=1664, depth=48, heads=26, hidden=8192),
}

# Where a published file keeps the encoder that is meant for use; it also holds a predictor and training state.
KEYS = {"b": "ema_encoder", "l": "ema_encoder", "g": "target_encoder", "G": "target_encoder"}
PREFIX = "module.backbone."
ENCODERS = ("ema_encoder", "target_encoder", "encoder")


@lru_cache(maxsize=16)
def rope_table(
    grid: tuple[int, int, int], head_dim: int, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "n pairs 2"]:
    """Return cosine and sine of the angle by which each token's channel pairs (2k, 2k+1) turn, for a grid (t, h, w).

    A third of a head's channels, rounded down to even, turns with the tubelet's index, the next with the row and the
    next with the column, both stretched to 0 ... 15 whatever the grid; the rest is left as it is. Pair k of an axis of
    d channels turns by position * 10000^(-2k/d) radians. The table is float64 for float64 tokens, else float32:
    angles in half precision would be off by up to 0.01 rad. One row or column alone sits at 0.
    """
    axis = 2 * (head_dim // 3 // 2)
    # Tables made inside inference_mode could not be used in a later training step.
    with torch.inference_mode(False), torch.no_grad():
        frequencies = ROPE_BASE ** -(torch.arange(0, axis, 2, dtype=torch.float64, device="cpu") / axis)
        angles = torch.zeros(*grid, head_dim // 2, dtype=torch.float64, device="cpu")
        for i, cells in enumerate(grid):
            positions = torch.arange(cells, dtype=torch.float64, device="cpu")
            if i > 0:
                positions *= (REFERENCE_CELLS - 1) / max(cells - 1, 1)
            turn = torch.outer(positions, frequencies)
            angles[..., i * axis // 2 : (i + 1) * axis // 2] = turn[(slice(None), *(None,) * (2 - i))]
        table = torch.stack([angles.cos(), angles.sin()], dim=-1).flatten(0, 2)
        return table.to(device, torch.promote_types(dtype, torch.float32))


class PatchEmbed(nn.Module):
    """Cut clips into boxes of (time, height, width) pixels and project each to a token; time, row, column order."""

    def __init__(self, width: int, box: tuple[int, int, int]):
        super().__init__()
        self.proj = nn.Conv3d(3, width, kernel_size=box, stride=box)

    def forward(self, clips: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b n d"]:
        return self.proj(clips.to(self.proj.weight.dtype)).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention of all tokens with rotary positions on queries and keys."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b n d"], table: Float[Tensor, "n pairs 2"]) -> Float[Tensor, "b n d"]:
        parts = self.qkv(x).unflatten(-1, (3 * self.heads, -1))
        turned = rotate(parts[:, :, : 2 * self.heads], table)
        q, k, v = (*turned.split(self.heads, dim=2), parts[:, :, 2 * self.heads :])
        read = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (q, k, v)))
        return self.proj(read.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers around an exact (erf) GELU."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: VJepa21Config):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=EPS)
        self.attn = Attention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width, eps=EPS)
        self.mlp = Mlp(config.width, config.hidden)

    def forward(self, x: Float[Tensor, "b n d"], table: Float[Tensor, "n pairs 2"]) -> Float[Tensor, "b n d"]:
        x = x + self.attn(self.norm1(x), table)
        return x + self.mlp(self.norm2(x))


class VJepa21Encoder(nn.Module):
    """V-JEPA 2.1's encoder: `encoder(clips)` takes clips of normalised RGB `[b 3 t h w]` and returns tokens `[b n d]`.

    Tokens run in time, row, column order over `grid(t, h, w)`. A clip of one frame goes through the image stem; others
    have an even number of frames, and sides are multiples of a patch, which the stream sees to. ImageNet's mean and
    deviation normalise the pixels, from [0, 1], before this.
    """

    def __init__(self, config: VJepa21Config):
        super().__init__()
        self.config = config
        self.width = config.width
        self.patch_embed = PatchEmbed(config.width, (config.tubelet, config.patch, config.patch))
        self.patch_embed_img = PatchEmbed(config.width, (1, config.patch, config.patch))
        self.video_mod_embed = nn.Parameter(torch.randn(1, 1, config.width) * 0.02)
        self.img_mod_embed = nn.Parameter(torch.randn(1, 1, config.width) * 0.02)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norms_block = nn.ModuleList(nn.LayerNorm(config.width, eps=EPS) for _ in range(config.norms))

    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the tokens (t, h, w) of clips that long and large, in frames and pixels."""
        patch = self.config.patch
        return max(frames // self.config.tubelet, 1), height // patch, width // patch

    def forward(self, clips: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b n d"]:
        """Return the last block's tokens, through the norm of the last level."""
        if clips.shape[2] == 1:
            x = self.patch_embed_img(clips) + self.img_mod_embed
        else:
            x = self.patch_embed(clips) + self.video_mod_embed
        table = rope_table(self.grid(*clips.shape[2:]), self.width // self.config.heads, x.dtype, x.device)
        for block in self.blocks:
            x = block(x, table)
        return self.norms_block[-1](x)


def load_vjepa2_1(path: str | Path, size: str) -> VJepa21Encoder:
    """Load a published encoder of size "b", "l", "g" or "G" strictly, in float32.

    `path` is a file as published, of which only the encoder's own tensors are copied into memory, or one that holds
    that encoder's tensors alone (.safetensors or PyTorch), with or without the published prefix.
    Raises CheckpointError for a file that is unreadable or of another network, or listing the keys missing, left over
    or misshapen.
    """
    found, encoders = _encoders(path)
    state = encoders.get(KEYS[size], encoders.get(""))
    kinds = map(_kind, encoders.values() if state is None else [state])
    kind = next(filter(None, kinds), size)
    if kind == "V-JEPA 2":
        raise CheckpointError(
            f"{path}: holds V-JEPA 2, another network (one final norm, no norms_block, other rotary positions); "
            "load it as V-JEPA 2, or download a V-JEPA 2.1 file"
        )
    if kind != size:
        shape = SIZES[kind]
        raise CheckpointError(
            f"{path}: holds an encoder of size {kind!r} ({shape.width} wide, {shape.depth} blocks), "
            f"not {size!r}; load it as {kind!r}"
        )
    if state is None:
        raise CheckpointError(f"{path}: has no {KEYS[size]!r}, where size {size!r} keeps its encoder; it has {found}")
    if not all(isinstance(value, Tensor) and value.is_floating_point() for value in state.values()):
        raise CheckpointError(f"{path}: {KEYS[size]!r} holds more than floating-point tensors")
    with torch.device("meta"):
        encoder = VJepa21Encoder(SIZES[size])
    own = encoder.state_dict()
    mismatch({key: value.shape for key, value in own.items()}, state).refuse(path, state)
    # A copy, even of float32: what is mapped from a file must not change or vanish with it.
    copies = {
        key: value.to(torch.float32, copy=True, memory_format=torch.contiguous_format) for key, value in state.items()
    }
    encoder.load_state_dict(copies, assign=True)
    return encoder


def _encoders(path: str | Path) -> tuple[list[str], dict[str, dict[str, Tensor]]]:
    """Return what a file holds by name, and of that the encoders, without prefix; "" is a file that is one itself."""
    held = read_checkpoint(path)
    if not isinstance(held, dict):
        raise CheckpointError(f"{path}: holds no dictionary of weights")
    names = [name for name in ENCODERS if isinstance(held.get(name), dict)]
    if not names and any(isinstance(value, Tensor | dict) for value in held.values()):
        held, names = {"": read_state(path)}, [""]
    encoders = {}
    for name in names:
        *_, encoders[name] = unwrapped({str(key).removeprefix(PREFIX): value for key, value in held[name].items()})
    return [str(name) for name in held], encoders


def _kind(state: dict[str, Tensor]) -> str | None:
    """Return the size that an encoder's tensors seem to be, "V-JEPA 2" for the network before, or None."""
    levels = any(key.startswith("norms_block.") for key in state)
    if not levels and ("norm.weight" in state or "encoder.layernorm.weight" in state):
        return "V-JEPA 2"
    blocks = {int(match[1]) for match in map(re.compile(r"blocks\.(\d+)\.").match, state) if match}
    width = getattr(state.get("video_mod_embed"), "shape", (0,))[-1]
    seen = (width, max(blocks, default=-1) + 1)
    return next((size for size, config in SIZES.items() if (config.width, config.depth) == seen), None)
