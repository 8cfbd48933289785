"""TCA, temporal cross-attention: two frozen streams, their tokens pooled to small grids, a trained fusion."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxtyping import Float, UInt8
from torch import Tensor, nn

from tcar.data.sampling import segment_indices
from tcar.fusion.blocks import Record
from tcar.fusion.kinds import create_fusion
from tcar.models.budget import BudgetError, Row, check_budget, cost_table
from tcar.models.card import model_card
from tcar.models.keeping import AGAIN, CONFIG_FILE, WEIGHTS_FILE, config_errors, keep, kept_folder
from tcar.models.tca_config import TCAConfig
from tcar.models.training_data import TrainingData
from tcar.streams.adapters import add_adapters
from tcar.streams.grids import pool_tokens
from tcar.streams.registry import create_stream, weights_digest
from tcar.streams.stream import Stream
from tcar.streams.weights import CheckpointError, load_strict, read_state

__all__ = ["TCA", "BudgetError", "TCAConfig"]

Frames = UInt8[Tensor, "b _ _ _ 3"] | Float[Tensor, "b _ _ _ 3"]

ADAPTERS = "semantic_adapters"  # before the keys of their weights in a kept model


class TCA(nn.Module):
    """The whole model, from frames to class logits; only the fusion is trained, and adapters if there are any.

    `TCA(config, semantic, motion)` takes two streams, `TCA.create(config)` builds them by name. Raises ValueError where
    a stream's width is not the fusion's or its adapters are not the configuration's, BudgetError above
    `config.max_trained_parameters`.
    """

    def __init__(self, config: TCAConfig, semantic: Stream, motion: Stream):
        super().__init__()
        self.config = config
        self.training_data: TrainingData | None = None
        self.semantic, self.motion = semantic, motion
        for role, stream in (("semantic", semantic), ("motion", motion)):
            if stream.name != getattr(config, role):
                raise ValueError(f"the {role} stream is {stream.name}, the configuration says {getattr(config, role)}")
            if stream.width != config.fusion.stream_width(role):
                raise ValueError(
                    f"{stream.name} is {stream.width} wide, FusionConfig.{role}_width is "
                    f"{config.fusion.stream_width(role)}; set it to {stream.width}"
                )
        if (found := len(semantic.adapters)) != (wanted := config.semantic_adapters):
            raise ValueError(
                f"{semantic.name} has {found} adapters, TCAConfig.semantic_adapters is {wanted}; TCA.create adds "
                "them, as add_adapters does"
            )
        self.fusion = create_fusion(config.fusion)
        check_budget(config, semantic, motion, self.fusion)

    @classmethod
    def create(
        cls,
        config: TCAConfig,
        *,
        pretrained: bool = False,
        semantic_checkpoint: str | Path | None = None,
        motion_checkpoint: str | Path | None = None,
        seed: int = 0,
    ) -> "TCA":
        """Build the streams by name, with the weights that `create_stream` finds under these arguments.

        `seed` draws the adapters; the fusion is drawn from torch's generator.
        """
        checkpoints = {"semantic": semantic_checkpoint, "motion": motion_checkpoint}
        built = {
            role: create_stream(getattr(config, role), pretrained, checkpoint or None)
            for role, checkpoint in checkpoints.items()
        }
        return cls(config, **_adapted(config, built, seed))

    def forward(
        self, frames: Frames, motion_frames: Frames | None = None, return_intermediates: bool = False
    ) -> Float[Tensor, "b c"] | tuple[Float[Tensor, "b c"], Record]:
        """Return logits of clips, uint8 or float in [0, 1], and on request the fusion's named intermediates.

        One tensor: each stream takes the middles of equal segments of it. Two tensors: the frames of the
        semantic and the motion stream as they are. Raises ValueError where one clip has fewer frames than a
        stream needs.
        """
        if motion_frames is None:
            frames, motion_frames = self.pick(frames)
        semantic, semantic_xyz = self.tokens("semantic", frames)
        motion, motion_xyz = self.tokens("motion", motion_frames)
        return self.fusion(semantic, semantic_xyz, motion, motion_xyz, return_intermediates)

    def tokens(self, role: str, frames: Frames) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "n 3"]]:
        """Return the pooled tokens and coordinates of a stream, "semantic" or "motion"."""
        tokens = pool_tokens(getattr(self, role)(frames), getattr(self.config, f"{role}_grid"))
        return tokens.values.flatten(1, 2), tokens.coordinates.flatten(0, 1)

    @contextlib.contextmanager
    def explaining(self) -> Iterator[None]:
        """Record gradients through both frozen streams, and let the noise of a method pass (`Stream.explaining`).

        Captum's layer methods need it: without, the layers of a frozen stream have no gradient.
        """
        with self.semantic.explaining(), self.motion.explaining():
            yield

    def pick(self, clip: Frames) -> tuple[Frames, Frames]:
        """Return the frames of a clip that the semantic and the motion stream see, the middles of equal segments.

        Raises ValueError where the clip has fewer than a stream needs.
        """
        return self._pick(clip, "semantic"), self._pick(clip, "motion")

    def _pick(self, clip: Frames, role: str) -> Frames:
        wanted = getattr(self.config, f"{role}_frames")
        if clip.ndim != 5 or clip.shape[1] < wanted:
            raise ValueError(
                f"the {role} stream needs clips [batch, time, height, width, 3] of at least "
                f"{wanted} frames, got {list(clip.shape)}; for shorter videos repeat frames, or "
                "pass the frames of both streams"
            )
        return clip[:, segment_indices(clip.shape[1], wanted)]

    def parameter_table(self) -> list[Row]:
        """Return rows of part, total and trained parameters, megabytes of weights, GFLOPs of one clip and the frozen
        share; the last row is the sum.
        """
        return cost_table(self.config, self.semantic, self.motion, self.fusion)

    def _trained(self) -> tuple[nn.ModuleDict, dict[str, str]]:
        """Return what is trained, and for each of its keys the one that a kept model has for it."""
        trained = nn.ModuleDict({"fusion": self.fusion, ADAPTERS: self.semantic.adapters})
        return trained, {key: key.removeprefix("fusion.") for key in trained.state_dict()}

    def save_pretrained(self, folder: str | Path, card: Mapping[str, Any] | None = None) -> None:
        """Write config.json, the trained weights and a model card; frozen streams go by name and digest of weights.

        Adapters are trained weights: they stand beside those of the fusion, under `semantic_adapters`.

        card: what is known of the training, as `tcar.models.card.model_card` takes it; the dataset and the ranges of
        its clips go into config.json too, so that `training_data` comes back with the model.
        Raises CheckpointError where the folder has files of these names that it did not write, or an edited card.
        """
        streams = {
            role: {
                "pretrained": stream.pretrained,
                "digest": weights_digest(stream),
                "input_size": stream.input_size,
                "fit": stream.fit,
            }
            for role, stream in (("semantic", self.semantic), ("motion", self.motion))
        }
        known = TrainingData.of(card or {}) or self.training_data
        config = {"model": "tcar.models.tca.TCA", "config": asdict(self.config), "streams": streams}
        config |= {"training_data": asdict(known)} if known else {}
        trained, names = self._trained()
        state = {names[key]: value for key, value in trained.state_dict().items()}
        keep(Path(folder), config, state, model_card(self, card))

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        semantic_checkpoint: str | Path | None = None,
        motion_checkpoint: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
    ) -> "TCA":
        """Load what `save_pretrained` wrote, in evaluation mode, from a folder or from the Hub by owner/name.

        Checkpoints name the streams' weights where the package has none of its own. With `local_files_only` nothing is
        fetched, neither the model nor its streams. Raises CheckpointError where the folder, a key or the digest of a
        stream's weights does not match: tokens of other weights mean other things; or where nothing is to be had from
        the Hub, with what to fetch and where to put it.
        """
        folder = kept_folder(name, local_files_only=local_files_only, revision=revision)
        path, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
        config, streams, known = _read_config(path)
        try:
            state = read_state(weights)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {AGAIN}") from error
        built = {}
        for role, checkpoint in (("semantic", semantic_checkpoint), ("motion", motion_checkpoint)):
            stream, digest = getattr(config, role), streams[role].pop("digest")
            built[role] = create_stream(
                stream, checkpoint=checkpoint or None, **streams[role], local_files_only=local_files_only
            )
            if weights_digest(built[role]) != digest:
                raise CheckpointError(
                    f"{path}: the {role} stream {stream} was saved with other weights than "
                    f"those found now; give {role}_checkpoint= what it was trained on"
                )
        try:
            model = cls(config, **_adapted(config, built))
            model.training_data = known
            trained, names = model._trained()
            load_strict(trained, state, weights, names)
        except CheckpointError as error:
            raise CheckpointError(f"{error}\n  it is not of the model that {path} describes; {AGAIN}") from error
        except ValueError as error:
            raise CheckpointError(f"{path}: not a model that can be built: {error}") from error
        return model.eval()


def _read_config(path: Path) -> tuple[TCAConfig, dict[str, dict[str, Any]], TrainingData | None]:
    """Return what config.json says of a model, of each stream (its digest and the arguments that create it), and of
    the training clips."""
    with config_errors(path, "TCA"):
        saved = json.loads(path.read_text(encoding="utf-8"))
        # Models of before the card was written had the streams' own sizes.
        usual = {"input_size": None, "fit": "squash"}
        streams = {
            role: {key: (usual | saved["streams"][role])[key] for key in ("pretrained", "digest", *usual)}
            for role in ("semantic", "motion")
        }
        known = TrainingData(**saved["training_data"]) if "training_data" in saved else None
        return TCAConfig.from_dict(saved["config"]), streams, known


def _adapted(config: TCAConfig, streams: dict[str, Stream], seed: int = 0) -> dict[str, Stream]:
    """Return the streams, the semantic one with the adapters that the configuration wants."""
    if config.semantic_adapters:
        add_adapters(streams["semantic"], config.semantic_adapters, config.adapter_width, seed=seed)
    return streams
