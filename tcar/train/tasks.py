"""What a training trains, and on what: here a fusion on kept tokens; `tcar.train.clip_tasks` has those on clips.

A task builds the model and gives its batches; `tcar.train.trainer` knows nothing else of it. The batches are those of
one process, read ahead of the training.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from tcar import log, results
from tcar.data.augment import view_seed
from tcar.data.ssv2 import flip_pairs, without_mirror_image
from tcar.models.fusion import FusionConfig, create_fusion
from tcar.tokens import TokenSet, TrainingError, not_finite
from tcar.train.heads import epochs_of, parameter_groups
from tcar.train.mixing import TokenMix

if TYPE_CHECKING:
    from tcar.data.ssv2 import Clip
    from tcar.features import FeatureStore
    from tcar.params import Params, Training

AHEAD = 3  # batches read before they are asked for
THREADS = 2  # that read them; they wait for the disk more than they compute


@dataclass(frozen=True)
class Slice:
    """What one process computes at once: clips by their places in the split, the first at `offset` of a total batch."""

    places: list[int]
    offset: int = 0


@dataclass(frozen=True, eq=False)
class Batch:
    """A slice that was read: `rows` are the places, in the total batch, of the clips in it; `broken` those that failed.

    Where nothing could be read, or there was nothing to read, `rows` is empty and the tensors hold one clip of zeros:
    processes that compute together must all compute.
    """

    inputs: tuple[Shaped[Tensor, "b ..."], ...]
    labels: Int[Tensor, " b"]
    places: list[int]
    rows: list[int]
    broken: dict[str, str] = field(default_factory=dict)


@runtime_checkable
class Task(Protocol):
    """What is trained. `labels` are those of each split; `recipe` is the run's, with what this model has of its own.

    `reverse` plays inputs backwards, None where that cannot be done. `partly_used` says that some trained weights may
    get no gradient. `model.fusion` is there where the losses of the streams are asked for.
    """

    name: str
    num_classes: int
    labels: dict[str, Int[np.ndarray, " n"]]
    recipe: Training
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

    def mixed(
        self, batch: Batch, inputs: tuple[Tensor, ...], labels: Tensor, epoch: int, step: int
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Mix a batch, on its device, by the recipe: the inputs, and class indices or probabilities."""


