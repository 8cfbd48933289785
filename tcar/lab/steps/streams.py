"""The frozen streams of a run and the tokens they gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from tcar.data.ssv2 import SPLITS, Clip
from tcar.data.video import read_segments
from tcar.data.views import SegmentView
from tcar.features import ExtractionSettings, FeatureStore, TokenSpec, extraction
from tcar.lab import results
from tcar.lab.params import ParameterError
from tcar.lab.steps.clips import rotated_clips
from tcar.streams.packaged import packaged

if TYPE_CHECKING:
    from tcar.lab.params import Params
    from tcar.streams.stream import Stream

ROLES = ("semantic", "motion")


def stream(run: Params, role: str, pretrained: bool = True) -> Stream:
    """Create the frozen stream that the parameters name for a role, with its published or packaged weights, or with
    random ones from the run's seed.
    """
    from tcar.streams.registry import create_stream  # takes seconds, and most steps read tokens alone

    stated = run.stream_checkpoints[f"{role}_checkpoint"] if pretrained else None
    return create_stream(getattr(run.streams, role), pretrained, stated, seed=run.common.seed)


def with_packaged(run: Params, seed: int) -> Params:
    """Give the parameters with the small streams that the package has from this training, one of `SEEDS`."""
    stated = {f"{role}_checkpoint": str(packaged(getattr(run.streams, role), seed)) for role in ROLES}
    return replace(run, streams=replace(run.streams, **stated))


def describe(made: Stream, frames: int | None = None) -> dict:
    """Tell a stream's dimensions and cost for one clip; GFLOPs count a multiplication and an addition as two."""
    from tcar.streams.registry import stream_cost

    return {
        "name": made.name,
        "role": made.role,
        "frames": frames or made.frames,
        "input_size": made.input_size,
        "width": made.width,
        "pretrained": made.pretrained,
        **stream_cost(made, frames),
    }


def extract(
    run: Params, found: dict[str, list[Clip]], roles: Sequence[str] = ROLES, remake: bool = False,
    untrained: Sequence[str] = (),
) -> dict[str, FeatureStore]:  # fmt: skip
    """Compute the tokens of every clip of the splits with the streams of these roles, each clip decoded once, or open
    the finished stores. `remake` allows to delete one that comes out differently now; `untrained` are the roles whose
    streams have random weights. Raises ParameterError for a run with adapters.
    """
    settings = run.streams
    if settings.semantic_adapters:
        raise ParameterError(
            f"semantic_adapters is {settings.semantic_adapters}, but tokens that are kept do not change with "
            "adapters in training: set it to 0, or train end to end"
        )
    turned, wanted = rotated_clips(run) > 0, []
    for role in roles:
        view = SegmentView(getattr(settings, f"{role}_frames"), settings.view_flip, run.data.upright, turned)
        build = partial(stream, run, role, role not in untrained)
        wanted.append(TokenSpec(build, getattr(settings, f"{role}_grid"), view))
    how = ExtractionSettings(
        workers=run.common.workers,
        batch_clips=settings.batch_clips,
        device=run.common.device,
        views=settings.views,
        view_seed=settings.view_seed,
        token_type=settings.token_type,
        precision=settings.stream_precision,
        remake=remake,
    )
    clips = [clip for split in SPLITS for clip in found.get(split, ())]
    made = extraction.extract(clips, wanted, run.run_dir / "features", how)
    return dict(zip(roles, made, strict=True))


def token_grids(
    made: Stream, found: list[Clip], frames: int | None = None, upright: bool = True
) -> Float[np.ndarray, "clips t h w d"]:
    """Compute the tokens of a few clips on the stream's own grid, before any pooling."""
    videos = np.stack([read_segments(clip.path, frames or made.frames, upright=upright) for clip in found])
    tokens = made(torch.from_numpy(videos))
    return tokens.values.unflatten(2, tokens.grid[1:]).numpy()


def stores(run: Params) -> dict[str, FeatureStore]:
    """Open the feature stores that the extraction wrote down; raises ResultError or FeatureError without them."""
    names = results.load(run.results_dir / "extractors.json")["stores"]
    return {role: FeatureStore.open(run.run_dir / "features" / names[role]) for role in ROLES}
