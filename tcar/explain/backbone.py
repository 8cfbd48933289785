"""Attention within the frozen backbones, from the tokens of a stream's grid back to the patches of its frames."""

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tcar.explain.attention import Grid, attention_rollout
from tcar.explain.errors import ExplanationError
from tcar.models.tca import TCA
from tcar.streams.stream import Stream
from tcar.streams.video import TimesformerStream, VideoMAEStream, VJepa2Stream, VJepa21Stream

Frames = UInt8[Tensor, "b _ _ _ 3"] | Float[Tensor, "b _ _ _ 3"]
Clip = Frames | tuple[Frames, Frames]  # of a model: the frames of the semantic and the motion stream, or of both

SEQUENCES = (VideoMAEStream, VJepa2Stream, VJepa21Stream)  # read all tokens of a clip, which are its patches


@torch.no_grad()
def backbone_rollout(stream: Stream, frames: Frames) -> Float[Tensor, "b t n p"]:
    """Return how each token of a stream's own grid is made of its patches, by attention through all of its layers.

    Tokens are [time, place] of `stream(frames).grid`. A stream that reads frame by frame has the n patches of the
    token's own frame, one that reads clips all t * n of the clip, moment by moment. A layer counts half as residual,
    half as what it read, heads averaged; what ends in class tokens and registers lies nowhere and is left out, and rows
    sum to 1. TimeSformer's layers are two such steps, over the moments of a place, then over the places of a moment.
    The stream runs as ever and gives the same tokens. Memory: one frame, or one clip, and one head at a time.

    Source: Abnar and Zuidema 2020, attention rollout. Raises ExplanationError for a stream without attention among all
    of its tokens: ConvNets (I3D, ResNet), and windowed transformers (Swin).
    """
    rows = [_clip_rollout(stream, frames[i : i + 1]) for i in range(len(frames))]
    return torch.stack(rows)


@torch.no_grad()
def pixel_rollout(model: TCA, clip: Clip) -> dict[str, Float[Tensor, "b t y x"]]:
    """Follow the readout's attention back through fusion and backbones to the patches of each stream that is read.

    Maps by stream lie at the resolution of its patches, and sum to what those of `attention_rollout` do. What a pooled
    token has falls evenly on the tokens whose mean it is. Where a backbone has no attention, the map stays on the
    pooled grid. A stream that crops frames has 0 where it does not look. Raises ExplanationError for a fusion without
    attention or in training mode.
    """
    if model.fusion.training:
        raise ExplanationError("the model is in training mode, which drops what would be followed; call its eval()")
    given = clip if isinstance(clip, tuple) else model.pick(clip)
    frames = dict(zip(("semantic", "motion"), given, strict=True))
    _, record = model(*given, return_intermediates=True)
    grids = {s: getattr(model.config, f"{s}_grid") for s in model.fusion.streams}
    if not any(name.endswith(".weights") for name in record):
        raise ExplanationError(f"{model.fusion.config.kind} has no attention to follow; explain its tokens or pixels")
    maps = attention_rollout(record, grids)
    for s, values in maps.items():
        stream: Stream = getattr(model, s)
        if _has_attention(stream):
            values = _to_patches(values, backbone_rollout(stream, frames[s]))
        maps[s] = values if stream.fit == "squash" else _uncropped(values, *frames[s].shape[2:4])
    return maps


def _to_patches(pooled: Float[Tensor, "b t y x"], made: Float[Tensor, "b t2 n p"]) -> Float[Tensor, "b t2 y2 x2"]:
    """Spread what pooled tokens have over a stream's own grid, and from there to its patches."""
    moments, places, patches = made.shape[1:]
    side = math.isqrt(places)
    own = spread(pooled, (moments, side, side)).flatten(2)
    if patches == places:
        found = torch.einsum("btn,btnp->btp", own, made.to(own.dtype))
    else:
        found = torch.einsum("btn,btnp->bp", own, made.to(own.dtype)).unflatten(1, (moments, places))
    return found.unflatten(2, (side, side))


def spread(pooled: Float[Tensor, "b t y x"], grid: Grid) -> Float[Tensor, "b t2 y2 x2"]:
    """Share each cell's value evenly among the cells of a finer grid that adaptive average pooling made it of."""
    for axis, (old, new) in enumerate(zip(pooled.shape[1:], grid, strict=True), start=1):
        # What pooling makes of the unit vectors is its matrix [coarse fine], whose rows sum to 1.
        shares = F.adaptive_avg_pool1d(torch.eye(new).to(pooled)[None], old)[0].T
        pooled = torch.tensordot(pooled, shares, dims=([axis], [0])).movedim(-1, axis)
    return pooled


