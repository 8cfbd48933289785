"""Streams that read each frame by itself: DINOv2, DINOv3, and every image model of timm."""

import difflib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from math import isqrt

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel, DINOv3ViTModel

from tcar.models import dinov2, meta_names, pretrained
from tcar.models.checkpoints import load_strict, read_state
from tcar.models.grids import Tokens, grid_coordinates
from tcar.models.packaged import packaged
from tcar.models.published import licence
from tcar.models.stream import IMAGENET, Source, Stream, StreamSpec

SEGMENTS = "frames at the middles of equal segments of the clip"


class FrameStream(Stream):
    """A vision transformer of transformers' DINOv2 or DINOv3 family, read frame by frame."""

    def __init__(self, backbone: nn.Module, spec: StreamSpec, **options):
        super().__init__(backbone, spec, **options)
        self.patch = backbone.config.patch_size
        self.registers = getattr(backbone.config, "num_register_tokens", 0)
        self._divides(self.patch)

    def _backbone_width(self) -> int:
        return self.backbone.config.hidden_size

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, first to last."""
        return (self.backbone.encoder if hasattr(self.backbone, "encoder") else self.backbone.model).layer

    def _tokens(self, images: Tensor, batch: int) -> Tokens:
        hidden = self.backbone(images).last_hidden_state.unflatten(0, (batch, -1))  # [b t 1+r+n d]
        side = self.input_size // self.patch
        grid = (hidden.shape[1], side, side)
        patches = hidden[:, :, 1 + self.registers :]
        return Tokens(patches, grid_coordinates(grid, patches.device), hidden[:, :, 0], grid)

    def attention_maps(self, frames: Tensor, layer: int = -1) -> Float[Tensor, "b t heads q k"]:
        """Return one layer's attention weights; tokens are ordered class, registers, patches (row-major).

        The weights come from transformers' eager attention: the fused kernel of the fast path keeps none. It takes the
        type of the tokens for its scores, so autocast is off.
        """
        images, batch = self._prepare(frames)
        fast = self.backbone.config._attn_implementation
        self.backbone.set_attn_implementation("eager")
        try:
            with torch.autocast(images.device.type, enabled=False), self._gradients(frames):
                return self.backbone(images, output_attentions=True).attentions[layer].unflatten(0, (batch, -1))
        finally:
            self.backbone.set_attn_implementation(fast)


class TimmStream(Stream):
    """An image model of timm, read frame by frame: a transformer's tokens or a ConvNet's last feature map."""

    def _backbone_width(self) -> int:
        return self.backbone.num_features

    def _tokens(self, images: Tensor, batch: int) -> Tokens:
        features, class_token = self.backbone.forward_features(images), None
        if not isinstance(features, Tensor):
            raise ValueError(
                f"{self.name} makes several sets of tokens of a frame, not one grid, so it cannot be a stream; "
                "choose another model of timm"
            )
        if features.ndim == 4:
            # Transformers with windows keep channels last and say so; everything else has them first.
            if getattr(self.backbone, "output_fmt", "NCHW") != "NHWC":
                features = features.movedim(1, -1)
            rows, columns = features.shape[1:3]
            patches = features.flatten(1, 2)
        else:
            prefix = getattr(self.backbone, "num_prefix_tokens", None)
            patches = features[:, prefix or 0 :]
            rows = columns = isqrt(patches.shape[1])
            # A single token of a network that does not say which tokens are no patches is its class token.
            if rows * columns != patches.shape[1] or (prefix is None and patches.shape[1] == 1):
                raise ValueError(f"{self.name}: {patches.shape[1]} patch tokens make no square grid")
            if getattr(self.backbone, "has_class_token", False):
                class_token = features[:, 0].unflatten(0, (batch, -1))
        patches = patches.unflatten(0, (batch, -1))
        grid = (patches.shape[1], rows, columns)
        return Tokens(patches, grid_coordinates(grid, patches.device), class_token, grid)

    @property
    def blocks(self) -> nn.ModuleList | nn.Sequential:
        """The transformer blocks, first to last; raises ValueError for a network that has none."""
        blocks = getattr(self.backbone, "blocks", None)
        if not blocks or not hasattr(getattr(blocks[-1], "attn", None), "fused_attn"):
            raise ValueError(f"{self.name} has no blocks with global attention")
        return blocks

    def attention_maps(self, frames: Tensor, layer: int = -1) -> Float[Tensor, "b t heads q k"]:
        """Return one layer's attention weights; tokens are ordered as timm has them, prefix tokens first.

        Autocast is off. Raises ValueError for a network without blocks of global attention (a ConvNet, windows).
        """
        attention = self.blocks[layer].attn
        images, batch = self._prepare(frames)
        with _kept(attention) as seen, torch.autocast(images.device.type, enabled=False), self._gradients(frames):
            self.backbone.forward_features(images)
        return seen[0].unflatten(0, (batch, -1))


@contextmanager
def _kept(attention: nn.Module) -> Iterator[list[Tensor]]:
    """Have a timm attention layer work its weights out, and collect them where they enter their dropout."""
    seen, fast = [], attention.fused_attn
    hook = attention.attn_drop.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    attention.fused_attn = False
    try:
        yield seen
    finally:
        attention.fused_attn = fast
        hook.remove()


def dinov2_class(config: Dinov2Config | Dinov2WithRegistersConfig) -> type:
    """Return the class of transformers that a DINOv2 configuration belongs to."""
    return Dinov2WithRegistersModel if isinstance(config, Dinov2WithRegistersConfig) else Dinov2Model


def specs() -> Iterator[StreamSpec]:
    """Yield the registered image streams: DINOv2, DINOv3 and the miniature that comes with the package."""
    families = [(name, *rest, "bicubic") for name, rest in dinov2.dinov2_configs().items()]
    families += [(name, *rest, "bilinear") for name, rest in dinov2.dinov3_configs().items()]
    for name, hub, config, interpolation in families:
        model_class = DINOv3ViTModel if name.startswith("dinov3") else dinov2_class(config)
        yield StreamSpec(
            name,
            "semantic",
            FrameStream,
            lambda _, built=(model_class, config): dinov2.as_published(pretrained.build(*built)),
            partial(_load_frame_model, model_class, config),
            hub,
            width=config.hidden_size,
            frames=8,
            input_size=224,
            interpolation=interpolation,
            **IMAGENET,
            info={"source": f"https://huggingface.co/{hub}", "licence": licence(name), "sampling": f"8 {SEGMENTS}"},
        )
    yield StreamSpec(
        "dinov2_tiny",
        "semantic",
        FrameStream,
        lambda _: pretrained.build(Dinov2Model, dinov2.DINOV2_TINY),
        _load_tiny,
        packaged("dinov2_tiny"),
        width=128,
        frames=8,
        input_size=112,
        interpolation="bicubic",
        **IMAGENET,
        info={
            "source": "tcar/models/weights/dinov2_tiny.safetensors",
            "licence": licence("dinov2_tiny"),
            "sampling": f"8 {SEGMENTS}",
        },
    )


def _load_frame_model(model_class: type, config, source: Source) -> tuple[nn.Module, dict]:
    names = None if model_class is DINOv3ViTModel else meta_names.DINOV2
    given = {"names": names, "local_files_only": source.local_files_only}
    return dinov2.as_published(pretrained.load(model_class, config, source.checkpoint, **given)), {}


def _load_tiny(source: Source) -> tuple[nn.Module, dict]:
    model = pretrained.build(Dinov2Model, dinov2.DINOV2_TINY)
    return load_strict(model, read_state(source.checkpoint), source.checkpoint), {}


@lru_cache(maxsize=64)
def timm_spec(name: str) -> StreamSpec:
    """Return the specification of `timm:<model>`, any image model of timm by its name there.

    Input size, normalisation and width are those of timm's own configuration of its weights. Raises ValueError for a
    name that timm does not know.
    """
    model = name.removeprefix("timm:")
    about = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    if about is None:
        close = ", ".join(difflib.get_close_matches(model, timm.list_models(), n=3))
        raise ValueError(f"{name}: timm has no such model" + (f"; did you mean {close}?" if close else ""))
    with torch.device("meta"):
        width = timm.create_model(model, num_classes=0).num_features
    return StreamSpec(
        name,
        "semantic",
        TimmStream,
        partial(_build_timm, model),
        partial(_load_timm, model),
        about.hf_hub_id or "",
        width=width,
        frames=8,
        input_size=about.input_size[-1],
        mean=tuple(about.mean),
        std=tuple(about.std),
        interpolation="bicubic" if about.interpolation == "bicubic" else "bilinear",
        info={
            "source": f"https://huggingface.co/{about.hf_hub_id}" if about.hf_hub_id else about.url or "",
            "licence": licence(name),
            "sampling": f"8 {SEGMENTS}",
        },
    )


def _build_timm(model: str, input_size: int) -> nn.Module:
    # Networks with positions or windows of one size are built for another; ConvNets take any and know no option.
    sized = {"img_size": input_size} if timm.get_pretrained_cfg(model).fixed_input_size else {}
    try:
        return timm.create_model(model, num_classes=0, **sized)
    except AssertionError as error:  # timm asserts what a size must be
        raise ValueError(f"timm:{model}: input_size {input_size} does not fit it: {error}") from error


def _load_timm(model: str, source: Source) -> tuple[nn.Module, dict]:
    """Load strictly: of all keys in the file, only those of the classifier may be left over."""
    path = pretrained.locate(source)
    network = _build_timm(model, source.input_size)
    # Where timm has one, the model's own filter renames old keys and resamples positions to the input size.
    renames = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    heads = timm.get_pretrained_cfg(model).classifier or ()
    heads = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
    own = network.state_dict()

    def convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
        state = renames(state, network) if renames else state
        return {key: value for key, value in state.items() if key in own or not key.startswith(heads)}

    return load_strict(network, read_state(path), path, convert=convert), {}
