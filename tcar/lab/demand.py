"""What a run will take: which configurations it trains, how much memory, and how many hours from speeds that were
measured. What nobody measured is said to be unknown.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import prod

import torch
from torch import Tensor, nn

from tcar.data.protocol import PROTOCOLS
from tcar.fusion.kinds import FusionConfig, create_fusion, fusion_cost
from tcar.ground.sources import PACKAGE
from tcar.lab import plan
from tcar.lab.counts import class_count, clips
from tcar.lab.params import Params, load
from tcar.lab.plan import ROLES
from tcar.lab.real_plans import plan_files
from tcar.lab.steps.fits import device_of
from tcar.lab.steps.methods import ablation_configs, method_configs
from tcar.streams.grids import grid_coordinates
from tcar.streams.registry import count_stream, create_stream, stream_spec
from tcar.train.checkpoints import KEPT
from tcar.train.recipe import epochs_of

PROCESS = 2**29  # bytes that a process holds which has loaded torch and this package: 490 MB were measured
STATE = 5 * 4  # bytes a trained parameter: its value, its gradient, two moments of AdamW, its average
PREFETCHED = 4  # batches of tokens that a training holds at once
ALIKE = 4  # by so many times may the operations of a fusion differ from those that its speed was measured with
ENDS = 0.5  # of a batch's largest layer: what its neighbours still hold


@dataclass(frozen=True)
class PlannedTraining:
    """A configuration that the notebooks train: for so many epochs, from so many seeds."""

    fusion: FusionConfig
    epochs: int
    seeds: int


def trainings(run: Params) -> list[PlannedTraining]:
    """What notebooks 03 and 05 train, each configuration once: methods, and levels of the ablations.

    Raises ValueError for a stream or a fusion that cannot be made.
    """
    sizes = {f"{role}_width": stream_spec(getattr(run.streams, role)).width for role in ROLES}
    sizes["num_classes"] = class_count(run)
    seeds: dict[FusionConfig, set[int]] = {}
    for fusion in method_configs(run, **sizes).values():
        seeds.setdefault(fusion, set()).update(run.training.seeds)
    for fusion in ablation_configs(run, **sizes).values():
        seeds.setdefault(fusion, set()).update(run.ablations.ablation_seeds)
    return [PlannedTraining(fusion, epochs_of(fusion, run.training), len(drawn)) for fusion, drawn in seeds.items()]


def token_counts(run: Params) -> tuple[int, int]:
    """How many tokens a clip has in each stream."""
    semantic, motion = (prod(getattr(run.streams, f"{role}_grid")) for role in ROLES)
    return semantic, motion


def cost(run: Params, fusion: FusionConfig) -> dict[str, int | float]:
    """Trained parameters of a fusion, and the GFLOPs of one clip forward."""
    return _cost(fusion, *token_counts(run))


_cost = cache(fusion_cost)


def _inputs(run: Params, fusion: FusionConfig, clips: int, device: str = "cpu") -> list[Tensor]:
    made = []
    for role, tokens in zip(ROLES, token_counts(run), strict=True):
        places = grid_coordinates(tuple(getattr(run.streams, f"{role}_grid"))).flatten(0, -2)
        made += [torch.randn(clips, tokens, fusion.stream_width(role), device=device), places.float().to(device)]
    return made


def kept_for_backward(run: Params, fusion: FusionConfig) -> int:
    """The bytes of one clip that a training step keeps for its backward pass, in single precision; counted on a clip of
    noise."""
    model = create_fusion(fusion).train()
    own = {value.untyped_storage().data_ptr() for value in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = model(*_inputs(run, fusion, 1))
        (result if isinstance(result, Tensor) else result[0]).sum()
        return sum(kept.values())


def largest_layer(stream: nn.Module, frames: int) -> int:
    """The bytes that the largest layer of a stream reads and writes for one clip, in single precision."""
    sizes = [0]

    def note(_, inputs, output) -> None:
        values = [value for value in (*inputs, output) if isinstance(value, Tensor)]
        sizes.append(4 * sum(value.numel() for value in values))

    hooks = [module.register_forward_hook(note) for module in stream.modules() if not list(module.children())]
    count_stream(stream, frames)
    for hook in hooks:
        hook.remove()
    return max(sizes)


@dataclass(frozen=True)
class Memory:
    """What one kind of work holds at its peak, in bytes, and which parameters decide and lower it."""

    work: str
    host: int
    device: int
    about: str
    fix: str


def memory(run: Params, on_gpu: bool) -> list[Memory]:
    """Estimate the peaks of extraction and training from the sizes of weights, layers and batches.

    `host` counts all processes. Raises ValueError for a stream or a fusion that cannot be made.
    """
    weights, layers = [], []
    for role in ROLES:
        with torch.device("meta"):
            stream = create_stream(getattr(run.streams, role))
        weights.append(4 * sum(value.numel() for value in stream.parameters()))
        layers.append(largest_layer(stream, getattr(run.streams, f"{role}_frames")))
    streams = sum(weights) + int(run.streams.batch_clips * (1 + ENDS) * max(layers))
    frames = 3 * run.streams.batch_clips * sum(getattr(run.streams, f"{role}_frames") for role in ROLES) * 256**2
    workers = run.workers
    host = (1 + workers) * PROCESS + (2 * frames if on_gpu else workers * (streams + frames))
    about = f"batch_clips is {run.streams.batch_clips}, workers {workers}"
    found = [Memory("extraction", host, streams * on_gpu, about, "lower batch_clips or workers")]
    costs = {training.fusion: cost(run, training.fusion) for training in trainings(run)}
    states = STATE * sum(found["trained_parameters"] for found in costs.values())  # they share each batch
    batch = 4 * run.training.batch_size * sum(
        tokens * fusion_width(run, role) for role, tokens in zip(ROLES, token_counts(run), strict=True)
    )
    heaviest = max(costs, key=lambda fusion: costs[fusion]["gflops"])
    kept = run.training.batch_size * kept_for_backward(run, heaviest)
    step = states + batch + kept // (2 if run.trainer.precision != "fp32" else 1)
    host = PROCESS + PREFETCHED * batch + (0 if on_gpu else step)
    about, fix = f"batch_size is {run.training.batch_size}", "lower batch_size, or set fusion_checkpointing: true"
    found.append(Memory("training", host, step * on_gpu, about, fix))
    return found


def fusion_width(run: Params, role: str) -> int:
    """How many numbers a token of a stream has."""
    return stream_spec(getattr(run.streams, role)).width


def checkpoint_bytes(run: Params) -> int:
    """What trainings keep on the disk: of each its last snapshots and its best weights, and one that is written."""
    made = trainings(run)
    sizes = [4 * cost(run, training.fusion)["trained_parameters"] for training in made]
    snapshot = 3 + (run.trainer.weight_averaging > 0)  # weights, two moments, average
    fits = sum(size * training.seeds for size, training in zip(sizes, made, strict=True))
    return fits * (1 + KEPT * snapshot) + sum(sizes) * snapshot


@dataclass(frozen=True)
class Hours:
    """How long one kind of work takes; None where nobody has measured it. `source` says what it is computed from."""

    work: str
    hours: float | None
    source: str


def hours(run: Params, gpu: str = "", measure: bool = False) -> list[Hours]:
    """Project the hours of extraction and of all trainings from measured speeds.

    gpu: as in `tcar.lab.plan.plan`. measure: time training steps here. Raises ValueError for a stream or a fusion
    that cannot be made.
    """
    streams = plan.plan(run, gpu)
    sources = dict.fromkeys(found.source or f"of {found.stream} no extraction was measured" for found in streams)
    extraction = plan.hours(streams)
    found = [Hours("extraction", extraction, f"{streams[0].clips:,} clips; {'; '.join(sources)}")]
    for protocol in (each for each in run.evaluation.evaluation_views if each != "1"):  # one view is the store's
        scored, views = clips(run)[run.evaluation.evaluation_split], prod(map(len, PROTOCOLS[protocol]))
        share = scored * views / (streams[0].clips * run.streams.views)
        words = f"{scored:,} clips, {views} views each, at the speed of the extraction, if that was measured"
        found.append(Hours(f"{protocol} views", None if extraction is None else extraction * share, words))
    if audit := plan.benchmarked(gpu or plan.gpu_here()).get("reading", {}).get("audit"):
        words = f"at {audit:.0f} clips/s measured on such a machine"
        found.append(Hours("audit", streams[0].clips / audit / 3600, words))
    count, made = clips(run)["train"], trainings(run)
    rounds = sum(training.epochs * training.seeds for training in made)
    about = f"{len(made)} configurations, {rounds} epochs with all seeds, of {count:,} clips"
    work = count * sum(cost(run, each.fusion)["gflops"] * each.epochs * each.seeds for each in made)
    rate, source = measured_rate(run, made[0].fusion) if measure else benchmarked_rate(run, gpu)
    return [*found, Hours("training", work / rate / 3600 if rate else None, f"{about}; {source}")]


def benchmarked_rate(run: Params, gpu: str = "") -> tuple[float | None, str]:
    """What `measured_rate` gives, as tests/benchmarks/gpu.py measured it with the methods of params/ssv2.yaml."""
    name = gpu or plan.gpu_here()
    found = plan.benchmarked(name)
    if not found:
        return None, "no training was measured on such a machine (--measure times some steps here)"
    real = load(plan_files(PACKAGE.parent)["ssv2"])
    costs = [cost(real, each.fusion)["gflops"] for each in trainings(real)[: len(real.training.methods)]]
    if not costs[0] / ALIKE <= cost(run, trainings(run)[0].fusion)["gflops"] <= costs[0] * ALIKE:
        return None, f"{name} was measured with the fusion of params/ssv2.yaml, which is of another size"
    words = f"measured on one {name} by tests/benchmarks/gpu.py"
    if made := found.get("trainings"):
        work = made["clips"] * sum(costs) * made["heads"] / len(costs)
        return work / made["seconds_in_company"], f"{made['heads']} heads in company {words}"
    return costs[0] * found["training"]["batch"] / found["training"]["seconds"], f"steps {words}"


def measured_rate(run: Params, fusion: FusionConfig, seconds: float = 5.0) -> tuple[float, str]:
    """The GFLOPs of the forward pass that training steps on noise do in a second on the run's device, in words too."""
    device = str(device_of(run))
    batch = min(run.training.batch_size, 128 if device.startswith("cuda") else 8)
    model = create_fusion(fusion).to(device).train()
    optimiser, inputs = torch.optim.AdamW(model.parameters()), _inputs(run, fusion, batch, device)
    labels, spent = torch.zeros(batch, dtype=torch.long, device=device), []
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(run.trainer.precision, torch.float32)
    while len(spent) < 3 or (sum(spent) < seconds and len(spent) < 50):
        with timed(spent, device):
            with torch.autocast(device.partition(":")[0], kind, enabled=kind is not torch.float32):
                result = model(*inputs)
                loss = nn.functional.cross_entropy(result if isinstance(result, Tensor) else result[0], labels)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
    step = sorted(spent)[len(spent) // 2]
    speed = batch / step
    words = f"{speed:.1f} clips/s of {fusion.kind} measured here on {device}, with tokens in memory"
    return cost(run, fusion)["gflops"] * speed, words


@contextmanager
def timed(spent: list[float], device: str) -> Iterator[None]:
    """Add the seconds of a step, once the device is done with it."""
    began = time.perf_counter()
    yield
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    spent.append(time.perf_counter() - began)
