"""Open a kept model for somebody with a video: with its temperature, and what is to be known of its answers."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from tcar.data.sampling import segment_indices
from tcar.data.video import read_segments
from tcar.fusion.kinds import FusionConfig
from tcar.ground.errors import ParameterError, TcarError
from tcar.ground.project import find_root
from tcar.models.tca import TCA, TCAConfig
from tcar.streams.registry import create_stream
from tcar.streams.settings import StreamSettings

DEFAULT_MODEL = "runs/demo/model"
FULL_SIZE = {"semantic": "dinov2_vits14", "motion": "i3d_r50"}
UNKNOWN_DATA = "What it was trained on is not known."
RANDOM = "The weights are random, so the class is meaningless."
UNKNOWN = (
    "The model was given as an object, so nothing is known of its training: "
    "the class is meaningless unless you trained it, and the probabilities are not calibrated."
)
OBJECT = "The model was given as an object, so the probabilities are not calibrated."
UNCALIBRATED = "There is no calibration.json beside the model, so the probabilities are not calibrated."


class PredictionError(TcarError, ValueError):
    """There is no model to predict with, or the input is no video; the message says what to do."""


def full_size_model(seed: int = 0) -> TCA:
    """The model for the real dataset (DINOv2 ViT-S/14, I3D-R50, 174 classes), with random weights."""
    streams = {role: create_stream(name, seed=seed) for role, name in FULL_SIZE.items()}
    fusion = FusionConfig(semantic_width=streams["semantic"].width, motion_width=streams["motion"].width)
    config = TCAConfig(
        **FULL_SIZE,
        semantic_frames=streams["semantic"].frames,
        motion_frames=streams["motion"].frames,
        semantic_grid=tuple(StreamSettings().semantic_grid),
        motion_grid=tuple(StreamSettings().motion_grid),
        class_names=tuple(f"class {k}" for k in range(fusion.num_classes)),
        fusion=fusion,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TCA(config, **streams).eval()


@dataclass(frozen=True)
class Opened:
    """A model, whether it was trained, its temperature (1 = not calibrated), what to know of its probabilities, and the
    folder that it lies in (None: it was given as an object)."""

    network: TCA
    trained: bool
    temperature: float
    note: str
    folder: Path | None = None


def open_model(
    model: str | Path | TCA | None,
    semantic_checkpoint: str | Path | None = None,
    motion_checkpoint: str | Path | None = None,
) -> Opened:
    """Open a folder that `TCA.save_pretrained` wrote (None: that of the demo), "full", or take a TCA as it is.

    Raises PredictionError where there is no model or its calibration is damaged, CheckpointError for a folder that is
    not a saved model, or weights that are not those it was trained on.
    """
    if isinstance(model, TCA):
        random = not (model.semantic.pretrained and model.motion.pretrained)
        if random or model.training_data is None:
            return Opened(model, False, 1.0, RANDOM if random else UNKNOWN)
        return Opened(model, True, 1.0, f"{model.training_data.sentence()} {OBJECT}")
    if model == "full":
        return Opened(full_size_model(), False, 1.0, RANDOM)
    folder = Path(model) if model is not None else _default_model()
    checkpoints = {"semantic_checkpoint": semantic_checkpoint, "motion_checkpoint": motion_checkpoint}
    network = TCA.from_pretrained(folder, **checkpoints)
    if not (network.semantic.pretrained and network.motion.pretrained):
        return Opened(network, False, 1.0, RANDOM, folder)
    calibration = folder / "calibration.json"
    data = network.training_data.sentence() if network.training_data else UNKNOWN_DATA
    if not calibration.is_file():
        return Opened(network, True, 1.0, f"{data} {UNCALIBRATED}", folder)
    temperature = _temperature(calibration)
    how = f"calibrated with temperature {temperature:.2f} on held-out clips of that data, and no other"
    return Opened(network, True, temperature, f"{data} Probabilities are {how}.", folder)


def _default_model() -> Path:
    try:
        folder = find_root(Path.cwd()) / DEFAULT_MODEL
    except ParameterError as error:  # the package is installed, and holds weights of streams alone
        raise PredictionError(
            f"no trained model comes with the package: name the folder of one with model=, or --model (`make paper` in "
            f"the project makes {DEFAULT_MODEL})"
        ) from error
    if not folder.is_dir():
        raise PredictionError(f"{folder}: no trained model; `make paper` makes it, or name one with model=")
    return folder


def _temperature(path: Path) -> float:
    try:
        temperature = json.loads(path.read_text(encoding="utf-8"))["temperature"]
    except (ValueError, KeyError, TypeError) as error:
        raise PredictionError(f"{path}: no temperature in it ({error!r}); run notebook 03 again") from error
    if not isinstance(temperature, (int, float)) or not temperature > 0:
        raise PredictionError(f"{path}: temperature is {temperature!r}, but must be a number above 0")
    return float(temperature)


def frames_of(video: str | Path | np.ndarray, count: int, upright: bool = True) -> UInt8[np.ndarray, "t h w 3"]:
    """Return the middles of `count` equal segments of a file, or of frames UInt8 `[T H W 3]` in RGB.

    Raises PredictionError for frames of another shape or type, VideoError for a file that is no whole video.
    """
    if not isinstance(video, np.ndarray):
        return read_segments(video, count, upright=upright)
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3 or not video.size:
        given = f"{video.dtype} frames of shape {list(video.shape)}"
        raise PredictionError(f"{given}: uint8 frames [time, height, width, 3] in RGB expected")
    return video[segment_indices(len(video), count)]
