"""All that can be set: the settings of every room, and of what notebooks and commands do, by group.

The defaults are those of `params/demo.yaml`. Nothing heavy is imported.
"""

import dataclasses
import typing
from dataclasses import dataclass

from tcar.data.settings import DataSettings
from tcar.fusion.settings import METHODS, POSITIONS, WINDOWS, FusionSettings
from tcar.ground.settings import bounded
from tcar.models.settings import BaselineSettings
from tcar.streams.settings import StreamSettings
from tcar.tabletop.settings import TabletopSettings
from tcar.train.settings import Recipe, TrainerSettings, WatchSettings

HEADLINE = "cross_attention"  # which the paper compares all others with
VIEWS = ("1", "2x3")  # of a clip, in the protocols of tcar.data.views
DIRECTIONS = ("cross_attention", "semantic_from_motion", "motion_from_semantic")  # who reads whom
_GRID = {"pattern": r"[1-9]\d*x[1-9]\d*x[1-9]\d*", "expected": "a grid as TIMExROWSxCOLUMNS, such as 4x2x2"}
# What `tcar terms` can take away from a training on stored tokens, or add to it.
LOSS_TERMS = (
    "label_smoothing", "weight_decay", "clip_norm", "dropout", "drop_path", "token_drop", "mixup", "cutmix",
    "contrastive_weight", "weight_averaging",
)  # fmt: skip


