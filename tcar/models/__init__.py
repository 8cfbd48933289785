"""Models: frozen streams, the fusion of their tokens, and the classifier built of both.

Names load on first use: transformers takes seconds to import, and training on cached tokens needs none of it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tcar.models.adapters import add_adapters
    from tcar.models.cast import CAST
    from tcar.models.checkpoints import CheckpointError
    from tcar.models.fusion import FusionConfig, create_fusion, list_fusions
    from tcar.models.grids import Tokens, pool_tokens
    from tcar.models.i3d import I3D, I3DConfig
    from tcar.models.i3d_layouts import LAYOUTS, inflate_resnet50, load_i3d
    from tcar.models.probe import AttentiveProbe, ProbeConfig, probe_width_within
    from tcar.models.stream import Stream, StreamSpec
    from tcar.models.streams import (
        create_stream,
        list_streams,
        register_stream,
        stream_cost,
        weights_digest,
    )
    from tcar.models.tca import TCA

__all__ = [
    "CAST",
    "I3D",
    "LAYOUTS",
    "TCA",
    "AttentiveProbe",
    "CheckpointError",
    "FusionConfig",
    "I3DConfig",
    "ProbeConfig",
    "Stream",
    "StreamSpec",
    "Tokens",
    "add_adapters",
    "create_fusion",
    "create_stream",
    "inflate_resnet50",
    "list_fusions",
    "list_streams",
    "load_i3d",
    "pool_tokens",
    "probe_width_within",
    "register_stream",
    "stream_cost",
    "weights_digest",
]

_HOMES = {
    "add_adapters": "adapters",
    "CheckpointError": "checkpoints",
    "FusionConfig": "fusion",
    "create_fusion": "fusion",
    "list_fusions": "fusion",
    "Tokens": "grids",
    "pool_tokens": "grids",
    "Stream": "stream",
    "StreamSpec": "stream",
    "I3D": "i3d",
    "I3DConfig": "i3d",
    "CAST": "cast",
    "LAYOUTS": "i3d_layouts",
    "inflate_resnet50": "i3d_layouts",
    "load_i3d": "i3d_layouts",
    "AttentiveProbe": "probe",
    "ProbeConfig": "probe",
    "probe_width_within": "probe",
    "TCA": "tca",
}


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'streams')}"), name)
