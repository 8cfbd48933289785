"""Name the action in a video: `tcar.predict("clip.mp4")`, or `tcar predict clip.mp4`."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tcar.data.video import probe, read_segments, segment_indices
from tcar.evaluate import probabilities
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


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of a clip, most probable first, as (template text, probability).

    `trained` is False where the class means nothing, and `note` then says so; `temperature` (1 =
    uncalibrated) divided the logits.
    """

    top: list[tuple[str, float]]
    trained: bool
    temperature: float
    note: str

    def __str__(self) -> str:
        lines = [f"{probability:6.1%}  {name}" for name, probability in self.top]
        return "\n".join([*lines, self.note])


def predict(
    video: str | Path | np.ndarray,
    model: str | Path | TCA | None = None,
    top: int = 5,
    *,
    semantic_checkpoint: str | Path | None = None,
    motion_checkpoint: str | Path | None = None,
    upright: bool = True,
) -> Prediction:
    """Name the action in a video, with calibrated probabilities where the model was trained.

    The note says on what data that was, and in what the video is unlike it.

    `video` is a file or frames, UInt8 `[T H W 3]` in RGB; the streams see the middles of equal segments of
    it, as in training, and a short video repeats frames. `model` is a folder that `TCA.save_pretrained` wrote
    (default: runs/demo/model) with its `calibration.json`, a TCA, or "full": the full-size model with random
    weights. The checkpoints are those of the streams, where the package has no weights of its own.
    `upright` is that of `tcar.data.video.read_frames`, and as in the parameters of the training.

    Raises:
        PredictionError: no model at the default place, frames of another shape or type, or `top` below 1.
        VideoError: a file that is missing or not a whole video.
        CheckpointError: a folder that is not a saved model, or weights that are not those it was trained on.
    """
    if top < 1:
        raise PredictionError(f"top is {top}, but must be at least 1")
    _check_frames(video)
    network, trained, temperature, note = _open(model, semantic_checkpoint, motion_checkpoint)
    counts = network.config.semantic_frames, network.config.motion_frames
    frames = [torch.from_numpy(_sample(video, count, upright))[None] for count in counts]
    with torch.inference_mode():
        logits = network.eval()(*frames).float().numpy()
    shares = probabilities(logits, temperature)[0]
    note = " ".join([note, *_remarks(video, frames, network)])
    best = np.argsort(-shares, kind="stable")[:top]
    named = [(network.config.class_names[k], float(shares[k])) for k in best]
    return Prediction(named, trained, temperature, note)


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


def _open(model, semantic_checkpoint, motion_checkpoint) -> tuple[TCA, bool, float, str]:
    """The model, whether it was trained, its temperature, and what to know about its probabilities."""
    if isinstance(model, TCA):
        random = not (model.semantic.pretrained and model.motion.pretrained)
        if random or model.training_data is None:
            return model, False, 1.0, RANDOM if random else UNKNOWN
        return model, True, 1.0, f"{model.training_data.sentence()} {OBJECT}"
    if model == "full":
        return full_size_model(), False, 1.0, RANDOM
    folder = Path(model) if model is not None else _default_model()
    checkpoints = {"semantic_checkpoint": semantic_checkpoint, "motion_checkpoint": motion_checkpoint}
    network = TCA.from_pretrained(folder, **checkpoints)
    if not (network.semantic.pretrained and network.motion.pretrained):
        return network, False, 1.0, RANDOM
    calibration = folder / "calibration.json"
    data = network.training_data.sentence() if network.training_data else UNKNOWN_DATA
    if not calibration.is_file():
        return network, True, 1.0, f"{data} {UNCALIBRATED}"
    temperature = _temperature(calibration)
    how = f"calibrated with temperature {temperature:.2f} on held-out clips of that data, and no other"
    return network, True, temperature, f"{data} Probabilities are {how}."


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


def _remarks(video: str | Path | np.ndarray, read: list[torch.Tensor], network: TCA) -> Iterator[str]:
    """Yield what about a video makes the answer doubtful: no motion in it, or unlike the training clips."""
    if isinstance(video, np.ndarray):
        measured = {"frames": len(video)}
    else:
        about = probe(video)
        measured = {"frames": about.frames, "seconds": about.duration, "rate": about.rate}
    wanted = max(clip.shape[1] for clip in read)
    if measured["frames"] == 1:
        yield "The video is one frame, which shows no action."
    elif all((clip == clip[:, :1]).all() for clip in read):
        yield "All frames that were read are the same: nothing moves."
    elif measured["frames"] < wanted:
        yield f"The video has {measured['frames']} frames, and the model reads {wanted}: some were shown to it again."
    if network.training_data:
        yield from network.training_data.unlike(measured)


def _check_frames(video: str | Path | np.ndarray) -> None:
    if isinstance(video, np.ndarray):
        given = f"{video.dtype} frames of shape {list(video.shape)}"
        if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3 or not video.size:
            raise PredictionError(f"{given}: uint8 frames [time, height, width, 3] in RGB expected")


def _sample(video: str | Path | np.ndarray, count: int, upright: bool) -> np.ndarray:
    if isinstance(video, np.ndarray):
        return video[segment_indices(len(video), count)]
    return read_segments(video, count, upright=upright)
