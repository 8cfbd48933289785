"""What the real dataset takes on this GPU: frozen streams and the fusion at full size, in bf16.

    python tests/benchmarks/gpu.py                       # writes tests/benchmarks/results/<name of the GPU>.json
    python tests/benchmarks/gpu.py --videos data/ssv2/videos
    python tests/benchmarks/gpu.py --quick --device cpu  # the same steps in small, to see that they run; writes nothing

Measured with random weights, which cost what published ones do: clips a second of each stream with its frames on the
device, and from video files to tokens (rendered clips where no folder of videos is given); seconds and memory of a
training step of the fusion of params/ssv2.yaml. The hours follow from these by multiplication, and are said to.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
import torch
from tcar.train.heads import parameter_groups

from tcar import log, params
from tcar.data.tabletop import Look, render_dataset
from tcar.data.video import read_segments, resize
from tcar.data.workers import Failure, isolated_map
from tcar.features.plan import PEAKS
from tcar.losses import build_loss
from tcar.models import create_stream, stream_cost
from tcar.models.fusion import create_fusion
from tcar.models.grids import grid_coordinates
from tcar.models.tca_config import TCAConfig

STREAMS = {"dinov2_vits14": 8, "i3d_r50": 8, "vjepa2_vitl16_256": 16}  # frames of a clip
QUICK = {"dinov2_tiny": 8, "i3d_tiny": 16}
QUICK_CLIPS = 24
BATCHES = (8, 16, 32, 64)
CLIPS, TRAINING_CLIPS, CLASSES = 220_847, 168_913, 174
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Decode:
    """Reads a clip as a stream is fed: frames at the middles of segments, squares of its input size."""

    frames: int
    size: int

    def __call__(self, path: Path) -> np.ndarray:
        return resize(read_segments(path, self.frames), self.size)


def seconds_of(step: Callable[[], object], device: torch.device, rounds: int) -> float:
    """The median seconds of a step, after a few to warm up, the device's queue emptied before each reading."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(3):
        step()
    took = []
    for _ in range(rounds):
        wait()
        began = time.perf_counter()
        step()
        wait()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def on_device(name: str, frames: int, batches: tuple[int, ...], device: torch.device, peak: float | None) -> dict:
    """Clips a second of a stream whose frames are on the device, at the best of some batch sizes."""
    stream = create_stream(name).to(device)
    best: dict = {}
    for batch in batches:
        shape = (batch, frames, stream.input_size, stream.input_size, 3)
        clips = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        try:
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
                seconds = seconds_of(lambda clips=clips: stream(clips), device, 10)
        except torch.OutOfMemoryError:
            break
        if batch / seconds > best.get("clips_per_second", 0):
            best = {"batch": batch, "clips_per_second": batch / seconds}
    gflops = stream_cost(stream, frames)["gflops"]
    share = best["clips_per_second"] * gflops * 1e9 / (peak * 1e12) if peak else None
    size = f"{frames} x {stream.input_size} x {stream.input_size}"
    return {"clip": size, "gflops": gflops, **best, "share_of_bf16_peak": share}


def from_files(name: str, frames: int, batch: int, paths: list[Path], device: torch.device) -> dict:
    """Clips a second from video files to tokens on the host, decoded by a process for every core."""
    stream = create_stream(name).to(device)

    def batches(outcomes: Iterator) -> Iterator[np.ndarray]:
        held = []
        for _, outcome in outcomes:
            if not isinstance(outcome, Failure):
                held.append(outcome)
            if len(held) == batch:
                yield np.stack(held)
                held = []

    began, clips = None, 0
    with closing(isolated_map(Decode(frames, stream.input_size), paths, time_limit=60)) as outcomes:
        for ready in batches(outcomes):
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
                stream(torch.from_numpy(ready).to(device)).values.half().cpu()
            if began is None:  # the first batch waits for processes to start and for kernels to be chosen
                began = time.perf_counter()
            else:
                clips += len(ready)
    if not clips:
        raise SystemExit(f"{len(paths)} videos are fewer than two batches of {batch}: give more")
    return {"clips_per_second": clips / (time.perf_counter() - began), "clips": clips}


