"""The fusion against the same wiring of torch.nn.MultiheadAttention: ratios of paired runs (`make benchmark`)."""

import statistics
import time
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tcar.fusion.kinds import FusionConfig, create_fusion
from tcar.fusion.positions import window_mask
from tcar.streams.grids import grid_coordinates

OTHER = {"semantic": "motion", "motion": "semantic"}
FULL = FusionConfig()
DEMO = FusionConfig(semantic_width=128, motion_width=128, num_classes=18, width=64, heads=4, mlp_ratio=2)
# name -> configuration, semantic grid, motion grid, clips a batch, runs
SIZES = {"full": (FULL, (8, 4, 4), (4, 7, 7), 4, 9), "demo": (DEMO, (4, 4, 4), (2, 4, 4), 24, 25)}


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)
        self.into, self.out = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return x + self.dropout(self.out(F.gelu(self.into(self.norm(x)))))


class Plain(nn.Module):
    """Cross-attention between two streams as one builds it from torch's own parts; it has no positions.

    Like the fusion it computes the last block for the readout alone: without that it would do more.
    """

    def __init__(self, config: FusionConfig, masks: dict[str, torch.Tensor | None]):
        super().__init__()
        self.masks, width = masks, config.width

        def attention():
            return nn.MultiheadAttention(width, config.heads, batch_first=True)

        def feed_forward():
            return FeedForward(width, round(config.mlp_ratio * width), config.dropout)

        def twice(make):
            return nn.ModuleDict({s: make(s) for s in OTHER})

        self.dropout = nn.Dropout(config.dropout)
        self.embed = twice(
            lambda s: nn.Sequential(nn.LayerNorm(config.stream_width(s)), nn.Linear(config.stream_width(s), width))
        )
        self.norms = nn.ModuleList(twice(lambda s: nn.LayerNorm(width)) for _ in range(config.blocks))
        self.cross = nn.ModuleList(twice(lambda s: attention()) for _ in range(config.blocks))
        self.feed_forward = nn.ModuleList(twice(lambda s: feed_forward()) for _ in range(config.blocks))
        self.token = nn.Parameter(torch.randn(width) * 0.02)
        self.last = nn.ModuleList([nn.LayerNorm(width), attention(), feed_forward()])
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.num_classes))

    def forward(self, semantic, semantic_xyz, motion, motion_xyz):
        x = {"semantic": self.embed["semantic"](semantic), "motion": self.embed["motion"](motion)}
        for norm, cross, feed_forward in zip(self.norms, self.cross, self.feed_forward, strict=True):
            h, after = {s: norm[s](x[s]) for s in x}, {}
            for s, other in OTHER.items():
                read = cross[s](h[s], h[other], h[other], need_weights=False, attn_mask=self.masks[s])[0]
                after[s] = feed_forward[s](x[s] + self.dropout(read))
            x = after
        norm, attention, feed_forward = self.last
        x = torch.cat([self.token.expand(len(semantic), 1, -1), x["semantic"], x["motion"]], dim=1)
        h = norm(x)
        read = attention(h[:, :1], h, h, need_weights=False)[0]
        return self.head(feed_forward(x[:, :1] + self.dropout(read))[:, 0])


def step(model, inputs, labels) -> float:
    """Return the processor time of one training step, forward and backward, in seconds."""
    model.zero_grad(set_to_none=True)
    start = time.process_time()
    F.cross_entropy(model(*inputs), labels).backward()
    return time.process_time() - start


def weights_of(fusion, plain) -> None:
    """Give the plain model the weights of a fusion without positions."""
    found = fusion.state_dict()

    def put(target, *names: str) -> None:
        target.copy_(torch.cat([found[name] for name in names]) if len(names) > 1 else found[names[0]])

    def linear(module, name: str) -> None:
        put(module.weight, f"{name}.weight")
        put(module.bias, f"{name}.bias")

    def attention(module, query: str, source: str, out: str) -> None:
        width = module.embed_dim
        for target, kind in ((module.in_proj_weight, "weight"), (module.in_proj_bias, "bias")):
            target.copy_(torch.cat([found[f"{query}.{kind}"][:width], found[f"{source}.{kind}"][width:]]))
        linear(module.out_proj, out)

    def feed_forward(module, name: str) -> None:
        for part, number in ((module.norm, 0), (module.into, 1), (module.out, 3)):
            linear(part, f"{name}.{number}")

    with torch.no_grad():
        for s, other in OTHER.items():
            linear(plain.embed[s][0], f"embed.{s}.norm")
            put(plain.embed[s][1].weight, f"embed.{s}.project.weight")
            put(plain.embed[s][1].bias, f"embed.{s}.stream")
            for i in range(len(plain.cross)):
                block = f"blocks.{i}"
                linear(plain.norms[i][s], f"{block}.project.{s}.norm")
                attention(plain.cross[i][s], f"{block}.project.{s}.linear", f"{block}.project.{other}.linear",
                          f"{block}.out.{s}")
                feed_forward(plain.feed_forward[i][s], f"{block}.feed_forward.{s}")
        last = "readout.blocks.0"
        put(plain.token, "readout.token")
        linear(plain.last[0], f"{last}.project.norm")
        attention(plain.last[1], f"{last}.project.linear", f"{last}.project.linear", f"{last}.out")
        feed_forward(plain.last[2], f"{last}.feed_forward")
        for number in (0, 1):
            linear(plain.head[number], f"head.{number}")


@pytest.mark.parametrize("window", ["joint", "time", "space"])
@pytest.mark.parametrize("size", list(SIZES))
def test_a_training_step_against_torchs_own_attention(size, window, capsys, unchecked):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config, *grids, clips, pairs = SIZES[size]
    config = replace(config, window=window, dropout=0.1, drop_path=0)  # torch's parts have no drop-path
    xyz = dict(zip(OTHER, (grid_coordinates(grid).flatten(0, 1) for grid in grids), strict=True))
    masks = {s: window_mask(xyz[s], xyz[other], window) for s, other in OTHER.items()}
    inputs = [part for s in OTHER for part in (torch.randn(clips, len(xyz[s]), config.stream_width(s)), xyz[s])]
    labels = torch.randint(config.num_classes, (clips,))
    forbidden = {s: None if mask is None else ~mask for s, mask in masks.items()}  # torch's masks say the opposite
    fusions = {positions: create_fusion(replace(config, positions=positions)) for positions in ("none", "rotary")}
    plain = Plain(config, forbidden)
    weights_of(fusions["none"], plain)
    torch.testing.assert_close(fusions["none"].eval()(*inputs), plain.eval()(*inputs), atol=1e-4, rtol=1e-4)

    times = {name: [] for name in (*fusions, "plain")}
    for model in (*fusions.values(), plain):
        step(model.train(), inputs, labels)
    for _ in range(pairs):
        for name, model in (*fusions.items(), ("plain", plain)):
            times[name].append(step(model, inputs, labels))
    ratios = {
        name: statistics.median(p / f for p, f in zip(times["plain"], times[name], strict=True)) for name in fusions
    }
    with capsys.disabled():
        print(f"\n{size}, window {window}: torch's own parts take {ratios['none']:.2f} times as long as the fusion "
              f"without positions, {ratios['rotary']:.2f} times as long as with rotary ones "
              f"({1000 * statistics.median(times['rotary']) / clips:.1f} ms a clip)")
