"""The weights that come with the package: of the small streams, and of what the small baselines begin with."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "small_weights"
LICENCE = "Apache-2.0"
SEEDS = (0, 1)  # of the small streams
BASELINES = ("cast_tiny.clip", "cast_tiny.videomae", "timesformer_tiny")  # of one seed


def seeds_of(name: str) -> tuple[int, ...]:
    """Return the seeds that a stream, or a part of a baseline, comes with the package from."""
    return SEEDS[:1] if name in BASELINES else SEEDS


def packaged(name: str, seed: int = 0) -> Path:
    """Return the file of a small stream, or of a part of a baseline, as trained from a seed."""
    return WEIGHTS / (f"{name}-seed{seed}.safetensors" if seed else f"{name}.safetensors")
