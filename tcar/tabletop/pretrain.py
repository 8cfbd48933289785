"""Training of the small streams and baselines of the demo on stand-in tasks (`make streams`).

A published DINOv2 or I3D comes trained on millions of images or clips; the small ones, of the same architectures, come
trained on dense labels of random synthetic stills (what covers each sixteenth of a patch; colour, outline, pattern and
place of the object in it) and on the true flow of random synthetic clips. Neither shares objects, textures,
backgrounds or clips with Tabletop. The experts of the small CAST and the small TimeSformer begin with the same tasks,
on the same numbers of stills and clips; TimeSformer, which is one network, with one task after the other.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from safetensors.torch import save_file
from torch import Tensor, nn

from tcar.data.workers import worker_count
from tcar.ground import files, locks, log, records, sources
from tcar.ground.errors import ParameterError
from tcar.ground.processes import pool
from tcar.models.baselines import CAST_TINY, TIMESFORMER_TINY
from tcar.models.cast import clip_config, videomae_config
from tcar.streams import catalogue, i3d, packaged, pretrained
from tcar.streams import registry as streams
from tcar.streams.image import DINOV2_TINY
from tcar.tabletop import standin

LOG = log.get("streams")
Reader = Callable[[Tensor], Tensor]
Scenes = Mapping[str, int]  # how many "stills", how many "clips"
DETAIL = 4  # sub-patches along each side of a patch, for which the category is asked
# The code that draws the training data; the recipe stands beside the weights.
TRAINED_BY = tuple(f"tcar.tabletop.{name}" for name in ("standin", "scene", "assets", "stage"))
HELD_OUT = 0.08  # share of the stand-in data on which the provenance's scores are measured


def _generate(make, seeds: range) -> list[Tensor]:
    rows = [make(seed) for seed in log.progress(seeds, description="stand-in scenes")]
    return [torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)]


class DenseHead(nn.Module):
    """One linear layer on every token, cut into named targets."""

    def __init__(self, width: int, targets: dict[str, int]):
        super().__init__()
        self.targets = targets
        self.linear = nn.Linear(width, sum(targets.values()))

    def forward(self, tokens: Float[Tensor, "... d"]) -> dict[str, Tensor]:
        return dict(zip(self.targets, self.linear(tokens).split(list(self.targets.values()), -1), strict=True))


def _schedule(optimiser, steps: int, peak: float):
    return torch.optim.lr_scheduler.OneCycleLR(optimiser, peak, total_steps=steps, pct_start=0.1, anneal_strategy="cos")


def semantic_loss(out: dict[str, Tensor], batch: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
    """Sum of the losses of every dense label, and the scores that a reader understands.

    Categories are asked for in every sixteenth of a patch, so that a token has to hold an outline and not only a kind.
    """
    category, colour, shape, pattern, offset = batch
    filled = shape >= 0
    guessed = out["category"].unflatten(-1, (-1, len(standin.CATEGORIES)))
    terms = [
        2 * F.cross_entropy(guessed.flatten(0, -2), category.flatten()),
        4 * F.l1_loss(out["colour"][filled], colour[filled]),
        F.cross_entropy(out["shape"][filled], shape[filled]),
        0.5 * F.cross_entropy(out["pattern"][filled], pattern[filled]),
        4 * F.l1_loss(out["offset"][filled], offset[filled]),
    ]
    found = guessed.argmax(-1)
    overlap = {}
    for name in ("hand", "object", "held object"):
        here, there = found == standin.CATEGORIES.index(name), category == standin.CATEGORIES.index(name)
        overlap[f"{name} overlap"] = ((here & there).sum() / (here | there).sum().clamp(min=1)).item()
    scores = overlap | {
        "shape accuracy": (out["shape"].argmax(-1) == shape)[filled].float().mean().item(),
        "pattern accuracy": (out["pattern"].argmax(-1) == pattern)[filled].float().mean().item(),
        "colour error": F.l1_loss(out["colour"][filled], colour[filled]).item(),
    }
    return sum(terms), scores


def presence_loss(out: Float[Tensor, "b k"], batch: list[Tensor]) -> Tensor:
    """What a class token has to tell of a whole still: which categories, outlines and patterns are anywhere in it."""
    category, _, shape, pattern, _ = (labels.flatten(1).long() for labels in batch)
    counts = (len(standin.CATEGORIES), len(standin.SHAPE_NAMES), len(standin.PATTERN_NAMES))
    # Where no object fills a patch its index is -1, which one more class takes and which is then left out.
    there = [
        F.one_hot(labels.remainder(k + 1), k + 1).amax(1)[:, :k]
        for labels, k in zip((category, shape, pattern), counts, strict=True)
    ]
    return F.binary_cross_entropy_with_logits(out, torch.cat(there, 1).float())


def train_semantic(scenes: Scenes, epochs: int, seed: int) -> tuple[nn.Module, dict]:
    """Train the small DINOv2 on dense labels of stills; returns it with its scores on held-out stills."""
    torch.manual_seed(seed)
    model = pretrained.build("Dinov2Model", DINOV2_TINY)
    plan = _Schedule(scenes["stills"], epochs, 64, seed)
    return model, _learn_stills(model, lambda images: model(images).last_hidden_state, plan)


def train_cast_spatial(scenes: Scenes, epochs: int, seed: int) -> tuple[nn.Module, dict]:
    """Train the spatial expert of the small CAST on the same labels; its class token, which CAST reads, on what is
    there at all.
    """
    torch.manual_seed(seed)
    model = pretrained.build("CLIPVisionModel", clip_config(CAST_TINY))

    def read(images: Tensor) -> Tensor:
        return model.post_layernorm(model(images).last_hidden_state)

    return model, _learn_stills(model, read, _Schedule(scenes["stills"], epochs, 64, seed), summary=True)


def _learn_stills(model: nn.Module, read: Reader, plan: "_Schedule", summary: bool = False) -> dict:
    """Train a vision transformer that `read`s images [b 3 s s] to tokens [b 1+n d], class token first, on stills.

    `summary` asks the class token as well. Returns the scores on held-out stills.
    """
    config = model.config
    grid = config.image_size // config.patch_size
    make = partial(standin.make_still, size=config.image_size, grid=grid, detail=DETAIL)
    data = _generate(make, range(plan.seed * 10**6, plan.seed * 10**6 + plan.scenes))
    kinds = {"shape": len(standin.SHAPE_NAMES), "pattern": len(standin.PATTERN_NAMES)}
    categories = len(standin.CATEGORIES)
    head = DenseHead(config.hidden_size, {"category": DETAIL**2 * categories, "colour": 3, "offset": 2, **kinds})
    whole = nn.Linear(config.hidden_size, categories + sum(kinds.values())) if summary else nn.Identity()

    def run(rows, augment):
        columns = [column[rows] for column in data]
        if augment:
            mirrored = torch.rand(len(rows)) < 0.5
            for column in columns:
                column[mirrored] = column[mirrored].flip(2)
            columns[-1][mirrored, ..., 0] *= -1  # offsets point the other way
        frames, category, *labels = columns
        blocks = category.long().unflatten(2, (grid, DETAIL)).unflatten(1, (grid, DETAIL))
        labels = [blocks.transpose(2, 3).flatten(3), *labels]
        tokens = read(_normalise(frames.permute(0, 3, 1, 2), catalogue.IMAGENET, augment))
        loss, scores = semantic_loss(head(tokens[:, 1:].unflatten(1, (grid, grid))), labels)
        if summary:
            asked = presence_loss(whole(tokens[:, 0]), labels)
            loss, scores = loss + 2 * asked, scores | {"presence loss": asked.item()}
        return loss, scores
    return _optimise(nn.ModuleList([model, head, whole]), run, plan)


def motion_loss(flow: Tensor, truth: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Robust flow regression; scored by explained variance over moving places."""
    error = F.smooth_l1_loss(flow, truth, beta=0.5)
    moving = truth.abs().sum(-1) > 0.3
    rest = ((flow - truth)[moving] ** 2).sum() / (truth[moving] ** 2).sum()
    return error, {"flow R2": 1 - rest.item()}


