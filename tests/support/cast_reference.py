"""CAST in loops, numpy and float64, and the small model that the tests compare with it."""

import numpy as np
import torch
from scipy.special import erf
from torch import nn

from tcar.models.cast import CAST, CASTConfig

MINI = CASTConfig(
    num_classes=5, frames=4, image_size=32, width=24, depth=2, heads=3, adapter_width=5, cross_width=12, drop_path=0.5
)
BATCH, MOMENTS, PLACES, SIDE = 2, 2, 4, 32
STREAMS = ("spatial", "temporal")
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
DEAD = "blocks.1.exchange.over_time."  # the last block's patches are read by nothing


def clips(seed=0, batch=BATCH, side=SIDE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 4, side, side, 3), dtype=torch.uint8, generator=generator)


def disturb(model: nn.Module, seed=1) -> nn.Module:
    """Move every weight from where it starts, so that zeros, ones and missing biases hide nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


class Slow:
    """CAST for one clip, place by place and moment by moment, from nothing but a state dict."""

    def __init__(self, model: CAST):
        self.w = {key: value.double().numpy() for key, value in model.state_dict().items()}
        self.heads = model.config.heads
        self.weights = {}

    def linear(self, x, key):
        return x @ self.w[f"{key}.weight"].T + self.w.get(f"{key}.bias", 0)

    def norm(self, x, key, eps):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * self.w[f"{key}.weight"] + self.w[f"{key}.bias"]

    def gelu(self, x):
        return x * (1 + erf(x / 2**0.5)) / 2

    def adapter(self, x, key):
        return self.linear(self.gelu(self.linear(x, f"{key}.down")), f"{key}.up")

    def read(self, q, k, v):
        """Attention of a list of queries over a list of keys, and its weights [h q k]."""
        out, size = np.zeros_like(q), q.shape[1] // self.heads
        weights = np.zeros((self.heads, len(q), len(k)))
        for head in range(self.heads):
            cut = slice(head * size, (head + 1) * size)
            for i in range(len(q)):
                scores = np.array([q[i, cut] @ k[j, cut] / size**0.5 for j in range(len(k))])
                weights[head, i] = np.exp(scores) / np.exp(scores).sum()
                out[i, cut] = sum(weights[head, i, j] * v[j, cut] for j in range(len(k)))
        return out, weights

    def cross(self, x, source, key):
        queries = self.linear(x + self.w[f"{key}.query_position"], f"{key}.query")
        both = self.linear(source + self.w[f"{key}.key_position"], f"{key}.key_value")
        half = both.shape[1] // 2
        out, weights = self.read(queries, both[:, :half], both[:, half:])
        return self.linear(out, f"{key}.out"), weights

    def attend(self, i, s, t):
        """Self-attention with adapters behind it; s is [moments, 1 + places, d], t [moments, places, d]."""
        clip, mae = f"clip.encoder.layers.{i}", f"videomae.encoder.layer.{i}"
        after = s.copy()
        for moment in range(len(s)):
            h = self.norm(s[moment], f"{clip}.layer_norm1", 1e-5)
            q, k, v = (self.linear(h, f"{clip}.self_attn.{x}_proj") for x in "qkv")
            h = self.linear(self.read(q, k, v)[0], f"{clip}.self_attn.out_proj")
            after[moment] += h + self.adapter(h, f"blocks.{i}.attention_adapter.spatial")
        flat = t.reshape(-1, t.shape[-1])
        h = self.norm(flat, f"{mae}.layernorm_before", 1e-6)
        q, k, v = (self.linear(h, f"{mae}.attention.attention.{x}") for x in ("query", "key", "value"))
        h = self.linear(self.read(q, k, v)[0], f"{mae}.attention.output.dense")
        return after, (flat + h + self.adapter(h, f"blocks.{i}.attention_adapter.temporal")).reshape(t.shape)

    def exchange(self, i, s, t):
        """What the exchange adds to both streams."""
        key = f"blocks.{i}.exchange"
        s, t = (
            self.norm(self.linear(x, f"{key}.down.{name}"), f"{key}.norm.{name}", 1e-6)
            for name, x in (("spatial", s), ("temporal", t))
        )
        to_s, to_t = s.copy(), t.copy()
        over_time, over_space = [], []
        for place in range(t.shape[1]):
            to_s[:, 1 + place], weights = self.cross(s[:, 1 + place], t[:, place], f"{key}.over_time")
            over_time.append(weights)
        for moment in range(len(t)):
            to_t[moment], weights = self.cross(t[moment], s[moment, 1:], f"{key}.over_space")
            over_space.append(weights)
        self.weights[f"block{i}.spatial_from_temporal.weights"] = np.stack(over_time)
        self.weights[f"block{i}.temporal_from_spatial.weights"] = np.stack(over_space)
        return self.linear(self.gelu(to_s), f"{key}.up.spatial"), self.linear(self.gelu(to_t), f"{key}.up.temporal")

    def feed_forward(self, i, s, t):
        clip, mae, adapter = (
            f"clip.encoder.layers.{i}", f"videomae.encoder.layer.{i}", f"blocks.{i}.feed_forward_adapter",
        )  # fmt: skip
        h = self.norm(s, f"{clip}.layer_norm2", 1e-5)
        inner = self.linear(h, f"{clip}.mlp.fc1")
        inner = inner / (1 + np.exp(-1.702 * inner))
        s = s + self.linear(inner, f"{clip}.mlp.fc2") + 0.5 * self.adapter(h, f"{adapter}.spatial")
        h = self.norm(t, f"{mae}.layernorm_after", 1e-6)
        inner = self.gelu(self.linear(h, f"{mae}.intermediate.dense"))
        return s, t + self.linear(inner, f"{mae}.output.dense") + 0.5 * self.adapter(h, f"{adapter}.temporal")

    def embed(self, frames):
        """Patch by patch, from bytes [frames, side, side, 3]."""
        pixels, patch = (frames / 255 - MEAN) / STD, 16
        rows = [(y, x) for y in range(0, SIDE, patch) for x in range(0, SIDE, patch)]
        positions = self.w["clip.embeddings.position_embedding.weight"]
        kernel = self.w["clip.embeddings.patch_embedding.weight"]
        mae = "videomae.embeddings.patch_embeddings.projection"
        s, t = [], []
        for moment in range(MOMENTS):
            image = pixels[2 * moment + 1]
            tokens = [self.w["clip.embeddings.class_embedding"] + positions[0]]
            for n, (y, x) in enumerate(rows):
                cut = image[y : y + patch, x : x + patch]
                tokens.append(np.einsum("dcyx,yxc->d", kernel, cut) + positions[1 + n])
                tube = pixels[2 * moment : 2 * moment + 2, y : y + patch, x : x + patch]
                token = np.einsum("dctyx,tyxc->d", self.w[f"{mae}.weight"], tube) + self.w[f"{mae}.bias"]
                index, width = moment * len(rows) + n, len(token)
                angles = np.array([index / 10000 ** (2 * (j // 2) / width) for j in range(width)])
                t.append(token + np.where(np.arange(width) % 2, np.cos(angles), np.sin(angles)))
            s.append(self.norm(np.stack(tokens), "clip.pre_layrnorm", 1e-5))
        return np.stack(s), np.stack(t).reshape(MOMENTS, len(rows), -1)

    def head(self, s, t):
        s = self.norm(sum(s[moment, 0] for moment in range(len(s))) / len(s), "head.norm.spatial", 1e-5)
        t = self.norm(t.reshape(-1, t.shape[-1]).mean(0), "head.norm.temporal", 1e-6)
        readout = self.adapter(s, "head.adapter.spatial") + self.adapter(t, "head.adapter.temporal")
        return self.linear(readout, "head.classifier")

    def forward(self, frames):
        s, t = self.embed(frames)
        for i in range(2):
            s, t = self.attend(i, s, t)
            to_s, to_t = self.exchange(i, s, t)
            s, t = self.feed_forward(i, s + to_s, t + to_t)
        return s, t, self.head(s, t)


def tokens(seed=2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = (BATCH, MOMENTS, 1 + PLACES, 24), (BATCH, MOMENTS, PLACES, 24)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


def agree(found, slow, atol=1e-10):
    """Compare a batch with the slow results of its clips."""
    for got, wanted in zip(found, zip(*slow, strict=True), strict=True):
        np.testing.assert_allclose(got.detach().numpy(), np.stack(wanted), atol=atol, rtol=0)
