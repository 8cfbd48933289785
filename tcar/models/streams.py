"""Frozen backbones behind one interface: frames in, tokens with space-time coordinates out.

A semantic stream reads each frame by itself (DINOv2, Oquab et al. 2023), a motion stream reads the clip (I3D,
Carreira and Zisserman 2017). A stream resizes and normalises frames as its checkpoint demands, so callers
only ever handle frames `[B T H W C]` and tokens `[B t n d]`.
"""

import difflib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tcar.models import i3d
from tcar.models.checkpoints import CheckpointError, load_strict, read_state
from tcar.models.dinov2 import DINOV2_TINY, build_dinov2, load_dinov2, published_configs
from tcar.models.grids import Tokens, grid_coordinates
from tcar.models.packaged import packaged

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
KINETICS = {"mean": (0.45,) * 3, "std": (0.225,) * 3}


@dataclass(frozen=True)
class StreamSpec:
    """What a registered stream is: how to build its backbone, what it expects, where its weights come from.

    `build()` makes the backbone with random weights, `load(checkpoint)` with published ones; `default` is the
    checkpoint that `pretrained=True` means; `info` holds at least source, licence and sampling.
    """

    name: str
    role: str  # "semantic" (frame by frame) or "motion" (clip)
    stream_class: type
    build: Callable[[], nn.Module]
    load: Callable[[str | Path], nn.Module]
    default: str | Path
    width: int
    frames: int
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    info: dict


