"""What all fusions share: their configuration, the interface, and the frame of those whose streams exchange."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tcar.fusion.blocks import STREAMS, Embedding, Readout, Record, Tables, run_block
from tcar.fusion.positions import POSITIONS, WINDOWS, Geometry

FUSIONS = (
    "cross_attention",
    "semantic_from_motion",
    "motion_from_semantic",
    "late_concat",
    "late_concat_raw",
    "sum",
    "gated",
    "bottleneck",
    "cast",
    "semantic",
    "motion",
    "semantic_bag",
    "motion_probe_1",
    "motion_probe_4",
    "semantic_probe_1",
    "semantic_probe_4",
)


@dataclass(frozen=True)
class FusionConfig:
    """What a fusion is made of; raises ValueError naming the field that does not fit.

    `window` says what the streams may read of each other: all ("joint"), the same place ("time") or the same
    moment ("space"); "cast" has windows of its own. Within a stream, and with the fusion tokens of
    "bottleneck", attention is always joint. `cross_width` is the width in which one stream reads the other (0:
    see `reading_width`), `bottleneck_tokens` counts the fusion tokens. `token_drop` is the share of each
    stream's tokens that a training step leaves out (PatchDropout, Liu et al. 2023). `checkpointing` computes
    blocks a second time in the backward pass instead of keeping what is inside them (Chen et al. 2016): the
    same numbers, less memory.
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
    cross_width: int = 0
    bottleneck_tokens: int = 4
    token_drop: float | int = 0
    checkpointing: bool = False

    def __post_init__(self):
        for name in (
            "semantic_width",
            "motion_width",
            "num_classes",
            "width",
            "heads",
            "blocks",
            "self_blocks",
            "bottleneck_tokens",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"FusionConfig.{name} must be a whole number of at least 1, got {value!r}")
        if not isinstance(self.cross_width, int) or self.cross_width < 0:
            raise ValueError(
                f"FusionConfig.cross_width must be a whole number of at least 0, got {self.cross_width!r}"
            )
        for name in ("width", "cross_width"):
            if (value := getattr(self, name)) % (2 * self.heads):
                raise ValueError(
                    f"FusionConfig.{name} {value} over heads {self.heads}: each head needs an "
                    "even, whole number of channels"
                )
        if self.mlp_ratio <= 0:
            raise ValueError(f"FusionConfig.mlp_ratio must be above 0, got {self.mlp_ratio}")
        for name in ("dropout", "drop_path", "token_drop"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"FusionConfig.{name} must lie in [0, 1), got {getattr(self, name)}")
        for name, known in (("kind", FUSIONS), ("window", WINDOWS), ("positions", POSITIONS)):
            value = getattr(self, name)
            if value not in known:
                close = difflib.get_close_matches(str(value), known, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"FusionConfig.{name} {value!r} is not one of {', '.join(known)}{hint}")

    @property
    def reading_width(self) -> int:
        """The width in which one stream reads the other: `cross_width`, or `width` where that is 0.

        In "cast" 0 means half of `width`, as published, rounded up to whole heads of an even size.
        """
        unit = 2 * self.heads
        return self.cross_width or (unit * -(-self.width // (2 * unit)) if self.kind == "cast" else self.width)

    def stream_width(self, stream: str) -> int:
        """Return the token width of a stream, "semantic" or "motion"."""
        return self.semantic_width if stream == "semantic" else self.motion_width


class Fusion(nn.Module):
    """Common ground of all kinds: `forward` with or without named intermediates; `streams` are those it reads."""

    streams: tuple[str, ...] = STREAMS

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
        kept = {}
        if self.training and self.config.token_drop:
            kept = {s: _kept_tokens(tokens[s], self.config.token_drop) for s in self.streams}
            tokens = {s: tokens[s][:, kept[s]] for s in self.streams}
            if record is not None:
                record |= {f"{s}.kept": kept[s] for s in self.streams}
        logits = self._logits(tokens, xyz, kept, record)
        return logits if record is None else (logits, record)

    def _logits(
        self,
        tokens: dict[str, Tensor],
        xyz: dict[str, Tensor],
        kept: dict[str, Tensor],
        record: Record | None,
    ) -> Tensor:
        """Return logits of the tokens; `xyz` are the coordinates of whole grids, of which `kept` is there."""
        raise NotImplementedError


def _kept_tokens(tokens: Float[Tensor, "b n d"], drop: float | int) -> Int[Tensor, "kept"]:
    """Draw the tokens that stay, in their order: the same ones in all clips, which then share their tables."""
    count = tokens.shape[1]
    order = torch.randperm(count, device=tokens.device)
    return order[: max(1, count - round(drop * count))].sort().values


class CrossFusion(Fusion):
    """Blocks in which the streams exchange, then self-attention over all tokens with a readout.

    Each of `parts` makes one step of a block. Steps take the tokens by stream and the tables of the grids
    (`Geometry`) and return the tokens; they are numbered through in the names of their intermediates.
    """

    def __init__(
        self,
        config: FusionConfig,
        hidden: int,
        *parts: Callable[[], nn.Module],
        windows: tuple[str, str] | None = None,
    ):
        super().__init__(config)
        self.geometry = geometry(config, windows or (config.window, config.window))
        self.embed = nn.ModuleDict({s: embedding(config, s) for s in STREAMS})
        self.blocks = nn.ModuleList(make() for _ in range(config.blocks) for make in parts)
        self.readout = final_blocks(config, hidden)
        self.head = nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, config.num_classes))

    def _logits(self, tokens, xyz, kept, record):
        tables = self.geometry(xyz, kept)
        x = self._embedded(tokens, tables)
        for i, block in enumerate(self.blocks):
            x = run_block(block, x, tables, record=record, name=f"block{i}", again=self.config.checkpointing)
        rotary = None
        if self.config.positions == "rotary":
            rotary = torch.cat([tables["rotary"][s] for s in STREAMS])
        readout = self.readout(torch.cat([x[s] for s in STREAMS], dim=1), rotary, record)
        if record is not None:
            record |= x | {"readout": readout}
        return self.head(readout)

    def _embedded(self, tokens: dict[str, Tensor], tables: Tables) -> dict[str, Tensor]:
        return {s: self.embed[s](tokens[s], tables["places"][s]) for s in STREAMS}


def block_sizes(config: FusionConfig, hidden: int) -> dict[str, int | float]:
    """Return the arguments that all transformer blocks of a fusion share."""
    return {
        "width": config.width,
        "heads": config.heads,
        "hidden": hidden,
        "dropout": config.dropout,
        "drop_path": config.drop_path,
    }


def final_blocks(config: FusionConfig, hidden: int) -> Readout:
    """Return the last blocks of a fusion, whose feed-forward layers are `hidden` wide."""
    return Readout(config.self_blocks, **block_sizes(config, hidden), checkpointing=config.checkpointing)


def embedding(config: FusionConfig, stream: str) -> Embedding:
    """Return the way of a stream, "semantic" or "motion", into a fusion."""
    return Embedding(config.stream_width(stream), config.width, config.positions == "learned")


def geometry(config: FusionConfig, windows: tuple[str, ...], timeless: bool = False) -> Geometry:
    """Return what makes the tables of a fusion's grids, one window for each stream."""
    widths = config.width, config.reading_width
    return Geometry(config.positions, windows, config.heads, widths, timeless)
