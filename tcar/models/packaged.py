"""The weights of the small streams that come with the package, and what they were trained by."""

from pathlib import Path

from tcar import results

WEIGHTS = Path(__file__).parent / "weights"
SEEDS = (0, 1)  # of the small streams that come with the package
# The code that decides their architecture and their training data; the recipe stands beside the weights.
TRAINED_BY = tuple(f"tcar.data.tabletop.{name}" for name in ("standin", "scene", "assets", "stage")) + (
    "tcar.models.i3d",
    "tcar.models.dinov2",
)


def packaged(name: str, seed: int = 0) -> Path:
    """Return the file of a small stream that comes with the package, as trained from one of `SEEDS`."""
    return WEIGHTS / (f"{name}-seed{seed}.safetensors" if seed else f"{name}.safetensors")


def training_code() -> dict[str, str]:
    """Return the digest of every module in `TRAINED_BY`: equal ones train the small streams on the same scenes."""
    digests = results.module_digests(*TRAINED_BY)
    return {name: digests[name] for name in TRAINED_BY}
