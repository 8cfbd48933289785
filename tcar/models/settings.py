"""What can be set of the published models that are trained on the clips themselves."""

from dataclasses import dataclass

from tcar.ground.settings import bounded

# Baselines, each with the checkpoints that it takes.
BASELINES = {
    "cast_b16": ("cast_b16.clip", "cast_b16.videomae"), "timesformer_vitb16": ("timesformer_vitb16",), "cast_tiny": (),
}  # fmt: skip
BASELINE_CHECKPOINTS = {key: name for name, keys in BASELINES.items() for key in keys}


@dataclass(frozen=True)
class BaselineSettings:
    """Published models that are trained on the clips themselves; the rest of their recipe is that of `Training`."""

    baselines: list[str] = bounded([], choices=BASELINES, distinct=True)
    # Published weights: a folder, a file, or a name in the local cache of the Hub.
    baseline_checkpoints: dict[str, str] = bounded({}, keys=BASELINE_CHECKPOINTS)
    # Where not `epochs`; 0 = scored as published.
    baseline_epochs: dict[str, int] = bounded({}, minimum=0, keys=BASELINES)
    baseline_batch_size: int = bounded(16, minimum=1)  # clips
    baseline_learning_rate: float = bounded(0.001, minimum=0.0)
