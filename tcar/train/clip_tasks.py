"""Trainings that read clips: frozen streams (with adapters or without) and a fusion, or a baseline.

Each clip is decoded once, cut and varied by the processes of a `tcar.data.loader.Loader`, which training and validation
share. What a clip looks like in an epoch depends on its id and the epoch alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tcar.data.clip_views import ClipViews
from tcar.data.frame_cache import FrameCache
from tcar.data.loader import Loaded, Loader
from tcar.data.ssv2 import Clip, check_label_order, fingerprint, flip_pairs, without_mirror_image
from tcar.data.views import AugmentConfig
from tcar.ground import records
from tcar.models.baselines import Built, create_baseline, find_baseline
from tcar.models.tca import TCA, TCAConfig
from tcar.streams.packaged import packaged
from tcar.streams.registry import stream_spec, weights_digest
from tcar.train.mixing import mix_frames
from tcar.train.recipe import parameter_groups
from tcar.train.settings import Run
from tcar.train.tasks import Batch, Slice, check_labels
from tcar.train.watch import TrainingError

if TYPE_CHECKING:
    from tcar.data.augment import Mix

AHEAD = 2  # batches decoded before they are asked for


class ClipModel(nn.Module):
    """A TCA that takes the frames of both streams one after the other."""

    def __init__(self, tca: TCA):
        super().__init__()
        self.tca, self.semantic, self.fusion = tca, tca.semantic, tca.fusion

    def forward(self, frames: Tensor) -> Tensor:
        """Return the logits of clips [b t h w 3]."""
        first = self.tca.config.semantic_frames
        return self.tca(frames[:, :first], frames[:, first:])


class Seen(NamedTuple):
    """What a model sees of a clip: so many frames for each of its readers, squares of `size` pixels a side, of the
    whole frame or with `crop` of its middle."""

    frames: tuple[int, ...]
    size: int
    crop: bool = False


class ClipTask:
    """What streams and fusion, and baselines, have in common: how their clips are read."""

    reverse = None
    partly_used = False

    def __init__(
        self, name: str, seen: Seen, clips: Mapping[str, Sequence[Clip]], class_names: Sequence[str], run: Run,
        seed: int,
    ):  # fmt: skip
        self.name, self.num_classes, self.class_names = name, len(class_names), tuple(class_names)
        self.run, self.seed, self.recipe = run, seed, run.training
        self.clips = {split: list(some) for split, some in clips.items()}
        self.labels = {
            split: np.array([-1 if clip.label is None else clip.label for clip in some])
            for split, some in self.clips.items()
        }
        check_labels(name, self.num_classes, self.labels)
        settings = run.trainer
        if settings.flip and (lonely := without_mirror_image(list(class_names))):
            raise TrainingError(
                f"{name}: flip is {settings.flip}, and {lonely[0]!r} in a mirror is none of the {len(class_names)} "
                "classes; set flip to 0, or add that class"
            )
        augment = AugmentConfig(
            seen.size, tuple(settings.crop_scale), flip=settings.flip, jitter=tuple(settings.colour_jitter),
            operations=settings.augment_operations, magnitude=settings.augment_magnitude, erase=settings.erase,
        )  # fmt: skip
        limit, upright = int(1e9 * settings.frame_cache_gb), run.data.upright
        cache = FrameCache.open(run.run_dir / "frames", limit, upright=upright) if limit else None
        self.views = ClipViews(*seen, augment, flip_pairs(list(class_names)), seed, cache, upright)

    def _read_from(self) -> dict[str, Any]:
        """What the clips decide of a training."""
        views = asdict(replace(self.views, cache=None))  # frames are the same wherever they come from
        if views["upright"]:
            del views["upright"]  # the default: what was begun before there was a choice goes on
        return {split: fingerprint(clips) for split, clips in self.clips.items()} | {"views": views}

    def batches(self, split: str, slices: Sequence[Slice], epoch: int, broken: dict[str, str]) -> Iterator[Batch]:
        """Read slices in worker processes; clips that are known as broken are not tried again."""
        self.loader.broken = dict(broken)
        clips = self.clips[split]
        groups = ([clips[place] for place in part.places] for part in slices)
        with closing(self.loader.groups(groups, epoch if split == "train" else 0)) as stream:
            for part, loaded in zip(slices, stream, strict=True):
                yield self._batch(split, part, loaded)

    @cached_property
    def _mix(self) -> Mix:
        from tcar.data.augment import Mix  # takes seconds to import, which what only names a task need not wait for

        settings = self.run.trainer
        return Mix(self.num_classes, settings.mixup, settings.cutmix, settings.mix_probability, self.views.seed)

    @cached_property
    def loader(self) -> Loader:
        """What reads the clips, by as many processes as stated or this one's share of the cores of its machine.

        They end with `close`, or with the task.
        """
        workers = self.run.stated_workers or max(1, self.run.workers // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        pin = self.run.device != "cpu" and torch.cuda.is_available()
        return Loader(self.views, workers=workers, ahead=AHEAD * self.recipe.batch_size, pin=pin)

    def close(self) -> None:
        """End the processes that read clips, where there are any."""
        if "loader" in vars(self):
            self.loader.close()

    def _batch(self, split: str, part: Slice, loaded: Loaded) -> Batch:
        broken = {self.clips[split][part.places[offset]].id: reason for offset, reason in loaded.broken.items()}
        size, count = self.views.size, sum(self.views.frames)
        nothing = torch.zeros(1, count, size, size, 3, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
        frames, labels = loaded.arrays or nothing
        places, rows = [part.places[offset] for offset in loaded.offsets], [part.offset + o for o in loaded.offsets]
        return Batch((frames,), labels, places, rows, broken)

    def ready(self, inputs: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]:
        """Bring frames to a device."""
        return tuple(tensor.to(device, non_blocking=True) for tensor in inputs)

    def mixed(self, batch: Batch, inputs: tuple[Tensor, ...], labels: Tensor, epoch: int, step: int) -> tuple:
        """Mix frames as `tcar.train.mixing.mix_frames` does."""
        frames, targets = mix_frames(self._mix, inputs[0], labels, batch.rows or [0], epoch, step)
        return (frames,), targets


class StreamTask(ClipTask):
    """Streams and fusion from clips: the streams stay frozen, but for adapters in the semantic one."""

    def __init__(self, clips: Mapping[str, Sequence[Clip]], class_names: Sequence[str], run: Run, seed: int):
        self.config = TCAConfig.of(run.streams, run.fusion, class_names)
        streams = self.config.semantic, self.config.motion
        frames = self.config.semantic_frames, self.config.motion_frames
        seen = Seen(frames, max(stream_spec(name).input_size for name in streams))
        super().__init__("streams and fusion", seen, clips, class_names, run, seed)

    def build(self, seed: int) -> ClipModel:
        """Build the streams with their weights, and the fusion from torch's generator."""
        return ClipModel(TCA.create(self.config, pretrained=True, seed=seed, **self.run.stream_checkpoints))

    def identity(self) -> dict[str, Any]:
        """Return the configuration of the model, the weights of its streams, clips and views."""
        tca = self.build(0).tca
        weights = {role: weights_digest(getattr(tca, role)) for role in ("semantic", "motion")}
        return {"model": asdict(self.config), "weights": weights, **self._read_from()}

    def groups(self, model: ClipModel, learning_rate: float, weight_decay: float) -> list[dict]:
        """Return those of `tcar.train.recipe.parameter_groups`, of fusion and adapters."""
        return parameter_groups(nn.ModuleList([model.fusion, model.semantic.adapters]), weight_decay)

    def reverse(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Play each stream's frames backwards."""
        first = self.config.semantic_frames
        (frames,) = inputs
        return (torch.cat([frames[:, :first].flip(1), frames[:, first:].flip(1)], dim=1),)


class BaselineTask(ClipTask):
    """A published model from clips, with the epochs, batch size and learning rate that `BaselineSettings` has for it.

    The learning rate is the peak of its fastest group.
    """

    partly_used = True  # in CAST, as published, the last block's patches are read by nothing

    def __init__(
        self, name: str, clips: Mapping[str, Sequence[Clip]], class_names: Sequence[str], run: Run, seed: int
    ):
        self.baseline, own = find_baseline(name), run.baselines
        seen = Seen((self.baseline.frames,), self.baseline.size, self.baseline.crop)
        super().__init__(name, seen, clips, class_names, run, seed)
        self.recipe = replace(
            run.training, epochs=own.baseline_epochs.get(name, run.training.epochs),
            batch_size=own.baseline_batch_size, learning_rate=own.baseline_learning_rate,
        )  # fmt: skip

    def build(self, seed: int) -> nn.Module:
        """Build the baseline with the checkpoints that the parameters name, its classes numbered as the run's are."""
        return self._built(seed).model

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What must stand beside its numbers."""
        return self._built(self.seed).notes

    def _built(self, seed: int) -> Built:
        given, known = self.run.baselines.baseline_checkpoints, self.baseline.published
        taken = {key: self.run.checkpoint(stated) for key, stated in given.items() if key in known}
        untrained = not self.recipe.epochs
        built = create_baseline(self.name, self.num_classes, taken, seed=seed, untrained=untrained)
        if built.labels is not None:
            check_label_order({name: index for index, name in enumerate(self.class_names)}, built.labels)
        return built

    def identity(self) -> dict[str, Any]:
        """Return the baseline, its checkpoints or the package's weights, clips and views."""
        checkpoints = dict(self.run.baselines.baseline_checkpoints)
        known = {"baseline": self.name, "checkpoints": checkpoints, **self._read_from()}
        parts = {part: records.digest(packaged(part)) for part in self.baseline.parts}
        return known | ({"weights": parts} if parts else {})

    def groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict]:
        """Return the groups of the baseline, else those of all other trainings."""
        groups = self.baseline.groups
        return groups(model, learning_rate, weight_decay) if groups else parameter_groups(model, weight_decay)