def training_step(run: params.Params, batch: int, device: torch.device, compiled: bool) -> dict:
    """Seconds and memory of a step of the run's fusion on tokens that are on the device."""
    config = TCAConfig.from_params(run, [str(number) for number in range(CLASSES)])
    torch.manual_seed(0)
    fusion = create_fusion(config.fusion).to(device)
    model = torch.compile(fusion) if compiled else fusion
    optimiser = torch.optim.AdamW(parameter_groups(fusion, run.training.weight_decay), 1e-4, fused=True)
    loss_of, labels = build_loss(run.training.label_smoothing), torch.randint(CLASSES, (batch,), device=device)
    inputs = []
    for role in ("semantic", "motion"):
        grid = getattr(config, f"{role}_grid")
        inputs.append(torch.randn(batch, prod(grid), config.fusion.stream_width(role), device=device))
        inputs.append(grid_coordinates(grid).flatten(0, 1).to(device))

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(model(*inputs).float(), labels)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(fusion.parameters(), 1.0)
        optimiser.step()

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = seconds_of(step, device, 10)
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    return {"batch": batch, "compiled": compiled, "seconds": seconds, "peak_memory_gib": peak}


def projected(measured: dict, run: params.Params) -> dict:
    """Hours for the whole real dataset: what was measured, multiplied, with nothing added for disks or faults."""
    hours = {name: CLIPS / found["clips_per_second"] / 3600 for name, found in measured["from_files"].items()}
    steps = TRAINING_CLIPS / measured["training"]["batch"] * run.training.epochs
    training = steps * measured["training"]["seconds"] / 3600
    pair = [hours[name] for name in ("dinov2_vits14", "i3d_r50") if name in hours]
    total = {"hours": sum(pair) + training} if len(pair) == 2 else {}
    return {"extraction_hours": hours, "training_hours_a_seed": training, "epochs": run.training.epochs, **total}


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; gives 1 where there is no GPU to measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--videos", type=Path, help="a folder of .webm files; left out: rendered clips")
    parser.add_argument("--clips", type=int, default=512, help="videos to read")
    parser.add_argument("--quick", action="store_true", help="small streams and few clips; nothing is written")
    given = parser.parse_args(arguments)
    log.configure()
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        print("there is no GPU here: nothing was measured (--quick --device cpu runs the same steps in small)")
        return 1
    device = torch.device(given.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    peak = next((values["bf16"] for gpu, values in PEAKS.items() if gpu in name.split()[1:2] + name.split("-")), None)
    streams, batches = (QUICK, (4,)) if given.quick else (STREAMS, BATCHES)
    given.clips = min(given.clips, QUICK_CLIPS) if given.quick else given.clips
    run = params.load("params/ssv2.yaml")
    measured = {"gpu": name, "torch": torch.__version__, "bf16_peak_tflops": peak}
    measured["on_device"] = {n: on_device(n, frames, batches, device, peak) for n, frames in streams.items()}
    with tempfile.TemporaryDirectory() as folder:
        paths = sorted(given.videos.glob("*.webm"))[: given.clips] if given.videos else rendered(Path(folder), given)
        measured["videos"] = str(given.videos.name) if given.videos else "rendered, 320 x 240 (synthetic)"
        batch = {n: found["batch"] for n, found in measured["on_device"].items()}
        measured["from_files"] = {n: from_files(n, f, batch[n], paths, device) for n, f in streams.items()}
    if given.quick:
        small = replace(run, fusion=replace(run.fusion, fusion_width=32, heads=2, cross_width=0))
        measured["training"] = training_step(small, 2, device, compiled=False)
    else:
        measured["training"] = training_step(run, 256, device, compiled=True)
        measured["projected"] = projected(measured, run)
    text = json.dumps(measured, indent=1) + "\n"
    print(text)
    if not given.quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name.replace(' ', '_')}.json").write_text(text, encoding="utf-8")
    return 0


def rendered(folder: Path, given: argparse.Namespace) -> list[Path]:
    """Render clips of the size of the real ones."""
    sets = max(1, given.clips // 32)
    render_dataset(folder, train_sets=sets, validation_sets=1, test_sets=1, look=Look(320, 240), limit=given.clips)
    return sorted((folder / "videos").iterdir())[: given.clips]


if __name__ == "__main__":
    sys.exit(main())
