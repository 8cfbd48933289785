"""The frozen backbone behind one interface: frames in, tokens with space-time coordinates out.

A stream resizes and normalises frames as its checkpoint demands, so callers only ever handle frames `[B T H W C]` and
tokens `[B t n d]`.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from tcar.streams.catalogue import StreamFacts
from tcar.streams.grids import Tokens

NOISE = 0.5  # how far frames may leave [0, 1] while a model is explained: what methods add there is drawn about a frame


@dataclass(frozen=True)
class Source:
    """Where weights come from: a file, a folder or a Hub name, for images of `input_size` pixels a side."""

    checkpoint: str | Path
    input_size: int
    local_files_only: bool = False


@dataclass(frozen=True)
class Family:
    """Networks that one code builds and reads files of, whatever their size, and the class of their streams.

    `build(facts, input_size)` and `load(facts, source)` are those of a `StreamSpec`, for the stream of these facts.
    """

    stream_class: type
    build: Callable[[StreamFacts, int], nn.Module]
    load: Callable[[StreamFacts, Source], tuple[nn.Module, dict]]


@dataclass(frozen=True)
class StreamSpec:
    """What a registered stream is: how to build its backbone, what it expects, where its weights come from.

    `build(input_size)` makes the backbone with random weights. `load(source)` makes it with published ones, and says
    which fields of the specification these weights change: a network of the same shape may have been trained on other
    frames. `default` is the checkpoint that `pretrained=True` means; `info` holds at least source, licence and
    sampling.
    """

    name: str
    role: str  # "semantic" (frame by frame) or "motion" (clip)
    stream_class: type
    build: Callable[[int], nn.Module]
    load: Callable[[Source], tuple[nn.Module, dict]]
    default: str | Path
    width: int
    frames: int
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    info: dict = field(default_factory=dict)


class Stream(nn.Module):
    """A frozen backbone: `stream(frames)` takes `[B T H W C]` frames and returns `Tokens`.

    Frames are uint8, or float in [0, 1]. The backbone stays in evaluation mode and its parameters take no
    gradient. Nothing is recorded for backward unless the frames themselves ask for a gradient (saliency), the stream
    has adapters (`tcar.streams.adapters`), which stand beside the backbone and alone are trained, or it is explained
    (`explaining`).
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
        self.adapters = nn.ModuleList()
        self._explained = False
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Stream":
        """Stay in evaluation mode whatever the caller asks, so that batch-norm statistics never move."""
        return super().train(False)

    def forward(self, frames: UInt8[Tensor, "b t h w 3"] | Float[Tensor, "b t h w 3"]) -> Tokens:
        """Return the tokens of clips; raises ValueError on frames of another shape, type or range."""
        with self._gradients(frames):
            tokens = self._tokens(*self._prepare(frames))
        if self.fit == "squash":
            return tokens
        # A crop sees the middle of the frame only: its tokens keep their place in the whole frame.
        height, width = frames.shape[2:4]
        seen = tokens.coordinates.new_tensor([1, min(height, width) / height, min(height, width) / width])
        return replace(tokens, coordinates=0.5 + (tokens.coordinates - 0.5) * seen)

    @contextlib.contextmanager
    def explaining(self) -> Iterator[None]:
        """Record gradients through the frozen backbone, whatever the frames ask for, and let noise pass.

        Frames are float then, up to `NOISE` beyond [0, 1]; bytes are refused, as no method can take their gradient.
        """
        before, self._explained = self._explained, True
        try:
            yield
        finally:
            self._explained = before

    def _gradients(self, frames: Tensor) -> torch.set_grad_enabled:
        """Record for backward only what somebody can use: frames that ask for it, or adapters that are trained."""
        wanted = self._explained or frames.requires_grad or any(p.requires_grad for p in self.parameters())
        return torch.set_grad_enabled(torch.is_grad_enabled() and wanted)

    def _divides(self, patch: int) -> None:
        if self.input_size % patch:
            raise ValueError(f"{self.name}: input_size {self.input_size} is not a multiple of its patch {patch}")

    def _prepare(self, frames: Tensor) -> tuple[Float[Tensor, "bt 3 s s"], int]:
        """Check, resize and normalise frames; returns them with the batch size."""
        if frames.ndim != 5 or frames.shape[-1] != 3 or 0 in frames.shape:
            raise ValueError(f"{self.name}: frames must be [batch, time, height, width, 3], got {list(frames.shape)}")
        images = frames.flatten(0, 1).permute(0, 3, 1, 2)
        if frames.dtype == torch.uint8 and not self._explained:
            images = images.to(self.mean) / 255
        elif not frames.is_floating_point():
            wanted = "float in [0, 1], divide bytes by 255" if self._explained else "uint8, or float in [0, 1]"
            raise ValueError(f"{self.name}: frames must be {wanted}; got {frames.dtype}")
        elif not frames.is_meta and not _in_unit_range(frames, NOISE if self._explained else 1e-3):
            raise ValueError(
                f"{self.name}: float frames must lie in [0, 1], got {frames.min():.3g} to "
                f"{frames.max():.3g}; divide 0-255 frames by 255, and do not normalise them"
                + ("" if self._explained else "; with model.explaining(): lets the noise of a method pass")
            )
        if self._explained and torch.is_grad_enabled() and not images.requires_grad:
            images = images.detach().requires_grad_()  # or no layer of a frozen backbone has a gradient to give
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


def _in_unit_range(frames: Tensor, tolerance: float) -> bool:
    low, high = frames.aminmax()
    return bool((low >= -tolerance) & (high <= 1 + tolerance))  # False for NaN as well
