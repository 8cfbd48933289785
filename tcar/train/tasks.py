"""What a training trains, and on what: here a fusion on kept tokens; `tcar.train.clip_tasks` has those on clips.

A task builds the model and gives its batches; `tcar.train.trainer` knows nothing else of it. The batches are those of
one process, read ahead of the training. `identity` is what decides what comes of a task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tcar.data.sampling import view_seed
from tcar.features import unpacked
from tcar.fusion.kinds import FusionConfig, create_fusion
from tcar.ground import sources
from tcar.train.mixing import TokenMix
from tcar.train.recipe import epochs_of, parameter_groups
from tcar.train.tokens import StoredTokens, ahead, not_finite
from tcar.train.watch import TrainingError

if TYPE_CHECKING:
    from tcar.train.settings import Recipe, Run

_RECIPE = ("epochs", "learning_rate", "weight_decay", "warmup_epochs", "label_smoothing", "clip_norm")
# Of TrainerSettings, what changes no number beyond rounding: a training may go on with others.
_FREE = ("task", "accumulation", "checkpointing", "compiled", "checkpoint_steps", "log_steps", "frame_cache_gb")
BATCH = "batch_size x accumulation"


@dataclass(frozen=True)
class Slice:
    """What one process computes at once: clips by their places in the split, the first at `offset` of a total batch."""

    places: list[int]
    offset: int = 0


@dataclass(frozen=True, eq=False)
class Batch:
    """A slice that was read: `rows` are the places, in the total batch, of the clips in it; `broken` those that failed.

    `inputs` are as they were read until they are on the device (`Task.ready`). Where nothing could be read, or there
    was nothing to read, `rows` is empty and the tensors hold one clip that counts for nothing: processes that compute
    together must all compute.
    """

    inputs: tuple
    labels: Int[Tensor, " b"]
    places: list[int]
    rows: list[int]
    broken: dict[str, str] = field(default_factory=dict)


@runtime_checkable
class Task(Protocol):
    """What is trained, with the parameters of a run and a seed.

    `labels` are those of each split; `recipe` is that of the run, with what this model has of its own.

    `reverse` plays inputs backwards, None where that cannot be done. `partly_used` says that some trained weights may
    get no gradient. `model.fusion` is there where the losses of the streams are asked for.
    """

    name: str
    num_classes: int
    labels: dict[str, Int[np.ndarray, " n"]]
    run: Run
    seed: int
    recipe: Recipe
    reverse: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]] | None
    partly_used: bool

    def identity(self) -> dict[str, Any]:
        """Return what decides the result besides the recipe, in values that JSON has."""

    def build(self, seed: int) -> nn.Module:
        """Build the model, which takes the inputs of a batch to logits [b c]; torch's generator is seeded already."""

    def groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict]:
        """Return the groups of what is trained, for the optimiser."""

    def batches(self, split: str, slices: Sequence[Slice], epoch: int, broken: dict[str, str]) -> Iterator[Batch]:
        """Read slices of a split, in order; those of "train" as epoch 1, 2, … sees them. Closes what it opened."""

    def ready(self, inputs: tuple, device: torch.device) -> tuple[Tensor, ...]:
        """Bring the inputs of a batch to a device, as the model takes them."""

    def mixed(
        self, batch: Batch, inputs: tuple[Tensor, ...], labels: Tensor, epoch: int, step: int
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Mix a batch, on its device, by the recipe: the inputs, and class indices or probabilities."""


class TokenModel(nn.Module):
    """A fusion that brings the coordinates of its tokens, and takes tokens of any precision."""

    def __init__(self, fusion: nn.Module, semantic_xyz: Float[Tensor, "n 3"], motion_xyz: Float[Tensor, "m 3"]):
        super().__init__()
        self.fusion = fusion
        self.register_buffer("semantic_xyz", semantic_xyz, persistent=False)
        self.register_buffer("motion_xyz", motion_xyz, persistent=False)

    def forward(self, semantic: Float[Tensor, "b n d1"], motion: Float[Tensor, "b m d2"]) -> Float[Tensor, "b c"]:
        """Return the logits of clips by their tokens."""
        return self.fusion(semantic.float(), self.semantic_xyz, motion.float(), self.motion_xyz)


class TokenTask:
    """A fusion on the kept tokens of both streams; raises TrainingError where tokens, labels and fusion do not fit."""

    reverse = None
    partly_used = False

    def __init__(self, fusion: FusionConfig, train: StoredTokens, validation: StoredTokens, run: Run, seed: int):
        self.fusion, self.seed, self.name, self.num_classes = fusion, seed, fusion.method, fusion.num_classes
        self.splits = {"train": train, "validation": validation}
        self.labels = {split: tokens.labels for split, tokens in self.splits.items()}
        own = {"epochs": epochs_of(fusion, run.training), "learning_rate": run.training.learning_rate_of(fusion.method)}
        self.run, self.recipe = run, replace(run.training, **own)
        check_labels(self.name, self.num_classes, self.labels)
        for key, found in train.widths.items():
            if (width := getattr(fusion, key)) != found:
                raise TrainingError(f"{self.name}: {key} is {width}, the tokens are {found} wide")

    def identity(self) -> dict[str, Any]:
        """Return the fusion and a digest of the tokens of each split."""
        return {"fusion": asdict(self.fusion)} | {split: tokens.digest for split, tokens in self.splits.items()}

    def build(self, seed: int) -> TokenModel:
        """Build the fusion from torch's generator."""
        return TokenModel(create_fusion(self.fusion), *self.splits["train"].coordinates.values())

    def groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict]:
        """Return those of `tcar.train.recipe.parameter_groups`."""
        return parameter_groups(model, weight_decay)

    def batches(self, split: str, slices: Sequence[Slice], epoch: int, broken: dict[str, str]) -> Iterator[Batch]:
        """Read slices in threads; in training, one of the kept views of each clip, drawn by clip and epoch.

        A mirrored view comes with the class of its mirror image, before anything is mixed.
        """
        tokens = self.splits[split]

        def read(part: Slice) -> Batch:
            places = part.places or [0]
            views = tokens.views if split == "train" and epoch else 1
            drawn = [view_seed(self.seed, tokens.ids[place], epoch) % views for place in places]
            labels = torch.from_numpy(tokens.labels_of(places, drawn))
            rows = list(range(part.offset, part.offset + len(part.places)))
            return Batch(tokens.read(places, drawn), labels, part.places, rows)

        return ahead(read, slices)

    def ready(self, inputs: tuple, device: torch.device) -> tuple[Float[Tensor, "b _ _"], ...]:
        """Bring tokens to a device as they are stored, and make them numbers there: a store's integers are small."""
        return tuple(unpacked(tuple(part.to(device, non_blocking=True) for part in parts)) for parts in inputs)

    def mixed(
        self, batch: Batch, inputs: tuple[Tensor, ...], labels: Tensor, epoch: int, step: int
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Mix tokens as `tcar.train.mixing.TokenMix` does."""
        if not len(batch.rows):
            return inputs, nn.functional.one_hot(labels, self.num_classes).float()
        mixed, targets = self._mix(inputs, labels, batch.rows, epoch, step)
        return tuple(mixed), targets

    @cached_property
    def _mix(self) -> TokenMix:
        settings, coordinates = self.run.trainer, list(self.splits["train"].coordinates.values())
        recipe = settings.mixup, settings.cutmix, settings.mix_probability
        return TokenMix(self.num_classes, coordinates, *recipe, seed=self.seed)


def identity(task: Task) -> dict[str, Any]:
    """What parameters, clips and code decide of a training; how many processes it had is no part of it."""
    settings = {key: value for key, value in asdict(task.run.trainer).items() if key not in _FREE}
    recipe = {key: getattr(task.recipe, key) for key in _RECIPE}
    recipe[BATCH] = task.recipe.batch_size * task.run.trainer.accumulation
    return {**recipe, **settings, "seed": task.seed, **code_of(task), **task.identity()}


def code_of(task: Task) -> dict[str, str]:
    """What computes a training: a digest of the code of trainer and task, and the version of torch."""
    own = type(task).__module__
    modules = ["tcar.train.trainer", *([own] if own.startswith("tcar.") else [])]
    return {"code": sources.code_digest(*modules), "torch": torch.__version__}


def unsound(task: Task, split: str, batches: Iterable[Batch]) -> str:
    """Say which tokens of batches on a device are not finite, by store and clip; "" where all are, or are frames."""
    tokens = task.splits[split] if isinstance(task, TokenTask) else None
    for batch in batches if tokens else ():
        for role, values in zip(("semantic", "motion"), batch.inputs, strict=True):
            broken = ~values.isfinite().flatten(1).all(dim=1)
            if batch.places and broken.any():
                return not_finite(getattr(tokens, role).root, tokens.ids[batch.places[int(broken.int().argmax())]])
    return ""


def check_labels(name: str, num_classes: int, splits: dict[str, Int[np.ndarray, " _"]]) -> None:
    """Raise TrainingError where a split has no clips, or a clip a class that the model does not have."""
    for split, labels in splits.items():
        if not len(labels):
            raise TrainingError(f"{name}: there are no {split} clips")
        wrong = (labels < 0) | (labels >= num_classes)
        if wrong.any():
            raise TrainingError(
                f"{name}: {int(wrong.sum())} {split} clips have classes that the model of {num_classes} does not have, "
                f"such as {int(labels[wrong][0])}; the label list and num_classes must be those of the clips"
            )