def train_motion(scenes: Scenes, epochs: int, seed: int) -> tuple[nn.Module, dict]:
    """Train the small I3D on the true flow of clips; returns it with its scores on held-out clips."""
    spec = streams.stream_spec("i3d_tiny")
    torch.manual_seed(seed)
    model = i3d.I3D(i3d.TINY).to(memory_format=torch.channels_last_3d)

    def read(video: Tensor) -> Tensor:
        return model.features(video.contiguous(memory_format=torch.channels_last_3d)).movedim(1, -1)

    plan = _Schedule(scenes["clips"], epochs, 32, seed)
    return model, _learn_flow(model, read, _Clips(spec.frames, spec.input_size, catalogue.KINETICS), plan)


def train_cast_temporal(scenes: Scenes, epochs: int, seed: int) -> tuple[nn.Module, dict]:
    """Train the temporal expert of the small CAST, a VideoMAE, on the same flow of the same clips."""
    torch.manual_seed(seed)
    model = pretrained.build("VideoMAEModel", videomae_config(CAST_TINY))
    side = CAST_TINY.image_size // CAST_TINY.patch_size

    def read(video: Tensor) -> Tensor:
        return model(video.transpose(1, 2)).last_hidden_state.unflatten(1, (-1, side, side))

    clips = _Clips(CAST_TINY.frames, CAST_TINY.image_size, catalogue.IMAGENET)
    return model, _learn_flow(model, read, clips, _Schedule(scenes["clips"], epochs, 16, seed, 1e-3))


