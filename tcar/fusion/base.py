"""What all fusions share: the interface, and the frame of those whose streams exchange."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tcar.fusion.blocks import STREAMS, Embedding, Readout, Record, Tables, Tokens, joined_rotary, run_block
from tcar.fusion.config import FusionConfig
from tcar.fusion.positions import CoordinateCache, Geometry, shared_places


class Fusion(nn.Module):
    """Common ground of all kinds: `forward` with or without named intermediates; `streams` are those it reads.

    An `appearance` that is averaged takes the order of frames from the semantic tokens before any kind sees them. They
    stay as many, equal ones at one moment, so that attention over all tokens keeps the balance between the streams.
    """

    streams: tuple[str, ...] = STREAMS

    def __init__(self, config: FusionConfig):
        super().__init__()
        self.config = config
        self.averaging = CoordinateCache(shared_places)

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
        if self.config.appearance == "averaged" and "semantic" in self.streams:
            first, count, xyz["semantic"] = self.averaging(semantic_xyz)
            tokens["semantic"] = _means(semantic, first, count)
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
        self, tokens: Tokens, xyz: dict[str, Tensor], kept: dict[str, Tensor], record: Record | None
    ) -> Tensor:
        """Return logits of the tokens; `xyz` are the coordinates of whole grids, of which `kept` is there."""
        raise NotImplementedError


def _means(
    tokens: Float[Tensor, "b n d"], first: Int[Tensor, " n"], count: Float[Tensor, "n 1"]
) -> Float[Tensor, "b n d"]:
    """Replace each token by the mean of those that share its `first` one, `count` of them, summed in float32 at
    least."""
    precise = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    sums = torch.zeros_like(precise).index_add(1, first, precise)
    return (sums[:, first] / count.to(precise.dtype)).to(tokens.dtype)


def _kept_tokens(tokens: Float[Tensor, "b n d"], drop: float | int) -> Int[Tensor, " kept"]:
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
        self.head = classifier(config)

    def _logits(self, tokens, xyz, kept, record):
        tables = self.geometry(xyz, kept)
        x = self._embedded(tokens, tables)
        for i, block in enumerate(self.blocks):
            x = run_block(block, x, tables, record=record, name=f"block{i}", again=self.config.checkpointing)
        readout = self.readout(torch.cat([x[s] for s in STREAMS], dim=1), joined_rotary(tables), record)
        if record is not None:
            record |= x | {"readout": readout}
        return self.head(readout)

    def _embedded(self, tokens: Tokens, tables: Tables) -> Tokens:
        return {s: self.embed[s](tokens[s], tables["places"][s]) for s in STREAMS}


def block_sizes(config: FusionConfig, hidden: int) -> dict[str, int | float]:
    """Return the arguments that all transformer blocks of a fusion share."""
    shared = {name: getattr(config, name) for name in ("width", "heads", "dropout", "drop_path")}
    return shared | {"hidden": hidden}


def classifier(config: FusionConfig) -> nn.Sequential:
    """Return the way from a readout to the logits."""
    return nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, config.num_classes))


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
