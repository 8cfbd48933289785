"""The registry of frozen streams: every backbone by its name.

A semantic stream reads each frame by itself (DINOv2, DINOv3, any image model of timm), a motion stream reads the clip
(I3D, V-JEPA 2 and 2.1, VideoMAE, TimeSformer).
"""

import difflib
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from tcar.streams import image, published, video
from tcar.streams.catalogue import HUB, PACKAGED, STREAMS, TIMM
from tcar.streams.grids import Tokens
from tcar.streams.packaged import WEIGHTS, packaged
from tcar.streams.pretrained import is_hub_name
from tcar.streams.stream import Source, Stream, StreamSpec
from tcar.streams.weights import CheckpointError, state_digest

FAMILIES = image.FAMILIES | video.FAMILIES
_REGISTRY: dict[str, StreamSpec] = {}  # what was registered beside the table of published streams


def register_stream(spec: StreamSpec) -> None:
    """Make a stream known to `create_stream`; raises ValueError where the name is taken."""
    if spec.name in list_streams():
        raise ValueError(f"a stream named {spec.name!r} is registered already")
    _REGISTRY[spec.name] = spec


def list_streams() -> list[str]:
    """Return the names that `create_stream` knows, sorted; beside them, `timm:<model>` names any model of timm."""
    return sorted({*STREAMS, *_REGISTRY})


def stream_spec(name: str) -> StreamSpec:
    """Return what is registered under a name; raises ValueError with the closest names otherwise."""
    if name in _REGISTRY:
        return _REGISTRY[name]
    if name.startswith(TIMM):
        from tcar.streams.timm_models import timm_spec  # takes seconds, and few runs name one

        return timm_spec(name)
    if name not in STREAMS:
        close = difflib.get_close_matches(name, list_streams(), n=3, cutoff=0.4) or list_streams()
        raise ValueError(f"unknown stream {name!r}; did you mean {', '.join(close)}? list_streams() has them all")
    return _published_spec(name)


@cache
def _published_spec(name: str) -> StreamSpec:
    facts = STREAMS[name]
    family = FAMILIES[facts.family]
    if name in PACKAGED:
        default = packaged(name)
        source = _in_package(default)
    else:
        first, *_ = published.checkpoints_for(name)
        default, source = first.address if first.kind == "hub" else "", first.page
    return StreamSpec(
        name,
        facts.role,
        family.stream_class,
        partial(family.build, facts),
        partial(family.load, facts),
        default,
        width=facts.width,
        frames=facts.frames,
        input_size=facts.input_size,
        mean=facts.mean,
        std=facts.std,
        interpolation=facts.interpolation,
        info={"source": source, "licence": published.licence(name), "sampling": facts.sampling},
    )


def _in_package(weights: Path) -> str:
    return f"tcar/streams/small_weights/{weights.name}"


def create_stream(
    name: str,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    *,
    input_size: int | None = None,
    fit: str = "squash",
    seed: int = 0,
    local_files_only: bool = False,
) -> Stream:
    """Create a frozen stream by name.

    `checkpoint` names a file or folder of published weights, or owner/name on the Hub; `pretrained` alone takes the
    package's own for the small streams and the published name on the Hub for those that have one (from its local cache
    alone with `local_files_only`); with neither, weights are random, from `seed`. `fit` says how a frame becomes a
    square: "squash" (all of it) or "crop" (the middle).
    Raises ValueError for an unknown name, CheckpointError for weights that are absent or do not match.
    """
    spec = stream_spec(name)
    checkpoint = checkpoint or (spec.default if pretrained else None)
    if pretrained and not checkpoint:
        raise CheckpointError(f"{name}: give checkpoint=PATH; download {spec.info['source']} first")
    size = input_size or spec.input_size
    if checkpoint:
        try:
            backbone, changes = spec.load(Source(checkpoint, size, local_files_only))
        except CheckpointError as error:
            raise CheckpointError(f"{name}: {error}\n  its published weights: {spec.info['source']}") from error
        spec = replace(spec, **changes | {"info": spec.info | changes.get("info", {}) | _origin(spec, checkpoint)})
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone = spec.build(size)
    return spec.stream_class(backbone, spec, input_size=input_size, fit=fit, pretrained=bool(checkpoint))


def _origin(spec: StreamSpec, checkpoint: str | Path) -> dict[str, str]:
    """Return source and licence of the weights that were loaded: of a user's own, their name and no licence."""
    given = Path(checkpoint)
    if found := published.recognise(spec.name, checkpoint):
        return {"source": found.page, "licence": found.licence}
    if spec.name in PACKAGED and given.parent == WEIGHTS:
        return {"source": _in_package(given), "licence": PACKAGED[spec.name]}
    if checkpoint == spec.default:
        return {}
    return {"source": f"{HUB}/{checkpoint}" if is_hub_name(checkpoint) else given.name, "licence": ""}


def weights_digest(stream: Stream) -> str:
    """Return the SHA-256 of a stream's name and frozen weights, adapters apart."""
    return state_digest(stream.name, stream.backbone)


def stream_cost(stream: Stream, frames: int | None = None) -> dict:
    """Count a stream without running it: parameters, token grid, GFLOPs a clip (two a multiply-add)."""
    tokens, counter = count_stream(stream, frames)
    parameters = list(stream.parameters())
    return {
        "parameters": sum(p.numel() for p in parameters),
        "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "grid": list(tokens.grid),
        "gflops": counter.get_total_flops() / 1e9,
    }


def count_stream(stream: Stream, frames: int | None = None) -> tuple[Tokens, FlopCounterMode]:
    """Return the tokens of one clip on the meta device, which have a shape and no values, and the count of FLOPs."""
    weights = {key: value.to("meta") for key, value in (*stream.named_parameters(), *stream.named_buffers())}
    side = stream.input_size
    clip = torch.empty(1, frames or stream.frames, side, side, 3, dtype=torch.uint8, device="meta")
    with FlopCounterMode(display=False) as counter:
        tokens = torch.func.functional_call(stream, weights, (clip,))
    return tokens, counter
