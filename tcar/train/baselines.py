"""Training of a baseline on the clips themselves: a `tcar.data.loader.Loader` reads them, one model learns here.

The recipe is that of `tcar.train.heads`; what differs is that a batch is decoded anew each time it is seen. On a CPU
the model runs on one thread, and the same job gives the same weights. `fit_clips` keeps a fit under the digest of all
that made it.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tcar import files, log, results
from tcar.data.clip_reader import ClipReader, fingerprint
from tcar.data.loader import Loaded, Loader
from tcar.data.ssv2 import Clip, check_label_order
from tcar.losses import build_loss
from tcar.models.baselines import Built, create_baseline, find_baseline
from tcar.tokens import TrainingError
from tcar.train.heads import parameter_groups, rate_factor, reproducible

if TYPE_CHECKING:
    from tcar.params import Training

_CODE = ("tcar.train.baselines", "tcar.models.baselines")
_RECIPE = ("weight_decay", "warmup_epochs", "label_smoothing", "clip_norm")

AHEAD = 2  # batches read before they are asked for
_Batch = tuple[list[int], Loaded]

logger = log.get(__name__)


@dataclass(frozen=True)
class ClipJob:
    """One fit to do: a baseline by name, the names of its classes in order, and what its training does not share.

    0 `epochs` leave the baseline as it is loaded. `learning_rate` is the peak of its fastest group. `checkpoints` are
    those of `tcar.models.baselines.create_baseline`, `upright` is that of `tcar.data.video.read_frames`.
    """

    baseline: str
    classes: tuple[str, ...]
    seed: int
    epochs: int
    batch_size: int
    learning_rate: float
    checkpoints: dict[str, str] = field(default_factory=dict)
    upright: bool = True


@dataclass(frozen=True, eq=False)
class ClipFit:
    """A trained baseline: the trained weights of its best epoch, and what every epoch measured.

    `history` has the rows of `tcar.train.heads.Fit`; it is empty, and `best_epoch` 0, where nothing was trained.
    `broken` says by id why a clip was left out; `notes` must stand beside the numbers.
    """

    job: ClipJob
    history: list[dict]
    best_epoch: int
    state_dict: dict[str, Tensor]
    broken: dict[str, str]
    notes: tuple[str, ...]
    seconds: float


def fit_clips(
    job: ClipJob, train: Sequence[Clip], validation: Sequence[Clip], recipe: Training, root: str | Path, *,
    workers: int = 0, device: str = "cpu",
) -> ClipFit:  # fmt: skip
    """Train a baseline, or take the kept fit: the epoch of the best validation top-1, as in `tcar.train.heads.fit`.

    A job of 0 epochs needs no clips and gives the baseline as it is loaded. Others are kept in `root/<key>/`; the key
    is the digest of code, job, recipe, the weights it starts from, clips and kind of device. `device` "auto" is a GPU
    where there is one; two runs there agree to rounding only.

    Raises:
        TrainingError: clips or recipe that do not fit, no clip left, a loss that is not finite, a damaged fit.
        CheckpointError, DatasetError: weights that do not match, or whose classes are numbered otherwise.
    """
    built, place = _build(job), _device(device)
    if not job.epochs:
        return ClipFit(job, [], 0, {}, {}, built.notes, 0.0)
    _check(job, train, validation, recipe)
    inputs = asdict(job) | {
        "code": results.code_digest(*_CODE), "torch": torch.__version__, "weights": _digest(built.model),
        "recipe": {name: getattr(recipe, name) for name in _RECIPE}, "device": place.type,
        "train": fingerprint(train), "validation": fingerprint(validation),
    }  # fmt: skip
    del inputs["checkpoints"]  # the weights say it all, wherever their files lie
    folder = Path(root, results.digest(inputs))
    if not (folder / "fit.json").exists():
        _keep(_train(job, built, train, validation, recipe, workers, place), folder, inputs)
    return _load(folder, job, built)


def clip_logits(
    fit: ClipFit, clips: Sequence[Clip], *, workers: int = 0, device: str = "cpu"
) -> Float[np.ndarray, "n c"]:
    """Return the logits of a fit for every clip, one view each; those of a clip that cannot be read are NaN.

    Such clips are named in a warning. Raises TrainingError where no clip can be read.
    """
    built, place = _build(fit.job), _device(device)
    built.model.load_state_dict(fit.state_dict, strict=False)
    batches = _cut(range(len(clips)), fit.job.batch_size)
    loader = _loader(fit.job, workers, place)
    with reproducible(fit.job.seed), loader, closing(_read(loader, clips, batches)) as stream:
        shown = log.progress(stream, len(batches), f"{fit.job.baseline}, scoring", "batches")
        places, logits = _logits(built.model.to(place), shown)
    if not places:
        raise TrainingError(f"{fit.job.baseline}: none of {len(clips)} clips can be read; run the audit again")
    found = np.full((len(clips), logits.shape[1]), np.nan, np.float32)
    found[places] = logits.numpy()
    _warn(fit.job, clips, loader.broken)
    return found


def _build(job: ClipJob) -> Built:
    built = create_baseline(job.baseline, len(job.classes), job.checkpoints, seed=job.seed, untrained=not job.epochs)
    if built.labels is not None:
        check_label_order({name: index for index, name in enumerate(job.classes)}, built.labels)
    return built


def _check(job: ClipJob, train: Sequence[Clip], validation: Sequence[Clip], recipe: Training) -> None:
    for split, clips in {"train": train, "validation": validation}.items():
        if not clips:
            raise TrainingError(f"{job.baseline}: there are no {split} clips")
        for clip in clips:
            if clip.label is None or not 0 <= clip.label < len(job.classes):
                raise TrainingError(
                    f"{job.baseline}: {split} clip {clip.id} has label {clip.label}, the job has "
                    f"{len(job.classes)} classes"
                )
    if job.epochs <= recipe.warmup_epochs:
        raise TrainingError(
            f"{job.baseline}: epochs is {job.epochs}, but must be above warmup_epochs, which is "
            f"{recipe.warmup_epochs}, or 0 to leave it as it is loaded; set it in baseline_epochs"
        )


def _train(job, built: Built, train, validation, recipe, workers: int, device: torch.device) -> ClipFit:
    start, history, best = time.perf_counter(), [], (None, 0, {})
    clips, model = [*train, *validation], built.model.to(device)
    labels = torch.tensor([clip.label for clip in clips])
    with reproducible(job.seed), _loader(job, workers, device) as loader:
        step = _Step(job, model, recipe, math.ceil(len(train) / job.batch_size))
        order = torch.Generator().manual_seed(job.seed)
        for epoch in range(1, job.epochs + 1):
            shuffled = torch.randperm(len(train), generator=order).tolist()
            splits = shuffled, range(len(train), len(clips))
            parts = [[place for place in places if clips[place].id not in loader.broken] for places in splits]
            learning, checking = (_cut(places, job.batch_size) for places in parts)
            row = {"epoch": epoch, "learning_rate": step.learning_rate}
            where = f"{job.baseline}, seed {job.seed}, epoch {epoch}/{job.epochs}"
            with closing(_read(loader, clips, [*learning, *checking])) as stream:
                shown = log.progress(stream, len(learning) + len(checking), where, "batches")
                row |= _train_epoch(step, islice(shown, len(learning)), labels, where)
                row |= _validate(model, shown, labels, where)
            history.append(row)
            logger.info(f"{where}: loss {row['train_loss']:.3f}, validation top-1 {row['validation_top1']:.3f}")
            score = (row["validation_top1"], -row["validation_loss"])
            if best[0] is None or score > best[0]:
                best = score, epoch, {key: value.detach().cpu().clone() for key, value in _trained(model)}
    _warn(job, clips, loader.broken)
    return ClipFit(job, history, best[1], best[2], loader.broken, built.notes, time.perf_counter() - start)


class _Step:
    """One step of the optimiser, which is all that a training on several devices would do in another way."""

    def __init__(self, job: ClipJob, model: nn.Module, recipe: Training, steps: int):
        groups = find_baseline(job.baseline).groups
        decay = recipe.weight_decay
        given = groups(model, job.learning_rate, decay) if groups else parameter_groups(model, decay)
        self.model, self.loss_of = model, build_loss(recipe.label_smoothing)
        self.parameters = [parameter for _, parameter in _trained(model)]
        self.optimiser = torch.optim.AdamW(given, job.learning_rate, fused=True)
        warmup, total = recipe.warmup_epochs * steps, job.epochs * steps
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser, lambda number: rate_factor(number, warmup, total)
        )
        self.clip_norm = recipe.clip_norm or math.inf

    @property
    def learning_rate(self) -> float:
        return max(self.schedule.get_last_lr())

    def __call__(self, frames: Tensor, labels: Tensor, where: str) -> tuple[float, float]:
        """Return the loss before the step and the norm of its gradient; raises TrainingError for a loss without one."""
        loss = self.loss_of(_forward(self.model, frames), labels.to(_place(self.model)))
        if not math.isfinite(value := loss.item()):
            raise TrainingError(f"{where}: the loss is {value}; lower baseline_learning_rate or clip_norm")
        self.optimiser.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip_norm).item()
        self.optimiser.step()
        self.schedule.step()
        return value, norm


def _train_epoch(step: _Step, batches: Iterator[_Batch], labels: Tensor, where: str) -> dict[str, float]:
    step.model.train()
    seen, total, norms = 0, 0.0, []
    for places, loaded in batches:
        if places:
            loss, norm = step(loaded.arrays[0], labels[places], where)
            seen, total = seen + len(places), total + loss * len(places)
            norms.append(norm)
    if not seen:
        raise TrainingError(f"{where}: no clip to train on can be read; run the audit again")
    return {"train_loss": total / seen, "gradient_norm": sum(norms) / len(norms)}


def _validate(model: nn.Module, batches: Iterator[_Batch], labels: Tensor, where: str) -> dict[str, float]:
    places, predicted = _logits(model, batches)
    if not places:
        raise TrainingError(f"{where}: no validation clip can be read; run the audit again")
    wanted = labels[places]
    top1 = (predicted.argmax(dim=1) == wanted).double().mean()
    return {"validation_loss": cross_entropy(predicted, wanted).item(), "validation_top1": top1.item()}


@torch.inference_mode()
def _logits(model: nn.Module, batches: Iterator[_Batch]) -> tuple[list[int], Float[Tensor, "n c"]]:
    model.eval()
    found, logits = [], []
    for places, loaded in batches:
        if places:
            found += places
            logits.append(_forward(model, loaded.arrays[0]).cpu())
    return found, torch.cat(logits) if logits else torch.empty(0, 0)


def _forward(model: nn.Module, frames: Tensor) -> Float[Tensor, "b c"]:
    """Logits in float32; on a GPU the model itself computes in bfloat16, which has float32's range."""
    place = _place(model)
    with torch.autocast(place.type, torch.bfloat16, enabled=place.type == "cuda"):
        return model(frames.to(place, non_blocking=True)).float()


