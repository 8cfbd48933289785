"""What an extraction will take, before it starts: bytes from the shape of the tokens, hours from measured speeds.

The speeds are those of an earlier extraction of this run, else those that tests/benchmarks/gpu.py measured on a GPU of
the same name. Decoding can be measured here. What nobody has measured is said to be unknown.
"""

import json
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from math import prod

import torch

from tcar.data.ssv2 import SPLITS, Clip, load_split
from tcar.data.video import VideoError
from tcar.data.workers import Failure, isolated_map, worker_count
from tcar.features.packing import FeatureError, row_type
from tcar.features.views import SegmentView
from tcar.ground import log
from tcar.ground.sources import PACKAGE
from tcar.lab import results
from tcar.lab.counts import clips
from tcar.lab.params import Params, load
from tcar.lab.real_plans import plan_files
from tcar.streams.registry import create_stream, stream_cost, stream_spec

ROLES = ("semantic", "motion")
BENCHMARKS = PACKAGE.parent / "tests" / "benchmarks" / "results"
PUBLISHED_CLIPS = 220_847  # of all splits, where the dataset is not here yet
MEASURED_CLIPS = 64


@dataclass(frozen=True)
class StreamPlan:
    """What the tokens of one stream take: `bytes` on disk, `gflops` for one view of a clip. `rate` is in clips a
    second, None where nobody measured it, and `source` says who did."""

    role: str
    stream: str
    clips: int
    views: int
    grid: tuple[int, int, int]
    width: int
    token_type: str
    bytes: int
    gflops: float
    rate: float | None
    source: str
    decoding: float | None


def plan(run: Params, gpu: str = "", measure: bool = False) -> list[StreamPlan]:
    """Plan the extraction of both streams of a run on one GPU of this name ("" = on what this machine has).

    measure: decode a few clips of the dataset here, for `decoding` (views a second). Raises FeatureError where there is
    no clip to measure, ValueError for a stream that there is not.
    """
    clips, gpu = _clips(run), gpu or gpu_here()
    return [_stream_plan(run, role, clips, gpu, measure) for role in ROLES]


def hours(plans: Sequence[StreamPlan]) -> float | None:
    """How long the streams take, one after another; None where the speed of one is not known."""
    if any(found.rate is None for found in plans):
        return None
    one_pass = len({(found.rate, found.source) for found in plans}) == 1 and "together" in plans[0].source
    return sum(found.clips / found.rate for found in plans[: 1 if one_pass else None]) / 3600


def text(plans: Sequence[StreamPlan]) -> str:
    """A plan for people, each number with where it comes from."""
    lines = []
    for found in plans:
        tokens, words = prod(found.grid), "not known: no extraction was measured"
        if found.rate:
            words = f"{_span(found.clips / found.rate / 3600)} at {found.rate:.1f} clips/s, {found.source}"
        lines += [
            f"{found.role}: {found.stream}",
            f"  clips      {found.clips:,}, {found.views} view{'s' * (found.views > 1)} each",
            f"  on disk    {found.bytes / 1e9:.1f} GB: {tokens} tokens "
            f"({' x '.join(map(str, found.grid))}) of {found.width} numbers in {found.token_type} a view",
            f"  model      {found.gflops:.1f} GFLOPs a view",
            f"  time       {words}",
        ]
        if found.decoding:
            lines.append(
                f"  decoding   {found.decoding:.1f} views/s measured here with {worker_count(0)} core(s): "
                f"{_span(found.clips * found.views / found.decoding / 3600)}"
            )
        else:
            lines.append("  decoding   not measured (--measure decodes a few clips here)")
    whole, needed = sum(found.bytes for found in plans), hours(plans)
    return "\n".join([*lines, f"together: {whole / 1e9:.1f} GB on disk" + (f", {_span(needed)}" if needed else "")])


def row_bytes(run: Params, role: str) -> int:
    """The bytes of one view of a clip in the store of a stream. Raises ValueError for a stream that there is not."""
    width = stream_spec(getattr(run.streams, role)).width
    return row_type(run.streams.token_type, prod(getattr(run.streams, f"{role}_grid")), width).itemsize


def benchmarked(gpu: str) -> dict:
    """What tests/benchmarks/gpu.py measured on a GPU of this name; empty where it did not run on one."""
    path = BENCHMARKS / f"{gpu.replace(' ', '_')}.json"
    return json.loads(path.read_text(encoding="utf-8")) if gpu and path.is_file() else {}


def gpu_here() -> str:
    """The name of the GPU of this machine; empty where there is none."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def _stream_plan(run: Params, role: str, clips: list[Clip] | int, gpu: str, measure: bool) -> StreamPlan:
    streams = run.streams
    name, frames = getattr(streams, role), getattr(streams, f"{role}_frames")
    with torch.device("meta"):  # shapes only: a large stream would take seconds and gigabytes
        stream = create_stream(name)
    grid, count = tuple(getattr(streams, f"{role}_grid")), clips if isinstance(clips, int) else len(clips)
    rate, source = _rate(run, name, gpu)
    return StreamPlan(
        role=role,
        stream=name,
        clips=count,
        views=streams.views,
        grid=grid,
        width=stream.width,
        token_type=streams.token_type,
        bytes=count * streams.views * row_bytes(run, role),
        gflops=stream_cost(stream, frames)["gflops"],
        rate=rate,
        source=source,
        decoding=_decoding_speed(clips, frames) if measure else None,
    )


def _rate(run: Params, stream: str, gpu: str) -> tuple[float | None, str]:
    """Clips a second of a stream, with all their views, and who measured it."""
    if made := _measured(run, stream):
        together = ", both streams together" if len(made.get("stores", ())) > 1 else ""
        words = f"measured on {made['device']} in an earlier extraction of {made['ranks']} process(es){together}"
        return made["clips_per_second"] * made["ranks"], words
    found, words = benchmarked(gpu).get("from_files", {}), f"measured on one {gpu} by tests/benchmarks/gpu.py"
    if "together" in found and _pair(run) == _pair(load(plan_files(PACKAGE.parent)["ssv2"])):
        return found["together"]["clips_per_second"] / run.streams.views, f"{words}, both streams together"
    if stream in found:
        return found[stream]["clips_per_second"] / run.streams.views, words
    return None, ""


def _pair(run: Params) -> list[str]:
    return [getattr(run.streams, role) for role in ROLES]


def _span(hours: float) -> str:
    """A time in the unit that people would choose."""
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.0f} min" if hours * 60 >= 1 else f"{hours * 3600:.0f} s"


def _clips(run: Params) -> list[Clip] | int:
    """The clips with a known class that the dataset lists, or how many there will be."""

    if not run.data_root.is_dir():
        return sum(clips(run).values())
    listed = [clip for split in SPLITS for clip in load_split(run.data_root, split)]
    return [clip for clip in listed if clip.label is not None]


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
