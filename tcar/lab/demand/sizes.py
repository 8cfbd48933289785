"""What a run takes in clips, trainings and bytes, counted from the shapes of its tokens, weights and layers."""

from dataclasses import dataclass
from functools import cache
from math import prod

import torch
from torch import Tensor, nn

from tcar.data.ssv2 import SPLITS, DatasetError, load_labels, load_split
from tcar.features.packing import row_type
from tcar.fusion.kinds import FusionConfig, create_fusion, fusion_cost
from tcar.lab import real_plans
from tcar.lab.params import Params
from tcar.lab.steps.ablations import Variant, variants
from tcar.lab.steps.methods import method_configs
from tcar.lab.steps.streams import ROLES
from tcar.streams.grids import grid_coordinates
from tcar.streams.registry import count_stream, create_stream, stream_spec
from tcar.tabletop.dataset import chosen_families, plan_sets
from tcar.tabletop.settings import CONTROLS, FAMILIES
from tcar.train.checkpoints import KEPT
from tcar.train.recipe import epochs_of

CLIP = 40_000  # bytes of a clip of Tabletop with its ground truth, 160 x 120 pixels, in whole blocks of the disk
PROCESS = 2**29  # bytes that a process holds which has loaded torch and this package: 490 MB were measured
STATE = 5 * 4  # bytes a trained parameter: its value, its gradient, two moments of AdamW, its average
PREFETCHED = 4  # batches of tokens that a training holds at once
ENDS = 0.5  # of a batch's largest layer: what its neighbours still hold

_cost = cache(fusion_cost)


def class_count(run: Params) -> int:
    """How many classes the dataset of a run has or will have."""
    if run.data.dataset == "tabletop":
        return len(run.tabletop.classes) or sum(map(len, FAMILIES.values()))
    try:
        return len(load_labels(run.data_root))
    except DatasetError:
        return real_plans.CLASSES


def clip_counts(run: Params) -> dict[str, int]:
    """How many clips of a known class each split has or will have; of what is not there, as many as were published."""
    drawn = run.tabletop
    if run.data.dataset == "tabletop":
        counts = dict(zip(SPLITS, (drawn.train_sets, drawn.validation_sets, drawn.test_sets), strict=True))
        sets = plan_sets(chosen_families(list(drawn.classes)), counts, run.common.seed)
        return {split: sum(len(made.ids) for made in sets if made.split == split) for split in SPLITS}
    try:
        return {split: sum(clip.label is not None for clip in load_split(run.data_root, split)) for split in SPLITS}
    except DatasetError:
        return real_plans.CLIPS


def control_clips(run: Params) -> int:
    """How many clips notebook 05 renders under all controls of Tabletop."""
    if run.data.dataset != "tabletop" or run.tabletop.control:
        return 0
    scored = getattr(run.tabletop, f"{run.evaluation.evaluation_split}_sets")
    families = chosen_families(list(run.tabletop.classes))
    return len(CONTROLS) * min(scored, run.ablations.control_sets) * sum(len(family.classes) for family in families)


def grid(run: Params, role: str) -> tuple[int, int, int]:
    """The token grid (time, rows, columns) of a stream."""
    return tuple(getattr(run.streams, f"{role}_grid"))


def width(run: Params, role: str) -> int:
    """How many numbers a token of a stream has. Raises ValueError for a stream that there is not."""
    return stream_spec(getattr(run.streams, role)).width


def token_bytes(run: Params, role: str, clips: int) -> int:
    """The bytes that the views of so many clips take in the store of a stream; 0 where the run trains end to end."""
    if run.streams.semantic_adapters:
        return 0
    row = row_type(run.streams.token_type, prod(grid(run, role)), width(run, role))
    return clips * run.streams.views * row.itemsize


def probe_bytes(run: Params, clips: int) -> int:
    """The bytes of the table that linear probes of one stream are fitted on: each moment of each clip of training and
    validation averaged, in single precision."""
    return 4 * clips * max(grid(run, role)[0] * width(run, role) for role in ROLES)


def disk(run: Params) -> dict[str, int]:
    """The bytes that a run writes into each folder of its own, `probes` being a table that goes again.

    Raises ValueError for a stream or for classes that there are not.
    """
    counts, own = clip_counts(run), run.data.dataset == "tabletop" and not run.data.data_root
    clips, share = sum(counts.values()), run.tabletop.width * run.tabletop.height / (160 * 120)
    controlled = control_clips(run)
    return {
        "data": int(own * clips * CLIP * share),
        "controls": int(controlled * CLIP * share) + sum(token_bytes(run, role, controlled) for role in ROLES),
        "features": sum(token_bytes(run, role, clips) for role in ROLES),
        "frames": int(1e9 * run.trainer.frame_cache_gb),
        "trainings": checkpoint_bytes(run),
        "probes": probe_bytes(run, counts["train"] + counts["validation"]),
    }


