"""What `gpu.py` measures of streams and fusions whose inputs are on the device already: speed, and what changes it."""

import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from copy import deepcopy
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tcar.fusion.kinds import FusionConfig, create_fusion
from tcar.lab import params
from tcar.models.tca_config import TCAConfig
from tcar.streams.grids import grid_coordinates
from tcar.streams.i3d import I3D
from tcar.streams.registry import create_stream, stream_cost
from tcar.streams.stream import Stream
from tcar.train.compiling import compile_alone
from tcar.train.recipe import parameter_groups

ROUNDS, WARM_UP = 10, 3
# TFLOP/s of dense (not sparse) bf16 from the makers' data sheets.
PEAKS = {"A10": 125, "A100": 312, "H100": 989, "H200": 989, "L4": 121, "L40S": 362}


def seconds_of(step: Callable[[], object], device: torch.device) -> float:
    """The median seconds of a step, after a few to warm up, the device's queue emptied before each reading."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(WARM_UP):
        step()
    took = []
    for _ in range(ROUNDS):
        wait()
        began = time.perf_counter()
        step()
        wait()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def fold(stream: Stream) -> None:
    """Make batch norms part of the convolutions before them (Jacob et al. 2018): 1e-5 of the largest feature aside, the
    same.
    """
    for block in list(stream.backbone.modules()):
        for name, norm in list(block.named_children()):
            if isinstance(norm, nn.BatchNorm3d):
                before = name.replace("norm", "conv")
                setattr(block, before, fuse_conv_bn_eval(getattr(block, before), norm))
                setattr(block, name, nn.Identity())


def channels_last(stream: Stream) -> None:
    fold(stream)
    stream.backbone.to(memory_format=torch.channels_last_3d)


def half_weights(stream: Stream) -> None:
    stream.backbone.to(torch.bfloat16)


def compiled(stream: Stream) -> None:
    half_weights(stream)
    stream._tokens = torch.compile(stream._tokens, dynamic=False)


# What may make a stream faster: what is done to it, whether cuDNN tries its kernels out, whether it is of I3D alone.
SWITCHES: dict[str, tuple[Callable[[Stream], None], bool, bool]] = {
    "cudnn_benchmark": (lambda stream: None, True, True),
    "folded": (fold, False, True),
    "folded, cudnn_benchmark": (fold, True, True),
    "folded, channels_last, cudnn_benchmark": (channels_last, True, True),
    "weights_bf16": (half_weights, False, False),
    "weights_bf16, compiled": (compiled, False, False),
}


@contextmanager
def kernels_tried(wanted: bool):
    """Have cuDNN try its kernels out on the first inputs of each shape, and keep the fastest."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, wanted
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def speed_of(stream: Stream, frames: int, batch: int, device: torch.device) -> tuple[float, Tensor]:
    """Clips a second of a stream whose frames are on the device, in bf16 on a GPU; and tokens of four clips."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (batch, frames, stream.input_size, stream.input_size, 3)
    clips = torch.randint(0, 256, shape, dtype=torch.uint8, device=device, generator=generator)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
        return batch / seconds_of(lambda: stream(clips), device), stream(clips[:4]).values.float()


def on_device(name: str, frames: int, batches: tuple[int, ...], device: torch.device, peak: float | None) -> dict:
    """Clips a second of a stream as it is, at the best of some batch sizes."""
    stream, best = create_stream(name).to(device), {}
    for batch in batches:
        try:
            speed, _ = speed_of(stream, frames, batch, device)
        except torch.OutOfMemoryError:
            break
        if speed > best.get("clips_per_second", 0):
            best = {"batch": batch, "clips_per_second": speed}
    gflops = stream_cost(stream, frames)["gflops"]
    share = best["clips_per_second"] * gflops * 1e9 / (peak * 1e12) if peak else None
    size = f"{frames} x {stream.input_size} x {stream.input_size}"
    return {"clip": size, "gflops": gflops, **best, "share_of_bf16_peak": share}


def switched(name: str, frames: int, batch: int, device: torch.device, compiling: bool) -> dict:
    """Clips a second of a stream in every way to be faster, and how far its tokens are then, as a share of their norm.
    """
    stream, on_cpu = create_stream(name).to(device), device.type == "cpu"
    (_, expected), found = speed_of(stream, frames, batch, device), {}
    for switch, (change, tried, of_i3d) in SWITCHES.items():
        if (of_i3d and not isinstance(stream.backbone, I3D)) or ("compiled" in switch and not compiling):
            continue
        if on_cpu and "bf16" in switch:
            continue
        try:
            other = deepcopy(stream)
            change(other)
            with kernels_tried(tried):
                speed, tokens = speed_of(other, frames, batch, device)
            far = float((tokens - expected).norm() / expected.norm())
            found[switch] = {"clips_per_second": speed, "relative_difference": far}
        except Exception as error:  # what one switch does not bear must not cost the others
            found[switch] = {"failed": f"{type(error).__name__}: {error}"[:200]}
    return found


def headline(run: params.Params, classes: int) -> tuple[FusionConfig, dict[str, tuple[int, int, int]]]:
    """The fusion of a run and the grids of its streams."""
    config = TCAConfig.of(run.streams, run.fusion, [str(number) for number in range(classes)])
    return config.fusion, {role: getattr(config, f"{role}_grid") for role in ("semantic", "motion")}


def fusion_step(
    run: params.Params, classes: int, batch: int, device: torch.device, compiling: bool, marked: bool = False
) -> dict:
    """Seconds, memory and seconds to compile of a training step of a run's fusion on tokens that are on the device.

    A bare loop of torch: what a step of the trainer is compared with. `marked`: compiled for any number of clips.
    """
    config, grids = headline(run, classes)
    torch.manual_seed(0)
    fusion = create_fusion(config).to(device)
    optimiser = torch.optim.AdamW(parameter_groups(fusion, run.training.weight_decay), 1e-4, fused=True)
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=run.training.label_smoothing)
    labels = torch.randint(classes, (batch,), device=device)
    inputs = []
    for role, grid in grids.items():
        inputs.append(torch.randn(batch, prod(grid), config.stream_width(role), device=device))
        inputs.append(grid_coordinates(grid).flatten(0, 1).to(device))
    if marked:
        for tokens in inputs[::2]:
            torch._dynamo.maybe_mark_dynamic(tokens, 0)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(fusion(*inputs).float(), labels)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(fusion.parameters(), 1.0)
        optimiser.step()

    if compiling:
        compile_alone(fusion)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    step()
    first = time.perf_counter() - began
    found = {"batch": batch, "compiled": compiling, "seconds": seconds_of(step, device), "first_step_seconds": first}
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    return found | {"clips_per_second": batch / found["seconds"], "peak_memory_gib": peak}


def fusion_steps(runs: dict[str, params.Params], classes: int, device: torch.device, compiling: bool) -> dict:
    """Steps of the fusions of runs, one after the other in this process: eager, compiled, and for any batch."""
    found: dict = {}
    for name, run in runs.items():
        ways = {"eager": (False, False)}
        if compiling:
            ways |= {"compiled": (True, False), "compiled for any batch": (True, True)}
        for way, (by_inductor, marked) in ways.items():
            try:
                step = fusion_step(run, classes, run.training.batch_size, device, by_inductor, marked)
            except Exception as error:  # the next configuration is to be tried as well
                step = {"failed": f"{type(error).__name__}: {error}"[:300]}
            found[f"{name}, {way}"] = step
    return found
