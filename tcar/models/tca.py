"""TCA, temporal cross-attention: two frozen streams, their tokens pooled to small grids, a trained fusion."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from safetensors.torch import save_file
from torch import Tensor, nn

from tcar.models.attention import Record
from tcar.models.checkpoints import CheckpointError, load_strict, read_state
from tcar.models.fusion import FusionConfig, create_fusion, trained_parameters
from tcar.models.grids import pool_tokens
from tcar.models.streams import Stream, create_stream, weights_digest

Clip = UInt8[Tensor, "b _ _ _ 3"] | Float[Tensor, "b _ _ _ 3"]

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


class BudgetError(ValueError):
    """A model with more trained parameters than its configuration allows; the message holds the table."""


@dataclass(frozen=True)
class TCAConfig:
    """What a TCA is made of; raises ValueError where the class names and the fusion disagree."""

    semantic: str
    motion: str
    semantic_frames: int
    motion_frames: int
    semantic_grid: tuple[int, int, int]
    motion_grid: tuple[int, int, int]
    class_names: tuple[str, ...]
    fusion: FusionConfig
    max_trained_parameters: int = 20_000_000

    def __post_init__(self):
        if len(self.class_names) != self.fusion.num_classes:
            raise ValueError(
                f"TCAConfig.class_names holds {len(self.class_names)} names, "
                f"FusionConfig.num_classes is {self.fusion.num_classes}"
            )

    @classmethod
    def from_dict(cls, values: dict) -> "TCAConfig":
        """Build from plain values such as JSON's; raises ValueError naming unknown or missing keys."""
        if not isinstance(values.get("fusion"), dict):
            raise ValueError("TCAConfig: 'fusion' must hold the values of a FusionConfig")
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        return _from_dict(cls, values | {"fusion": _from_dict(FusionConfig, values["fusion"])})


def _from_dict(kind: type, values: dict):
    names = {field.name for field in fields(kind)}
    if values.keys() - names:
        raise ValueError(
            f"{kind.__name__} has no {', '.join(sorted(values.keys() - names))}; "
            f"it has {', '.join(sorted(names))}"
        )
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{kind.__name__}: {error}") from error


def segment_middles(frame_count: int, segments: int) -> Int[Tensor, "segments"]:
    """Return the middle frame of each of equal segments (TSN, Wang et al. 2016), as for the feature store."""
    return (2 * torch.arange(segments) + 1) * frame_count // (2 * segments)