def _warn(job: ClipJob, clips: Sequence[Clip], broken: dict[str, str]) -> None:
    """Name the clips that could not be read."""
    if broken:
        some = ", ".join(f"{clip} ({reason})" for clip, reason in list(broken.items())[:5])
        logger.warning(f"{job.baseline}: {len(broken)} of {len(clips)} clips left out: {some}")


def _cut(places: Sequence[int], size: int) -> list[Sequence[int]]:
    return [places[start : start + size] for start in range(0, len(places), size)]


def _loader(job: ClipJob, workers: int, device: torch.device) -> Loader:
    baseline = find_baseline(job.baseline)
    read = ClipReader(baseline.frames, baseline.size, baseline.crop, upright=job.upright)
    return Loader(read, workers=workers, ahead=AHEAD * job.batch_size, pin=device.type == "cuda")


def _read(loader: Loader, clips: Sequence[Clip], batches: Sequence[Sequence[int]]) -> Iterator[_Batch]:
    """Read batches of places in `clips`; those of them that could be read come with what was read."""
    groups = ([clips[place] for place in batch] for batch in batches)
    with closing(loader.groups(groups)) as stream:
        for batch, loaded in zip(batches, stream, strict=True):
            yield [batch[offset] for offset in loaded.offsets], loaded


def _device(device: str) -> torch.device:
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)


def _place(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


# --- keeping ------------------------------------------------------------------------------------------------


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _keep(fit: ClipFit, folder: Path, inputs: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with files.drafted(folder / "model.safetensors") as draft:
        save_file({key: value.contiguous() for key, value in fit.state_dict.items()}, draft)
    results.write(folder / "fit.meta.json", {"seconds": fit.seconds})
    # Last, and moved into place whole: its presence says that the fit is complete.
    values = {"made_from": inputs, "best_epoch": fit.best_epoch, "history": fit.history, "broken": fit.broken}
    results.write(folder / "fit.json", values)


def _load(folder: Path, job: ClipJob, built: Built) -> ClipFit:
    try:
        values, meta = results.load(folder / "fit.json"), results.load(folder / "fit.meta.json")
        state = load_file(folder / "model.safetensors")
    except (OSError, SafetensorError, results.ResultError) as error:
        raise TrainingError(f"the fit in {folder} is damaged ({error}); delete it and run again") from error
    read = values["history"], values["best_epoch"], state, values["broken"]
    return ClipFit(job, *read, built.notes, meta["seconds"])
