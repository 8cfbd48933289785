"""CAST, the published baseline: a frozen CLIP and a frozen VideoMAE that read each other in every block.

Source: Lee et al. 2023 (CAST: Cross-Attention in Space and Time for Video Action Recognition, NeurIPS,
arXiv:2311.18825). On Something-Something-V2, 2 x 3 views: 71.6 top-1 as published, with a temporal expert that was
itself fine-tuned on Something-Something-V2 (VideoMAE, 70.8 alone).
"""

import json
from dataclasses import asdict, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import CLIPVisionConfig, VideoMAEConfig

from tcar.fusion.blocks import Record
from tcar.models.cast_blocks import CLIP_EPS, VIDEOMAE_EPS, Block, CASTConfig, Head, initialise
from tcar.models.keeping import CONFIG_FILE, WEIGHTS_FILE, config_errors, keep
from tcar.streams import pretrained
from tcar.streams.catalogue import IMAGENET
from tcar.streams.weights import CheckpointError, load_strict, read_state, state_digest

Frames = UInt8[Tensor, "b t h w 3"] | Float[Tensor, "b t h w 3"]
TRAINED_PARTS = ("blocks", "head")
LAYER_DECAY = 0.75
TEXT_KEYS = (r"text_model\.", r"text_projection\.", r"visual_projection\.", r"logit_scale$")
HEAD_KEYS = (r"fc_norm\.", r"classifier\.")
# The feed-forward layers of both experts are four times as wide as their tokens.
MLP_RATIO = 4


def _shared(config: CASTConfig) -> dict[str, int]:
    return {
        "hidden_size": config.width,
        "intermediate_size": MLP_RATIO * config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
    }


def clip_config(config: CASTConfig) -> CLIPVisionConfig:
    """Return the configuration of the spatial expert, CLIP's ViT (Radford et al. 2021, arXiv:2103.00020)."""
    return CLIPVisionConfig(**_shared(config), hidden_act="quick_gelu", layer_norm_eps=CLIP_EPS)


def videomae_config(config: CASTConfig) -> VideoMAEConfig:
    """Return the configuration of the temporal expert, VideoMAE's ViT (Tong et al. 2022, arXiv:2203.12602).

    Its norms have the eps of the paper's own code; the library's default, and its published files, say 1e-12.
    """
    return VideoMAEConfig(
        **_shared(config),
        num_frames=config.frames,
        tubelet_size=config.tubelet,
        hidden_act="gelu",
        layer_norm_eps=VIDEOMAE_EPS,
        qv_bias=True,
        use_mean_pooling=True,  # no norm after the last layer
        num_labels=config.num_classes,
    )