def train_timesformer(scenes: Scenes, epochs: int, seed: int) -> tuple[nn.Module, dict]:
    """Train the small TimeSformer on the same stills, then on the flow of the same clips, in every second frame.

    The published one begins with a network trained on images too (Bertasius et al. 2021). The scores are those of the
    flow, which it ends with.
    """
    # takes seconds, which naming a stream must not take
    from transformers.models.videomae.modeling_videomae import get_sinusoid_encoding_table

    torch.manual_seed(seed)
    config = TIMESFORMER_TINY
    model = pretrained.build("TimesformerModel", config)
    for layer in model.modules():  # the library draws weights for a width of 768
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    stills = _Schedule(scenes["stills"], epochs, 64, seed)
    model.config.num_frames = 1
    _learn_stills(model, lambda images: model(images[:, None]).last_hidden_state, stills)
    model.config.num_frames = config.num_frames
    with torch.no_grad():  # the library leaves the times at zero, all alike
        model.embeddings.time_embeddings.copy_(get_sinusoid_encoding_table(config.num_frames, config.hidden_size))
    side = config.image_size // config.patch_size

    def read(video: Tensor) -> Tensor:
        tokens = model(video[:, :, ::2].transpose(1, 2)).last_hidden_state[:, 1:]
        return tokens.unflatten(1, (side, side, -1)).movedim(3, 1)  # the library has the frames of a place together

    clips = _Clips(2 * config.num_frames, config.image_size, catalogue.KINETICS)
    return model, _learn_flow(model, read, clips, _Schedule(scenes["clips"], epochs, 16, seed, 1e-3))


@dataclass(frozen=True)
class _Clips:
    """So many frames of `size` pixels a side, and the statistics that a network normalises them by."""

    frames: int
    size: int
    statistics: dict


def _learn_flow(model: nn.Module, read: Reader, about: _Clips, plan: "_Schedule") -> dict:
    """Train what `read`s clips [b 3 t s s] to features [b t' h w d] on their flow; returns scores on held-out clips.

    Half of each batch is transposed, so that vertical motion is seen as often as horizontal motion, and half mirrored.
    """
    with torch.no_grad():
        model.eval()  # norms over batches learn nothing of it
        *grid, width = read(torch.zeros(1, 3, about.frames, about.size, about.size)).shape[1:]
    make = partial(standin.make_clip, size=about.size, grid=tuple(grid), frames=about.frames)
    clips, flows = _generate(make, range(plan.seed * 10**6, plan.seed * 10**6 + plan.scenes))
    head = DenseHead(width, {"flow": 8})
    # bfloat16 takes half of the time on a CPU that has it and is let use it, and many times as long on any other
    fast = torch.cpu._is_avx512_bf16_supported() and torch.backends.cpu.get_cpu_capability() == "AVX512"

    def run(rows, augment):
        video, truth = clips[rows].permute(0, 4, 1, 2, 3), flows[rows].float()
        if augment:
            half = len(rows) // 2
            video = torch.cat([video[:half], video[half:].transpose(3, 4)])
            truth = torch.cat([truth[:half], truth[half:].transpose(2, 3).flip(-1)])
            mirrored = torch.arange(len(rows)) % 2 == 0
            video[mirrored] = video[mirrored].flip(4)
            truth[mirrored] = truth[mirrored].flip(3) * torch.tensor([-1.0, 1.0])
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            features = read(_normalise(video, about.statistics, augment))
        flow = head(features.float())["flow"]
        flow = flow.unflatten(-1, (2, 2, 2)).permute(0, 1, 2, 4, 3, 5, 6).flatten(4, 5).flatten(2, 3)
        return motion_loss(flow, truth)
    return _optimise(nn.ModuleList([model, head]), run, plan)


def _normalise(frames: UInt8[Tensor, "b 3 ..."], statistics: dict, augment: bool) -> Tensor:
    """Scale to [0, 1], vary contrast and brightness in training, and normalise as the stream does."""
    shape = (1, 3) + (1,) * (frames.ndim - 2)
    images = frames.float() / 255
    if augment:
        per_clip = (len(frames),) + (1,) * (frames.ndim - 1)
        images = images * torch.empty(per_clip).uniform_(0.8, 1.2) + torch.empty(per_clip).uniform_(-0.1, 0.1)
        images = images.clamp(0, 1)
    return (images - torch.tensor(statistics["mean"]).view(shape)) / torch.tensor(statistics["std"]).view(shape)


