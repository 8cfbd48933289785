"""Every image model of timm as a stream; apart from the others, as timm takes seconds to import."""

import difflib
import sys
from functools import lru_cache, partial
from math import isqrt

import timm
import torch
from torch import Tensor, nn

from tcar.streams import pretrained
from tcar.streams.catalogue import SEGMENTS, TIMM
from tcar.streams.grids import Tokens, grid_coordinates
from tcar.streams.published import licence
from tcar.streams.stream import Source, Stream, StreamSpec
from tcar.streams.weights import load_strict, read_state


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


@lru_cache(maxsize=64)
def timm_spec(name: str) -> StreamSpec:
    """Return the specification of `timm:<model>`, any image model of timm by its name there.

    Input size, normalisation and width are those of timm's own configuration of its weights. Raises ValueError for a
    name that timm does not know.
    """
    model = name.removeprefix(TIMM)
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
            "sampling": SEGMENTS.format(8),
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
