"""Which quantities of attention the wiring of a fusion fixes, whatever it learned and whatever it is shown.

Such a quantity is no finding: it is the same with random weights.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tcar.explain.attention import Grid, streams_of
from tcar.fusion.blocks import OTHER, STREAMS
from tcar.fusion.config import FusionConfig
from tcar.fusion.exchange import JOINT
from tcar.fusion.kinds import hidden_width
from tcar.fusion.positions import shared_places, window_mask
from tcar.fusion.probe import FULL_WIDTH, HEADS, MLP_RATIO, PROBES
from tcar.fusion.settings import EXCHANGING, MOTION_ALONE
from tcar.fusion.step import STEPS
from tcar.streams.grids import grid_coordinates

PLACE, MOMENT = "per_place", "per_moment"

EQUAL = "it reads equal shares of what is within reach: nothing is chosen by content"
SOLE_KEY = "every query has one token within reach, and so all of its attention goes there"
ONE_HEAD = "there is one head, which differs from no other"
AVERAGED = "with appearance 'averaged' the semantic tokens of a place are the same at all moments, and are read alike"
ONE_PLACE = "every query reads at one place alone, and its weights sum to 1"
ONE_MOMENT = "every query reads at one moment alone, and its weights sum to 1"
SAME_DISTANCE = "all that a query may read is equally far from it"
SOLE_CELL = "the grid has no other"
SOLE_STREAM = "no other stream is read"
APART = "each stream has a readout of its own, whose map sums to 1"
HALVES = "a block counts half as residual and half as what it read: streams that read each other have one half each"
MEAN = "the readout is the mean of all tokens, and no block moves anything by content between what is summed here"


def fixed_by_wiring(config: FusionConfig, grids: dict[str, Grid] | None = None) -> dict[str, str]:
    """Return the quantities of a fusion that no training and no clip can change, each with the reason.

    `grids` maps streams to (t, y, x); left out, the two are taken to have the same rows and columns, and the same
    moments. Names are those of an attention (`named_attention`) and behind it a quantity:

    - ".weights", and of these the measures of `Heads`: ".entropy", ".relative_entropy", ".specialisation", ".time",
      ".space";
    - ".frame_to_frame", across streams;
    - ".received.<stream>.per_place" and ".received.<stream>.per_moment": the share that each place, or moment, has of
      what the tokens of a stream receive.

    Of the maps of `attention_rollout`: "rollout.<stream>.share", the sum of the map, and "rollout.<stream>.per_place"
    and ".per_moment", the shares within it; of `gradient_rollout` the same, where ".share" is that of all maps, and all
    are of maps that are not 0 throughout. A fusion without attention has nothing to name.
    """
    if config.kind == "late_concat_raw":
        return {}
    wiring = _Wiring(config, grids or dict.fromkeys(STREAMS, (2, 2, 2)))
    found = {}
    for name in [name for step in (*wiring.blocks, wiring.ends) for name in step]:
        found |= {f"{name}.{quantity}": reason for quantity, reason in wiring.fixed(name).items()}
    for streams in wiring.readouts:
        found |= wiring.fixed_rollout(streams)
    return found


class _Wiring:
    """What a fusion reads of what: its attentions by name, block by block, and those that end in a readout."""

    def __init__(self, config: FusionConfig, grids: dict[str, Grid]):
        self.config = config
        self.blocks, self.ends = _attentions(config)
        self.streams = tuple(s for s in STREAMS if any(s in streams_of(n)[1] for n in self.ends))
        self.readouts = list(dict.fromkeys(streams_of(name)[1] for name in self.ends))
        self.xyz = {s: grid_coordinates(grids[s]).flatten(0, 1).double() for s in self.streams}
        self.cells = {
            s: {PLACE: _cells(self.xyz[s][:, 1:]), MOMENT: _cells(self.xyz[s][:, :1])} for s in self.streams
        }
        self.averaged = config.appearance == "averaged" and config.kind not in MOTION_ALONE
        self.alike = {s: _alike(xyz, s == "semantic" and self.averaged) for s, xyz in self.xyz.items()}

    def equal(self, name: str) -> bool:
        """Whether an attention takes equal shares."""
        return name.startswith("mean") or self.config.kind == "gated" and name.startswith("block")

    def reach(self, name: str) -> Bool[Tensor, "n m"]:
        """Return which tokens of the streams that are read each query may read."""
        readers, read = streams_of(name)
        rows, columns = (sum(len(self.xyz[s]) for s in streams) for streams in (readers, read))
        everything = torch.ones(rows or 1, columns, dtype=torch.bool)
        if "_from_" not in name:
            return everything
        windows = dict(zip(STREAMS, ("time", "space"), strict=True)) if self.config.kind == "cast" else {}
        at = dict(self.xyz)
        if self.averaged:
            at["semantic"] = shared_places(at["semantic"])[2]
        mask = window_mask(at[readers[0]], at[read[0]], windows.get(readers[0], self.config.window))
        return everything if mask is None else mask

    def fixed(self, name: str) -> dict[str, str]:
        """Return what is fixed of one attention, and why."""
        readers, read = streams_of(name)
        reach = self.reach(name)
        across = "_from_" in name
        # Tokens that are the same have the same weight: one of them in so many parts is within reach as one.
        different = reach.double() @ self._alike(read).diagonal()
        whole = EQUAL if self.equal(name) else ""
        if not whole and not self._others(name) and (different <= 1 + 1e-9).all():
            whole = SOLE_KEY if (reach.sum(dim=1) <= 1).all() else AVERAGED
        found = dict.fromkeys(("weights", "entropy", "relative_entropy", "specialisation"), whole) if whole else {}
        if not whole and self._heads() == 1:
            found["specialisation"] = ONE_HEAD
        asking, asked = (self._alike(streams) for streams in (readers, read))
        apart = {"time": slice(0, 1), "space": slice(1, 3)} if readers else {}
        for quantity, axes in apart.items():
            at = [torch.cat([self.xyz[s] for s in streams])[:, axes] for streams in (readers, read)]
            distance = asking @ (at[0][:, None] - at[1]).norm(dim=2) @ asked
            if whole or _constant(distance[..., None], reach):
                averaged = self.averaged and not _constant((at[0][:, None] - at[1]).norm(dim=2)[..., None], reach)
                found[quantity] = whole or (AVERAGED if averaged else SAME_DISTANCE)
        start = 0
        for s in read:
            part = slice(start, start := start + len(self.xyz[s]))
            for cells, one in ((PLACE, ONE_PLACE), (MOMENT, ONE_MOMENT)):
                columns = self.cells[s][cells]
                alike = self.alike[s] @ columns
                if whole or _constant(alike.expand(len(reach), -1, -1), reach[:, part]):
                    averaged = not _constant(columns.expand(len(reach), -1, -1), reach[:, part])
                    reason = whole or (SOLE_CELL if columns.shape[1] == 1 else AVERAGED if averaged else one)
                    found[f"received.{s}.{cells}"] = reason
                    if across and cells == MOMENT:
                        found["frame_to_frame"] = reason
        return found

    def fixed_rollout(self, streams: tuple[str, ...]) -> dict[str, str]:
        """Return what is fixed of the maps of a readout of these streams, and why."""
        found, everything = {}, torch.ones(sum(len(self.xyz[s]) for s in streams), 1).double()
        for s in streams:
            own = torch.cat([torch.full((len(self.xyz[o]), 1), float(o == s)).double() for o in streams])
            if self._follows(own, everything, streams):
                both = len(streams) > 1
                reason = (MEAN if self._by_mean(streams) and not self._halved() else HALVES) if both else ""
                found[f"rollout.{s}.share"] = reason or (APART if len(self.streams) > 1 else SOLE_STREAM)
            if len(self.streams) == 1:
                found[f"gradient_rollout.{s}.share"] = SOLE_STREAM
            for cells in (PLACE, MOMENT):
                columns = self.cells[s][cells]
                parts = torch.cat([columns if o == s else columns.new_zeros(len(self.xyz[o]), columns.shape[1])
                                   for o in streams])  # fmt: skip
                at_once = _proportional(self._alike(streams) @ parts, own)
                reason = SOLE_CELL if columns.shape[1] == 1 else AVERAGED
                if at_once:
                    found[f"gradient_rollout.{s}.{cells}"] = reason
                if at_once or self._follows(parts, own, streams):
                    found[f"rollout.{s}.{cells}"] = reason if at_once else MEAN
        return found

    def _follows(self, parts: Float[Tensor, "n k"], whole: Float[Tensor, "n 1"], streams: tuple[str, ...]) -> bool:
        """Whether the sums over a rollout that the columns of `parts` are have a fixed ratio to the sum `whole`.

        A sum over tokens is moved from block to block, from the tokens before it to those after it, for as long as the
        weights do not matter: where it has one value over all that a query may read.
        """
        alike = self._alike(streams)
        parts, whole = alike @ parts, alike @ whole
        for names in self.blocks:
            if _proportional(parts, whole):
                return True
            moved = [self._moved(columns, names, streams) for columns in (parts, whole)]
            if moved[0] is None or moved[1] is None:
                return False
            parts, whole = (alike @ columns for columns in moved)
        return self._by_mean(streams) or _proportional(parts, whole)

    def _moved(
        self, columns: Float[Tensor, "n k"], names: list[str], streams: tuple[str, ...]
    ) -> Float[Tensor, "n k"] | None:
        """Return the same sums over the tokens after a block, None where its weights matter."""
        starts, moved = {}, columns.clone()
        for s in streams:
            starts[s] = slice(end := max((p.stop for p in starts.values()), default=0), end + len(self.xyz[s]))
        for name in names:
            readers, read = streams_of(name)
            if not set(readers) <= set(streams):
                continue
            if self._others(name):
                return None
            rows, of = (torch.cat([torch.arange(p.start, p.stop) for p in map(starts.get, part)])
                        for part in (readers, read))  # fmt: skip
            reach, values = self.reach(name), columns[of]
            if not self.equal(name) and not _constant(values.expand(len(reach), -1, -1), reach):
                return None
            shares = reach.double() / reach.sum(dim=1, keepdim=True)
            moved[rows] = (columns[rows] + shares @ values) / 2
        return moved

    def _alike(self, streams: tuple[str, ...]) -> Float[Tensor, "n n"]:
        """Return what makes each token the mean of those that are the same as it."""
        return torch.block_diag(*(self.alike[s] for s in streams)) if streams else torch.ones(1, 1).double()

    def _others(self, name: str) -> bool:
        """Whether something without a place is among what is read: fusion tokens, or the readout."""
        return name.startswith("self") or self.config.kind == "bottleneck" and name.startswith("block")

    def _by_mean(self, streams: tuple[str, ...]) -> bool:
        return any(name.startswith("mean") and streams_of(name)[1] == streams for name in self.ends)

    def _halved(self) -> bool:
        return any(len(names) == 2 and all("_from_" in name for name in names) for names in self.blocks)

    def _heads(self) -> int:
        if self.config.kind not in PROBES:
            return self.config.heads
        width = hidden_width(self.config) // MLP_RATIO  # a probe of full width has its published heads
        return HEADS if width >= FULL_WIDTH and width % HEADS == 0 else self.config.heads


def _attentions(config: FusionConfig) -> tuple[list[list[str]], list[str]]:
    """Return the names of a fusion's attentions, block by block, and those that end in a readout."""
    kind = config.kind
    if kind in PROBES:
        stream, depth = PROBES[kind]
        return [[f"block{i}.{stream}"] for i in range(depth - 1)], [f"cross.{stream}"]
    if kind in STEPS:
        return [], [f"self0.{STEPS[kind]}"]
    selves = [f"self{i}" for i in range(config.self_blocks)] or ["mean"]
    if kind not in EXCHANGING:
        streams = (kind.removesuffix("_bag"),) if kind in (*STREAMS, "semantic_bag") else STREAMS
        blocks = [[f"block{i}.{s}" for s in streams] for i in range(config.blocks)]
        return blocks, [f"{name}.{s}" for s in streams for name in selves]
    readers = (kind.partition("_from_")[0],) if "_from_" in kind else STREAMS
    across, within = [f"{s}_from_{OTHER[s]}" for s in readers], list(STREAMS)
    steps = {"joint": [[JOINT]], "bottleneck": [within], "cast": [across, within]}.get(kind, [across])
    every = [names for _ in range(config.blocks) for names in steps]
    return [[f"block{i}.{name}" for name in names] for i, names in enumerate(every)], selves


def _cells(places: Float[Tensor, "n axes"]) -> Float[Tensor, "n k"]:
    """Return a column for each distinct place, 1 for the tokens that lie there."""
    _, which = places.unique(dim=0, return_inverse=True)
    return torch.nn.functional.one_hot(which).double()


def _alike(xyz: Float[Tensor, "n 3"], averaged: bool) -> Float[Tensor, "n n"]:
    """Return the mean over the tokens of each one's place, or what leaves each as it is."""
    if not averaged:
        return torch.eye(len(xyz)).double()
    same = window_mask(xyz, xyz, "time").double()
    return same / same.sum(dim=1, keepdim=True)


def _constant(values: Float[Tensor, "n m k"], reach: Bool[Tensor, "n m"]) -> bool:
    """Whether each query finds one value wherever it may read."""
    high = values.masked_fill(~reach[..., None], -torch.inf).amax(dim=1)
    low = values.masked_fill(~reach[..., None], torch.inf).amin(dim=1)
    return bool((high - low <= 1e-9).all())


def _proportional(parts: Float[Tensor, "n k"], whole: Float[Tensor, "n 1"]) -> bool:
    return torch.allclose(parts * whole.sum(), whole * parts.sum(dim=0), rtol=0, atol=1e-9)
