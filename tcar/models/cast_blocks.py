"""Blocks of CAST: what it trains between the sub-layers of its two frozen experts, and its head.

Source: Lee et al. 2023 (CAST: Cross-Attention in Space and Time, NeurIPS, arXiv:2311.18825).
"""

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tcar.fusion.blocks import Record, Residual, attend
from tcar.ground.settings import check_whole

# Two experts, two habits: CLIP's norms and those of everything that comes from VideoMAE's side.
CLIP_EPS, VIDEOMAE_EPS = 1e-5, 1e-6
INIT_STD = 0.02
EXPERTS = ("spatial", "temporal")
Tokens = Float[Tensor, "b t _ d"]  # of one expert: moments, then places; the spatial one's class token stands first


@dataclass(frozen=True)
class CASTConfig:
    """What a CAST is made of, CAST-B/16 by default; raises ValueError naming the field that does not fit.

    Both experts are vision transformers of one `width`, `depth`, number of `heads` and `patch_size`. The temporal one
    reads all `frames`, `tubelet` at a time, the spatial one the last frame of each tubelet (of 16: 1, 3, 5, ...), so
    that both have tokens of as many moments. `cross_width` is that of the bottleneck and its cross-attention.
    """

    num_classes: int = 174
    frames: int = 16
    tubelet: int = 2
    image_size: int = 224
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    adapter_width: int = 192
    cross_width: int = 384
    drop_path: float | int = 0.3

    def __post_init__(self):
        check_whole(self, **{field.name: 1 for field in fields(self) if field.name != "drop_path"})
        multiples = {"frames": "tubelet", "image_size": "patch_size", "width": "heads", "cross_width": "heads"}
        for name, by in multiples.items():
            value, divisor = getattr(self, name), getattr(self, by)
            if value % divisor:
                raise ValueError(f"CASTConfig.{name} {value} is not a multiple of {by} {divisor}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"CASTConfig.drop_path must lie in [0, 1), got {self.drop_path}")

    @property
    def moments(self) -> int:
        """How many moments of time both experts have tokens of."""
        return self.frames // self.tubelet

    @property
    def places(self) -> int:
        """How many places in the image both experts have tokens of."""
        return (self.image_size // self.patch_size) ** 2


class CASTAdapter(nn.Module):
    """A narrow hidden layer with GELU, with a skip around it or without.

    `up(GELU(down(x)))`, plus x with `skip`. It starts as its skip alone: `up` is zero, weight and bias.
    """

    def __init__(self, width: int, hidden: int, skip: bool = False):
        super().__init__()
        self.down, self.up, self.skip = nn.Linear(width, hidden), nn.Linear(hidden, width), skip

    def forward(self, x: Float[Tensor, "*axes d"]) -> Float[Tensor, "*axes d"]:
        added = self.up(F.gelu(self.down(x)))
        return x + added if self.skip else added


class CrossAttention(nn.Module):
    """Tokens of one stream read those of the other along one axis, time or space, of `length` steps.

    Each side has learned positions of its own, added before all projections: keys and values are made of the same sum.
    """

    def __init__(self, width: int, heads: int, length: int):
        super().__init__()
        self.heads = heads
        self.query_position = nn.Parameter(torch.empty(length, width))
        self.key_position = nn.Parameter(torch.empty(length, width))
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "b l d"], source: Float[Tensor, "b l d"], weights: bool = False
    ) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b h l l"] | None]:
        """Return what x reads of the source, and the attention weights where they are asked for."""
        keys, values = self.key_value(source + self.key_position).chunk(2, dim=-1)
        query = self.query(x + self.query_position)
        read, attention = attend(query, keys, values, self.heads, weights=weights)
        return self.out(read), attention


