"""The weights of the small streams that come with the package."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "small_weights"
SEEDS = (0, 1)  # of the small streams that come with the package


def packaged(name: str, seed: int = 0) -> Path:
    """Return the file of a small stream that comes with the package, as trained from one of `SEEDS`."""
    return WEIGHTS / (f"{name}-seed{seed}.safetensors" if seed else f"{name}.safetensors")
