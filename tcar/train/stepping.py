"""One step of a training, over all its processes: model, losses, optimiser, averaged weights, and their state."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace

import psutil
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tcar.data.sampling import view_seed
from tcar.train.checkpoints import Snapshot
from tcar.train.compiling import checkpoint_blocks, compile_alone
from tcar.train.losses import Learner
from tcar.train.processes import Processes
from tcar.train.recipe import parameter_groups, rate_factor
from tcar.train.tasks import Batch, Slice, Task
from tcar.train.watch import LEAST_SCALE, TrainingError


@dataclass
class Measured:
    """What a step gave, or the steps of an epoch: sums over the clips of this process, norms over the steps."""

    loss: float = 0.0
    clips: float = 0.0
    right: float = 0.0
    norm: float = 0.0
    steps: float = 0.0
    terms: list[float] = field(default_factory=list)


class Stepper:
    """Model and optimiser of a training; `rate` is the peak of the learning rate, `total` the clips of a step."""

    def __init__(self, task: Task, processes: Processes):
        self.task, self.processes, self.accelerator = task, processes, processes.accelerator_of_one()
        self.recipe, self.settings, recipe = task.recipe, task.run.trainer, task.recipe
        self.total = recipe.batch_size * self.settings.accumulation * processes.count
        self.steps = math.ceil(len(task.labels["train"]) / self.total)  # of an epoch
        scaled = self.settings.learning_rate_clips
        self.rate = recipe.learning_rate * (self.total / scaled if scaled else 1)
        self.mixes = bool((self.settings.mixup or self.settings.cutmix) and self.settings.mix_probability)
        with self._memory():
            self._build()

    def _build(self) -> None:
        settings, recipe = self.settings, self.recipe
        model = self.task.build(self.task.seed)
        if settings.checkpointing:
            checkpoint_blocks(model)
        losses = settings.contrastive_weight, settings.order_weight
        self.learner = Learner(model, recipe.label_smoothing, *losses, self.task.reverse)
        groups = self.task.groups(model, self.rate, recipe.weight_decay)
        if settings.order_weight:
            groups += parameter_groups(self.learner.order_head, recipe.weight_decay)
        self.trained = {name: p for name, p in self.learner.named_parameters() if p.requires_grad}
        if settings.compiled:
            compile_alone(getattr(model, "fusion", model))
        # In fp16 the scaler leaves steps out, which it cannot tell of a fused optimiser.
        optimiser = torch.optim.AdamW(groups, self.rate, fused=settings.precision != "fp16")
        self.peaks = [group["lr"] for group in optimiser.param_groups]
        with warnings.catch_warnings():
            # Its successor sends all frozen weights round at the start, and accelerate does not know it yet.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            self.wrapped, self.optimiser = self.accelerator.prepare(self.learner, optimiser)
        self.averaged = None
        if settings.weight_averaging:
            average = get_ema_multi_avg_fn(settings.weight_averaging)
            self.averaged = AveragedModel(nn.ParameterList(self.trained.values()), multi_avg_fn=average)

    def learning_rate(self, step: int) -> float:
        """The rate of the fastest group in a step, counted from 0."""
        return self.rate * rate_factor(step, self.recipe.warmup_epochs * self.steps, self.recipe.epochs * self.steps)

    def slices(self, epoch: int) -> list[list[Slice]]:
        """What this process computes in each step of an epoch: its slices of every total batch."""
        order = torch.Generator().manual_seed(view_seed(self.task.seed, "order", epoch))
        places = torch.randperm(len(self.task.labels["train"]), generator=order).tolist()
        size, processes = self.recipe.batch_size, self.processes
        offsets = [(part * processes.count + processes.rank) * size for part in range(self.settings.accumulation)]
        batches = [places[start : start + self.total] for start in range(0, len(places), self.total)]
        return [[Slice(batch[offset : offset + size], offset) for offset in offsets] for batch in batches]

    def step(self, parts: Sequence[Batch], number: int, epoch: int) -> Measured:
        """Do step `number`, counted from 0: the mean over all clips of a total batch, however they are dealt out.

        The parts are on the device already (`on_device`). Where the norm comes back as not finite, the weights are
        left as they are.
        """
        (clips,) = self.processes.added([sum(len(part.rows) for part in parts)])
        torch.manual_seed(view_seed(self.task.seed, "step", number, self.processes.rank))
        for group, peak in zip(self.optimiser.param_groups, self.peaks, strict=True):
            group["lr"] = peak * (self.learning_rate(number) / self.rate if self.rate else 0.0)
        found = Measured(steps=1 / self.processes.count, terms=[0.0] * len(self.learner.terms))
        with self._memory():
            for part in parts[:-1]:
                with self.accelerator.no_sync(self.wrapped):
                    self._add_gradient(part, clips, number, epoch, found)
            self._add_gradient(parts[-1], clips, number, epoch, found)
            norm = self.accelerator.clip_grad_norm_(self.trained.values(), self.recipe.clip_norm or math.inf).item()
            if clips and (math.isfinite(norm) or self.accelerator.scaler):
                self.optimiser.step()
                if self.averaged and not self.optimiser.step_was_skipped:
                    self.averaged.update_parameters(nn.ParameterList(self.trained.values()))
            self.optimiser.zero_grad()
        found.loss, found.right, found.norm = float(found.loss), float(found.right), norm
        found.terms = [float(term) for term in found.terms]
        return found

    @property
    def loss_scale(self) -> float | None:
        """By how much the loss is multiplied in fp16; None in other precisions."""
        return self.accelerator.scaler.get_scale() if self.accelerator.scaler else None

    def lost(self, norm: float) -> bool:
        """Whether no later step can mend a gradient of this norm; in fp16 the scale is lowered first."""
        return not math.isfinite(norm) and (self.loss_scale is None or self.loss_scale < LEAST_SCALE)

    def _add_gradient(self, part: Batch, clips: float, number: int, epoch: int, found: Measured) -> None:
        """Add the gradient of a slice with its share in the total batch, and what it gave to `found`."""
        inputs, targets, labels = part.inputs, part.labels, part.labels
        if self.mixes:
            inputs, targets = self.task.mixed(part, inputs, labels, epoch, number)
        loss, terms, logits = self.wrapped(inputs, targets)
        count = len(part.rows)
        # The processes' gradients are averaged, so each counts for as many as there are.
        self.accelerator.backward(loss * (count * self.processes.count / max(1.0, clips)))
        if count:  # sums stay on the device: to read them here would have it wait
            found.clips += count
            found.loss = found.loss + loss.detach() * count
            found.right = found.right + (logits.argmax(dim=1) == labels).sum()
            for place, name in enumerate(self.learner.terms):
                found.terms[place] = found.terms[place] + terms.get(name, 0.0) * count

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Put the model into evaluation, with the averaged weights where there are any, until the block ends."""
        self.learner.eval()
        with self._memory(), self._averaged_weights():
            yield

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        pairs = list(zip(self.trained.values(), self.averaged.module, strict=True)) if self.averaged else []

        def swap() -> None:
            for own, averaged in pairs:
                own.data, averaged.data = averaged.data, own.data

        swap()
        try:
            yield
        finally:
            swap()

    @contextmanager
    def _memory(self) -> Iterator[None]:
        """Turn an error for lack of memory into a TrainingError that names what would help."""
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
                raise
            raise TrainingError(
                f"{self.task.name}: a batch of {self.recipe.batch_size} clips does not fit into the memory of "
                f"{self.processes.device}: halve batch_size and double accumulation (the same numbers but for "
                "rounding), set fusion_checkpointing or, for what is trained end to end, checkpointing, or set "
                "precision to bf16"
            ) from error

    def memory_mb(self) -> float:
        """The most memory held so far on a GPU, else what the process holds now, in megabytes."""
        if self.processes.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.processes.device) / 2**20
        return psutil.Process().memory_info().rss / 2**20

    # --- state -------------------------------------------------------------------------------------------

    def best(self) -> dict[str, Tensor]:
        """The weights that are scored, by their names in the model."""
        values = self.averaged.module if self.averaged else self.trained.values()
        return {name.removeprefix("model."): p.detach() for name, p in zip(self.trained, values, strict=True)}

    def snapshot(self, state: dict) -> Snapshot:
        """All that the next step depends on, with a `state` of the caller's."""
        averaged, scaler = {}, self.accelerator.scaler
        if self.averaged:
            averaged = dict(zip(self.trained, self.averaged.module, strict=True))
            averaged |= {"averaged_steps": self.averaged.n_averaged}
        kept = {"optimiser": self.optimiser.state_dict(), "scaler": scaler.state_dict() if scaler else {}}
        return Snapshot(self.trained, averaged, kept, state)

    def restore(self, kept: Snapshot) -> None:
        """Go back to a snapshot."""
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(kept.weights[name])
            if self.averaged:
                for name, parameter in zip(self.trained, self.averaged.module, strict=True):
                    parameter.copy_(kept.averaged[name])
                self.averaged.n_averaged.copy_(kept.averaged["averaged_steps"])
        self.optimiser.load_state_dict(kept.optimiser["optimiser"])
        if self.accelerator.scaler and kept.optimiser["scaler"]:
            self.accelerator.scaler.load_state_dict(kept.optimiser["scaler"])


