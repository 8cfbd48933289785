"""How long a run will take, from speeds that somebody measured, each named: None where nobody did.

The speed of an extraction is that of an earlier one of this run, else what tests/benchmarks/gpu.py measured on a GPU of
the same name; that of trainings is from there, or measured here. Decoding can be measured here too.
"""

import json
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache, partial
from math import prod

import torch
from torch import Tensor, nn

from tcar.data.ssv2 import SPLITS, Clip, load_split
from tcar.data.views import PROTOCOLS, SegmentView
from tcar.data.workers import Failure, isolated_map, worker_count
from tcar.features.packing import FeatureError
from tcar.fusion.kinds import create_fusion
from tcar.ground import log
from tcar.ground.sources import PACKAGE
from tcar.lab import real_plans, results
from tcar.lab.demand import sizes
from tcar.lab.demand.sizes import PlannedTraining
from tcar.lab.params import Params, load
from tcar.lab.steps.fits import device_of
from tcar.lab.steps.streams import ROLES
from tcar.streams.registry import create_stream, stream_cost

BENCHMARKS = PACKAGE.parent / "tests" / "benchmarks" / "results"
DECODED_CLIPS = 64  # to measure decoding
TIMED = 5.0  # seconds of training steps, to measure these
ALIKE = 4  # by so many times may the operations of a fusion differ from those that its speed was measured with
TOGETHER = ", both streams together"  # ends the source of a speed of one pass over the clips


@dataclass(frozen=True)
class StreamPlan:
    """What the tokens of one stream take: `bytes` on disk, `gflops` for one view of a clip.

    `rate` is in clips a second with all their views, `source` says who measured it; `decoding` is in views a second.
    """

    role: str
    stream: str
    clips: int
    bytes: int
    gflops: float
    rate: float | None
    source: str
    decoding: float | None


@dataclass(frozen=True)
class Hours:
    """How long one kind of work takes; None where nobody has measured it. `source` says what it is computed from."""

    work: str
    hours: float | None
    source: str


def extraction(run: Params, gpu: str = "", measure: bool = False) -> list[StreamPlan]:
    """Plan the extraction of both streams of a run on one GPU of this name ("" = on what this machine has).

    measure: decode a few clips of the dataset here. Raises FeatureError where there is no clip to decode, ValueError
    for a stream that there is not.
    """
    clips, found = sum(sizes.clip_counts(run).values()), []
    for role in ROLES:
        name, frames = getattr(run.streams, role), getattr(run.streams, f"{role}_frames")
        rate, source = _extraction_rate(run, name, gpu or gpu_here())
        decoding = _decoding_rate(run, frames) if measure else None
        size = sizes.token_bytes(run, role, clips)
        found.append(StreamPlan(role, name, clips, size, _gflops(name, frames), rate, source, decoding))
    return found


@cache
def _gflops(stream: str, frames: int) -> float:
    with torch.device("meta"):  # shapes only: a large stream would take seconds and gigabytes
        return stream_cost(create_stream(stream), frames)["gflops"]


def extraction_hours(plans: Sequence[StreamPlan]) -> float | None:
    """How long the streams take, one after another; None where the speed of one is not known."""
    if any(found.rate is None for found in plans):
        return None
    one_pass = len({(found.rate, found.source) for found in plans}) == 1 and plans[0].source.endswith(TOGETHER)
    return sum(found.clips / found.rate for found in plans[: 1 if one_pass else None]) / 3600


