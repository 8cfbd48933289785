"""Name the action in a video: `tcar.predict("clip.mp4")`, or `tcar predict clip.mp4`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tcar.data.video import probe
from tcar.evaluate import probabilities
from tcar.models.opening import PredictionError, frames_of, open_model
from tcar.models.tca import TCA


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
    opened = open_model(model, semantic_checkpoint, motion_checkpoint)
    network, temperature = opened.network, opened.temperature
    counts = network.config.semantic_frames, network.config.motion_frames
    frames = [torch.from_numpy(frames_of(video, count, upright))[None] for count in counts]
    with torch.inference_mode():
        logits = network.eval()(*frames).float().numpy()
    shares = probabilities(logits, temperature)[0]
    note = " ".join([opened.note, *_remarks(video, frames, network)])
    best = np.argsort(-shares, kind="stable")[:top]
    named = [(network.config.class_names[k], float(shares[k])) for k in best]
    return Prediction(named, opened.trained, temperature, note)


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
