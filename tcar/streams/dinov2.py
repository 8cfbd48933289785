"""The published DINOv2 and DINOv3 vision transformers, and the configuration of the miniature of the demo."""

from torch import nn
from transformers import Dinov2Config, Dinov2WithRegistersConfig, DINOv3ViTConfig, PreTrainedConfig

DINOV2_TINY = Dinov2Config(
    hidden_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    mlp_ratio=4,
    patch_size=14,
    image_size=112,
    layerscale_value=1.0,
    use_mask_token=False,
)


def as_published(model: nn.Module) -> nn.Module:
    """Make the library's DINOv2 without registers the published network; every other model is left as it is."""
    if type(model.config) is Dinov2Config:
        from tcar.streams.dinov2_positions import OffsetEmbeddings  # of a class that takes seconds to import

        model.embeddings.__class__ = OffsetEmbeddings  # a class of its own would not find the library's names of keys
    return model


def dinov2_configs() -> dict[str, tuple[str, PreTrainedConfig]]:
    """Return name -> (Hub name, configuration) of the published sizes, without and with registers.

    Sources: Oquab et al. 2023, arXiv:2304.07193; Darcet et al. 2024, arXiv:2309.16588.
    """
    sizes = {
        "s": ("small", 384, 12, 6),
        "b": ("base", 768, 12, 12),
        "l": ("large", 1024, 24, 16),
        "g": ("giant", 1536, 40, 24),
    }
    configs = {}
    for letter, (size, width, depth, heads) in sizes.items():
        shape = {
            "hidden_size": width,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "patch_size": 14,
            "image_size": 518,
            "use_swiglu_ffn": letter == "g",
        }
        configs[f"dinov2_vit{letter}14"] = (f"facebook/dinov2-{size}", Dinov2Config(**shape))
        configs[f"dinov2_vit{letter}14_reg"] = (
            f"facebook/dinov2-with-registers-{size}",
            Dinov2WithRegistersConfig(num_register_tokens=4, **shape),
        )
    return configs


def dinov3_configs() -> dict[str, tuple[str, PreTrainedConfig]]:
    """Return name -> (Hub name, configuration) of the published vision transformers trained on LVD-1689M.

    The sizes called plus, and the 7B, have gated feed-forward layers. Source: Simeoni et al. 2025, arXiv:2508.10104.
    """
    sizes = {  # width, depth, heads, hidden width of the feed-forward layers, gated
        "s16": (384, 12, 6, 1536, False),
        "s16plus": (384, 12, 6, 1536, True),
        "b16": (768, 12, 12, 3072, False),
        "l16": (1024, 24, 16, 4096, False),
        "h16plus": (1280, 32, 20, 5120, True),
        "7b16": (4096, 40, 32, 8192, True),
    }
    return {
        f"dinov3_vit{size}": (
            f"facebook/dinov3-vit{size}-pretrain-lvd1689m",
            DINOv3ViTConfig(
                hidden_size=width,
                num_hidden_layers=depth,
                num_attention_heads=heads,
                intermediate_size=hidden,
                use_gated_mlp=gated,
                hidden_act="silu" if gated else "gelu",
                num_register_tokens=4,
                query_bias=size != "7b16",
                value_bias=size != "7b16",
            ),
        )
        for size, (width, depth, heads, hidden, gated) in sizes.items()
    }