@dataclass(frozen=True, eq=False)
class StoredTokens:
    """The tokens of a split that stay on the disk, for stores that no memory holds; a clip may have several views.

    Some of these may be mirrored, in both stores alike: `mirrored` maps the classes that this changes to what it makes
    of them, each way. Raises TrainingError naming both stores where they disagree about it.
    """

    semantic: FeatureStore
    motion: FeatureStore
    ids: list[str]
    labels: Int[np.ndarray, " n"]
    mirrored: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self):
        for view in range(self.views if self.semantic.flips or self.motion.flips else 0):
            differing = self.semantic.flipped(self.ids, view) != self.motion.flipped(self.ids, view)
            if differing.any():
                raise TrainingError(
                    f"{self.semantic.root} and {self.motion.root}: view {view} of clip {self.ids[differing.argmax()]} "
                    "is mirrored in one of them alone; extract both with the same views, view_seed and view_flip"
                )

    @classmethod
    def of(
        cls, semantic: FeatureStore, motion: FeatureStore, clips: Sequence[Clip], class_names: Sequence[str] = ()
    ) -> StoredTokens:
        """Take the clips that both stores hold; raises TrainingError where none is, or one has no label.

        `class_names`, in the order of the labels, tell which classes a mirror exchanges (`tcar.data.ssv2.flip_pairs`).
        Raises TrainingError where stores with mirrored views lack them, or a class whose mirror image is none of them.
        """
        kept = [clip for clip in clips if clip.id in semantic.places and clip.id in motion.places]
        if not kept:
            raise TrainingError(f"none of {len(clips)} clips is in both feature stores; extract their features")
        if missing := len(clips) - len(kept):
            log.get(__name__).warning(f"{missing} of {len(clips)} clips have no features (quarantined)")
        if unlabelled := [clip.id for clip in kept if clip.label is None]:
            raise TrainingError(f"{len(unlabelled)} clips have no label, the first of them {unlabelled[0]}")
        labels = np.array([clip.label for clip in kept])
        if semantic.flips or motion.flips:
            _check_mirrors(semantic if semantic.flips else motion, labels, list(class_names))
        return cls(semantic, motion, [clip.id for clip in kept], labels, flip_pairs(list(class_names)))

    @property
    def views(self) -> int:
        """The views of each clip that both stores hold."""
        return min(self.semantic.views, self.motion.views)

    def labels_of(self, places: Sequence[int], views: Sequence[int]) -> Int[np.ndarray, " b"]:
        """The classes of these clips as these views show them: a mirrored one has that of its mirror image."""
        labels = self.labels[list(places)]
        flipped = self.semantic.flipped([self.ids[place] for place in places], views)
        labels[flipped] = [self.mirrored.get(label, label) for label in labels[flipped].tolist()]
        return labels

    def digest(self) -> str:
        """A digest of the stores' keys, ids and labels: reading every token of a large store takes hours."""
        content = {"stores": (self.semantic.key, self.motion.key), "ids": self.ids, "labels": self.labels}
        if self.semantic.flips or self.motion.flips:
            content["mirrored"] = sorted(self.mirrored.items())
        return results.digest(content)


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

    def __init__(self, fusion: FusionConfig, train: TokenSet | StoredTokens, validation: TokenSet | StoredTokens,
                 run: Params, seed: int):  # fmt: skip
        self.fusion, self.seed, self.name, self.num_classes = fusion, seed, fusion.kind, fusion.num_classes
        self.splits = {"train": train, "validation": validation}
        self.labels = {split: tokens.labels for split, tokens in self.splits.items()}
        self.settings, self.recipe = run.trainer, replace(run.training, epochs=epochs_of(fusion, run.training))
        check_labels(self.name, self.num_classes, self.labels)
        for role, xyz in self._coordinates.items():
            found = self._read("validation", [0], 0)[0][role == "motion"].shape[2]
            if (width := fusion.stream_width(role)) != found or not len(xyz):
                raise TrainingError(f"{self.name}: {role}_width is {width}, the tokens are {found} wide")

    def identity(self) -> dict[str, Any]:
        """Return the fusion and a digest of the tokens of each split."""
        return {"fusion": asdict(self.fusion)} | {split: tokens.digest() for split, tokens in self.splits.items()}

    def build(self, seed: int) -> TokenModel:
        """Build the fusion from torch's generator."""
        xyz = [torch.from_numpy(places).float() for places in self._coordinates.values()]
        return TokenModel(create_fusion(self.fusion), *xyz)

    def groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict]:
        """Return those of `tcar.train.heads.parameter_groups`."""
        return parameter_groups(model, weight_decay)

    def batches(self, split: str, slices: Sequence[Slice], epoch: int, broken: dict[str, str]) -> Iterator[Batch]:
        """Read slices in threads; in training, one of the kept views of each clip, drawn by clip and epoch.

        A mirrored view comes with the class of its mirror image, before anything is mixed.
        """

        def read(part: Slice) -> Batch:
            places = part.places or [0]
            tokens, labels = self._read(split, places, epoch)
            rows = list(range(part.offset, part.offset + len(part.places)))
            return Batch(tuple(map(torch.from_numpy, tokens)), torch.from_numpy(labels).long(), part.places, rows)

        with ThreadPoolExecutor(THREADS) as pool:
            waiting = deque()
            try:
                for part in slices:
                    waiting.append(pool.submit(read, part))
                    if len(waiting) > AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

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
        xyz = [torch.from_numpy(places) for places in self._coordinates.values()]
        recipe = self.settings.mixup, self.settings.cutmix, self.settings.mix_probability
        return TokenMix(self.num_classes, xyz, *recipe, seed=self.seed)

    @property
    def _coordinates(self) -> dict[str, Float[np.ndarray, "_ 3"]]:
        tokens = self.splits["train"]
        if isinstance(tokens, StoredTokens):
            return {"semantic": tokens.semantic.coordinates, "motion": tokens.motion.coordinates}
        return {"semantic": tokens.semantic_xyz, "motion": tokens.motion_xyz}

    def _read(
        self, split: str, places: list[int], epoch: int
    ) -> tuple[list[Float[np.ndarray, "b _ _"]], Int[np.ndarray, " b"]]:
        tokens = self.splits[split]
        if isinstance(tokens, TokenSet):
            return [array[places] for array in (tokens.semantic, tokens.motion)], tokens.labels[places]
        ids = [tokens.ids[place] for place in places]
        views = tokens.views if split == "train" and epoch else 1
        drawn = [view_seed(self.seed, name, epoch) % views for name in ids]
        return [store.load(ids, drawn) for store in (tokens.semantic, tokens.motion)], tokens.labels_of(places, drawn)


def unsound(task: Task, split: str, batches: Iterable[Batch]) -> str:
    """Say which tokens of batches are not finite, by store and clip; "" where all are, and of a task without tokens."""
    tokens = task.splits[split] if isinstance(task, TokenTask) else None
    for batch in batches if tokens else ():
        for role, values in zip(("semantic", "motion"), batch.inputs, strict=True):
            broken = ~values.isfinite().flatten(1).all(dim=1)
            if batch.places and broken.any():
                store = getattr(tokens, role).root if isinstance(tokens, StoredTokens) else f"{role} tokens"
                return not_finite(store, tokens.ids[batch.places[int(broken.int().argmax())]])
    return ""


def _check_mirrors(store: FeatureStore, labels: Int[np.ndarray, " n"], class_names: list[str]) -> None:
    """Raise TrainingError where the classes that mirrored views show cannot be told from the names."""
    if labels.max() >= len(class_names):
        raise TrainingError(
            f"{store.root} keeps mirrored views, and {len(class_names)} class names cannot tell what a mirror makes of "
            f"classes up to {labels.max()}; give the name of every class"
        )
    if lonely := without_mirror_image(class_names):
        raise TrainingError(
            f"{store.root} keeps mirrored views, and {lonely[0]!r} in a mirror is none of the {len(class_names)} "
            "classes; extract with view_flip 0, or add that class"
        )


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
