"""What an extraction will take, before it starts: bytes from the shape of the tokens, hours from arithmetic.

The hours of a model are its multiplications and additions over the peak of a GPU and an assumed share of that peak:
an estimate that nobody has measured. Decoding can be measured here, and an extraction that was measured says so itself.
"""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from math import prod

import torch

from tcar import log, results
from tcar.data.ssv2 import SPLITS, Clip, DatasetError, load_split
from tcar.data.video import VideoError
from tcar.data.workers import Failure, isolated_map, worker_count
from tcar.features.packing import FeatureError, row_type
from tcar.features.views import SegmentView
from tcar.models import create_stream, stream_cost
from tcar.params import Params

ROLES = ("semantic", "motion")
# TFLOP/s from the makers' data sheets: fp32 without tensor cores, and dense (not sparse) bf16 with them.
PEAKS = {
    "A10": {"fp32": 31.2, "bf16": 125},
    "A100": {"fp32": 19.5, "bf16": 312},
    "H100": {"fp32": 67, "bf16": 989},
    "H200": {"fp32": 67, "bf16": 989},
    "L4": {"fp32": 30.3, "bf16": 121},
    "L40S": {"fp32": 91.6, "bf16": 362},
}
UTILISATION = 0.35  # assumed
PUBLISHED_CLIPS = 220_847  # of all splits, where the dataset is not here yet
MEASURED_CLIPS = 64


@dataclass(frozen=True)
class StreamPlan:
    """What the tokens of one stream take: `bytes` on disk, `gflops` for one view of a clip, `hours` by precision."""

    role: str
    stream: str
    clips: int
    views: int
    grid: tuple[int, int, int]
    width: int
    token_type: str
    bytes: int
    gflops: float
    hours: dict[str, float]
    measured: dict | None
    decoding: float | None


def plan(run: Params, gpu: str, utilisation: float = UTILISATION, measure: bool = False) -> list[StreamPlan]:
    """Plan the extraction of both streams of a run on one GPU of this name.

    utilisation: the assumed share of the GPU's peak. measure: decode a few clips of the dataset here, for
    `decoding` (clips a second). Raises FeatureError for an unknown GPU, or where there is no clip to measure or count.
    """
    if gpu not in PEAKS:
        raise FeatureError(f"the peak of {gpu!r} is not in the table; choose one of {', '.join(PEAKS)}")
    if not 0 < utilisation <= 1:
        raise FeatureError(f"utilisation is {utilisation}, expected a share between 0 and 1")
    clips = _clips(run)
    return [_stream_plan(run, role, clips, PEAKS[gpu], utilisation, measure) for role in ROLES]


def text(plans: Sequence[StreamPlan], gpu: str, utilisation: float = UTILISATION) -> str:
    """A plan for people, each number with where it comes from."""
    lines = []
    for found in plans:
        tokens = prod(found.grid)
        lines += [
            f"{found.role}: {found.stream}",
            f"  clips      {found.clips:,}, {found.views} view{'s' * (found.views > 1)} each",
            f"  on disk    {found.bytes / 1e9:.1f} GB: {tokens} tokens "
            f"({' x '.join(map(str, found.grid))}) of {found.width} numbers in {found.token_type} a view",
            f"  model      {found.gflops:.1f} GFLOPs a view; "
            + ", ".join(f"{_span(hours)} in {precision}" for precision, hours in found.hours.items())
            + f" on one {gpu}: an estimate, arithmetic at an assumed {100 * utilisation:.0f}% of its peak",
        ]
        if found.measured:
            rate, ranks = found.measured["clips_per_second"], found.measured["ranks"]
            lines.append(
                f"  measured   {rate:.1f} clips/s on {found.measured['device']} in an earlier extraction, in each of "
                f"its {ranks} process(es), their start included: {_span(found.clips / (rate * ranks) / 3600)}"
            )
        if found.decoding:
            lines.append(
                f"  decoding   {found.decoding:.1f} views/s measured here with {worker_count(0)} core(s): "
                f"{_span(found.clips * found.views / found.decoding / 3600)}"
            )
        else:
            lines.append("  decoding   not measured (--measure decodes a few clips here)")
    whole = sum(found.bytes for found in plans)
    return "\n".join([*lines, f"together: {whole / 1e9:.1f} GB on disk"])


def _stream_plan(
    run: Params, role: str, clips: list[Clip] | int, peaks: dict[str, float], utilisation: float, measure: bool
) -> StreamPlan:
    streams = run.streams
    name, frames = getattr(streams, role), getattr(streams, f"{role}_frames")
    with torch.device("meta"):  # shapes only: a large stream would take seconds and gigabytes
        stream = create_stream(name)
    cost = stream_cost(stream, frames)
    grid, count = tuple(getattr(streams, f"{role}_grid")), clips if isinstance(clips, int) else len(clips)
    operations = count * streams.views * cost["gflops"] * 1e9
    return StreamPlan(
        role=role,
        stream=name,
        clips=count,
        views=streams.views,
        grid=grid,
        width=stream.width,
        token_type=streams.token_type,
        bytes=count * streams.views * row_type(streams.token_type, prod(grid), stream.width).itemsize,
        gflops=cost["gflops"],
        hours={kind: operations / (peak * 1e12 * utilisation) / 3600 for kind, peak in peaks.items()},
        measured=_measured(run, name),
        decoding=_decoding_speed(clips, frames) if measure else None,
    )


def _span(hours: float) -> str:
    """A time in the unit that people would choose."""
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.0f} min" if hours * 60 >= 1 else f"{hours * 3600:.0f} s"


def _clips(run: Params) -> list[Clip] | int:
    """The clips with a known class that the dataset lists, or how many the published one has."""
    if run.data_root.is_dir():
        listed = [clip for split in SPLITS for clip in load_split(run.data_root, split)]
        return [clip for clip in listed if clip.label is not None]
    if run.data.dataset != "ssv2":
        raise DatasetError(f"{run.data_root}: no dataset yet; the first notebook renders it")
    return PUBLISHED_CLIPS


def _measured(run: Params, stream: str) -> dict | None:
    """How fast the newest store of this stream was made in this run."""
    folder = run.run_dir / "features"
    found = folder.glob(f"{stream.replace(':', '-').replace('/', '-')}-*/store.meta.json")
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    return results.load(newest) if newest else None


def _decoding_speed(clips: list[Clip] | int, frames: int) -> float:
    """Views decoded a second on all cores, of clips spread over the dataset, once the worker processes run."""
    if isinstance(clips, int):
        raise FeatureError("there is no dataset to measure decoding with; set data_root, or leave --measure out")
    chosen = clips[:: max(1, len(clips) // MEASURED_CLIPS)][:MEASURED_CLIPS]
    began, done = 0.0, 0
    with closing(isolated_map(_Decode(frames), chosen, time_limit=60)) as outcomes:
        for _, outcome in log.progress(outcomes, total=len(chosen), description="decoding"):
            began = began or time.perf_counter()
            done += not isinstance(outcome, Failure) and outcome
    if done < 2:
        raise FeatureError(f"{done} of {len(chosen)} clips can be decoded; run the audit (notebook 00)")
    return (done - 1) / (time.perf_counter() - began)


@dataclass(frozen=True)
class _Decode:
    """Decodes a clip in a worker process and says whether that went well: the frames stay there."""

    frames: int

    def __call__(self, clip: Clip) -> bool:
        try:
            SegmentView(self.frames)(clip, 0, 0)
        except VideoError:
            return False
        return True