def _uncropped(seen: Float[Tensor, "b t y x"], height: int, width: int) -> Float[Tensor, "b t y2 x2"]:
    """Lay a map of the central square of a frame into cells, about as large, of the whole frame."""
    for axis, length in ((2, height), (3, width)):
        cells, part = seen.shape[axis], min(height, width) / length
        wanted = round(cells / part)
        edges = (1 - part) / 2 + part * torch.arange(cells + 1).double() / cells
        whole = torch.arange(wanted + 1).double() / wanted
        overlap = torch.minimum(edges[1:, None], whole[1:]) - torch.maximum(edges[:-1, None], whole[:-1])
        shares = overlap.clamp_min(0) * cells / part
        seen = torch.tensordot(seen, shares.to(seen), dims=([axis], [0])).movedim(-1, axis)
    return seen


def _has_attention(stream: Stream) -> bool:
    try:
        return bool(_layers(stream))
    except ExplanationError:
        return False


def _layers(stream: Stream) -> int:
    """Return how many layers of attention among all of its tokens a stream has, else raise ExplanationError."""
    if isinstance(stream, TimesformerStream):
        return len(stream.backbone.encoder.layer)
    if isinstance(stream, VJepa21Stream):
        return len(stream.backbone.blocks)
    if isinstance(stream, SEQUENCES):
        return len((stream.backbone.encoder if hasattr(stream.backbone, "encoder") else stream.backbone).layer)
    with contextlib.suppress(AttributeError, ValueError):  # `blocks` says itself where a network of timm has none
        return len(stream.blocks)
    raise ExplanationError(
        f"{stream.name} has no attention among all of its tokens, so nothing leads from them to its patches; streams "
        "that have it: dinov2_*, dinov3_*, vision transformers of timm, vjepa2_*, videomae_*, timesformer_*"
    )


def _clip_rollout(stream: Stream, clip: Tensor) -> Float[Tensor, "t n p"]:
    layers = _layers(stream)
    if isinstance(stream, TimesformerStream):
        return _divided_rollout(stream, clip)
    if not isinstance(stream, SEQUENCES):
        return torch.cat([_sequences(stream, clip[:, i : i + 1], layers)[1] for i in range(clip.shape[1])])
    grid, parts = _sequences(stream, clip, layers)
    return _on_clip(parts, grid)


