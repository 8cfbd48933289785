"""What can be set of the published models that are trained on the clips themselves."""

from dataclasses import dataclass

from tcar.ground.settings import bounded

# Baselines, each with its published checkpoints: their keys in `baseline_checkpoints`, and where they are published.
PUBLISHED = {
    "cast_b16": {
        "cast_b16.clip": "openai/clip-vit-base-patch16",
        "cast_b16.videomae": "MCG-NJU/videomae-base-finetuned-ssv2",
    },
    "timesformer_vitb16": {"timesformer_vitb16": "facebook/timesformer-base-finetuned-ssv2"},
    "cast_tiny": {},
    "timesformer_tiny": {},
}
BASELINE_CHECKPOINTS = {key: name for name, published in PUBLISHED.items() for key in published}


@dataclass(frozen=True)
class BaselineSettings:
    """Published models that are trained on the clips themselves; the rest of their recipe is that of `Training`."""

    baselines: list[str] = bounded([], choices=PUBLISHED, distinct=True)
    # Published weights: a folder, a file, or a name in the local cache of the Hub.
    baseline_checkpoints: dict[str, str] = bounded({}, keys=BASELINE_CHECKPOINTS)
    # Where not `epochs`; 0 = scored as published.
    baseline_epochs: dict[str, int] = bounded({}, minimum=0, keys=PUBLISHED)
    baseline_batch_size: int = bounded(16, minimum=1)  # clips
    baseline_learning_rate: float = bounded(0.001, minimum=0.0)
    # What `tcar miniatures` trains beside the headline method, and compares with it.
    miniatures: list[str] = bounded(["timesformer_tiny", "cast_tiny"], choices=PUBLISHED, distinct=True)
    miniature_seeds: list[int] = bounded([0], minimum=0, shortest=1, distinct=True)
