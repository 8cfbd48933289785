"""What of a decision moves when a part of one clip is exchanged for that of another: right by construction.

Tokens of the other clip take the place of the clip's own, and the model says what that changes. Nothing is approximated
and nothing leaves what the model has seen, so long as both clips are real. Source: Vig et al. 2020, activation patching
(there causal mediation analysis), here of whole streams and of single cells.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tcar.explain.errors import ExplanationError
from tcar.explain.questions import undisturbed
from tcar.explain.time import Classes, Clip, explained, frames_by_stream
from tcar.fusion.blocks import STREAMS

Cached = tuple[Tensor, Tensor, Tensor, Tensor]  # semantic [b n d1] and its xyz [n 3], motion [b m d2] and its xyz [m 3]


@dataclass(frozen=True)
class Patched:
    """Logits of clips by what is exchanged for that of other clips: "neither", "semantic", "motion" or "both" streams.

    `streams` are those that the fusion reads; what the methods say by stream, they say of these. An exchange of a
    stream that is not read changes no logit. `target` is the class of a clip and `other` that of the other clip, the
    margin the lead of its logit.
    """

    logits: dict[str, Float[Tensor, "b c"]]
    streams: tuple[str, ...] = STREAMS

    def margins(self, target: Classes, other: Classes) -> dict[str, Float[Tensor, " b"]]:
        """Return logit(target) - logit(other), by what is exchanged."""
        return {what: explained(logits, target, other) for what, logits in self.logits.items()}

    def flips(self, target: Classes, other: Classes) -> dict[str, Bool[Tensor, " b"]]:
        """Return whether the margin changes its sign when a stream alone is exchanged; to zero is no change."""
        margins = self.margins(target, other)
        return {s: margins["neither"].sign() * margins[s].sign() < 0 for s in self.streams}

    def moved(self, target: Classes, other: Classes) -> dict[str, Float[Tensor, " b"]]:
        """Return the share of what both streams move the margin by that each moves alone; NaN where both move nothing.
        """
        margins = self.margins(target, other)
        whole = margins["neither"] - margins["both"]
        whole = torch.where(whole == 0, torch.nan, whole)
        return {s: (margins["neither"] - margins[s]) / whole for s in self.streams}

    def interaction(self, target: Classes, other: Classes) -> Float[Tensor, " b"]:
        """Return the share of the margin moved that is left to the streams together; NaN where both move nothing."""
        return 1 - sum(self.moved(target, other).values())


def patch_streams(model: nn.Module, clip: Clip, other: Clip) -> Patched:
    """Return the logits of clips whose streams see another clip, one, the other or both.

    clip, other: frames of as many clips. Raises ExplanationError where the tokens of the two have not the same grids.
    """
    return exchange_streams(model.fusion, _cached(model, clip), _cached(model, other))


def exchange_streams(fusion: nn.Module, clip: Cached, other: Cached) -> Patched:
    """Return what `patch_streams` does, of tokens that are there already; their coordinates are the clip's."""
    given, taken = _exchangeable(fusion, clip, other)
    _, semantic_xyz, _, motion_xyz = clip
    found: dict[frozenset[str], Tensor] = {}
    logits = {}
    for what, exchanged in {"neither": (), "semantic": ("semantic",), "motion": ("motion",), "both": STREAMS}.items():
        read = frozenset(exchanged) & frozenset(fusion.streams)
        if read not in found:
            x = {s: taken[s] if s in read else given[s] for s in STREAMS}
            with undisturbed(fusion), torch.no_grad():
                found[read] = fusion(x["semantic"], semantic_xyz, x["motion"], motion_xyz)
        logits[what] = found[read]
    return Patched(logits, tuple(fusion.streams))


def patch_cells(
    model: nn.Module,
    clip: Clip,
    other: Clip,
    target: Classes,
    against: Classes | None,
    *,
    batch: int = 64,
) -> dict[str, Float[Tensor, "b _ _ _"]]:
    """Return maps by stream of what each token moves, when the other clip's token of its cell alone takes its place.

    Values are in logits, over the pooled grids: positive where the exchange takes from the lead of `target` over
    `against` (from the logit of `target`, if that is None). Cells are exchanged `batch` at a time, of whatever clips.
    Raises ExplanationError where the tokens of the two have not the same grids.
    """
    grids = {s: getattr(model.config, f"{s}_grid") for s in STREAMS}
    given, taken = _cached(model, clip), _cached(model, other)
    return cells_exchanged(model.fusion, given, taken, grids, target, against, batch)


