"""The weights of the small streams that come with the package, and what they were trained by."""

from pathlib import Path

from tcar import results

WEIGHTS = Path(__file__).parent / "weights"
SEEDS = (0, 1)  # of the small streams that come with the package
# The code that draws their training data; the recipe stands beside the weights.
TRAINED_BY = tuple(f"tcar.data.tabletop.{name}" for name in ("standin", "scene", "assets", "stage"))


def packaged(name: str, seed: int = 0) -> Path:
    """Return the file of a small stream that comes with the package, as trained from one of `SEEDS`."""
    return WEIGHTS / (f"{name}-seed{seed}.safetensors" if seed else f"{name}.safetensors")


def training_code(name: str) -> dict[str, str]:
    """Return the digest of every module in `TRAINED_BY` and of the network of a small stream, as it prints itself.

    Equal ones train the same network on the same scenes, wherever the code that builds it stands.
    """
    from tcar.models.streams import create_stream  # it imports this module

    digests = results.module_digests(*TRAINED_BY)
    backbone = create_stream(name).backbone
    shapes = {key: list(value.shape) for key, value in backbone.state_dict().items()}
    network = results.digest({"modules": repr(backbone), "weights": shapes})
    return {module: digests[module] for module in TRAINED_BY} | {"network": network}