class TCA(nn.Module):
    """The whole model, from frames to class logits; only the fusion is trained.

    `TCA(config, semantic, motion)` takes two streams, `TCA.create(config)` builds them by name. Raises
    ValueError where a stream's width is not the fusion's, BudgetError above `config.max_trained_parameters`.
    """

    def __init__(self, config: TCAConfig, semantic: Stream, motion: Stream):
        super().__init__()
        self.config = config
        self.semantic, self.motion = semantic, motion
        for role, stream in (("semantic", semantic), ("motion", motion)):
            if stream.name != getattr(config, role):
                raise ValueError(
                    f"the {role} stream is {stream.name}, the configuration says {getattr(config, role)}"
                )
            if stream.width != config.fusion.stream_width(role):
                raise ValueError(
                    f"{stream.name} is {stream.width} wide, FusionConfig.{role}_width is "
                    f"{config.fusion.stream_width(role)}; set it to {stream.width}"
                )
        self.fusion = create_fusion(config.fusion)
        self._check_budget()

    @classmethod
    def create(
        cls,
        config: TCAConfig,
        *,
        pretrained: bool = False,
        semantic_checkpoint: str | Path | None = None,
        motion_checkpoint: str | Path | None = None,
    ) -> "TCA":
        """Build the streams by name, with the weights that `create_stream` finds under these arguments."""
        streams = {"semantic": semantic_checkpoint, "motion": motion_checkpoint}
        return cls(
            config,
            **{
                role: create_stream(getattr(config, role), pretrained, checkpoint or None)
                for role, checkpoint in streams.items()
            },
        )

    def forward(
        self, frames: Clip, motion_frames: Clip | None = None, return_intermediates: bool = False
    ) -> Float[Tensor, "b c"] | tuple[Float[Tensor, "b c"], Record]:
        """Return logits of clips, uint8 or float in [0, 1], and on request the fusion's named intermediates.

        One tensor: each stream takes the middles of equal segments of it. Two tensors: the frames of the
        semantic and the motion stream as they are. Raises ValueError where one clip has fewer frames than a
        stream needs.
        """
        if motion_frames is None:
            frames, motion_frames = self._pick(frames, "semantic"), self._pick(frames, "motion")
        semantic, semantic_xyz = self.tokens("semantic", frames)
        motion, motion_xyz = self.tokens("motion", motion_frames)
        return self.fusion(semantic, semantic_xyz, motion, motion_xyz, return_intermediates)

    def tokens(self, role: str, frames: Clip) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "n 3"]]:
        """Return the pooled tokens and coordinates of a stream, "semantic" or "motion"."""
        tokens = pool_tokens(getattr(self, role)(frames), getattr(self.config, f"{role}_grid"))
        return tokens.values.flatten(1, 2), tokens.coordinates.flatten(0, 1)

    def _pick(self, clip: Clip, role: str) -> Clip:
        wanted = getattr(self.config, f"{role}_frames")
        if clip.ndim != 5 or clip.shape[1] < wanted:
            raise ValueError(
                f"the {role} stream needs clips [batch, time, height, width, 3] of at least "
                f"{wanted} frames, got {list(clip.shape)}; for shorter videos repeat frames, or "
                "pass the frames of both streams"
            )
        return clip[:, segment_middles(clip.shape[1], wanted).to(clip.device)]

    def parameter_table(self) -> list[dict[str, str | int]]:
        """Return rows of part, total and trained parameters; the last row is the sum."""
        streams = {"semantic": self.semantic, "motion": self.motion}
        parts = {f"{role} stream ({stream.name})": stream for role, stream in streams.items()}
        parts |= {f"fusion.{name}": module for name, module in self.fusion.named_children()}
        parts["sum"] = self
        rows = (
            {
                "part": part,
                "total": sum(p.numel() for p in module.parameters()),
                "trained": trained_parameters(module),
            }
            for part, module in parts.items()
        )
        return [row for row in rows if row["total"]]

    def _check_budget(self) -> None:
        trained, allowed = trained_parameters(self), self.config.max_trained_parameters
        if trained > allowed:
            lines = [f"{'part':<36}{'total':>14}{'trained':>14}"]
            lines += [
                f"{row['part']:<36}{row['total']:>14,}{row['trained']:>14,}" for row in self.parameter_table()
            ]
            raise BudgetError(
                f"{trained:,} trained parameters, max_trained_parameters is {allowed:,}; lower "
                "fusion_width, fusion_blocks or mlp_ratio\n" + "\n".join(lines)
            )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and the trained weights; frozen streams go by name and digest of weights."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        streams = {
            role: {"pretrained": stream.pretrained, "digest": weights_digest(stream)}
            for role, stream in (("semantic", self.semantic), ("motion", self.motion))
        }
        config = {"model": "tcar.models.TCA", "config": asdict(self.config), "streams": streams}
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        state = {key: value.contiguous() for key, value in self.fusion.state_dict().items()}
        save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        semantic_checkpoint: str | Path | None = None,
        motion_checkpoint: str | Path | None = None,
    ) -> "TCA":
        """Load what `save_pretrained` wrote, in evaluation mode.

        Checkpoints name the streams' weights where the package has none of its own. Raises CheckpointError
        where the folder, a key or the digest of a stream's weights does not match: tokens of other weights
        mean other things.
        """
        path = Path(folder) / CONFIG_FILE
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            config, streams = TCAConfig.from_dict(saved["config"]), saved["streams"]
        except FileNotFoundError as error:
            raise CheckpointError(f"{path}: not found; give the folder that save_pretrained wrote") from error
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: not a TCA configuration: {error}") from error
        state = read_state(Path(folder) / WEIGHTS_FILE)
        built = {}
        for role, checkpoint in (("semantic", semantic_checkpoint), ("motion", motion_checkpoint)):
            name, origin = getattr(config, role), streams[role]
            built[role] = create_stream(name, origin["pretrained"], checkpoint or None)
            if weights_digest(built[role]) != origin["digest"]:
                raise CheckpointError(
                    f"{path}: the {role} stream {name} was saved with other weights than "
                    f"those found now; give {role}_checkpoint= what it was trained on"
                )
        model = cls(config, **built)
        load_strict(model.fusion, state, Path(folder) / WEIGHTS_FILE)
        return model.eval()
