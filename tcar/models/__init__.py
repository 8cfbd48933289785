"""Models: frozen streams, the fusion of their tokens, and the classifier built of both.

Names load on first use: transformers takes seconds to import, and training on cached tokens needs none of it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tcar.models.checkpoints import CheckpointError
    from tcar.models.fusion import FusionConfig, create_fusion, list_fusions
    from tcar.models.grids import Tokens, pool_tokens
    from tcar.models.i3d import I3D, I3DConfig
    from tcar.models.streams import (
        Stream,
        StreamSpec,
        create_stream,
        list_streams,
        register_stream,
        stream_cost,
        weights_digest,
    )
    from tcar.models.tca import TCA

__all__ = [
    "I3D",
    "TCA",
    "CheckpointError",
    "FusionConfig",
    "I3DConfig",
    "Stream",
    "StreamSpec",
    "Tokens",
    "create_fusion",
    "create_stream",
    "list_fusions",
    "list_streams",
    "pool_tokens",
    "register_stream",
    "stream_cost",
    "weights_digest",
]

_HOMES = {
    "CheckpointError": "checkpoints",
    "FusionConfig": "fusion",
    "create_fusion": "fusion",
    "list_fusions": "fusion",
    "Tokens": "grids",
    "pool_tokens": "grids",
    "I3D": "i3d",
    "I3DConfig": "i3d",
    "TCA": "tca",
}


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'streams')}"), name)
