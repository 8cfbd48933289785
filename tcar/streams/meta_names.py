"""DINOv2 and V-JEPA 2 as Meta's own files name their weights, renamed as the Hub has them.

Sources: facebookresearch/dinov2, dinov2/models/vision_transformer.py; facebookresearch/vjepa2,
src/models/vision_transformer.py.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

# DINOv2 that was trained with its blocks in chunks has the number of the chunk before that of the block.
_BLOCK = re.compile(r"blocks\.(?:\d+\.)?(\d+)\.(.+)")
_QKV = re.compile(r"attn\.qkv\.(weight|bias)")


@dataclass(frozen=True)
class Names:
    """What the Hub calls Meta's modules and parameters: outside the blocks, before a block's number, and within one.

    `qkv` stands before query, key and value, which Meta keeps in one tensor; `unused` is read by no network.
    """

    outside: Mapping[str, str]
    layer: str
    inside: Mapping[str, str]
    qkv: str
    unused: tuple[str, ...] = ()


DINOV2 = Names(
    outside={
        "cls_token": "embeddings.cls_token",
        "mask_token": "embeddings.mask_token",
        "register_tokens": "embeddings.register_tokens",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "norm": "layernorm",
    },
    layer="encoder.layer.",
    inside={
        "attn.proj": "attention.output.dense",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
        "mlp.w12": "mlp.weights_in",
        "mlp.w3": "mlp.weights_out",
    },
    qkv="attention.attention.",
)
VJEPA2 = Names(
    outside={"patch_embed.proj": "encoder.embeddings.patch_embeddings.proj", "norm": "encoder.layernorm"},
    layer="encoder.layer.",
    inside={"attn.proj": "attention.proj"},
    qkv="attention.",
    unused=("pos_embed",),  # of before the rotary positions
)


def from_meta(state: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Return weights under the names of the Hub; those that are not named as Meta does keep their names."""
    if not any(_BLOCK.fullmatch(key) for key in state):
        return dict(state)
    renamed = {}
    for key, value in state.items():
        if key in names.unused:
            continue
        block = _BLOCK.fullmatch(key)
        before, inner, table = "", key, names.outside
        if block:
            before, inner, table = f"{names.layer}{block[1]}.", block[2], names.inside
        if match := _QKV.fullmatch(inner):
            parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
            renamed |= {f"{before}{names.qkv}{part}.{match[1]}": third for part, third in parts}
            continue
        module, _, parameter = inner.rpartition(".")
        renamed[before + (table.get(inner) or f"{table.get(module, module)}.{parameter}".lstrip("."))] = value
    return renamed