def _sequences(stream: Stream, clip: Tensor, layers: int) -> tuple[Grid, Float[Tensor, "s n p"]]:
    """Return the grid of a clip and, of each sequence of tokens that the backbone read, the patches of its patches."""
    with _Following() as following:
        grid = stream(clip).grid
    if following.calls != layers:
        raise ExplanationError(
            f"{stream.name} has {layers} layers but {following.calls} calls of torch's scaled dot-product attention, "
            "which is where its weights are read; switch its backbone to that ('sdpa')"
        )
    return grid, _patch_rows(following.made, math.prod(grid) // len(following.made))


def _patch_rows(made: Float[Tensor, "s n n"], patches: int) -> Float[Tensor, "s p p"]:
    """Return the rows and columns of the patches, which come last in a sequence, each row scaled to sum to 1."""
    rows = made[:, -patches:, -patches:]
    return rows / rows.sum(dim=2, keepdim=True)


def _on_clip(parts: Float[Tensor, "s n n"], grid: Grid) -> Float[Tensor, "t m p"]:
    """Lay the sequences that a long clip was cut into along the clip: none has patches of another."""
    return torch.block_diag(*parts).unflatten(0, (grid[0], -1))


class _Following(TorchFunctionMode):
    """Multiply half-residual attention layer by layer while a backbone runs, which knows nothing of it.

    Every backbone but TimeSformer's calls torch's attention; what it is called with gives the weights, after whatever
    turns queries and keys.
    """

    def __init__(self):
        super().__init__()
        self.calls, self.made = 0, None

    def __torch_function__(self, func: Callable, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.calls += 1
            weights = _mean_weights(*args[:2], *args[3:4], **kwargs)
            if self.made is not None and self.made.shape != weights.shape:
                raise ExplanationError(
                    f"a layer reads among {list(weights.shape)} tokens and one before it among {list(self.made.shape)}"
                )
            self.made = _followed(self.made, weights)
        return func(*args, **kwargs)


def _followed(made: Tensor | None, weights: Float[Tensor, "s n n"]) -> Float[Tensor, "s n n"]:
    """Return what tokens are made of after a layer more, in which each keeps half of itself."""
    itself = torch.eye(weights.shape[-1]).to(weights)
    return (weights + itself) / 2 if made is None else (torch.bmm(weights, made) + made) / 2


def _mean_weights(
    query: Float[Tensor, "s h n c"],
    key: Float[Tensor, "s h n c"],
    attn_mask: Tensor | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    **others: Tensor | float | bool,
) -> Float[Tensor, "s n n"]:
    """Return the weights of attention as torch's function has them, the mean of the heads, one at a time."""
    if attn_mask is not None or is_causal or others.get("enable_gqa") or query.shape != key.shape:
        raise ExplanationError("a layer of the backbone does not read all of its tokens alike, so it is not followed")
    total = query.new_zeros(len(query), query.shape[2], query.shape[2], dtype=torch.float32)
    for head in range(query.shape[1]):
        q, k = query[:, head].float(), key[:, head].float()
        total += torch.bmm(q * (scale or q.shape[-1] ** -0.5), k.transpose(1, 2)).softmax(dim=-1)
    return total / query.shape[1]


def _divided_rollout(stream: TimesformerStream, clip: Tensor) -> Float[Tensor, "t n p"]:
    """Follow TimeSformer's layers: moments of a place, class token apart, then the places of a moment and a copy of it.

    The copies are averaged, as the layer averages them.
    """
    made: Tensor | None = None  # [clips 1+places*moments the same], places before moments, as the library has them

    def over_time(weights: Float[Tensor, "sp h t t"]) -> None:
        nonlocal made
        mean, clips = weights.mean(dim=1), -1
        places = tokens // mean.shape[1]
        mean = mean.unflatten(0, (clips, places))
        if made is None:
            made = torch.eye(1 + tokens).to(mean).repeat(len(mean), 1, 1)
        patches = made[:, 1:].unflatten(1, (places, -1))
        read = torch.einsum("sptu,spuk->sptk", mean, patches).flatten(1, 2)
        made = torch.cat([made[:, :1], (made[:, 1:] + read) / 2], dim=1)

    def over_space(weights: Float[Tensor, "st h n n"]) -> None:
        nonlocal made
        mean = weights.mean(dim=1)
        moments = tokens // (mean.shape[1] - 1)
        mean = mean.unflatten(0, (-1, moments))
        patches = made[:, 1:].unflatten(1, (-1, moments)).transpose(1, 2)
        whole = torch.cat([made[:, None, :1].expand(-1, moments, -1, -1), patches], dim=2)
        read = torch.einsum("stpq,stqk->stpk", mean, whole)
        of_patches = read[:, :, 1:].transpose(1, 2).flatten(1, 2)
        made = (made + torch.cat([read[:, :, 0].mean(dim=1, keepdim=True), of_patches], dim=1)) / 2

    config = stream.backbone.config
    tokens = config.num_frames * (config.image_size // config.patch_size) ** 2
    with _watching_dropout(stream, over_time, over_space):
        grid = stream(clip).grid
    parts = _patch_rows(made, tokens)
    axes = (tokens // config.num_frames, config.num_frames)
    moment_first = parts.unflatten(2, axes).unflatten(1, axes).permute(0, 2, 1, 4, 3)
    return _on_clip(moment_first.flatten(3).flatten(1, 2), grid)


@contextlib.contextmanager
def _watching_dropout(
    stream: TimesformerStream, over_time: Callable[[Tensor], None], over_space: Callable[[Tensor], None]
) -> Iterator[None]:
    """Show the weights of each layer as they pass through their dropout, which does nothing in evaluation."""

    def shown(to: Callable[[Tensor], None]) -> Callable[..., None]:
        return lambda _module, inputs: to(inputs[0].float())

    with contextlib.ExitStack() as stack:
        for layer in stream.backbone.encoder.layer:
            for attention, to in ((layer.temporal_attention, over_time), (layer.attention, over_space)):
                stack.callback(attention.attention.attn_drop.register_forward_pre_hook(shown(to)).remove)
        yield