def text(run: Params, plans: Sequence[StreamPlan]) -> str:
    """The plan of an extraction for people, each number with where it comes from."""
    lines, views = [], run.streams.views
    listed = " as published" if sizes.clip_counts(run) is real_plans.CLIPS else ""
    for found in plans:
        grid, width = sizes.grid(run, found.role), sizes.width(run, found.role)
        needed = "not known: no extraction was measured"
        if found.rate:
            needed = f"{_span(found.clips / found.rate / 3600)} at {found.rate:.1f} clips/s, {found.source}"
        decoding = "not measured (--measure decodes a few clips here)"
        if found.decoding:
            decoding = f"{found.decoding:.1f} views/s measured here with {worker_count(0)} core(s): "
            decoding += _span(found.clips * views / found.decoding / 3600)
        lines += [
            f"{found.role}: {found.stream}",
            f"  clips      {found.clips:,}{listed}, {views} view{'s' * (views > 1)} each",
            f"  on disk    {found.bytes / 1e9:.1f} GB: {prod(grid)} tokens ({' x '.join(map(str, grid))}) "
            f"of {width} numbers in {run.streams.token_type} a view",
            f"  model      {found.gflops:.1f} GFLOPs a view",
            f"  time       {needed}",
            f"  decoding   {decoding}",
        ]
    whole, hours_needed = sum(found.bytes for found in plans), extraction_hours(plans)
    last = f", {_span(hours_needed)}" if hours_needed else ""
    return "\n".join([*lines, f"together: {whole / 1e9:.1f} GB on disk{last}"])


def _span(hours: float) -> str:
    """A time in the unit that people would choose."""
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.0f} min" if hours * 60 >= 1 else f"{hours * 3600:.0f} s"


def hours(run: Params, gpu: str = "", measure: bool = False) -> list[Hours]:
    """Project the hours of extraction and of all trainings from measured speeds.

    gpu: as in `extraction`. measure: time training steps here. Raises ValueError for a stream or a fusion that cannot
    be made.
    """
    streams, counts = extraction(run, gpu), sizes.clip_counts(run)
    sources = dict.fromkeys(found.source or f"of {found.stream} no extraction was measured" for found in streams)
    clips, needed = streams[0].clips, extraction_hours(streams)
    found = [Hours("extraction", needed, f"{clips:,} clips; {'; '.join(sources)}")]
    for protocol in (each for each in run.evaluation.evaluation_views if each != "1"):  # one view is the store's
        scored, views = counts[run.evaluation.evaluation_split], prod(map(len, PROTOCOLS[protocol]))
        share = scored * views / (clips * run.streams.views)
        words = f"{scored:,} clips, {views} views each, at the speed of the extraction, if that was measured"
        found.append(Hours(f"{protocol} views", None if needed is None else needed * share, words))
    if audit := benchmarked(gpu or gpu_here()).get("reading", {}).get("audit"):
        found.append(Hours("audit", clips / audit / 3600, f"at {audit:.0f} clips/s measured on such a machine"))
    planned = sizes.trainings(run)
    epochs = sum(each.epochs * each.seeds for each in planned)
    about = f"{len(planned)} configurations, {epochs} epochs with all seeds, of {counts['train']:,} clips"
    work = counts["train"] * sum(each.gflops * each.epochs * each.seeds for each in planned)
    rate, source = _measured_rate(run, planned[0]) if measure else _training_rate(planned[0], gpu or gpu_here())
    return [*found, Hours("training", work / rate / 3600 if rate else None, f"{about}; {source}")]


def benchmarked(gpu: str) -> dict:
    """What tests/benchmarks/gpu.py measured on a GPU of this name; empty where it did not run on one."""
    path = BENCHMARKS / f"{gpu.replace(' ', '_')}.json"
    return json.loads(path.read_text(encoding="utf-8")) if gpu and path.is_file() else {}