def on_device(task: Task, parts: Sequence[Batch], device: torch.device) -> list[Batch]:
    """Bring batches to a device, once for all models that read them."""
    return [
        replace(part, inputs=task.ready(part.inputs, device), labels=part.labels.to(device, non_blocking=True))
        for part in parts
    ]


def predict(
    steppers: Sequence[Stepper], broken: dict[str, str]
) -> list[tuple[Float[Tensor, "n c"], Int[Tensor, " n"]]]:
    """Return the logits of each model for the validation clips that can be read, and their labels, on every process.

    The clips are read once for all. Each is computed by one process, with the averaged weights where there are any.
    What cannot be read goes into `broken`. Raises TrainingError where nothing can.
    """
    task, processes = steppers[0].task, steppers[0].processes
    size, labels = task.recipe.batch_size, task.labels["validation"]
    slices = [Slice(list(range(start, min(start + size, len(labels))))) for start in range(0, len(labels), size)]
    # Of every model whether a clip was read, and its logits.
    values = [torch.zeros(len(labels), 1 + stepper.task.num_classes) for stepper in steppers]
    with ExitStack() as held:
        for stepper in steppers:
            held.enter_context(stepper.scoring())
        mine = slices[processes.rank :: processes.count]
        batches = held.enter_context(closing(task.batches("validation", mine, 0, broken)))
        held.enter_context(torch.no_grad())
        for part in batches:
            broken.update(part.broken)
            if part.rows:
                inputs = task.ready(part.inputs, processes.device)
                for stepper, found in zip(steppers, values, strict=True):
                    with stepper.accelerator.autocast():
                        logits = stepper.learner.model(*inputs).float()
                    found[part.places] = nn.functional.pad(logits, (1, 0), value=1.0).cpu()
    scored = []
    for found in map(processes.whole, values):
        read = found[:, 0] > 0
        if not read.any():
            raise TrainingError(f"{task.name}: no validation clip can be read; run the audit again")
        scored.append((found[read, 1:], torch.from_numpy(labels)[read].long()))
    return scored


def validation_row(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> dict[str, float]:
    """Return the `validation_loss`, without smoothing, and the fractions `validation_top1` and `validation_top5`.

    Of equal logits the one of the lower class comes first.
    """
    logits = logits.double()
    own = logits.gather(1, labels[:, None])
    earlier = torch.arange(logits.shape[1]) < labels[:, None]
    rank = ((logits > own) | ((logits == own) & earlier)).sum(dim=1)
    hits = {f"validation_top{k}": (rank < k).double().mean().item() for k in (1, 5)}
    return {"validation_loss": cross_entropy(logits, labels).item(), **hits}