class Exchange(nn.Module):
    """Bottleneck cross-attention, both ways, of the tokens as they are before either way changes them.

    Each stream is taken down to `cross_width` and normalised. A spatial patch then reads the temporal tokens at its
    own place over time, a temporal token the patches of its own moment over space. GELU and a projection back to the
    full width follow. The class tokens read nothing, but go down, through norm and GELU, and up as the patches do.
    """

    def __init__(self, config: CASTConfig):
        super().__init__()
        width, narrow = config.width, config.cross_width
        self.down = nn.ModuleDict({s: nn.Linear(width, narrow) for s in EXPERTS})
        self.norm = nn.ModuleDict({s: nn.LayerNorm(narrow, eps=VIDEOMAE_EPS) for s in EXPERTS})
        self.over_time = CrossAttention(narrow, config.heads, config.moments)
        self.over_space = CrossAttention(narrow, config.heads, config.places)
        self.up = nn.ModuleDict({s: nn.Linear(narrow, width) for s in EXPERTS})

    def forward(
        self, spatial: Tokens, temporal: Tokens, record: Record | None = None, name: str = ""
    ) -> tuple[Tokens, Tokens]:
        """Return what is to be added to the spatial tokens (m = 1 + n, class token first) and to the temporal ones.

        With a `record`, "<name>.spatial_from_temporal.weights" [b n h t t] and "<name>.temporal_from_spatial.weights"
        [b t h n n] are written to it, the reader's axis before that of what is read.
        """
        batch, explicit = len(spatial), record is not None
        spatial = self.norm["spatial"](self.down["spatial"](spatial))
        temporal = self.norm["temporal"](self.down["temporal"](temporal))
        class_token, patches = spatial[:, :, :1], spatial[:, :, 1:]
        to_spatial, over_time = self.over_time(_by_place(patches), _by_place(temporal), explicit)
        to_temporal, over_space = self.over_space(temporal.flatten(0, 1), patches.flatten(0, 1), explicit)
        if record is not None:
            record[f"{name}.spatial_from_temporal.weights"] = over_time.unflatten(0, (batch, -1))
            record[f"{name}.temporal_from_spatial.weights"] = over_space.unflatten(0, (batch, -1))
        to_spatial = torch.cat([class_token, to_spatial.unflatten(0, (batch, -1)).transpose(1, 2)], dim=2)
        to_temporal = to_temporal.unflatten(0, (batch, -1))
        return self.up["spatial"](F.gelu(to_spatial)), self.up["temporal"](F.gelu(to_temporal))


def _by_place(tokens: Float[Tensor, "b t n d"]) -> Float[Tensor, "bn t d"]:
    return tokens.transpose(1, 2).flatten(0, 1)


