"""What a model costs, part by part: parameters, memory of its weights, and FLOPs of one clip."""

from math import prod

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tcar.fusion.kinds import Fusion, FusionConfig, create_fusion, trained_parameters
from tcar.ground.errors import TcarError
from tcar.models.tca_config import TCAConfig
from tcar.streams.registry import count_stream
from tcar.streams.stream import Stream

Row = dict[str, str | int | float | None]


class BudgetError(TcarError, ValueError):
    """A model with more trained parameters than its configuration allows; the message holds the table."""


def cost_table(config: TCAConfig, semantic: Stream, motion: Stream, fusion: Fusion) -> list[Row]:
    """Return a row for each part and last their sum: `part`, `total` and `trained` parameters, `megabytes`, `gflops`.

    `megabytes` (10^6 bytes) are of the weights with their batch-norm statistics, `gflops` of one clip forward, two a
    multiply-add, counted without running it; None where a part cannot be counted. `share_frozen` is the share of the
    parameters that take no gradient.
    """
    rows = []
    for role, stream in (("semantic", semantic), ("motion", motion)):
        frozen, adapters = _stream_gflops(stream, getattr(config, f"{role}_frames"))
        backbone = stream.backbone
        rows.append(_row(f"{role} stream ({stream.name})", backbone.parameters(), backbone.state_dict(), frozen))
        name = f"{role} adapters (last {len(stream.adapters)} blocks)"
        rows.append(_row(name, stream.adapters.parameters(), stream.adapters.state_dict(), adapters))
    tokens = (prod(config.semantic_grid), prod(config.motion_grid))
    counted = fusion_gflops(config.fusion, *tokens)
    for name, part in fusion.named_children():
        rows.append(_row(f"fusion.{name}", part.parameters(), part.state_dict(), counted.get(name, 0.0)))
    rows = [row for row in rows if row["total"]]
    parts = nn.ModuleList([semantic, motion, fusion])
    known = [row["gflops"] for row in rows]
    gflops = None if None in known else sum(known)
    return [*rows, _row("sum", parts.parameters(), parts.state_dict(), gflops)]


def _stream_gflops(stream: Stream, frames: int) -> tuple[float | None, float | None]:
    """Return the GFLOPs of one clip in the backbone and in the adapters beside it."""
    try:
        counter = count_stream(stream, frames)[1]
    except (ValueError, RuntimeError):  # an operator that has no shape rule, or frames that do not fit
        return None, None
    counts, root = counter.get_flop_counts(), type(stream).__name__
    adapters = sum(sum(counts[f"{root}.adapters.{i}"].values()) for i in range(len(stream.adapters)))
    return (counter.get_total_flops() - adapters) / 1e9, adapters / 1e9


def _row(part: str, parameters, state: dict[str, Tensor], gflops: float | None) -> Row:
    counts = [(p.numel(), p.numel() if p.requires_grad else 0) for p in parameters]
    total, trained = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    return {
        "part": part,
        "total": total,
        "trained": trained,
        "megabytes": sum(value.numel() * value.element_size() for value in state.values()) / 1e6,
        "gflops": gflops,
        "share_frozen": 1 - trained / total if total else 1.0,
    }


def fusion_gflops(config: FusionConfig, semantic_tokens: int, motion_tokens: int) -> dict[str, float]:
    """Return the GFLOPs of one clip in each direct child of a fusion, for so many tokens of each stream."""
    with torch.device("meta"), FlopCounterMode(display=False, depth=3) as counter:
        fusion = create_fusion(config).eval()
        inputs = [
            part
            for role, tokens in (("semantic", semantic_tokens), ("motion", motion_tokens))
            for part in (torch.empty(1, tokens, config.stream_width(role)), torch.empty(tokens, 3))
        ]
        fusion(*inputs)
    counts = {name: sum(by_operator.values()) / 1e9 for name, by_operator in counter.get_flop_counts().items()}
    root, children = type(fusion).__name__, {}
    for name, _ in fusion.named_children():
        # A list or dictionary of modules is never called itself; what it holds is.
        held = {key: value for key, value in counts.items() if key.rpartition(".")[0] == f"{root}.{name}"}
        children[name] = counts.get(f"{root}.{name}", sum(held.values()))
    return children


def table_text(rows: list[Row]) -> str:
    """Return a table of costs as lines of text."""
    lines = [f"{'part':<36}{'parameters':>16}{'trained':>14}{'MB':>10}{'GFLOPs':>10}{'frozen':>8}"]
    for row in rows:
        gflops = "" if row["gflops"] is None else f"{row['gflops']:.2f}"
        lines.append(
            f"{row['part']:<36}{row['total']:>16,}{row['trained']:>14,}{row['megabytes']:>10.1f}{gflops:>10}"
            f"{row['share_frozen']:>8.1%}"
        )
    return "\n".join(lines)


def check_budget(config: TCAConfig, semantic: Stream, motion: Stream, fusion: Fusion) -> None:
    """Raise BudgetError with the table where more is trained than `config.max_trained_parameters`."""
    trained, allowed = sum(map(trained_parameters, (semantic, motion, fusion))), config.max_trained_parameters
    if trained > allowed:
        table = table_text(cost_table(config, semantic, motion, fusion))
        ways = "fusion_width, cross_width, fusion_blocks, mlp_ratio" + ", adapter_width" * bool(semantic.adapters)
        raise BudgetError(
            f"{trained:,} trained parameters, max_trained_parameters is {allowed:,}; lower one of {ways}\n{table}"
        )