class CAST(nn.Module):
    """The whole model, from frames to class logits; the experts are frozen, all between them is trained.

    `CAST(num_classes=174)` is CAST-B/16 (45,205,038 of 217,228,590 parameters trained, 390.5 G multiply-adds a view),
    `CAST(config)` any other. Weights are drawn from `seed`, the experts' too: `load_experts` gives them published
    ones. A fresh model's experts are undisturbed by one another, and its logits are its classifier's bias.

    `checkpointing` keeps no activations within a block and works them out again in the backward pass: the same
    gradients for less memory. It is left out where intermediates are asked for. Nothing reads the patches that the
    last block makes, so its reading over time changes no logit, as published.

    Raises ValueError where both a configuration and a number of classes are given.
    """

    def __init__(
        self,
        config: CASTConfig | None = None,
        *,
        num_classes: int | None = None,
        checkpointing: bool = False,
        seed: int = 0,
    ):
        super().__init__()
        if config is not None and num_classes is not None:
            raise ValueError("CAST takes a config or num_classes, not both; set CASTConfig.num_classes")
        if config is None:
            config = CASTConfig() if num_classes is None else CASTConfig(num_classes=num_classes)
        self.config, self.checkpointing, self.seed, self.pretrained = config, checkpointing, seed, False
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.clip = pretrained.build("CLIPVisionModel", clip_config(config))
            self.videomae = pretrained.build("VideoMAEModel", videomae_config(config))
            rates = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
            self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
            self.head = Head(config)
            initialise(self.blocks)
            initialise(self.head)
        self.clip.post_layernorm = nn.Identity()  # trained here, as the head's spatial norm
        for expert in (self.clip, self.videomae):
            expert.requires_grad_(False).eval()
        for name, values in IMAGENET.items():
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> "CAST":
        """Set the mode of what is trained; the experts stay in evaluation mode."""
        super().train(mode)
        self.clip.eval()
        self.videomae.eval()
        return self

    def forward(
        self, frames: Frames, return_intermediates: bool = False
    ) -> Float[Tensor, "b c"] | tuple[Float[Tensor, "b c"], Record]:
        """Return logits of clips, uint8 or float in [0, 1], and on request a dict of named intermediates.

        The frames are taken as they come, `config.frames` of them, and squashed to a square of `config.image_size`
        where they are not one. Intermediates: of each block "block<i>.spatial_from_temporal.weights" [b n h t t], how
        the patches of place n read its moments, and "block<i>.temporal_from_spatial.weights" [b t h n n], how the
        tokens of moment t read its places (177 MB a clip in float32 at full size); after the last block "spatial"
        [b t 1+n d], class token first, and "temporal" [b t n d]; "readout" [b d].

        Raises ValueError on frames of another number, shape, type or range.
        """
        record: Record | None = {} if return_intermediates else None
        spatial, temporal = self.embed(frames)
        layers = zip(self.clip.encoder.layers, self.videomae.encoder.layer, strict=True)
        for i, (block, pair) in enumerate(zip(self.blocks, layers, strict=True)):
            if self.checkpointing and record is None and torch.is_grad_enabled():
                spatial, temporal = checkpoint(block, *pair, spatial, temporal, use_reentrant=False)
            else:
                spatial, temporal = block(*pair, spatial, temporal, record, f"block{i}")
        logits = self.head(spatial, temporal, record)
        return logits if record is None else (logits, record | {"spatial": spatial, "temporal": temporal})

    def embed(self, frames: Frames) -> tuple[Float[Tensor, "b s m d"], Float[Tensor, "b s n d"]]:
        """Return the tokens of s moments that enter the first block, m = 1 + n spatial ones each (class token first).

        One clip, normalised once with ImageNet's statistics, feeds both experts.
        """
        pixels, moments = self._pixels(frames), self.config.moments
        # A tubelet's last frame stands for its moment: of 16 frames, 1, 3, 5, ...
        images = pixels[:, self.config.tubelet - 1 :: self.config.tubelet].flatten(0, 1)
        spatial = self.clip.pre_layrnorm(self.clip.embeddings(images))
        temporal = self.videomae.embeddings(pixels, None)
        return spatial.unflatten(0, (-1, moments)), temporal.unflatten(1, (moments, -1))

    def _pixels(self, frames: Frames) -> Float[Tensor, "b t 3 s s"]:
        """Check, resize and normalise frames."""
        wanted = self.config.frames
        if frames.ndim != 5 or frames.shape[-1] != 3 or 0 in frames.shape or frames.shape[1] != wanted:
            raise ValueError(
                f"CAST: frames must be [batch, {wanted}, height, width, 3], got {list(frames.shape)}; sample "
                f"{wanted} frames of each clip, or set CASTConfig.frames"
            )
        pixels = frames.movedim(-1, 2).to(self.mean)
        if frames.dtype == torch.uint8:
            pixels = pixels / 255
        elif not frames.is_floating_point():
            raise ValueError(f"CAST: frames must be uint8, or float in [0, 1]; got {frames.dtype}")
        # Attribution methods leave the range on purpose (noise, baselines), so frames with a gradient pass.
        elif not frames.requires_grad and not frames.is_meta and not (-1e-3 <= frames.min() <= frames.max() <= 1.001):
            raise ValueError(
                f"CAST: float frames must lie in [0, 1], got {frames.min():.3g} to {frames.max():.3g}; divide 0-255 "
                "frames by 255, and do not normalise them"
            )
        size = (self.config.image_size, self.config.image_size)
        if pixels.shape[-2:] != size:
            resized = F.interpolate(pixels.flatten(0, 1), size, mode="bilinear", antialias=True)
            pixels = resized.unflatten(0, pixels.shape[:2])
        return (pixels - self.mean) / self.std

    def load_experts(
        self, clip_checkpoint: str | Path, videomae_checkpoint: str | Path, *, fill_head: bool = True
    ) -> None:
        """Give the experts published weights, from folders, files or names in the local cache of the Hub.

        `openai/clip-vit-base-patch16` (its text model is left out) and `MCG-NJU/videomae-base-finetuned-ssv2` hold
        those of CAST-B/16. The head's spatial norm starts from CLIP's last one. With `fill_head` the classifier starts
        from VideoMAE's, as published on Something-Something-V2; without, it is left as it is.

        Raises CheckpointError where nothing is found, or listing the keys that are missing, left over or misshapen;
        the model is then unchanged.
        """
        clip = pretrained.load(
            "CLIPVisionModel", clip_config(self.config), clip_checkpoint, left_out=TEXT_KEYS, local_files_only=True
        )
        kind, left_out = ("VideoMAEForVideoClassification", ()) if fill_head else ("VideoMAEModel", HEAD_KEYS)
        try:
            videomae = pretrained.load(
                kind, videomae_config(self.config), videomae_checkpoint, left_out=left_out, local_files_only=True
            )
        except CheckpointError as error:
            if not any(key.startswith("classifier.") for key in error.keys):
                raise
            raise CheckpointError(
                f"{error}\n  a file without a classifier of {self.config.num_classes} classes is loaded with "
                "fill_head=False"
            ) from error
        if fill_head:
            self.head.classifier.load_state_dict(videomae.classifier.state_dict())
            videomae = videomae.videomae
        self.head.norm["spatial"].load_state_dict(clip.post_layernorm.state_dict())
        clip.post_layernorm = nn.Identity()
        self.clip.load_state_dict(clip.state_dict())
        self.videomae.load_state_dict(videomae.state_dict())
        self.pretrained = True

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and the trained weights; the experts go by the digest of their weights.

        Raises CheckpointError where the folder has files of these names that it did not write.
        """
        experts = {"pretrained": self.pretrained, "seed": self.seed, "digest": self._digest()}
        saved = {"model": "tcar.models.cast.CAST", "config": asdict(self.config), "experts": experts}
        keep(Path(folder), saved, self._trained_parts().state_dict())

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        clip_checkpoint: str | Path | None = None,
        videomae_checkpoint: str | Path | None = None,
    ) -> "CAST":
        """Load what `save_pretrained` wrote, in evaluation mode.

        The checkpoints name the experts' weights, if the model was saved with loaded ones. Raises CheckpointError
        where the folder, a key or the digest of the experts' weights does not match.
        """
        path, weights = Path(folder) / CONFIG_FILE, Path(folder) / WEIGHTS_FILE
        with config_errors(path, "CAST"):
            saved = json.loads(path.read_text(encoding="utf-8"))
            values, experts = saved["config"], saved["experts"]
            if odd := values.keys() ^ {field.name for field in fields(CASTConfig)}:
                raise ValueError(f"missing or unknown: {', '.join(sorted(odd))}")
            config, loaded, seed, digest = CASTConfig(**values), *(experts[k] for k in ("pretrained", "seed", "digest"))
        checkpoints = (clip_checkpoint, videomae_checkpoint)
        if any((checkpoint is not None) != loaded for checkpoint in checkpoints):
            fix = "give both clip_checkpoint= and videomae_checkpoint=" if loaded else "give no checkpoints"
            raise CheckpointError(f"{path}: saved with {'loaded' if loaded else 'random'} experts; {fix}")
        state = read_state(weights)
        model = cls(config, seed=seed)
        if loaded:
            model.load_experts(*checkpoints, fill_head=False)
        if model._digest() != digest:
            raise CheckpointError(
                f"{path}: saved with other experts than those found now; give the checkpoints it was trained with"
            )
        load_strict(model._trained_parts(), state, weights)
        return model.eval()

    def _trained_parts(self) -> nn.ModuleDict:
        return nn.ModuleDict({name: getattr(self, name) for name in TRAINED_PARTS})

    def _digest(self) -> str:
        return state_digest("", self.clip, self.videomae)


def cast_parameter_groups(model: CAST, learning_rate: float, weight_decay: float) -> list[dict]:
    """Return groups for an optimiser, by layer: the closer to the frames, the slower.

    Block i of `depth` has `learning_rate` * 0.75^(depth - i), the head `learning_rate` itself. Biases, norms and the
    four position tables of each exchange do not decay. Published for Something-Something-V2: AdamW (0.9, 0.999),
    weight decay 0.05, learning rate 1e-3 * batch / 256 at batch 384, 50 epochs with 5 of warm-up from 0 and a cosine
    to 1e-6 * batch / 256.
    """
    groups: dict[str, dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part, index = name.split(".")[:2]
        block = part == "blocks"
        decays = parameter.ndim > 1 and not name.endswith("_position")
        rate = learning_rate * (LAYER_DECAY ** (model.config.depth - int(index)) if block else 1)
        key = (f"block{index}" if block else part) + ("" if decays else ".no_decay")
        new = {"name": key, "params": [], "lr": rate, "weight_decay": weight_decay if decays else 0.0}
        groups.setdefault(key, new)["params"].append(parameter)
    return list(groups.values())