def gpu_here() -> str:
    """The name of the GPU of this machine; empty where there is none."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def _extraction_rate(run: Params, stream: str, gpu: str) -> tuple[float | None, str]:
    """Clips a second of a stream, with all their views, and who measured it."""
    stores = (run.run_dir / "features").glob(f"{stream.replace(':', '-').replace('/', '-')}-*/store.meta.json")
    if newest := max(stores, key=lambda path: path.stat().st_mtime, default=None):
        made = results.load(newest)
        words = f"measured on {made['device']} in an earlier extraction of {made['ranks']} process(es)"
        return made["clips_per_second"] * made["ranks"], words + TOGETHER * (len(made.get("stores", ())) > 1)
    found, words = benchmarked(gpu).get("from_files", {}), f"measured on one {gpu} by tests/benchmarks/gpu.py"
    if "together" in found and _pair(run) == _pair(_benchmarked_run()):
        return found["together"]["clips_per_second"] / run.streams.views, words + TOGETHER
    if stream in found:
        return found[stream]["clips_per_second"] / run.streams.views, words
    return None, ""


def _pair(run: Params) -> list[str]:
    return [getattr(run.streams, role) for role in ROLES]


def _benchmarked_run() -> Params:
    """The run whose streams and fusions tests/benchmarks/gpu.py measures."""
    return load(real_plans.plan_files(PACKAGE.parent)["ssv2"])


def _training_rate(planned: PlannedTraining, gpu: str) -> tuple[float | None, str]:
    """The GFLOPs of forward passes that training does in a second on a GPU, as was measured, and in words."""
    if not (made := benchmarked(gpu).get("trainings")):
        return None, "no training was measured on such a machine (--measure times some steps here)"
    real, methods = _benchmarked_run(), list(made["seconds_alone"])  # those of its methods that it had at that time
    real = replace(real, training=replace(real.training, methods=methods))
    costs = [each.gflops for each in sizes.trainings(real)[: len(methods)]]
    if not costs[0] / ALIKE <= planned.gflops <= costs[0] * ALIKE:
        return None, f"{gpu} was measured with the fusion of params/ssv2.yaml, which is of another size"
    work = made["clips"] * sum(costs) * made["heads"] / len(costs)
    words = f"{made['heads']} heads in company measured on one {gpu} by tests/benchmarks/gpu.py, by GFLOPs"
    # What was timed kept its weights after some steps; a run keeps them after thousands.
    return work / (made["seconds_in_company"] - made.get("seconds_of_keeping", 0.0)), words


def _measured_rate(run: Params, planned: PlannedTraining) -> tuple[float, str]:
    """As `_training_rate`, from steps on noise that are timed on the run's device."""
    device = device_of(run)
    batch = min(run.training.batch_size, 128 if device.type == "cuda" else 8)
    model = create_fusion(planned.fusion).to(device).train()
    optimiser, inputs = torch.optim.AdamW(model.parameters()), sizes.noise(run, planned.fusion, batch, str(device))
    labels, spent = torch.zeros(batch, dtype=torch.long, device=device), []
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(run.trainer.precision, torch.float32)
    while len(spent) < 3 or (sum(spent) < TIMED and len(spent) < 50):
        began = time.perf_counter()
        with torch.autocast(device.type, kind, enabled=kind is not torch.float32):
            result = model(*inputs)
            loss = nn.functional.cross_entropy(result if isinstance(result, Tensor) else result[0], labels)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent.append(time.perf_counter() - began)
    speed, method = batch / sorted(spent)[len(spent) // 2], planned.fusion.method
    return planned.gflops * speed, f"{speed:.1f} clips/s of {method} measured here on {device}, with tokens in memory"


def _decoding_rate(run: Params, frames: int) -> float:
    """Views decoded a second on all cores, of clips spread over the dataset, once the worker processes run."""
    if not run.data_root.is_dir():
        raise FeatureError("there is no dataset to measure decoding with; set data_root, or leave --measure out")
    clips = [clip for split in SPLITS for clip in load_split(run.data_root, split)]
    chosen = clips[:: max(1, len(clips) // DECODED_CLIPS)][:DECODED_CLIPS]
    began, done = 0.0, 0
    with closing(isolated_map(partial(_decode, frames), chosen, time_limit=60)) as outcomes:
        for _, outcome in log.progress(outcomes, total=len(chosen), description="decoding"):
            began = began or time.perf_counter()
            done += not isinstance(outcome, Failure)
    if done < 2:
        raise FeatureError(f"{done} of {len(chosen)} clips can be decoded; run the audit (notebook 00)")
    return (done - 1) / (time.perf_counter() - began)


def _decode(frames: int, clip: Clip) -> None:
    """In a worker process, where the frames stay; a clip that cannot be read is a Failure."""
    SegmentView(frames)(clip, 0, 0)
