"""tcar: temporal cross-attention over two frozen video streams, for naming actions in Something-Something-V2.

The public names hang here and are imported when they are first used, so `import tcar` is cheap.
"""

from importlib import import_module
from typing import Any

from tcar.ground import compat

compat.install()

__version__ = "0.1.0"
# Each public name, and the module that has it.
_PUBLIC = {
    "CAST": "models.cast",
    "TCA": "models.tca",
    "TCAConfig": "models.tca_config",
    "FeatureStore": "features.store",
    "FusionConfig": "fusion.kinds",
    "I3D": "streams.i3d",
    "I3DConfig": "streams.i3d",
    "Stream": "streams.stream",
    "StreamSpec": "streams.stream",
    "TcarError": "ground.errors",
    "Tokens": "streams.grids",
    "create_fusion": "fusion.kinds",
    "create_stream": "streams.registry",
    "list_fusions": "fusion.kinds",
    "list_streams": "streams.registry",
    "load_split": "data.ssv2",
    "pool_tokens": "streams.grids",
    "predict": "serve.predict",
    "read_frames": "data.video",
    "register_stream": "streams.registry",
    "study": "explain.study",
}
_ROOMS = (
    "data", "evaluate", "explain", "features", "fusion", "ground", "lab", "models", "serve", "streams", "tabletop",
    "train", "viewer",
)  # fmt: skip
__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"tcar.{_PUBLIC[name]}"), name)
    if name in _ROOMS:
        return import_module(f"tcar.{name}")
    raise AttributeError(f"module 'tcar' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC, *_ROOMS})
