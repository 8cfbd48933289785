"""What can be set: one frozen dataclass a stage, with the defaults of `params/demo.yaml` and the limits beside them."""

import dataclasses
import typing
from dataclasses import dataclass, field

from tcar.params.names import (
    BASELINE_CHECKPOINTS,
    BASELINES,
    CONTROLS,
    FAMILIES,
    FUSIONS,
    LOSS_TERMS,
    POSITIONS,
    TRACKERS,
    VIEWS,
    WINDOWS,
)


def _bounded(default, **limits):
    """A field with limits: `choices`, `pattern`, `minimum`, `maximum` (of each item), `keys` (of a mapping), `length`,
    `shortest` and `distinct` (of a list).

    `secret=True`: no file is to hold its value (`tcar.params.shown`).
    """
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=limits)
    return field(default=default, metadata=limits, repr=not limits.get("secret"))


@dataclass(frozen=True)
class Common:
    """What every stage shares."""

    name: str = "demo"  # the run's folder under `runs` and `figures`
    seed: int = _bounded(0, minimum=0)
    log_level: str = _bounded("INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    workers: int = _bounded(0, minimum=0)  # processes; 0 = one for every core
    device: str = _bounded("auto", pattern=r"auto|cpu|mps|cuda(:\d+)?")
    runs: str = "runs"
    figures: str = "figures"
    publish: bool = False  # copy tables, numbers and PDF into paper/


@dataclass(frozen=True)
class Data:
    """Which clips, and how Tabletop is rendered."""

    dataset: str = _bounded("tabletop", choices=("tabletop", "ssv2"))
    data_root: str = ""  # "" = data/ in the run's folder
    # 0-based, of the real label list; [] = all there are.
    classes: list[int] = _bounded([], minimum=0, distinct=True)
    # Twin sets in each twin group; one set shows every class of its group once.
    train_sets: int = _bounded(36, minimum=1)
    # Where a rule needs more examples to be learned than others.
    train_sets_by_family: dict[str, int] = _bounded({"closer_away": 260}, minimum=1, keys=FAMILIES)
    validation_sets: int = _bounded(10, minimum=1)
    test_sets: int = _bounded(26, minimum=1)
    width: int = _bounded(160, minimum=32)  # pixels
    height: int = _bounded(120, minimum=32)  # pixels
    frame_rate: int = _bounded(12, minimum=1)  # frames a second
    lengths: list[int] = _bounded([24, 32, 40], minimum=16, shortest=1)  # frames, even; one is drawn for each set
    difficulty: str = _bounded("standard", choices=("easy", "standard", "hard"))
    # "" = none; else what the clips lose or gain, as tcar.data.tabletop.controls has it.
    control: str = _bounded("", choices=("", *CONTROLS))
    quarantine_threshold: float = _bounded(
        0.02, minimum=0.0, maximum=1.0
    )  # share of clips that may be broken
    # Read with decord too, drawn by the seed; 0 = none. 0.1 s of a core a clip at 427 x 240.
    second_opinion_clips: int = _bounded(200, minimum=0)
    contact_sheet_clips: int = _bounded(32, minimum=1)
    upright: bool = True  # clips are turned as their files tell a player to; false: read as they are stored


@dataclass(frozen=True)
class Streams:
    """The two frozen backbones and the token grids they are pooled to."""

    semantic: str = "dinov2_tiny"
    motion: str = "i3d_tiny"
    semantic_checkpoint: str = ""  # "" = the weights in the package
    motion_checkpoint: str = ""
    semantic_frames: int = _bounded(8, minimum=1)
    motion_frames: int = _bounded(16, minimum=1)
    semantic_grid: list[int] = _bounded([4, 4, 4], minimum=1, length=3)  # time, rows, columns
    motion_grid: list[int] = _bounded([2, 4, 4], minimum=1, length=3)
    batch_clips: int = _bounded(32, minimum=1)
    views: int = _bounded(1, minimum=1)  # of each clip: 1 = the middles of equal segments, more = random frames of them
    view_seed: int = _bounded(0, minimum=0)
    # Probability that a view but the first is mirrored; its class is then that of its mirror image.
    view_flip: float = _bounded(0.0, minimum=0.0, maximum=1.0)
    token_type: str = _bounded("fp16", choices=("fp16", "bf16", "int8"))  # of the stored tokens
    stream_precision: str = _bounded("fp32", choices=("fp32", "bf16"))  # in which a stream computes
    # Trained adapters in so many last blocks of the semantic stream; tokens that change with them cannot be cached.
    semantic_adapters: int = _bounded(0, minimum=0)
    adapter_width: int = _bounded(64, minimum=1)


@dataclass(frozen=True)
class FullSize:
    """Which of the published streams are measured at full size, with random weights, beside what is counted of all."""

    full_size_streams: list[str] = _bounded(["dinov2_vits14", "i3d_r50", "videomae_vitb16"], distinct=True)
    full_size_clips: int = _bounded(3, minimum=1)


@dataclass(frozen=True)
class Fusion:
    """The trained part: how the two token grids are brought together."""

    fusion: str = _bounded("cross_attention", choices=FUSIONS)
    fusion_width: int = _bounded(64, minimum=1)
    heads: int = _bounded(4, minimum=1)
    fusion_blocks: int = _bounded(2, minimum=1)
    self_blocks: int = _bounded(1, minimum=1)  # over the tokens of both streams, after the others
    mlp_ratio: float = _bounded(2.0, minimum=0.1)  # hidden width of the feed-forward layers over `fusion_width`
    window: str = _bounded("time", choices=WINDOWS)
    positions: str = _bounded("rotary", choices=POSITIONS)
    cross_width: int = _bounded(0, minimum=0)  # in which a stream reads the other; 0 = `fusion_width`
    bottleneck_tokens: int = _bounded(4, minimum=1)  # of the fusion "bottleneck"
    dropout: float = _bounded(0.0, minimum=0.0, maximum=0.95)
    drop_path: float = _bounded(0.0, minimum=0.0, maximum=0.95)
    token_drop: float = _bounded(0.0, minimum=0.0, maximum=0.95)  # share of tokens a training step leaves out
    fusion_checkpointing: bool = False  # less memory in training, the same numbers
    max_trained_parameters: int = _bounded(20_000_000, minimum=1)

    @property
    def settings(self) -> dict[str, typing.Any]:
        """The fields of a FusionConfig that these parameters set, by the names that they have there."""
        named = {
            "fusion": "kind",
            "fusion_width": "width",
            "fusion_blocks": "blocks",
            "fusion_checkpointing": "checkpointing",
        }
        values = dataclasses.asdict(self)
        del values["max_trained_parameters"]
        return {named.get(key, key): value for key, value in values.items()}


@dataclass(frozen=True)
class Training:
    """The recipe of one training."""

    epochs: int = _bounded(14, minimum=1)
    # Where a method converges later than `epochs`.
    epochs_by_method: dict[str, int] = _bounded(
        {"late_concat_raw": 36, "semantic": 32, "semantic_bag": 24, "sum": 24}, minimum=1, keys=FUSIONS
    )
    batch_size: int = _bounded(24, minimum=1)  # clips
    learning_rate: float = _bounded(0.0015, minimum=0.0)
    weight_decay: float = _bounded(0.05, minimum=0.0)
    warmup_epochs: int = _bounded(2, minimum=0)
    label_smoothing: float = _bounded(0.0, minimum=0.0, maximum=0.95)
    clip_norm: float = _bounded(1.0, minimum=0.0)
    seeds: list[int] = _bounded([0, 1, 2], minimum=0, shortest=1, distinct=True)
    methods: list[str] = _bounded(
        ["cross_attention", "late_concat", "late_concat_raw", "semantic", "motion"],
        choices=FUSIONS, shortest=1, distinct=True,
    )  # fmt: skip


@dataclass(frozen=True)
class Trainer:
    """What else a training has; of several processes, `batch_size` is what each has at once."""

    # What is trained: a fusion on kept tokens, streams and fusion on clips, or the one of `baselines` on clips.
    task: str = _bounded("tokens", choices=("tokens", "clips", "baseline"))
    accumulation: int = _bounded(1, minimum=1)  # batches a process adds up before a step
    # The clips of a step that `learning_rate` is stated for, and scaled in proportion to; 0 = it is what it is.
    learning_rate_clips: int = _bounded(0, minimum=0)
    precision: str = _bounded("fp32", choices=("fp32", "bf16", "fp16"))
    mixup: float = _bounded(0.0, minimum=0.0)  # alpha; 0 = none
    cutmix: float = _bounded(0.0, minimum=0.0)  # alpha; 0 = none
    mix_probability: float = _bounded(1.0, minimum=0.0, maximum=1.0)
    contrastive_weight: float = _bounded(0.0, minimum=0.0)
    order_weight: float = _bounded(0.0, minimum=0.0)
    weight_averaging: float = _bounded(0.0, minimum=0.0, maximum=0.99999)  # decay a step; 0 = none
    early_stopping: int = _bounded(0, minimum=0)  # epochs without a better one that end it; 0 = never
    checkpointing: bool = False  # of a baseline, and of a stream with adapters; `fusion_checkpointing` is the fusion's
    compiled: bool = False  # by torch.compile
    checkpoint_steps: int = _bounded(0, minimum=0)  # between two checkpoints within an epoch; 0 = one an epoch
    log_steps: int = _bounded(10, minimum=1)
    frame_cache_gb: float = _bounded(0.0, minimum=0.0)  # of the disk, for decoded frames of clips; 0 = none are kept
    # Views of clips in training; kept tokens have those of `views`.
    crop_scale: list[float] = _bounded([1.0, 1.0], minimum=0.01, maximum=1.0, length=2)  # share of the frame
    flip: float = _bounded(0.0, minimum=0.0, maximum=1.0)  # changes left into right, in the class as well
    # Brightness, contrast, saturation, hue.
    colour_jitter: list[float] = _bounded([0.0, 0.0, 0.0, 0.0], minimum=0.0, length=4)
    augment_operations: int = _bounded(0, minimum=0)  # of RandAugment, before the crop
    augment_magnitude: int = _bounded(7, minimum=0, maximum=10)
    erase: float = _bounded(0.0, minimum=0.0, maximum=1.0)


@dataclass(frozen=True)
class Watching:
    """Where a training is written down while it runs, and when somebody is told of it (tcar.train.alert_rules)."""

    trackers: list[str] = _bounded(["csv"], choices=TRACKERS, distinct=True)  # CSV is always written
    wandb_project: str = _bounded("tcar", pattern=r"[\w.-]+")
    # "" = none; an address, or $NAME of an environment variable that holds it, which keeps a secret out of results.
    webhook: str = _bounded("", pattern=r"|https?://\S+|\$\w+", secret=True)
    alert_window: int = _bounded(50, minimum=10)  # logged steps that a step is compared with: long for noise, yet soon
    divergence_margin: float = _bounded(0.2, minimum=0.01)  # of the first loss: far beyond a warm-up's bump
    gradient_explosion: float = _bounded(10.0, minimum=1.5)  # times the median: clipping answers less than that
    plateau_epochs: int = _bounded(10, minimum=1)
    plateau_delta: float = _bounded(0.002, minimum=0.0, maximum=0.5)  # of top-1, and of the loss as a share
    overfitting_gap: float = _bounded(0.3, minimum=0.0, maximum=1.0)  # of top-1; a dozen points are common, and healthy
    throughput_collapse: float = _bounded(0.5, minimum=0.0, maximum=1.0)  # of the median: neighbours alone take less
    disk_reserve_gb: float = _bounded(1.0, minimum=0.0)  # two checkpoints, where those are larger


@dataclass(frozen=True)
class Baselines:
    """Published models that are trained on the clips themselves; the rest of their recipe is that of `Training`."""

    baselines: list[str] = _bounded([], choices=BASELINES, distinct=True)
    # Published weights: a folder, a file, or a name in the local cache of the Hub.
    baseline_checkpoints: dict[str, str] = _bounded({}, keys=BASELINE_CHECKPOINTS)
    # Where not `epochs`; 0 = scored as published.
    baseline_epochs: dict[str, int] = _bounded({}, minimum=0, keys=BASELINES)
    baseline_batch_size: int = _bounded(16, minimum=1)  # clips
    baseline_learning_rate: float = _bounded(0.001, minimum=0.0)


@dataclass(frozen=True)
class Search:
    """Whether notebook 03 searches for better parameters, as params/search.yaml says."""

    search_trials: int = _bounded(0, minimum=0)  # 0 = none: what the command has found for these parameters is shown


@dataclass(frozen=True)
class Evaluation:
    """What is scored, and how certain the numbers are."""

    # The published comparison on Something-Something V2 is on validation, as the answers of test are not public.
    evaluation_split: str = _bounded("test", choices=("test", "validation"))
    # One view is that of the store; 2x3: two samplings in time, each cut in three along the longer side.
    evaluation_views: list[str] = _bounded(["1"], choices=VIEWS, shortest=1, distinct=True)
    bootstrap_samples: int = _bounded(1000, minimum=1)
    calibration_bins: int = _bounded(15, minimum=1)
    confidence: float = _bounded(0.95, minimum=0.5, maximum=0.999)


@dataclass(frozen=True)
class Ablations:
    """What is varied, one factor at a time."""

    ablation_heads: list[int] = _bounded([4, 8, 16], minimum=1, distinct=True)
    ablation_fusions: list[str] = _bounded(
        ["cross_attention", "late_concat", "late_concat_raw"], choices=FUSIONS, distinct=True
    )
    ablation_windows: list[str] = _bounded([], choices=WINDOWS, distinct=True)
    ablation_seeds: list[int] = _bounded([0, 1, 2], minimum=0, shortest=1, distinct=True)
    # What `python -m tcar.stages.replicates` measures: each replicate has clips, streams and trainings of its own.
    replicates: int = _bounded(4, minimum=2)
    replicate_methods: list[str] = _bounded(
        ["cross_attention", "late_concat", "late_concat_raw", "sum", "semantic", "semantic_bag", "motion"],
        choices=FUSIONS, distinct=True,
    )  # fmt: skip
    # What `python -m tcar.stages.loss_terms` measures: each term against its absence, all else as in the recipe. What
    # the recipe has is taken away; what it lacks is added with the value here.
    loss_terms: dict[str, float] = _bounded({
        "label_smoothing": 0.1, "mixup": 0.2, "cutmix": 1.0, "contrastive_weight": 0.1, "drop_path": 0.1,
        "token_drop": 0.1, "weight_averaging": 0.99,
    }, minimum=0.0, keys=LOSS_TERMS)  # fmt: skip
    loss_term_seeds: list[int] = _bounded([0, 1, 2, 3, 4], minimum=0, shortest=2, distinct=True)


@dataclass(frozen=True)
class Interpretability:
    """How much is looked at."""

    umap_clips: int = _bounded(400, minimum=10)
    attention_clips: int = _bounded(8, minimum=1)
    attribution_steps: int = _bounded(16, minimum=1)


STAGES = {
    "common": Common, "data": Data, "streams": Streams, "full_size": FullSize, "fusion": Fusion, "training": Training,
    "trainer": Trainer, "watching": Watching,
    "search": Search,
    "baselines": Baselines, "evaluation": Evaluation, "ablations": Ablations, "interpretability": Interpretability,
}  # fmt: skip
FIELDS = {f.name: f for stage in STAGES.values() for f in dataclasses.fields(stage)}
TYPES = {name: t for stage in STAGES.values() for name, t in typing.get_type_hints(stage).items()}
