"""A video, what a model answers to it, and what explains the answer: data alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8

from tcar.data.video import probe
from tcar.explain.curves import Growing
from tcar.explain.keeping import Verdicts
from tcar.explain.known import Known, known
from tcar.explain.methods import Clip, Explanation
from tcar.models.opening import Opened, frames_of
from tcar.models.tca import TCA
from tcar.tabletop.settings import TabletopSettings

SHOWN_FRAMES = 40  # of a video, and of no more than these pixels at the longer side
SHOWN_SIDE = 224


@dataclass(frozen=True)
class Seen:
    """A video as the model and a person see it: frames of both streams in [0, 1], and those that are shown."""

    name: str
    clip: Clip
    shown: UInt8[np.ndarray, "_ _ _ 3"]
    seconds: float | None
    known: Known | None

    @classmethod
    def of(
        cls, video: str | Path | np.ndarray, model: TCA, upright: bool = True, drawn: TabletopSettings | None = None
    ) -> Seen:
        """Read a video; the arguments are those of `study`."""
        counts = model.config.semantic_frames, model.config.motion_frames
        clip = tuple(torch.from_numpy(frames_of(video, count, upright))[None] / 255 for count in counts)
        if isinstance(video, np.ndarray):
            return cls("frames", clip, _small(frames_of(video, min(len(video), SHOWN_FRAMES))), None, None)
        about = probe(video)
        shown = _small(frames_of(video, min(about.frames, SHOWN_FRAMES), upright))
        return cls(Path(video).name, clip, shown, about.duration, known(video, drawn))


@dataclass(frozen=True)
class Studied:
    """What explains the answer of a model to one video, to look at, to write down and to score.

    `explanations` are by method; `answers` by which streams were taken from the other clip, (class, probability);
    `against` is None where the logit of `target` alone is explained. `passed` has the verdicts on methods of the
    model that `make explanations` kept beside it, by (method, stream).
    """

    opened: Opened
    seen: Seen
    other: Seen | None
    target: int
    against: int | None
    explanations: dict[str, Explanation]
    answers: dict[str, list[tuple[str, float]]]
    growing: Growing
    attention: dict[str, Float[np.ndarray, "_ _ _"]]
    passed: Verdicts

    @property
    def model(self) -> TCA:
        """The model whose answer is explained."""
        return self.opened.network

    def named(self, index: int) -> str:
        """The name of a class."""
        return self.model.config.class_names[index]


def _small(frames: UInt8[np.ndarray, "t h w 3"]) -> UInt8[np.ndarray, "t h2 w2 3"]:
    """Frames of at most `SHOWN_SIDE` pixels at the longer side."""
    import cv2

    longest = max(frames.shape[1:3])
    if longest <= SHOWN_SIDE:
        return frames
    size = tuple(max(1, round(side * SHOWN_SIDE / longest)) for side in frames.shape[2:0:-1])
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])