class Stream(nn.Module):
    """A frozen backbone: `stream(frames)` takes `[B T H W C]` frames and returns `Tokens`.

    Frames are uint8, or float in [0, 1]. The backbone stays in evaluation mode and its parameters take no
    gradient. Nothing is recorded for backward unless the frames themselves ask for a gradient (saliency).
    """

    def __init__(
        self,
        backbone: nn.Module,
        spec: StreamSpec,
        *,
        input_size: int | None = None,
        fit: str = "squash",
        pretrained: bool = False,
    ):
        super().__init__()
        if fit not in ("squash", "crop"):
            raise ValueError(f"fit must be 'squash' (whole frame) or 'crop' (central square), got {fit!r}")
        self.backbone = backbone
        self.spec, self.name, self.role, self.info = spec, spec.name, spec.role, dict(spec.info)
        self.frames, self.input_size, self.fit = spec.frames, input_size or spec.input_size, fit
        self.pretrained = pretrained
        self.width = self._backbone_width()
        if self.width != spec.width:
            raise ValueError(
                f"{self.name}: its backbone is {self.width} wide, {spec.width} expected; "
                "the checkpoint belongs to another model size"
            )
        shape = (1, 3, 1, 1)
        self.register_buffer("mean", torch.tensor(spec.mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(shape), persistent=False)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Stream":
        """Stay in evaluation mode whatever the caller asks, so that batch-norm statistics never move."""
        return super().train(False)

    def forward(self, frames: UInt8[Tensor, "b t h w 3"] | Float[Tensor, "b t h w 3"]) -> Tokens:
        """Return the tokens of clips; raises ValueError on frames of another shape, type or range."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and frames.requires_grad):
            tokens = self._tokens(*self._prepare(frames))
        if self.fit == "squash":
            return tokens
        # A crop sees the middle of the frame only: its tokens keep their place in the whole frame.
        height, width = frames.shape[2:4]
        seen = tokens.coordinates.new_tensor([1, min(height, width) / height, min(height, width) / width])
        return replace(tokens, coordinates=0.5 + (tokens.coordinates - 0.5) * seen)

    def _prepare(self, frames: Tensor) -> tuple[Float[Tensor, "bt 3 s s"], int]:
        """Check, resize and normalise frames; returns them with the batch size."""
        if frames.ndim != 5 or frames.shape[-1] != 3 or 0 in frames.shape:
            raise ValueError(
                f"{self.name}: frames must be [batch, time, height, width, 3], got {list(frames.shape)}"
            )
        images = frames.flatten(0, 1).permute(0, 3, 1, 2)
        if frames.dtype == torch.uint8:
            images = images.to(self.mean) / 255
        elif not frames.is_floating_point():
            raise ValueError(f"{self.name}: frames must be uint8, or float in [0, 1]; got {frames.dtype}")
        # Attribution methods leave the range on purpose (noise, baselines), so frames with a gradient pass.
        elif not frames.requires_grad and not frames.is_meta and not _in_unit_range(frames):
            raise ValueError(
                f"{self.name}: float frames must lie in [0, 1], got {frames.min():.3g} to "
                f"{frames.max():.3g}; divide 0-255 frames by 255, and do not normalise them"
            )
        images = self._resize(images.to(self.mean))
        return (images - self.mean) / self.std, frames.shape[0]

    def _resize(self, images: Tensor) -> Tensor:
        if self.fit == "crop":
            side = min(images.shape[-2:])
            top, left = (images.shape[-2] - side) // 2, (images.shape[-1] - side) // 2
            images = images[..., top : top + side, left : left + side]
        size = (self.input_size, self.input_size)
        if images.shape[-2:] == size:
            return images
        images = F.interpolate(images, size, mode=self.spec.interpolation, antialias=True)
        return images.clamp(0, 1) if self.spec.interpolation == "bicubic" else images

    def _backbone_width(self) -> int:
        raise NotImplementedError

    def _tokens(self, images: Tensor, batch: int) -> Tokens:
        raise NotImplementedError


def _in_unit_range(frames: Tensor, tolerance: float = 1e-3) -> bool:
    low, high = frames.aminmax()
    return bool((low >= -tolerance) & (high <= 1 + tolerance))  # False for NaN as well


class FrameStream(Stream):
    """A vision transformer of transformers' DINOv2 family, read frame by frame."""

    def __init__(self, backbone: nn.Module, spec: StreamSpec, **options):
        super().__init__(backbone, spec, **options)
        self.patch = backbone.config.patch_size
        self.registers = getattr(backbone.config, "num_register_tokens", 0)
        if self.input_size % self.patch:
            raise ValueError(
                f"{self.name}: input_size {self.input_size} is not a multiple of its patch {self.patch}"
            )

    def _backbone_width(self) -> int:
        return self.backbone.layernorm.weight.shape[0]

    def _tokens(self, images: Tensor, batch: int) -> Tokens:
        hidden = self.backbone(images).last_hidden_state.unflatten(0, (batch, -1))  # [b t 1+r+n d]
        side = self.input_size // self.patch
        grid = (hidden.shape[1], side, side)
        patches = hidden[:, :, 1 + self.registers :]
        return Tokens(patches, grid_coordinates(grid, patches.device), hidden[:, :, 0], grid)

    def attention_maps(self, frames: Tensor, layer: int = -1) -> Float[Tensor, "b t heads q k"]:
        """Return one layer's attention weights; tokens are ordered class, registers, patches (row-major).

        The weights come from transformers' eager attention: the fused kernel of the fast path keeps none.
        """
        images, batch = self._prepare(frames)
        fast = self.backbone.config._attn_implementation
        self.backbone.set_attn_implementation("eager")
        try:
            with torch.set_grad_enabled(torch.is_grad_enabled() and frames.requires_grad):
                return (
                    self.backbone(images, output_attentions=True).attentions[layer].unflatten(0, (batch, -1))
                )
        finally:
            self.backbone.set_attn_implementation(fast)


class ClipStream(Stream):
    """An I3D ResNet over the whole clip; a clip shorter than its temporal stride is repeated to one step."""

    def _backbone_width(self) -> int:
        return self.backbone.width

    def _tokens(self, images: Tensor, batch: int) -> Tokens:
        clips = images.unflatten(0, (batch, -1)).transpose(1, 2)
        shortage = self.backbone.temporal_stride - clips.shape[2]
        if shortage > 0:
            clips = torch.cat([clips, clips[:, :, -1:].expand(-1, -1, shortage, -1, -1)], dim=2)
        features = self.backbone.features(clips)
        grid = tuple(features.shape[2:])
        values = features.flatten(3).permute(0, 2, 3, 1)
        return Tokens(values, grid_coordinates(grid, values.device), None, grid)


def load_i3d(checkpoint: str | Path, config: i3d.I3DConfig) -> i3d.I3D:
    """Load an I3D ResNet strictly from a checkpoint in pytorchvideo's layout, with the classifier it has."""
    state = read_state(checkpoint)
    proj = f"blocks.{len(config.depths) + 2}.proj.weight"
    num_classes = state[proj].shape[0] if proj in state else 0
    return load_strict(i3d.I3D(replace(config, num_classes=num_classes)), state, checkpoint)


# --- registry

_REGISTRY: dict[str, StreamSpec] = {}


def register_stream(spec: StreamSpec) -> None:
    """Make a stream known to `create_stream`; raises ValueError where the name is taken."""
    if spec.name in _REGISTRY:
        raise ValueError(f"a stream named {spec.name!r} is registered already")
    _REGISTRY[spec.name] = spec


def list_streams() -> list[str]:
    """Return the names that `create_stream` knows, sorted."""
    return sorted(_REGISTRY)


def stream_spec(name: str) -> StreamSpec:
    """Return what is registered under a name; raises ValueError with the closest names otherwise."""
    if name not in _REGISTRY:
        close = difflib.get_close_matches(name, _REGISTRY, n=3, cutoff=0.4) or list_streams()
        raise ValueError(
            f"unknown stream {name!r}; did you mean {', '.join(close)}? list_streams() has them all"
        )
    return _REGISTRY[name]


def create_stream(
    name: str,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    *,
    input_size: int | None = None,
    fit: str = "squash",
    seed: int = 0,
) -> Stream:
    """Create a frozen stream by name.

    `checkpoint` names a file or folder of published weights; `pretrained` alone takes the package's own for
    the small streams and the local Hub cache for DINOv2; with neither, weights are random, from `seed`.
    `fit` says how a frame becomes a square: "squash" (all of it) or "crop" (the middle).
    Raises ValueError for an unknown name, CheckpointError for weights that are absent or do not match.
    """
    spec = stream_spec(name)
    checkpoint = checkpoint or (spec.default if pretrained else None)
    if pretrained and not checkpoint:
        raise CheckpointError(f"{name}: give checkpoint=PATH; download {spec.info['source']} first")
    if checkpoint:
        try:
            backbone = spec.load(checkpoint)
        except CheckpointError as error:
            raise CheckpointError(
                f"{name}: {error}\n  its published weights: {spec.info['source']}"
            ) from error
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone = spec.build()
    return spec.stream_class(backbone, spec, input_size=input_size, fit=fit, pretrained=bool(checkpoint))


def weights_digest(stream: Stream) -> str:
    """Return the SHA-256 of a stream's weights: names, types, shapes and bytes in key order."""
    digest = hashlib.sha256(stream.name.encode())
    for key, value in sorted(stream.backbone.state_dict().items()):
        digest.update(f"{key} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def stream_cost(stream: Stream, frames: int | None = None) -> dict:
    """Count a stream without running it: parameters, token grid, GFLOPs a clip (two a multiply-add)."""
    weights = {key: value.to("meta") for key, value in (*stream.named_parameters(), *stream.named_buffers())}
    side = stream.input_size
    clip = torch.empty(1, frames or stream.frames, side, side, 3, dtype=torch.uint8, device="meta")
    with FlopCounterMode(display=False) as counter:
        tokens = torch.func.functional_call(stream, weights, (clip,))
    parameters = list(stream.parameters())
    return {
        "parameters": sum(p.numel() for p in parameters),
        "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "grid": list(tokens.grid),
        "gflops": counter.get_total_flops() / 1e9,
    }


# --- the registered streams

_SEGMENTS = "frames at the middles of equal segments of the clip"


def _register_published() -> None:
    for name, (hub, config) in published_configs().items():
        register_stream(
            StreamSpec(
                name,
                "semantic",
                FrameStream,
                partial(build_dinov2, config),
                partial(load_dinov2, config=config),
                hub,
                width=config.hidden_size,
                frames=8,
                input_size=224,
                interpolation="bicubic",
                **IMAGENET,
                info={
                    "source": f"https://huggingface.co/{hub}",
                    "licence": "Apache-2.0",
                    "sampling": f"8 {_SEGMENTS}",
                },
            )
        )
    register_stream(
        StreamSpec(
            "i3d_r50",
            "motion",
            ClipStream,
            lambda: i3d.I3D().without_classifier(),
            lambda path: load_i3d(path, i3d.I3DConfig()).without_classifier(),
            "",
            width=2048,
            frames=8,
            input_size=224,
            interpolation="bilinear",
            **KINETICS,
            info={
                "source": "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/I3D_8x8_R50.pyth",
                "licence": "Apache-2.0",
                "sampling": "8 frames, every 8th frame at 30 fps",
            },
        )
    )


def _register_tiny() -> None:
    def load_packaged(path: str | Path, build: Callable[[], nn.Module]) -> nn.Module:
        return load_strict(build(), read_state(path), path)

    tiny = {
        "dinov2_tiny": (
            "semantic",
            FrameStream,
            partial(build_dinov2, DINOV2_TINY),
            8,
            112,
            "bicubic",
            IMAGENET,
        ),
        "i3d_tiny": ("motion", ClipStream, partial(i3d.I3D, i3d.TINY), 16, 80, "bilinear", KINETICS),
    }
    for name, (role, stream_class, build, frames, size, interpolation, normalisation) in tiny.items():
        register_stream(
            StreamSpec(
                name,
                role,
                stream_class,
                build,
                partial(load_packaged, build=build),
                packaged(name),
                width=128,
                frames=frames,
                input_size=size,
                interpolation=interpolation,
                **normalisation,
                info={
                    "source": f"tcar/models/weights/{name}.safetensors",
                    "licence": "Apache-2.0",
                    "sampling": f"{frames} {_SEGMENTS}",
                },
            )
        )


_register_published()
_register_tiny()
