"""What can be set of a training, and what it asks of the run that it belongs to."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tcar.data.settings import DataSettings
from tcar.fusion.settings import METHODS, FusionSettings, method_settings
from tcar.ground.settings import bounded
from tcar.models.settings import BaselineSettings
from tcar.streams.settings import StreamSettings

TRACKERS = ("csv", "tensorboard", "wandb")


@dataclass(frozen=True)
class Recipe:
    """The recipe of one training."""

    epochs: int = bounded(24, minimum=1)
    # Where a method converges later than `epochs`; a kind's own count is that of its averaged form too.
    epochs_by_method: dict[str, int] = bounded(
        {"semantic": 48}, minimum=1, keys=METHODS
    )
    batch_size: int = bounded(24, minimum=1)  # clips
    learning_rate: float = bounded(0.003, minimum=0.0)
    # Where a method learns better at another one; a kind's own is that of its averaged form too.
    learning_rate_by_method: dict[str, float] = bounded({"late_concat": 0.0015}, minimum=0.0, keys=METHODS)
    weight_decay: float = bounded(0.05, minimum=0.0)
    warmup_epochs: int = bounded(2, minimum=0)
    label_smoothing: float = bounded(0.0, minimum=0.0, maximum=0.95)
    clip_norm: float = bounded(1.0, minimum=0.0)
    seeds: list[int] = bounded([0, 1, 2], minimum=0, shortest=1, distinct=True)
    methods: list[str] = bounded(
        ["cross_attention", "joint", "late_concat", "late_concat_raw", "sum", "semantic_step", "semantic", "motion"],
        choices=METHODS, shortest=1, distinct=True,
    )  # fmt: skip

    def epochs_of(self, method: str) -> int:
        """The epochs of a method: those stated for it, else for its kind, else for all."""
        return _stated(self.epochs_by_method, method, self.epochs)

    def learning_rate_of(self, method: str) -> float:
        """The learning rate of a method: that stated for it, else for its kind, else for all."""
        return _stated(self.learning_rate_by_method, method, self.learning_rate)


def _stated(by_method: Mapping[str, Any], method: str, otherwise: Any) -> Any:
    return by_method.get(method, by_method.get(method_settings(method)["kind"], otherwise))


@dataclass(frozen=True)
class TrainerSettings:
    """What else a training has; of several processes, `batch_size` is what each has at once."""

    # What is trained: a fusion on kept tokens, streams and fusion on clips, or the one of `baselines` on clips.
    task: str = bounded("tokens", choices=("tokens", "clips", "baseline"))
    accumulation: int = bounded(1, minimum=1)  # batches a process adds up before a step
    # The clips of a step that `learning_rate` is stated for, and scaled in proportion to; 0 = it is what it is.
    learning_rate_clips: int = bounded(0, minimum=0)
    precision: str = bounded("fp32", choices=("fp32", "bf16", "fp16"))
    mixup: float = bounded(0.0, minimum=0.0)  # alpha; 0 = none
    cutmix: float = bounded(0.0, minimum=0.0)  # alpha; 0 = none
    mix_probability: float = bounded(1.0, minimum=0.0, maximum=1.0)
    contrastive_weight: float = bounded(0.0, minimum=0.0)
    order_weight: float = bounded(0.0, minimum=0.0)
    weight_averaging: float = bounded(0.0, minimum=0.0, maximum=0.99999)  # decay a step; 0 = none
    early_stopping: int = bounded(0, minimum=0)  # epochs without a better one that end it; 0 = never
    checkpointing: bool = False  # of a baseline, and of a stream with adapters; `fusion_checkpointing` is the fusion's
    compiled: bool = False  # by torch.compile
    checkpoint_steps: int = bounded(0, minimum=0)  # between two checkpoints within an epoch; 0 = one an epoch
    log_steps: int = bounded(10, minimum=1)
    frame_cache_gb: float = bounded(0.0, minimum=0.0)  # of the disk, for decoded frames of clips; 0 = none are kept
    # Views of clips in training; kept tokens have those of `views`.
    crop_scale: list[float] = bounded([1.0, 1.0], minimum=0.01, maximum=1.0, length=2)  # share of the frame
    flip: float = bounded(0.0, minimum=0.0, maximum=1.0)  # changes left into right, in the class as well
    # Brightness, contrast, saturation, hue.
    colour_jitter: list[float] = bounded([0.0, 0.0, 0.0, 0.0], minimum=0.0, length=4)
    augment_operations: int = bounded(0, minimum=0)  # of RandAugment, before the crop
    augment_magnitude: int = bounded(7, minimum=0, maximum=10)
    erase: float = bounded(0.0, minimum=0.0, maximum=1.0)


@dataclass(frozen=True)
class WatchSettings:
    """Where a training is written down while it runs, and when somebody is told of it (tcar.train.alert_rules)."""

    trackers: list[str] = bounded(["csv"], choices=TRACKERS, distinct=True)  # CSV is always written
    wandb_project: str = bounded("tcar", pattern=r"[\w.-]+", expected="letters, digits, _ - and . only")
    # "" = none; an address, or $NAME of an environment variable that holds it, which keeps a secret out of results.
    webhook: str = bounded("", pattern=r"|https?://\S+|\$\w+", expected="an address (https://…) or $NAME", secret=True)
    alert_window: int = bounded(50, minimum=10)  # logged steps that a step is compared with: long for noise, yet soon
    divergence_margin: float = bounded(0.2, minimum=0.01)  # of the first loss: far beyond a warm-up's bump
    gradient_explosion: float = bounded(10.0, minimum=1.5)  # times the median: clipping answers less than that
    plateau_epochs: int = bounded(10, minimum=1)
    plateau_delta: float = bounded(0.002, minimum=0.0, maximum=0.5)  # of top-1, and of the loss as a share
    overfitting_gap: float = bounded(0.3, minimum=0.0, maximum=1.0)  # of top-1; a dozen points are common, and healthy
    disk_reserve_gb: float = bounded(1.0, minimum=0.0)  # two checkpoints, where those are larger


@runtime_checkable
class Run(Protocol):
    """What a training asks of the run that it belongs to."""

    training: Recipe
    trainer: TrainerSettings
    baselines: BaselineSettings
    data: DataSettings
    streams: StreamSettings
    fusion: FusionSettings
    run_dir: Path
    device: str  # "auto" for the accelerator where there is one
    workers: int  # processes, of all that share this machine
    stated_workers: int  # processes, of each that trains; 0 = its share of `workers`
    stream_checkpoints: Mapping[str, str | None]

    def checkpoint(self, stated: str) -> str:
        """A checkpoint as stated: a path where there is something, else a name on the Hub."""

    def shown(self) -> dict[str, Any]:
        """All parameters, as any file may hold them."""