@dataclass(frozen=True)
class _Schedule:
    scenes: int
    epochs: int
    batch: int
    seed: int
    rate: float = 3e-3


def _optimise(model: nn.Module, run, plan: _Schedule) -> dict:
    held_out = int(plan.scenes * HELD_OUT)
    learned, batch = plan.scenes - held_out, plan.batch
    order = torch.Generator().manual_seed(plan.seed)
    steps = learned // batch
    optimiser = torch.optim.AdamW(model.parameters(), lr=plan.rate, weight_decay=0.02)
    schedule = _schedule(optimiser, steps * plan.epochs, plan.rate)
    for epoch in range(plan.epochs):
        model.train()
        total = 0.0
        for rows in (torch.randperm(learned, generator=order) + held_out)[: steps * batch].split(batch):
            loss, _ = run(rows, True)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            total += loss.item()
        LOG.info("epoch %d/%d loss %.4f", epoch + 1, plan.epochs, total / steps)
    model.eval().half().float()  # the weights are kept in half precision, and scored as they are kept
    with torch.no_grad():
        parts = [run(rows, False)[1] for rows in torch.arange(held_out).split(batch)]
    return {key: float(np.mean([p[key] for p in parts])) for key in parts[0]}


STILLS, CLIPS = {"stills": 20000}, {"clips": 9000}
TASKS = {  # stream, or what a small baseline begins with -> (training, scenes, epochs)
    "dinov2_tiny": (train_semantic, STILLS, 7),
    "i3d_tiny": (train_motion, CLIPS, 7),
    "cast_tiny.clip": (train_cast_spatial, STILLS, 7),
    "cast_tiny.videomae": (train_cast_temporal, CLIPS, 7),
    "timesformer_tiny": (train_timesformer, STILLS | CLIPS, 7),
}


def build(name: str, output: Path, seed: int, scale: float) -> None:
    """Train one of `TASKS` on one core and write its weights, with their provenance beside them."""
    torch.set_num_threads(1)  # the same sums in the same order, whatever the machine
    log.configure("INFO")
    train, scenes, epochs = TASKS[name]
    scenes = {kind: max(400, int(count * scale)) for kind, count in scenes.items()}
    epochs = max(1, round(epochs * scale))
    begin = time.perf_counter()
    model, scores = train(scenes, epochs, seed)
    LOG.info("%s: %s", name, {k: round(v, 3) for k, v in scores.items()})
    output.mkdir(parents=True, exist_ok=True)
    state = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in model.state_dict().items()}
    path = output / packaged.packaged(name, seed).name
    with files.drafted(path) as draft:
        save_file(state, draft)
    counts = " and ".join(f"{count} {kind}" for kind, count in scenes.items())
    provenance = {
        "stream": name,
        "trained_on": f"{counts}, synthetic stand-in scenes of the vocabulary 'pretrain'",
        "epochs": epochs, "seed": seed, "held_out_scores": scores, "licence": packaged.LICENCE,
        "parameters": sum(p.numel() for p in model.parameters()), "torch": torch.__version__,
        "code": training_code(model),
        "seconds": round(time.perf_counter() - begin, 1),
    }
    files.write_text(path.with_suffix(".json"), json.dumps(provenance, indent=1, sort_keys=True) + "\n")


def training_code(backbone: nn.Module) -> dict[str, str]:
    """Return the digest of every module in `TRAINED_BY` and of a small network, as it prints itself.

    Equal ones train the same network on the same scenes, wherever the code that builds it stands.
    """
    digests = sources.module_digests(*TRAINED_BY)
    shapes = {key: list(value.shape) for key, value in backbone.state_dict().items()}
    network = records.digest({"modules": repr(backbone), "weights": shapes})
    return {module: digests[module] for module in TRAINED_BY} | {"network": network}


def train_streams(names: Sequence[str], output: Path, seeds: Sequence[int] = (), scale: float = 1.0) -> None:
    """Train small streams and baselines, all where none is named, with every seed, side by side on the cores.

    `seeds` are by default those that come with the package. `scale` is the share of the stand-in scenes and epochs.
    Raises ParameterError: an unknown stream, a folder that
    another command trains into.
    """
    if unknown := set(names) - set(TASKS):
        raise ParameterError(f"unknown streams {sorted(unknown)}; there are {', '.join(TASKS)}")
    wanted = [(name, seed) for name in names or TASKS for seed in seeds or packaged.seeds_of(name)]
    busy = f"{output}: another command trains streams into it; wait for it, or give another --output"
    with locks.alone(output / ".lock", ParameterError, busy), pool(worker_count(0)) as processes:
        jobs = [processes.submit(build, name, output, seed, scale) for name, seed in wanted]
        for job in jobs:
            job.result()
