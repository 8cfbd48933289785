"""Streams that read each frame by itself: DINOv2 and DINOv3 (`tcar.streams.timm_models`: every image model of timm)."""

from collections.abc import Iterator
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2WithRegistersConfig, DINOv3ViTConfig

from tcar.streams import dinov2, meta_names, pretrained
from tcar.streams.grids import Tokens, grid_coordinates
from tcar.streams.packaged import packaged
from tcar.streams.published import licence
from tcar.streams.stream import IMAGENET, SEGMENTS, Source, Stream, StreamSpec
from tcar.streams.weights import load_strict, read_state


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


def model_class(config: Dinov2Config | Dinov2WithRegistersConfig | DINOv3ViTConfig) -> str:
    """Return the name of the class of transformers that a configuration belongs to."""
    classes = {DINOv3ViTConfig: "DINOv3ViTModel", Dinov2WithRegistersConfig: "Dinov2WithRegistersModel"}
    return classes.get(type(config), "Dinov2Model")


def specs() -> Iterator[StreamSpec]:
    """Yield the registered image streams: DINOv2, DINOv3 and the miniature that comes with the package."""
    families = [(name, *rest, "bicubic") for name, rest in dinov2.dinov2_configs().items()]
    families += [(name, *rest, "bilinear") for name, rest in dinov2.dinov3_configs().items()]
    for name, hub, config, interpolation in families:
        yield StreamSpec(
            name,
            "semantic",
            FrameStream,
            lambda _, config=config: dinov2.as_published(pretrained.build(model_class(config), config)),
            partial(_load_frame_model, config),
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
        lambda _: pretrained.build("Dinov2Model", dinov2.DINOV2_TINY),
        _load_tiny,
        packaged("dinov2_tiny"),
        width=128,
        frames=8,
        input_size=112,
        interpolation="bicubic",
        **IMAGENET,
        info={
            "source": "tcar/streams/small_weights/dinov2_tiny.safetensors",
            "licence": licence("dinov2_tiny"),
            "sampling": f"8 {SEGMENTS}",
        },
    )


def _load_frame_model(config, source: Source) -> tuple[nn.Module, dict]:
    names = None if isinstance(config, DINOv3ViTConfig) else meta_names.DINOV2
    given = {"names": names, "local_files_only": source.local_files_only}
    return dinov2.as_published(pretrained.load(model_class(config), config, source.checkpoint, **given)), {}


def _load_tiny(source: Source) -> tuple[nn.Module, dict]:
    model = pretrained.build("Dinov2Model", dinov2.DINOV2_TINY)
    return load_strict(model, read_state(source.checkpoint), source.checkpoint), {}
