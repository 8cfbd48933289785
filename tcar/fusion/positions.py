"""Positions of tokens in physical space-time, so that grids of different strides line up.

Every token sits at the centre (t, y, x) of its cell, in [0, 1] of the clip. Rotary tables, attention windows
and learned position embeddings are functions of these coordinates alone, never of token indices.
"""

from collections.abc import Callable
from operator import is_
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# Radians over the whole clip: an eighth of a turn tells far from near without wrapping; four turns set
# neighbours on an axis of eight cells half a turn apart, the finest difference such an axis can hold.
SLOWEST, FASTEST = torch.pi / 4, 8 * torch.pi

LEARNED_BINS = 16


def rotary_frequencies(heads: int, head_dim: int) -> Float[Tensor, "pairs 3"]:
    """Return each channel pair's angular frequency over (t, y, x), in radians per clip, head by head.

    All pairs of all heads share one geometric series. Pair p of head h takes step p * heads + h of it, so
    every head holds slow and fast pairs, and turns with axis (p + h) mod 3, so any even head dimension covers
    the three axes. Source: Su et al. 2021, RoFormer, here axial in three dimensions.
    """
    head, pair = torch.meshgrid(torch.arange(heads), torch.arange(head_dim // 2), indexing="ij")
    step = (pair * heads + head).double() / max(heads * (head_dim // 2) - 1, 1)
    speed = SLOWEST * (FASTEST / SLOWEST) ** step
    axis = torch.nn.functional.one_hot((pair + head) % 3, 3)
    return (speed[..., None] * axis).flatten(0, 1)


def rotary_table(xyz: Float[Tensor, "n 3"], heads: int, head_dim: int) -> Float[Tensor, "n pairs 2"]:
    """Return cosine and sine of the angles by which every token's channel pairs turn at its coordinates (t, y, x)."""
    angles = xyz.double() @ rotary_frequencies(heads, head_dim).to(xyz.device).T
    return torch.stack([angles.cos(), angles.sin()], dim=-1).to(torch.promote_types(xyz.dtype, torch.float32))


def rotate(
    x: Float[Tensor, "b n parts d"], table: Float[Tensor, "n pairs 2"] | None
) -> Float[Tensor, "b n parts d"]:
    """Turn neighbouring channel pairs by a token's rotation; a table of None leaves them as they are."""
    if table is None:
        return x
    pairs = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():
        # inductor makes one kernel of real numbers and none of complex ones.
        cos, sin = table[:, None].unbind(-1)
        first, second = pairs.unbind(-1)
        turned = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1)
    else:
        # One complex product reads and writes the tensor once: a fifth of the time of products of real numbers.
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(table)[:, None])
    return turned.flatten(-2).to(x.dtype)


def with_origin(
    table: Float[Tensor, "n pairs 2"] | None, count: int, *, last: bool = False
) -> Float[Tensor, "_ pairs 2"] | None:
    """Return a rotary table with `count` more tokens at the origin of space and time, in front or `last`."""
    if table is None:
        return None
    none = table.new_zeros(count, table.shape[1])
    still = torch.stack([none + 1, none], dim=-1)
    return torch.cat([table, still] if last else [still, table])


def window_mask(
    query_xyz: Float[Tensor, "n 3"], key_xyz: Float[Tensor, "m 3"], window: str
) -> Bool[Tensor, "n m"] | None:
    """Return which keys each query may read: "joint" all (None), "time" its place, "space" its moment.

    Between grids of different strides, two tokens share a place (or a moment) when either is nearest to the
    other, so a coarse token reads all the fine ones it covers and no token is left without keys.
    """
    if window == "joint":
        return None
    axes = slice(1, 3) if window == "time" else slice(0, 1)
    distance = torch.cdist(query_xyz[:, axes].double(), key_xyz[:, axes].double())
    nearest_key = distance.min(dim=1, keepdim=True).values
    nearest_query = distance.min(dim=0, keepdim=True).values
    tolerance = 1e-6  # equal distances may differ in the last digit
    return (distance <= nearest_key + tolerance) | (distance <= nearest_query + tolerance)


def shared_places(
    xyz: Float[Tensor, "n 3"],
) -> tuple[Int[Tensor, " n"], Float[Tensor, "n 1"], Float[Tensor, "n 3"]]:
    """Return which token is the first at each token's place (y, x), how many are there, and the coordinates with the
    mean of their times."""
    same = window_mask(xyz, xyz, "time")
    count = same.sum(dim=1, keepdim=True).to(xyz.dtype)
    times = (same * xyz[:, 0]).sum(dim=1, keepdim=True) / count
    return same.to(torch.uint8).argmax(dim=1), count, torch.cat([times, xyz[:, 1:]], dim=1)


def common_places(mask: Bool[Tensor, "n m"] | None) -> int:
    """Return over how many places queries and keys run, moment by moment, if each reads its own alone; else 0.

    That is the "time" window of two grids of the same rows and columns.
    """
    if mask is None or mask.is_meta or torch.compiler.is_compiling():  # neither has values to look at
        return 0
    queries, keys = mask.shape
    places = keys // int(mask[0].sum())
    if places < 2 or queries % places or keys % places:
        return 0
    own = torch.arange(queries)[:, None] % places == torch.arange(keys) % places
    return places if torch.equal(mask, own.to(mask.device)) else 0


def interpolation_weights(xyz: Float[Tensor, "n 3"], bins: int) -> Float[Tensor, "n {3*bins}"]:
    """Return the weights that read learned tables of `bins` cells per axis (t, y, x), linear in between."""
    place = (xyz * bins - 0.5).clamp(0, bins - 1)[..., None]
    return (1 - (place - torch.arange(bins, device=xyz.device)).abs()).clamp_min(0).flatten(1)


class CoordinateCache:
    """Remembers what a function made of the last coordinates: a whole training shares one pair of grids.

    The same tensor objects are recognised at once, equal coordinates in new tensors by their values. Compiled
    code works the tables out in its graph, which a look at values would break; meta tensors have no values.
    """

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self.seen: tuple[Tensor, ...] = ()
        self.versions: tuple[int, ...] | None = None
        self.copies: tuple[Tensor, ...] = ()
        self.value: Any = None

    def __call__(self, *coordinates: Tensor) -> Any:
        if torch.compiler.is_compiling() or coordinates[0].is_meta:
            return self.function(*coordinates)
        if not self._same_objects(coordinates):
            if not self._same_values(coordinates):
                # Tables made inside inference_mode could not be used in a later training step.
                with torch.inference_mode(False), torch.no_grad():
                    self.copies = tuple(c.detach().clone() for c in coordinates)
                    self.value = self.function(*self.copies)
            self.seen, self.versions = coordinates, _versions(coordinates)
        return self.value

    def _same_objects(self, coordinates: tuple[Tensor, ...]) -> bool:
        same = len(coordinates) == len(self.seen) and all(map(is_, coordinates, self.seen))
        return same and self.versions is not None and self.versions == _versions(coordinates)

    def _same_values(self, coordinates: tuple[Tensor, ...]) -> bool:
        return len(coordinates) == len(self.copies) and all(
            a.device == b.device and a.dtype == b.dtype and torch.equal(a, b)
            for a, b in zip(coordinates, self.copies, strict=True)
        )


def _versions(tensors: tuple[Tensor, ...]) -> tuple[int, ...] | None:
    """Return the counters that in-place writes raise; None for inference tensors, which keep none."""
    return None if any(t.is_inference() for t in tensors) else tuple(t._version for t in tensors)


class Geometry:
    """Rotary tables, attention masks and places of learned positions, made once for each pair of grids.

    `windows` holds, stream by stream, what it may read of the other one; `widths` are the model's width and that in
    which streams read each other. `timeless` moves all tokens to the same moment: their places are known, the order
    of their frames is not.
    """

    def __init__(
        self,
        positions: str,
        windows: tuple[str, ...],
        heads: int,
        widths: tuple[int, int],
        timeless: bool = False,
    ):
        self.positions, self.windows, self.timeless = positions, windows, timeless
        self.heads, self.widths = heads, widths
        self.tables = CoordinateCache(self._tables)

    def __call__(
        self, xyz: dict[str, Float[Tensor, "_ 3"]], kept: dict[str, Int[Tensor, " _"]]
    ) -> dict[str, dict[str, Tensor | int | None]]:
        """Return tables by stream, of the tokens `kept` if it names any: of those alone, as the whole grids have them.

        "rotary" and "rotary_across" (of the two widths), "places" (of learned positions), "other" (what a stream may
        read of the other one: nothing, where all of that is gone) and "common" (the places of that mask, see
        `common_places`).
        """
        values = self.tables(*xyz.values())
        tables = {name: dict(zip(xyz, row, strict=True)) for name, row in values.items()}
        if not kept:
            return tables
        sources = dict(zip(xyz, reversed(xyz), strict=True))
        for name in ("rotary", "rotary_across", "places"):
            tables[name] = {s: None if t is None else t[kept[s]] for s, t in tables[name].items()}
        masks = tables["other"].items()
        tables["other"] = {s: None if m is None else m[kept[s]][:, kept[sources[s]]] for s, m in masks}
        tables["common"] = dict.fromkeys(xyz, 0)
        return tables

    def _tables(self, *xyz: Tensor) -> dict[str, list[Tensor | int | None]]:
        at = [c * c.new_tensor([0, 1, 1]) for c in xyz] if self.timeless else xyz
        rotary, learned = self.positions == "rotary", self.positions == "learned"
        masks = [window_mask(*pair) for pair in zip(xyz, reversed(xyz), self.windows, strict=True)]
        within, across = (
            [rotary_table(c, self.heads, width // self.heads) if rotary else None for c in at] for width in self.widths
        )
        return {
            "rotary": within,
            "rotary_across": across,
            "places": [interpolation_weights(c, LEARNED_BINS) if learned else None for c in at],
            "other": masks,
            "common": [common_places(mask) for mask in masks],
        }