class Block(nn.Module):
    """One block of CAST: what is trained around one frozen layer of each expert.

    The layers are handed to `forward` rather than owned, so that the state of a block is what it trains. Drop-path
    (Huang et al. 2016) acts on the exchange and on the adapters beside the feed-forward layers. It leaves out whole
    clips, in both streams; the published code leaves out whole clips of the temporal stream, but token positions of
    the spatial one, the same in all clips and frames of a batch.
    """

    def __init__(self, config: CASTConfig, drop_path: float | int = 0):
        super().__init__()
        width, hidden = config.width, config.adapter_width
        self.attention_adapter = nn.ModuleDict({s: CASTAdapter(width, hidden, skip=True) for s in EXPERTS})
        self.exchange = Exchange(config)
        self.feed_forward_adapter = nn.ModuleDict({s: CASTAdapter(width, hidden) for s in EXPERTS})
        self.residual = Residual(0, drop_path)

    def forward(
        self,
        clip: nn.Module,
        videomae: nn.Module,
        spatial: Tokens,
        temporal: Tokens,
        record: Record | None = None,
        name: str = "",
    ) -> tuple[Tokens, Tokens]:
        """Return both streams' tokens after a layer of CLIP, a layer of VideoMAE and all that stands between.

        `clip` and `videomae` are encoder layers of transformers; the `record` is as for `Exchange`.
        """
        spatial, temporal = self.attend(clip, videomae, spatial, temporal)
        to_spatial, to_temporal = self.exchange(spatial, temporal, record, name)
        spatial, temporal = self._add(spatial, to_spatial), self._add(temporal, to_temporal)
        return self.feed_forward(clip, videomae, spatial, temporal)

    def attend(
        self, clip: nn.Module, videomae: nn.Module, spatial: Tokens, temporal: Tokens
    ) -> tuple[Tokens, Tokens]:
        """Have each frame and each clip read itself, x + Adapter(MHA(LN x))."""
        read = clip.self_attn(clip.layer_norm1(spatial).flatten(0, 1))[0].view_as(spatial)
        spatial = spatial + self.attention_adapter["spatial"](read)
        read = videomae.attention(videomae.layernorm_before(temporal).flatten(1, 2)).view_as(temporal)
        return spatial, temporal + self.attention_adapter["temporal"](read)

    def feed_forward(
        self, clip: nn.Module, videomae: nn.Module, spatial: Tokens, temporal: Tokens
    ) -> tuple[Tokens, Tokens]:
        """Take each token through x + FFN(LN x) + Adapter(LN x) / 2."""
        h = clip.layer_norm2(spatial)
        spatial = self._add(spatial + clip.mlp(h), self.feed_forward_adapter["spatial"](h) / 2)
        h = videomae.layernorm_after(temporal)
        temporal = videomae.output(videomae.intermediate(h), temporal)  # the library adds the second to the first
        return spatial, self._add(temporal, self.feed_forward_adapter["temporal"](h) / 2)

    def _add(self, trunk: Float[Tensor, "b t n d"], branch: Float[Tensor, "b t n d"]) -> Float[Tensor, "b t n d"]:
        return self.residual(trunk.flatten(1, 2), branch.flatten(1, 2)).view_as(trunk)


class Head(nn.Module):
    """Mean over frames of the class token and mean of the temporal tokens, each normalised, then adapted and summed.

    The adapters have no skip, so the logits of a fresh head are the bias of its classifier.
    """

    def __init__(self, config: CASTConfig):
        super().__init__()
        width, hidden = config.width, config.adapter_width
        eps = {"spatial": CLIP_EPS, "temporal": VIDEOMAE_EPS}
        self.norm = nn.ModuleDict({s: nn.LayerNorm(width, eps=eps[s]) for s in EXPERTS})
        self.adapter = nn.ModuleDict({s: CASTAdapter(width, hidden) for s in EXPERTS})
        self.classifier = nn.Linear(width, config.num_classes)

    def forward(self, spatial: Tokens, temporal: Tokens, record: Record | None = None) -> Float[Tensor, "b c"]:
        """Return logits; with a `record`, "readout" [b d] is written to it."""
        means = {"spatial": spatial[:, :, 0].mean(dim=1), "temporal": temporal.mean(dim=(1, 2))}
        readout = sum(self.adapter[s](self.norm[s](mean)) for s, mean in means.items())
        if record is not None:
            record["readout"] = readout
        return self.classifier(readout)


@torch.no_grad()
def initialise(part: nn.Module) -> None:
    """Draw what is trained afresh, as published, by torch's global generator; the norms keep their 1 and 0.

    Linear weights come from a truncated normal of 0.02 with biases 0; what leads out of an adapter or an exchange is
    zero; cross-attention positions have a variance of 1 / (channels of a head).
    """
    modules = list(part.modules())
    for module in modules:
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=INIT_STD)
            nn.init.zeros_(module.bias)
        elif isinstance(module, CrossAttention):
            for table in (module.query_position, module.key_position):
                nn.init.normal_(table, std=(table.shape[1] / module.heads) ** -0.5)
    for module in modules:
        if isinstance(module, CASTAdapter | Exchange):
            for up in module.up.values() if isinstance(module, Exchange) else [module.up]:
                nn.init.zeros_(up.weight)
                nn.init.zeros_(up.bias)