@dataclass(frozen=True)
class Common:
    """What every group of parameters and every notebook shares."""

    # The run's folder under `runs` and `figures`.
    name: str = bounded("demo", pattern=r"\w[\w.-]*", expected="a folder's name: letters, digits, _ - and . only")
    seed: int = bounded(0, minimum=0)
    log_level: str = bounded("INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    workers: int = bounded(0, minimum=0)  # processes; 0 = one for every core
    device: str = bounded("auto", pattern=r"auto|cpu|mps|cuda(:\d+)?", expected="auto, cpu, mps, cuda or cuda:NUMBER")
    runs: str = "runs"
    figures: str = "figures"
    publish: bool = False  # copy tables, numbers and PDF into paper/
    gpu_hour_price: float = bounded(3.0, minimum=0.0)  # USD for one GPU, assumed: of nobody's offer
    # "" = none; a folder of paper/results/ for what is measured apart, as an experiment beside the paper's own run.
    publish_as: str = bounded("", pattern=r"|\w[\w.-]*", expected="a folder's name: letters, digits, _ - and . only")


@dataclass(frozen=True)
class FullSize:
    """Which of the published streams are measured at full size, with random weights, beside what is counted of all."""

    full_size_streams: list[str] = bounded(["dinov2_vits14", "i3d_r50", "videomae_vitb16"], distinct=True)
    full_size_clips: int = bounded(3, minimum=1)


@dataclass(frozen=True)
class Search:
    """Whether notebook 03 searches for better parameters, as params/search.yaml says."""

    search_trials: int = bounded(0, minimum=0)  # 0 = none: what the command has found for these parameters is shown


@dataclass(frozen=True)
class Evaluation:
    """What is scored, and how certain the numbers are."""

    # The published comparison on Something-Something V2 is on validation, as the answers of test are not public.
    evaluation_split: str = bounded("test", choices=("test", "validation"))
    # One view is that of the store; 2x3: two samplings in time, each cut in three along the longer side.
    evaluation_views: list[str] = bounded(["1"], choices=VIEWS, shortest=1, distinct=True)
    bootstrap_samples: int = bounded(1000, minimum=1)
    # Clips of two classes of twins whose streams are exchanged, each with each (EMAP); 0 = none.
    emap_clips: int = bounded(36, minimum=0)
    calibration_bins: int = bounded(15, minimum=1)
    confidence: float = bounded(0.95, minimum=0.5, maximum=0.999)


@dataclass(frozen=True)
class Ablations:
    """What is varied, one factor at a time, and under which controls the methods are scored.

    Each list has the levels of a factor; that of the headline is always among them, and [] leaves the factor out.
    """

    ablation_fusions: list[str] = bounded(
        ["cross_attention", "late_concat", "late_concat_raw"], choices=METHODS, distinct=True
    )
    ablation_directions: list[str] = bounded(list(DIRECTIONS), choices=DIRECTIONS, distinct=True)
    ablation_windows: list[str] = bounded(list(WINDOWS), choices=WINDOWS, distinct=True)
    ablation_positions: list[str] = bounded(list(POSITIONS), choices=POSITIONS, distinct=True)
    ablation_fusion_blocks: list[int] = bounded([1, 2], minimum=1, distinct=True)
    ablation_self_blocks: list[int] = bounded([0, 1], minimum=0, distinct=True)
    ablation_heads: list[int] = bounded([], minimum=1, distinct=True)
    # Coarser grids, time x rows x columns, to which the stored tokens of one stream are averaged.
    ablation_semantic_grids: list[str] = bounded(["4x2x2"], distinct=True, **_GRID)
    ablation_motion_grids: list[str] = bounded(["1x4x4"], distinct=True, **_GRID)
    ablation_seeds: list[int] = bounded([0], minimum=0, shortest=1, distinct=True)
    # What `tcar pairs` measures, each with tokens of its own: seed1 (the package's other training of both streams),
    # untrained (both with random weights), timm:MODEL (in the place of the semantic stream, with random weights),
    # frames:SxM (so many frames for the semantic and for the motion stream). Whether a run can have them is seen there.
    ablation_streams: list[str] = bounded(
        ["seed1", "untrained", "timm:vit_tiny_patch16_224", "frames:4x8"],
        pattern=r"seed1|untrained|timm:.+|frames:[1-9]\d*x[1-9]\d*",
        expected="seed1, untrained, timm:MODEL or frames:SEMANTICxMOTION, such as frames:4x8", distinct=True,
    )  # fmt: skip
    pair_seeds: list[int] = bounded([0, 1, 2], minimum=0, shortest=1, distinct=True)
    # Twin sets of each family, of the scored split, that are rendered again under each control of Tabletop; 0 = none.
    control_sets: int = bounded(8, minimum=0)
    # What `tcar replicates` measures: each replicate has clips, streams and trainings of its own.
    replicates: int = bounded(4, minimum=2)
    replicate_seeds: int = bounded(1, minimum=1)  # trainings of a method in each replicate
    replicate_methods: list[str] = bounded(
        [
            "cross_attention", "joint", "late_concat", "late_concat_raw", "sum", "semantic_step", "semantic",
            "semantic_bag", "motion",
        ],
        choices=METHODS, distinct=True,
    )  # fmt: skip
    # What `tcar recipes` tries of each of these methods, on validation: learning rates at the shortest length, then
    # longer and longer trainings at the best of them.
    recipe_learning_rates: list[float] = bounded([0.0007, 0.0015, 0.003], minimum=0.0, shortest=1, distinct=True)
    recipe_epochs: list[int] = bounded([12, 24, 48, 96], minimum=1, shortest=2, distinct=True)
    recipe_seeds: list[int] = bounded([100], minimum=0, shortest=1, distinct=True)
    # What `tcar terms` measures: each term against its absence, all else as in the recipe. What the recipe has is
    # taken away; what it lacks is added with the value here.
    loss_terms: dict[str, float] = bounded({
        "label_smoothing": 0.1, "mixup": 0.2, "cutmix": 1.0, "contrastive_weight": 0.1, "drop_path": 0.1,
        "token_drop": 0.1, "weight_averaging": 0.99,
    }, minimum=0.0, keys=LOSS_TERMS)  # fmt: skip
    loss_term_seeds: list[int] = bounded([0, 1, 2, 3, 4], minimum=0, shortest=2, distinct=True)


@dataclass(frozen=True)
class Interpretability:
    """How much is looked at."""

    umap_clips: int = bounded(400, minimum=10)
    attention_clips: int = bounded(8, minimum=1)
    growing_clips: int = bounded(64, minimum=2)
    # What `tcar explanations` measures: twin sets of each family whose clips are explained to tokens (0 = all), and to
    # pixels.
    explanation_sets: int = bounded(0, minimum=0)
    explanation_pixel_sets: int = bounded(1, minimum=0)


GROUPS = {
    "common": Common, "data": DataSettings, "tabletop": TabletopSettings, "streams": StreamSettings,
    "full_size": FullSize, "fusion": FusionSettings, "training": Recipe, "trainer": TrainerSettings,
    "watching": WatchSettings, "search": Search, "baselines": BaselineSettings, "evaluation": Evaluation,
    "ablations": Ablations, "interpretability": Interpretability,
}  # fmt: skip
FIELDS = {f.name: f for group in GROUPS.values() for f in dataclasses.fields(group)}
TYPES = {name: t for group in GROUPS.values() for name, t in typing.get_type_hints(group).items()}
