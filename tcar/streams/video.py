"""Streams that read the whole clip: I3D, V-JEPA 2 and 2.1, VideoMAE, TimeSformer."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import TimesformerConfig, VideoMAEConfig, VJEPA2Config

from tcar.streams import i3d, meta_names, pretrained, vjepa2_1
from tcar.streams.grids import Tokens, grid_coordinates
from tcar.streams.i3d_layouts import LAYOUTS, inflate_resnet50, load_i3d
from tcar.streams.packaged import packaged
from tcar.streams.published import licence
from tcar.streams.stream import IMAGENET, KINETICS, Source, Stream, StreamSpec
from tcar.streams.weights import load_strict, read_state


class ClipStream(Stream):
    """An I3D ResNet over the whole clip; a clip shorter than its temporal stride is repeated to one step."""

    def _backbone_width(self) -> int:
        return self.backbone.width

    def _tokens(self, images: Tensor, batch: int) -> Tokens:
        clips = images.unflatten(0, (batch, -1)).transpose(1, 2)
        features = self.backbone.features(_lengthened(clips, 2, self.backbone.temporal_stride))
        grid = tuple(features.shape[2:])
        return _on_grid(features.flatten(2).transpose(1, 2), grid)


class VideoTransformer(Stream):
    """Common ground of the video transformers: patches of `patch` pixels, tubelets of some frames."""

    patch, tubelet = 16, 2

    def __init__(self, backbone: nn.Module, spec: StreamSpec, **options):
        super().__init__(backbone, spec, **options)
        self._divides(self.patch)

    def _grid(self, frames: int) -> tuple[int, int, int]:
        side = self.input_size // self.patch
        return frames // self.tubelet, side, side


class VJepa2Stream(VideoTransformer):
    """V-JEPA 2 (Assran et al. 2025): clips of any length; an odd one repeats its last frame, one frame is doubled."""

    def _backbone_width(self) -> int:
        return self.backbone.config.hidden_size

    def _tokens(self, images: Tensor, batch: int) -> Tokens:
        clips = images.unflatten(0, (batch, -1))
        clips = _lengthened(clips, 1, clips.shape[1] + clips.shape[1] % self.tubelet)
        return _on_grid(self.backbone(clips).last_hidden_state, self._grid(clips.shape[1]))


class VJepa21Stream(VideoTransformer):
    """V-JEPA 2.1: as V-JEPA 2, but one frame goes through the stem for images."""

    def _backbone_width(self) -> int:
        return self.backbone.config.width

    def _tokens(self, images: Tensor, batch: int) -> Tokens:
        clips = images.unflatten(0, (batch, -1)).transpose(1, 2)
        frames = clips.shape[2]
        if frames > 1:
            clips = _lengthened(clips, 2, frames + frames % self.tubelet)
        return _on_grid(self.backbone(clips), self.backbone.grid(*clips.shape[2:]))


class FixedLength(VideoTransformer):
    """A video transformer with positions for one number of frames and one size of image.

    A shorter clip shows its frames several times, evenly; a longer one is read as several clips, one after the other.
    Raises ValueError where that number does not go into the length of the clip.
    """

    def __init__(self, backbone: nn.Module, spec: StreamSpec, **options):
        super().__init__(backbone, spec, **options)
        if self.input_size != spec.input_size:
            raise ValueError(
                f"{self.name} has positions for {spec.input_size} pixels alone, got input_size {self.input_size}"
            )

    def _backbone_width(self) -> int:
        return self.backbone.config.hidden_size

    def _tokens(self, images: Tensor, batch: int) -> Tokens:
        clips, length = images.unflatten(0, (batch, -1)), self.backbone.config.num_frames
        frames = clips.shape[1]
        if frames < length:
            clips = clips[:, (2 * torch.arange(length, device=clips.device) + 1) * frames // (2 * length)]
        elif frames % length:
            raise ValueError(f"{self.name} reads {length} frames at a time, got {frames}: give a multiple of {length}")
        values = self._read(clips.unflatten(1, (-1, length)).flatten(0, 1)).unflatten(0, (batch, -1)).flatten(1, 2)
        return _on_grid(values, self._grid(clips.shape[1]))

    def _read(self, clips: Float[Tensor, "b t 3 s s"]) -> Float[Tensor, "b n d"]:
        raise NotImplementedError


class VideoMAEStream(FixedLength):
    """VideoMAE (Tong et al. 2022)."""

    def _read(self, clips):
        return self.backbone(clips).last_hidden_state


class TimesformerStream(FixedLength):
    """TimeSformer with divided attention (Bertasius et al. 2021); its one class token is left out."""

    tubelet = 1

    def _read(self, clips):
        tokens = self.backbone(clips).last_hidden_state[:, 1:]
        # The library orders tokens place by place, the frames of a place together.
        return tokens.unflatten(1, (-1, clips.shape[1])).transpose(1, 2).flatten(1, 2)


def _lengthened(clips: Tensor, axis: int, frames: int) -> Tensor:
    """Repeat the last frame of clips until they have that many."""
    shortage = frames - clips.shape[axis]
    if shortage <= 0:
        return clips
    shape = [-1] * clips.ndim
    shape[axis] = shortage
    return torch.cat([clips, clips.narrow(axis, clips.shape[axis] - 1, 1).expand(shape)], dim=axis)


def _on_grid(values: Float[Tensor, "b n d"], grid: tuple[int, int, int]) -> Tokens:
    return Tokens(values.unflatten(1, (grid[0], -1)), grid_coordinates(grid, values.device), None, grid)


def specs() -> Iterator[StreamSpec]:
    """Yield the registered clip streams: I3D in its published layouts, the video transformers, the miniature."""
    yield _i3d("i3d_r50", "", LAYOUTS["pytorchvideo"])
    for layout in ("mmaction2", "tushar_n"):  # the two whose network is another one
        yield _i3d(f"i3d_r50_{layout}", layout, LAYOUTS[layout])
    yield StreamSpec(
        "i3d_r50_inflated",
        "motion",
        ClipStream,
        lambda _: i3d.I3D().without_classifier(),
        lambda source: (inflate_resnet50(read_state(pretrained.locate(source))).without_classifier(), {}),
        "timm/resnet50.a1_in1k",
        width=2048,
        frames=8,
        input_size=224,
        interpolation="bilinear",
        **IMAGENET,
        info={
            "source": "https://huggingface.co/timm/resnet50.a1_in1k",
            "licence": licence("i3d_r50_inflated"),
            "sampling": "8 frames at the middles of equal segments of the clip",
        },
    )
    yield StreamSpec(
        "i3d_tiny",
        "motion",
        ClipStream,
        lambda _: i3d.I3D(i3d.TINY),
        lambda source: (load_strict(i3d.I3D(i3d.TINY), read_state(source.checkpoint), source.checkpoint), {}),
        packaged("i3d_tiny"),
        width=128,
        frames=16,
        input_size=80,
        interpolation="bilinear",
        **KINETICS,
        info={
            "source": "tcar/streams/small_weights/i3d_tiny.safetensors",
            "licence": licence("i3d_tiny"),
            "sampling": "16 frames at the middles of equal segments of the clip",
        },
    )
    yield from map(_vjepa2, VJEPA2)
    yield from map(_vjepa2_1, vjepa2_1.SIZES)
    yield from _of_one_length()


def _i3d(name: str, named: str, layout) -> StreamSpec:
    def load(source: Source) -> tuple[nn.Module, dict]:
        network, found = load_i3d(source.checkpoint, named)
        sampling = f"{found.frames} frames, every {found.step}th frame"
        changes = {"mean": found.mean, "std": found.std, "frames": found.frames}
        return network.without_classifier(), changes | {"info": {"sampling": sampling, "layout": found.name}}

    return StreamSpec(
        name,
        "motion",
        ClipStream,
        lambda _: i3d.I3D(layout.config).without_classifier(),
        load,
        "",
        width=2048,
        frames=layout.frames,
        input_size=224,
        interpolation="bilinear",
        mean=layout.mean,
        std=layout.std,
        info={
            "source": layout.address,
            "licence": licence(name),
            "sampling": f"{layout.frames} frames, every {layout.step}th frame",
        },
    )


# name -> Hub name, width, depth, heads, feed-forward ratio, pixels. Source: Assran et al. 2025, arXiv:2506.09985.
VJEPA2 = {
    "vjepa2_vitl16_256": ("facebook/vjepa2-vitl-fpc64-256", 1024, 24, 16, 4.0, 256),
    "vjepa2_vith16_256": ("facebook/vjepa2-vith-fpc64-256", 1280, 32, 16, 4.0, 256),
    "vjepa2_vitg16_256": ("facebook/vjepa2-vitg-fpc64-256", 1408, 40, 22, 48 / 11, 256),
    "vjepa2_vitg16_384": ("facebook/vjepa2-vitg-fpc64-384", 1408, 40, 22, 48 / 11, 384),
}


def _vjepa2(name: str) -> StreamSpec:
    hub, width, depth, heads, ratio, size = VJEPA2[name]

    def config(pixels: int) -> VJEPA2Config:
        # Rotary positions count rows and columns of the grid that the configuration names, whatever comes in.
        return VJEPA2Config(
            hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, mlp_ratio=ratio, crop_size=pixels
        )

    def load(source: Source) -> tuple[nn.Module, dict]:
        # Files tuned on a labelled set hold a probe beside the encoder; the predictor is of the pre-training.
        model = pretrained.load(
            "VJEPA2Model",
            config(source.input_size),
            source.checkpoint,
            left_out=("pooler", "classifier", "predictor"),
            names=meta_names.VJEPA2,
            local_files_only=source.local_files_only,
        )
        return model.encoder, {}

    return StreamSpec(
        name,
        "motion",
        VJepa2Stream,
        lambda pixels: pretrained.build("VJEPA2Model", config(pixels)).encoder,
        load,
        hub,
        width=width,
        frames=16,
        input_size=size,
        interpolation="bilinear",
        **IMAGENET,
        info={
            "source": f"https://huggingface.co/{hub}",
            "licence": licence(name),
            "sampling": "16 frames, every 4th frame",
        },
    )


def _vjepa2_1(size: str) -> StreamSpec:
    config = vjepa2_1.SIZES[size]
    file = f"vjepa2_1_vit{size}_dist_vitG_384.pt" if size in "bl" else f"vjepa2_1_vit{size}_384.pt"
    return StreamSpec(
        f"vjepa2_1_vit{size}16_384",
        "motion",
        VJepa21Stream,
        lambda _: vjepa2_1.VJepa21Encoder(config),
        lambda source: (vjepa2_1.load_vjepa2_1(source.checkpoint, size), {}),
        "",
        width=config.width,
        frames=16,
        input_size=384,
        interpolation="bilinear",
        **IMAGENET,
        info={
            "source": f"https://dl.fbaipublicfiles.com/vjepa2/{file}",
            "licence": licence(f"vjepa2_1_vit{size}16_384"),
            "sampling": "16 frames, every 4th frame",
        },
    )


def _of_one_length() -> Iterator[StreamSpec]:
    # The library's default epsilon of VideoMAE is 1e-12; its weights were trained with 1e-6.
    models = {
        "videomae_vitb16": (
            VideoMAEStream,
            "VideoMAEModel",
            VideoMAEConfig(layer_norm_eps=1e-6),
            "MCG-NJU/videomae-base-finetuned-kinetics",
            ("fc_norm", "classifier"),
            IMAGENET,
            "16 frames, every 4th frame",
        ),
        "timesformer_vitb16": (
            TimesformerStream,
            "TimesformerModel",
            TimesformerConfig(),
            "facebook/timesformer-base-finetuned-k400",
            ("classifier",),
            KINETICS,
            "8 frames, every 32nd frame",
        ),
    }
    for name, (stream_class, model_class, config, hub, heads, normalisation, sampling) in models.items():

        def load(source, model_class=model_class, config=config, heads=heads) -> tuple[nn.Module, dict]:
            given = {"left_out": heads, "local_files_only": source.local_files_only}
            return pretrained.load(model_class, config, source.checkpoint, **given), {}

        yield StreamSpec(
            name,
            "motion",
            stream_class,
            lambda _, model_class=model_class, config=config: pretrained.build(model_class, config),
            load,
            hub,
            width=config.hidden_size,
            frames=config.num_frames,
            input_size=config.image_size,
            interpolation="bilinear",
            **normalisation,
            info={"source": f"https://huggingface.co/{hub}", "licence": licence(name), "sampling": sampling},
        )
