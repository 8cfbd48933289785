"""Fusion of a semantic and a motion token grid into class logits: cross-attention and its siblings.

Every kind takes the same input and is built from the same blocks. `cross_attention` takes the feed-forward
width of `mlp_ratio`; a sibling takes the one that brings its trained parameters to those of `cross_attention`
with the same configuration, so that a comparison is about wiring and not about size.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tcar.models.attention import STREAMS, CrossBlock, Embedding, Readout, Record, SelfBlock
from tcar.models.positions import POSITIONS, WINDOWS, Geometry


@dataclass(frozen=True)
class FusionConfig:
    """What a fusion is made of; raises ValueError naming the field that does not fit.

    `window` says what the streams may read of each other: all ("joint"), the same place ("time") or the same
    moment ("space"). Within a stream, attention is always joint.
    """

    kind: str = "cross_attention"
    semantic_width: int = 384
    motion_width: int = 2048
    num_classes: int = 174
    width: int = 512
    heads: int = 8
    blocks: int = 2
    self_blocks: int = 1
    mlp_ratio: float | int = 4
    dropout: float | int = 0.1
    drop_path: float | int = 0.1
    window: str = "joint"
    positions: str = "rotary"

    def __post_init__(self):
        for name in (
            "semantic_width",
            "motion_width",
            "num_classes",
            "width",
            "heads",
            "blocks",
            "self_blocks",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"FusionConfig.{name} must be a whole number of at least 1, got {value!r}")
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(
                f"FusionConfig.width {self.width} over heads {self.heads}: each head needs an "
                "even, whole number of channels"
            )
        if self.mlp_ratio <= 0:
            raise ValueError(f"FusionConfig.mlp_ratio must be above 0, got {self.mlp_ratio}")
        for name in ("dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"FusionConfig.{name} must lie in [0, 1), got {getattr(self, name)}")
        for name, known in (("kind", list_fusions()), ("window", WINDOWS), ("positions", POSITIONS)):
            value = getattr(self, name)
            if value not in known:
                close = difflib.get_close_matches(str(value), known, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"FusionConfig.{name} {value!r} is not one of {', '.join(known)}{hint}")

    def stream_width(self, stream: str) -> int:
        """Return the token width of a stream, "semantic" or "motion"."""
        return self.semantic_width if stream == "semantic" else self.motion_width


class Fusion(nn.Module):
    """Common ground of all kinds: `forward` with or without named intermediates."""

    def __init__(self, config: FusionConfig):
        super().__init__()
        self.config = config

    def forward(
        self,
        semantic: Float[Tensor, "b n d1"],
        semantic_xyz: Float[Tensor, "n 3"],
        motion: Float[Tensor, "b m d2"],
        motion_xyz: Float[Tensor, "m 3"],
        return_intermediates: bool = False,
    ) -> Float[Tensor, "b c"] | tuple[Float[Tensor, "b c"], Record]:
        """Return logits, and on request a dict of named intermediates: attention weights, tokens, readout.

        Coordinates are (t, y, x) in [0, 1]. Raises ValueError where tokens, widths and coordinates disagree.
        """
        tokens = {"semantic": semantic, "motion": motion}
        xyz = {"semantic": semantic_xyz, "motion": motion_xyz}
        for s in STREAMS:
            wanted = (xyz[s].shape[0], self.config.stream_width(s))
            if tokens[s].ndim != 3 or tokens[s].shape[1:] != wanted or xyz[s].shape[1:] != (3,):
                raise ValueError(
                    f"{s} tokens {list(tokens[s].shape)} with coordinates {list(xyz[s].shape)}: "
                    f"[batch, {wanted[0]}, {wanted[1]}] and [{wanted[0]}, 3] expected"
                )
        record: Record | None = {} if return_intermediates else None
        logits = self._logits(tokens, xyz, record)
        return logits if record is None else (logits, record)

    def _logits(self, tokens: dict[str, Tensor], xyz: dict[str, Tensor], record: Record | None) -> Tensor:
        raise NotImplementedError


class CrossFusion(Fusion):
    """Blocks in which the streams read each other, then self-attention over all tokens with a readout."""

    def __init__(self, config: FusionConfig, hidden: int, readers: tuple[str, ...] = STREAMS):
        super().__init__(config)
        self.geometry = _geometry(config)
        self.embed = nn.ModuleDict({s: _embedding(config, s) for s in STREAMS})
        self.blocks = nn.ModuleList(
            CrossBlock(**_block(config, hidden), readers=readers) for _ in range(config.blocks)
        )
        self.readout = Readout(config.self_blocks, **_block(config, hidden))
        self.head = nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, config.num_classes))

    def _logits(self, tokens, xyz, record):
        tables = self.geometry(**xyz)
        x = {s: self.embed[s](tokens[s], tables["places"][s]) for s in STREAMS}
        for i, block in enumerate(self.blocks):
            x = block(
                x,
                tables["rotary"],
                tables["other"],
                places=tables["common"]["semantic"],
                record=record,
                name=f"block{i}",
            )
        rotary = None
        if self.config.positions == "rotary":
            rotary = torch.cat([tables["rotary"][s] for s in STREAMS])
        readout = self.readout(torch.cat([x[s] for s in STREAMS], dim=1), rotary, record)
        if record is not None:
            record |= x | {"readout": readout}
        return self.head(readout)


class Tower(nn.Module):
    """A transformer on one stream, as deep as the cross-attention model; it ends in its readout `[b d]`."""

    def __init__(self, config: FusionConfig, hidden: int, stream: str, timeless: bool = False):
        super().__init__()
        self.stream = stream
        self.geometry = _geometry(config, timeless)
        self.embed = _embedding(config, stream)
        self.blocks = nn.ModuleList(SelfBlock(**_block(config, hidden)) for _ in range(config.blocks))
        self.readout = Readout(config.self_blocks, **_block(config, hidden))

    def forward(
        self, tokens: Float[Tensor, "b n f"], xyz: Float[Tensor, "n 3"], record: Record | None
    ) -> Float[Tensor, "b d"]:
        s, tables = self.stream, self.geometry(**{self.stream: xyz})
        x = self.embed(tokens, tables["places"][s])
        for i, block in enumerate(self.blocks):
            x = block(x, tables["rotary"][s], record=record, name=f"block{i}.{s}")
        readout = self.readout(x, tables["rotary"][s], record, suffix=f".{s}")
        if record is not None:
            record |= {s: x, f"{s}.readout": readout}
        return readout


class LateConcat(Fusion):
    """A transformer on each stream; the two readouts side by side go through a perceptron to the classes.

    The perceptron can combine the streams in any way (a linear head could only add them), so what this rival
    lacks is reading one stream at the place of the other, and nothing else.
    """

    def __init__(self, config: FusionConfig, hidden: int):
        super().__init__(config)
        both = 2 * config.width
        self.towers = nn.ModuleDict({s: Tower(config, hidden, s) for s in STREAMS})
        self.head = nn.Sequential(
            nn.LayerNorm(both),
            nn.Linear(both, both),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(both, config.num_classes),
        )

    def _logits(self, tokens, xyz, record):
        readout = torch.cat([self.towers[s](tokens[s], xyz[s], record) for s in STREAMS], dim=-1)
        if record is not None:
            record["readout"] = readout
        return self.head(readout)


class SumOfScores(Fusion):
    """A transformer and a classifier on each stream, whose logits are added: what no stream knows alone, and no sum
    of the two, is out of reach."""

    def __init__(self, config: FusionConfig, hidden: int):
        super().__init__(config)
        self.towers = nn.ModuleDict({s: Tower(config, hidden, s) for s in STREAMS})
        self.head = nn.ModuleDict(
            {
                s: nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, config.num_classes))
                for s in STREAMS
            }
        )

    def _logits(self, tokens, xyz, record):
        readouts = {s: self.towers[s](tokens[s], xyz[s], record) for s in STREAMS}
        if record is not None:
            record["readout"] = torch.cat([readouts[s] for s in STREAMS], dim=-1)
        return sum(self.head[s](readouts[s]) for s in STREAMS)


class LateConcatRaw(Fusion):
    """Mean-pooled raw features of both streams side by side, through a perceptron of two hidden layers."""

    def __init__(self, config: FusionConfig, hidden: int):
        super().__init__(config)
        self.norm = nn.ModuleDict({s: nn.LayerNorm(config.stream_width(s)) for s in STREAMS})
        self.hidden = nn.Sequential(
            nn.Linear(config.semantic_width + config.motion_width, hidden),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Dropout(config.dropout),
        )
        self.head = nn.Linear(hidden, config.num_classes)

    def _logits(self, tokens, xyz, record):
        pooled = {s: self.norm[s](tokens[s]).mean(dim=1) for s in STREAMS}
        readout = self.hidden(torch.cat([pooled[s] for s in STREAMS], dim=-1))
        if record is not None:
            record |= pooled | {"readout": readout}
        return self.head(readout)


class SingleStream(Fusion):
    """A transformer on one stream; the other is ignored. `timeless` makes its frames a set without order."""

    def __init__(self, config: FusionConfig, hidden: int, stream: str, timeless: bool = False):
        super().__init__(config)
        self.tower = Tower(config, hidden, stream, timeless)
        self.head = nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, config.num_classes))

    def _logits(self, tokens, xyz, record):
        s = self.tower.stream
        readout = self.tower(tokens[s], xyz[s], record)
        if record is not None:
            record["readout"] = readout
        return self.head(readout)


def _block(config: FusionConfig, hidden: int) -> dict[str, int | float]:
    return {
        "width": config.width,
        "heads": config.heads,
        "hidden": hidden,
        "dropout": config.dropout,
        "drop_path": config.drop_path,
    }


def _embedding(config: FusionConfig, stream: str) -> Embedding:
    return Embedding(config.stream_width(stream), config.width, config.positions == "learned")


def _geometry(config: FusionConfig, timeless: bool = False) -> Geometry:
    return Geometry(config.positions, config.window, config.heads, config.width // config.heads, timeless)


_KINDS: dict[str, Callable[[FusionConfig, int], Fusion]] = {
    "cross_attention": CrossFusion,
    "semantic_from_motion": lambda config, hidden: CrossFusion(config, hidden, readers=("semantic",)),
    "motion_from_semantic": lambda config, hidden: CrossFusion(config, hidden, readers=("motion",)),
    "late_concat": LateConcat,
    "late_concat_raw": LateConcatRaw,
    "sum": SumOfScores,
    "semantic": lambda config, hidden: SingleStream(config, hidden, "semantic"),
    "motion": lambda config, hidden: SingleStream(config, hidden, "motion"),
    "semantic_bag": lambda config, hidden: SingleStream(config, hidden, "semantic", timeless=True),
}


def list_fusions() -> list[str]:
    """Return the kinds that `create_fusion` knows, the reference first."""
    return list(_KINDS)


def create_fusion(config: FusionConfig) -> Fusion:
    """Build a fusion with fresh weights from torch's global generator (seed it first)."""
    fusion = _KINDS[config.kind](config, hidden_width(config))
    for module in fusion.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return fusion