def cells_exchanged(
    fusion: nn.Module,
    clip: Cached,
    other: Cached,
    grids: Mapping[str, tuple[int, int, int]],
    target: Classes,
    against: Classes | None,
    batch: int = 64,
) -> dict[str, Float[Tensor, "b _ _ _"]]:
    """Return what `patch_cells` does, of tokens that are there already, row by row of their `grids` (t, y, x)."""
    given, taken = _exchangeable(fusion, clip, other)
    if batch < 1:
        raise ExplanationError(f"cells are exchanged at least one at a time, got batch={batch}")
    _, semantic_xyz, _, motion_xyz = clip
    maps = {}
    with undisturbed(fusion), torch.no_grad():
        whole = explained(fusion(*clip), target, against)
        for s in fusion.streams:
            clips, cells = given[s].shape[:2]
            if math.prod(grids[s]) != cells:
                raise ExplanationError(f"{s} has {cells} tokens, which are no grid {tuple(grids[s])}")
            left = []
            for numbers in torch.arange(clips * cells, device=given[s].device).split(batch):
                rows, places = numbers // cells, numbers % cells
                x = {stream: tokens[rows] for stream, tokens in given.items()}
                x[s][torch.arange(len(rows)), places] = taken[s][rows, places]
                logits = fusion(x["semantic"], semantic_xyz, x["motion"], motion_xyz)
                left.append(explained(logits, _of(target, rows), _of(against, rows)))
            maps[s] = (whole[:, None] - torch.cat(left).view(clips, cells)).unflatten(1, tuple(grids[s]))
    return maps


def stream_shapley(patched: Patched, target: Classes) -> dict[str, Float[Tensor, " b"]]:
    """Return what each stream of a clip adds to the logit of `target`, from the other clip's streams on.

    Shapley values of two players in closed form: half of what a stream adds to the other clip's other stream and half
    of what it adds to the clip's own one. They sum to the logit of the clip less that of the other. Source: Shapley
    1953.
    """
    logit = {what: explained(logits, target) for what, logits in patched.logits.items()}
    rest = dict(zip(STREAMS, reversed(STREAMS), strict=True))
    # With the rest exchanged, the stream is the clip's own one against the other clip's other stream.
    return {s: ((logit[rest[s]] - logit["both"]) + (logit["neither"] - logit[s])) / 2 for s in patched.streams}


def _cached(model: nn.Module, clip: Clip) -> Cached:
    given = frames_by_stream(model, clip)
    with undisturbed(model), torch.no_grad():
        return *model.tokens("semantic", given["semantic"]), *model.tokens("motion", given["motion"])


def _exchangeable(fusion: nn.Module, clip: Cached, other: Cached) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tokens of both clips by stream; raises ExplanationError where those read cannot be exchanged."""
    given, taken = dict(zip(STREAMS, clip[::2], strict=True)), dict(zip(STREAMS, other[::2], strict=True))
    xyz, other_xyz = dict(zip(STREAMS, clip[1::2], strict=True)), dict(zip(STREAMS, other[1::2], strict=True))
    for s in fusion.streams:
        if len(given[s]) != len(taken[s]):
            raise ExplanationError(f"each clip needs one to exchange with, got {len(given[s])} and {len(taken[s])}")
        shapes = given[s].shape[1:], taken[s].shape[1:]
        if shapes[0] != shapes[1] or xyz[s].shape != other_xyz[s].shape:
            raise ExplanationError(
                f"patching needs equal grids: {s} has tokens {list(shapes[0])} in the one clip and {list(shapes[1])} "
                "in the other"
            )
        if not torch.allclose(xyz[s], other_xyz[s], rtol=0, atol=1e-6):
            raise ExplanationError(
                f"patching needs equal grids: the {s} tokens of the two clips have other coordinates; frames of one "
                "size, and of one number, have the same"
            )
    return given, taken


def _of(classes: Classes | None, rows: Tensor) -> Classes | None:
    """Return the classes of the clips in these rows."""
    return classes[rows.to(classes.device)] if isinstance(classes, Tensor) and classes.ndim else classes
