"""Streams that read the whole clip: I3D, V-JEPA 2 and 2.1, VideoMAE, TimeSformer."""

from operator import attrgetter

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import TimesformerConfig, VideoMAEConfig, VJEPA2Config

from tcar.streams import i3d, meta_names, pretrained, vjepa2_1
from tcar.streams.catalogue import StreamFacts
from tcar.streams.grids import Tokens, grid_coordinates
from tcar.streams.i3d_layouts import CONFIGS, inflate_resnet50, load_i3d
from tcar.streams.stream import Family, Source, Stream, StreamSpec
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


def _load_i3d(facts: StreamFacts, source: Source) -> tuple[nn.Module, dict]:
    # The first name takes any layout, whose network and frames it then has; the others insist on theirs.
    insists = facts.name.removeprefix("i3d_r50").removeprefix("_")
    network, layout = load_i3d(source.checkpoint, insists)
    found = layout.facts
    changes = {"mean": found.mean, "std": found.std, "frames": found.frames}
    return network.without_classifier(), changes | {"info": {"sampling": found.sampling, "layout": layout.name}}


def _load_inflated(_: StreamFacts, source: Source) -> tuple[nn.Module, dict]:
    return inflate_resnet50(read_state(pretrained.locate(source))).without_classifier(), {}


def _load_tiny(_: StreamFacts, source: Source) -> tuple[nn.Module, dict]:
    return load_strict(i3d.I3D(i3d.TINY), read_state(source.checkpoint), source.checkpoint), {}


FAMILIES = {
    "i3d": Family(ClipStream, lambda facts, _: i3d.I3D(CONFIGS[facts.name]).without_classifier(), _load_i3d),
    "i3d_inflated": Family(ClipStream, lambda *_: i3d.I3D().without_classifier(), _load_inflated),
    "i3d_tiny": Family(ClipStream, lambda *_: i3d.I3D(i3d.TINY), _load_tiny),
    # Files tuned on a labelled set hold a probe beside the encoder; the predictor is of the pre-training.
    # Rotary positions count rows and columns of the grid that the configuration names, whatever comes in.
    "vjepa2": pretrained.family(
        VJepa2Stream,
        "VJEPA2Model",
        VJEPA2Config,
        left_out=("pooler", "classifier", "predictor"),
        names=meta_names.VJEPA2,
        sized="crop_size",
        finish=attrgetter("encoder"),
    ),
    "vjepa2_1": Family(
        VJepa21Stream,
        lambda facts, _: vjepa2_1.VJepa21Encoder(vjepa2_1.SIZES[facts.shape["size"]]),
        lambda facts, source: (vjepa2_1.load_vjepa2_1(source.checkpoint, facts.shape["size"]), {}),
    ),
    "videomae": pretrained.family(VideoMAEStream, "VideoMAEModel", VideoMAEConfig, left_out=("fc_norm", "classifier")),
    "timesformer": pretrained.family(
        TimesformerStream, "TimesformerModel", TimesformerConfig, left_out=("classifier",)
    ),
}