def trained_parameters(module: nn.Module) -> int:
    """Count the parameters that take a gradient."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@lru_cache(maxsize=256)
def hidden_width(config: FusionConfig) -> int:
    """Return the hidden width of a kind's feed-forward layers, in steps of 8 for siblings (fast matrix
    products).

    Raises ValueError where no width matches the parameters of `cross_attention`.
    """
    if config.kind == "cross_attention":
        return round(config.mlp_ratio * config.width)
    target = _count(replace(config, kind="cross_attention"), round(config.mlp_ratio * config.width))
    # Counts are polynomials of degree two at most in the hidden width, so three of them give all others.
    first, second, third = (_count(config, 8 * steps) for steps in (1, 2, 3))
    bend = (third - 2 * second + first) / 2
    slope, offset = second - first - 3 * bend, 3 * first - 3 * second + third - target
    root = (slope**2 - 4 * bend * offset) ** 0.5 - slope if bend else -offset
    steps = root / (2 * bend if bend else slope)
    hidden = 8 * max(1, round(steps.real))  # a complex root is no match either, and refused below
    if abs(_count(config, hidden) - target) > 0.1 * target:
        raise ValueError(
            f"{config.kind} of width {config.width} has no feed-forward width with the "
            f"{target:,} trained parameters of cross_attention; raise width or mlp_ratio"
        )
    return hidden


def _count(config: FusionConfig, hidden: int) -> int:
    with torch.device("meta"):
        return trained_parameters(_KINDS[config.kind](config, hidden))


def fusion_cost(config: FusionConfig, semantic_tokens: int, motion_tokens: int) -> dict[str, int | float]:
    """Count trained parameters and the GFLOPs of one clip forward (2 a multiply-add), without running it."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        fusion = _KINDS[config.kind](config, hidden_width(config)).eval()
        fusion(
            torch.empty(1, semantic_tokens, config.semantic_width),
            torch.empty(semantic_tokens, 3),
            torch.empty(1, motion_tokens, config.motion_width),
            torch.empty(motion_tokens, 3),
        )
    return {"trained_parameters": trained_parameters(fusion), "gflops": counter.get_total_flops() / 1e9}
