"""Streams that read each frame by itself: DINOv2 and DINOv3 (`tcar.streams.timm_models`: every image model of timm)."""

from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2WithRegistersConfig, DINOv3ViTConfig

from tcar.streams import meta_names, pretrained
from tcar.streams.catalogue import STREAMS, StreamFacts
from tcar.streams.grids import Tokens, grid_coordinates
from tcar.streams.stream import Family, Source, Stream, StreamSpec
from tcar.streams.weights import load_strict, read_state

DINOV2_TINY = Dinov2Config(**STREAMS["dinov2_tiny"].shape)


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


def as_published(model: nn.Module) -> nn.Module:
    """Make the library's DINOv2 without registers the published network."""
    from tcar.streams.dinov2_positions import OffsetEmbeddings  # of a class that takes seconds to import

    model.embeddings.__class__ = OffsetEmbeddings  # a class of its own would not find the library's names of keys
    return model


def _build_tiny(_: StreamFacts, __: int) -> nn.Module:
    return pretrained.build("Dinov2Model", DINOV2_TINY)


def _load_tiny(facts: StreamFacts, source: Source) -> tuple[nn.Module, dict]:
    # Strictly by the library's own names of keys, in which the file was written.
    return load_strict(_build_tiny(facts, 0), read_state(source.checkpoint), source.checkpoint), {}


FAMILIES = {
    "dinov2_tiny": Family(FrameStream, _build_tiny, _load_tiny),
    "dinov2": pretrained.family(FrameStream, "Dinov2Model", Dinov2Config, names=meta_names.DINOV2, finish=as_published),
    "dinov2_reg": pretrained.family(
        FrameStream, "Dinov2WithRegistersModel", Dinov2WithRegistersConfig, names=meta_names.DINOV2
    ),
    "dinov3": pretrained.family(FrameStream, "DINOv3ViTModel", DINOv3ViTConfig),
}