@dataclass(frozen=True)
class PlannedTraining:
    """A configuration that the notebooks train: for so many epochs, from so many seeds.

    `parameters` are those that are trained, `gflops` those of one clip forward.
    """

    fusion: FusionConfig
    epochs: int
    seeds: int
    parameters: int
    gflops: float


def trainings(run: Params) -> list[PlannedTraining]:
    """What notebooks 03 and 05 train, each configuration once: methods, then the levels of the ablations.

    Raises ValueError for a stream or a fusion that cannot be made.
    """
    sizes = {f"{role}_width": width(run, role) for role in ROLES} | {"num_classes": class_count(run)}
    seeds: dict[Variant, set[int]] = {}
    for fusion in method_configs(run, **sizes).values():
        seeds.setdefault(Variant(fusion), set()).update(run.training.seeds)
    for variant in variants(run, **sizes).values():
        seeds.setdefault(variant, set()).update(run.ablations.ablation_seeds)
    found = []
    for variant, drawn in seeds.items():
        fusion, coarser = variant.fusion, dict(variant.source.grids)
        cost = _cost(fusion, *(prod(coarser.get(role, grid(run, role))) for role in ROLES))
        epochs = epochs_of(fusion, run.training)
        found.append(PlannedTraining(fusion, epochs, len(drawn), cost["trained_parameters"], cost["gflops"]))
    return found


def checkpoint_bytes(run: Params) -> int:
    """What trainings keep on the disk: of each its last snapshots and its best weights, and one that is written."""
    snapshot = 3 + (run.trainer.weight_averaging > 0)  # weights, two moments, average
    return sum(4 * each.parameters * (each.seeds * (1 + KEPT * snapshot) + snapshot) for each in trainings(run))


def noise(run: Params, fusion: FusionConfig, clips: int, device: str = "cpu") -> list[Tensor]:
    """Tokens of noise of so many clips and their places, as a fusion takes them: of each stream in turn."""
    made = []
    for role in ROLES:
        places = grid_coordinates(grid(run, role)).flatten(0, -2)
        made += [torch.randn(clips, len(places), fusion.stream_width(role), device=device), places.float().to(device)]
    return made


def kept_for_backward(run: Params, fusion: FusionConfig) -> int:
    """The bytes of one clip that a training step keeps for its backward pass, in single precision."""
    model = create_fusion(fusion).train()
    own = {value.untyped_storage().data_ptr() for value in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = model(*noise(run, fusion, 1))
        (result if isinstance(result, Tensor) else result[0]).sum()
        return sum(kept.values())  # while the result lives: a storage that is freed gives its address to another


def largest_layer(stream: nn.Module, frames: int) -> int:
    """The bytes that the largest layer of a stream reads and writes for one clip, in single precision."""
    sizes = [0]

    def note(_, inputs, output) -> None:
        sizes.append(4 * sum(value.numel() for value in (*inputs, output) if isinstance(value, Tensor)))

    hooks = [module.register_forward_hook(note) for module in stream.modules() if not list(module.children())]
    count_stream(stream, frames)
    for hook in hooks:
        hook.remove()
    return max(sizes)


@dataclass(frozen=True)
class Memory:
    """What one kind of work holds at its peak, in bytes; `host` counts all processes.

    `about` names the parameters that decide, `fix` says how to lower them.
    """

    work: str
    host: int
    device: int
    about: str
    fix: str


def memory(run: Params, on_gpu: bool) -> list[Memory]:
    """Estimate the peaks of extraction and training. Raises ValueError for a stream or fusion that cannot be made."""
    return [_of_extraction(run, on_gpu), _of_training(run, on_gpu)]


def _of_extraction(run: Params, on_gpu: bool) -> Memory:
    clips, frames, weights, layer = run.streams.batch_clips, 0, 0, 0
    for role in ROLES:
        with torch.device("meta"):
            stream = create_stream(getattr(run.streams, role))
        count = getattr(run.streams, f"{role}_frames")
        frames += 3 * clips * count * 256**2
        weights += 4 * sum(value.numel() for value in stream.parameters())
        layer = max(layer, largest_layer(stream, count))
    streams, workers = weights + int(clips * (1 + ENDS) * layer), run.workers
    host = (1 + workers) * PROCESS + (2 * frames if on_gpu else workers * (streams + frames))
    about = f"batch_clips is {clips}, workers {workers}"
    return Memory("extraction", host, streams * on_gpu, about, "lower batch_clips or workers")


def _of_training(run: Params, on_gpu: bool) -> Memory:
    planned, size = trainings(run), run.training.batch_size
    states = STATE * sum(each.parameters for each in planned)  # they share each batch
    batch = 4 * size * sum(prod(grid(run, role)) * width(run, role) for role in ROLES)
    kept = size * kept_for_backward(run, max(planned, key=lambda each: each.gflops).fusion)
    step = states + batch + kept // (2 if run.trainer.precision != "fp32" else 1)
    host = PROCESS + PREFETCHED * batch + (0 if on_gpu else step)
    fix = "lower batch_size, or set fusion_checkpointing: true"
    return Memory("training", host, step * on_gpu, f"batch_size is {size}", fix)
