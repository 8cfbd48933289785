"""Trainings that read clips: frozen streams (with adapters or without) and a fusion, or a baseline.

Each clip is decoded once, cut and varied by worker processes, so that a bad file takes none but itself along. What a
clip looks like in an epoch depends on its id and the epoch alone.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tcar.data.augment import AugmentConfig, Mix
from tcar.data.batches import CLIP_LIMIT, fingerprint
from tcar.data.frame_cache import FrameCache
from tcar.data.ssv2 import Clip, check_label_order, flip_pairs
from tcar.data.workers import Failure, isolated_map
from tcar.models.baselines import create_baseline, find_baseline
from tcar.models.streams import stream_spec, weights_digest
from tcar.models.tca import TCA, TCAConfig
from tcar.params import Params
from tcar.train.clip_views import ClipViews
from tcar.train.mixing import mix_frames
from tcar.train.tasks import Batch, Slice, check_labels, decay_groups

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


class ClipTask:
    """What streams and fusion, and baselines, have in common: how their clips are read."""

    reverse = None
    partly_used = False

    def __init__(self, name: str, clips: Mapping[str, Sequence[Clip]], class_names: Sequence[str], run: Params,
                 seed: int, frames: tuple[int, ...], size: int, crop: bool):  # fmt: skip
        self.name, self.num_classes, self.class_names, self.seed = name, len(class_names), tuple(class_names), seed
        self.clips = {split: list(some) for split, some in clips.items()}
        self.labels = {
            split: np.array([-1 if clip.label is None else clip.label for clip in some])
            for split, some in self.clips.items()
        }
        check_labels(self.name, self.num_classes, self.labels)
        settings = run.trainer
        augment = AugmentConfig(
            size, tuple(settings.crop_scale), flip=settings.flip, jitter=tuple(settings.colour_jitter),
            operations=settings.augment_operations, magnitude=settings.augment_magnitude, erase=settings.erase,
        )  # fmt: skip
        self.run, self.frames, self.recipe = run, frames, run.training
        limit = int(1e9 * settings.frame_cache_gb)
        cache = FrameCache.open(run.run_dir / "frames", limit) if limit else None
        self.views = ClipViews(frames, size, crop, augment, flip_pairs(list(class_names)), seed, cache)
        self._mix = Mix(self.num_classes, settings.mixup, settings.cutmix, settings.mix_probability, seed)

    def _read_from(self) -> dict[str, Any]:
        """What the clips decide of a training."""
        views = asdict(replace(self.views, cache=None))  # frames are the same wherever they come from
        return {split: fingerprint(clips) for split, clips in self.clips.items()} | {"views": views}

    def batches(self, split: str, slices: Sequence[Slice], epoch: int, broken: dict[str, str]) -> Iterator[Batch]:
        """Decode slices in worker processes; clips that are known as broken are not tried again."""
        clips, wanted = self.clips[split], [place for part in slices for place in part.places]
        todo = [place for place in wanted if clips[place].id not in broken]

        def made() -> Iterator[Batch]:
            arrived: dict[int, Any] = {p: broken[clips[p].id] for p in wanted if clips[p].id in broken}
            items = [(clips[place], epoch if split == "train" else 0) for place in todo]
            with closing(isolated_map(self.views, items, workers=self._workers, time_limit=CLIP_LIMIT)) as outcomes:
                for part in slices:
                    while not all(place in arrived for place in part.places):
                        number, outcome = next(outcomes)
                        arrived[todo[number]] = _reason(outcome) if isinstance(outcome, Failure) else outcome
                    yield self._batch(split, part, {place: arrived.pop(place) for place in part.places})

        with closing(_ahead(made())) as batches:
            yield from batches

    @property
    def _workers(self) -> int:
        """Worker processes of this process: as stated, or its share of the cores of its machine."""
        return self.run.common.workers or max(1, self.run.workers // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))

    def _batch(self, split: str, part: Slice, read: dict[int, Any]) -> Batch:
        failed = {self.clips[split][place].id: outcome for place, outcome in read.items() if isinstance(outcome, str)}
        good = [(offset, place) for offset, place in enumerate(part.places) if not isinstance(read[place], str)]
        count, size = sum(self.frames), self.views.size
        frames = np.zeros((max(1, len(good)), count, size, size, 3), np.uint8)
        labels = np.zeros(len(frames), np.int64)
        for row, (_, place) in enumerate(good):
            frames[row], labels[row] = read[place]
        places, rows = [place for _, place in good], [part.offset + offset for offset, _ in good]
        return Batch((torch.from_numpy(frames),), torch.from_numpy(labels), places, rows, failed)

    def mixed(self, batch: Batch, inputs: tuple[Tensor, ...], labels: Tensor, epoch: int, step: int) -> tuple:
        """Mix frames as `tcar.train.mixing.mix_frames` does."""
        rows = batch.rows or [0]
        frames, targets = mix_frames(self._mix, inputs[0], labels, rows, epoch, step)
        return (frames,), targets


class StreamTask(ClipTask):
    """Streams and fusion from clips: the streams stay frozen, but for adapters in the semantic one."""

    def __init__(self, clips: Mapping[str, Sequence[Clip]], class_names: Sequence[str], run: Params, seed: int):
        self.config = TCAConfig.from_params(run, class_names)
        streams = self.config.semantic, self.config.motion
        size = max(stream_spec(name).input_size for name in streams)
        frames = self.config.semantic_frames, self.config.motion_frames
        super().__init__("streams and fusion", clips, class_names, run, seed, frames, size, crop=False)

    def build(self, seed: int) -> ClipModel:
        """Build the streams with their weights, and the fusion from torch's generator."""
        checkpoints = {f"{role}_checkpoint": getattr(self.run.streams, f"{role}_checkpoint") or None
                       for role in ("semantic", "motion")}  # fmt: skip
        return ClipModel(TCA.create(self.config, pretrained=True, seed=seed, **checkpoints))

    def identity(self) -> dict[str, Any]:
        """Return the configuration of the model, the weights of its streams, clips and views."""
        tca = self.build(0).tca
        weights = {role: weights_digest(getattr(tca, role)) for role in ("semantic", "motion")}
        return {"model": asdict(self.config), "weights": weights, **self._read_from()}

    def groups(self, model: ClipModel, learning_rate: float, weight_decay: float) -> list[dict]:
        """Return those of `decay_groups`, of fusion and adapters."""
        return decay_groups(nn.ModuleList([model.fusion, model.semantic.adapters]), weight_decay)

    def reverse(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Play each stream's frames backwards."""
        first = self.config.semantic_frames
        (frames,) = inputs
        return (torch.cat([frames[:, :first].flip(1), frames[:, first:].flip(1)], dim=1),)


class BaselineTask(ClipTask):
    """A published model from clips, with the epochs, batch size and learning rate that `Baselines` has for it.

    The learning rate is the peak of its fastest group.
    """

    partly_used = True  # in CAST, as published, the last block's patches are read by nothing

    def __init__(self, name: str, clips: Mapping[str, Sequence[Clip]], class_names: Sequence[str], run: Params,
                 seed: int):  # fmt: skip
        self.baseline = find_baseline(name)
        frames = (self.baseline.frames,)
        super().__init__(name, clips, class_names, run, seed, frames, self.baseline.size, self.baseline.crop)
        own = run.baselines
        self.recipe = replace(
            run.training, epochs=own.baseline_epochs.get(name, run.training.epochs),
            batch_size=own.baseline_batch_size, learning_rate=own.baseline_learning_rate,
        )  # fmt: skip

    def build(self, seed: int) -> nn.Module:
        """Build the baseline with the checkpoints that the parameters name, its classes numbered as the run's are."""
        given, known = self.run.baselines.baseline_checkpoints, self.baseline.published
        taken = {key: checkpoint for key, checkpoint in given.items() if key in known}
        built = create_baseline(self.name, self.num_classes, taken, seed=seed)
        if built.labels is not None:
            check_label_order({name: index for index, name in enumerate(self.class_names)}, built.labels)
        return built.model

    def identity(self) -> dict[str, Any]:
        """Return the baseline, its checkpoints, clips and views."""
        checkpoints = dict(self.run.baselines.baseline_checkpoints)
        return {"baseline": self.name, "checkpoints": checkpoints, **self._read_from()}

    def groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict]:
        """Return the groups of the baseline, else those of all other trainings."""
        groups = self.baseline.groups
        return groups(model, learning_rate, weight_decay) if groups else decay_groups(model, weight_decay)


def _reason(failure: Failure) -> str:
    if failure.kind == "error":
        return f"reading it failed: {failure.detail.strip().splitlines()[-1]}"
    return f"reading it {failure.kind}"


def _ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Have a thread ask for batches before they are wanted; it ends, and closes them, when this iterator is closed."""
    ready: queue.Queue = queue.Queue(AHEAD)
    left = threading.Event()

    def put(item: Any) -> bool:
        while not left.is_set():
            with suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return True
        return False

    def work() -> None:
        try:
            with closing(batches):
                for batch in batches:
                    if not put(batch):
                        return
            put(None)
        except BaseException as error:  # for the one who asks, in his thread
            put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        left.set()
        thread.join()
