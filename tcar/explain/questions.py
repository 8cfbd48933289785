"""What is asked of a clip and a model: checked, with its baseline, and without a trace left on the model."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tcar.explain.errors import ExplanationError
from tcar.fusion.blocks import STREAMS
from tcar.models.tca import TCA

BASELINES = ("grey", "black", "mean_frame")

Frames = Float[Tensor, "b _ _ _ 3"]
Baseline = str | Tensor | tuple[Tensor, Tensor]
Classes = int | Int[Tensor, " b"]
ByStream = dict[str, Float[Tensor, "b _ _ _ 3"]]
Pair = tuple[Tensor, ...]


@dataclass(frozen=True)
class Question:
    """One clip, its baseline, and what is asked of it; `read` are the streams that the model reads."""

    model: Callable
    clip: ByStream
    baseline: ByStream
    target: int
    against: int | None
    read: tuple[str, ...]
    about: str  # which clip of how many, for whoever waits

    @property
    def frames(self) -> Pair:
        """The frames of the streams that are read."""
        return tuple(self.clip[s] for s in self.read)

    @property
    def references(self) -> Pair:
        """Their baselines."""
        return tuple(self.baseline[s] for s in self.read)

    def chosen(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        """Return the logit of the target, less that of what it is held against."""
        logit = logits[:, self.target]
        return logit if self.against is None else logit - logits[:, self.against]


class Decision(nn.Module):
    """What is asked of one clip, as a function of the frames of the streams that vary: of n clips `[n]`.

    Of a stream that stays as it is the tokens are made once.
    """

    def __init__(self, question: Question, vary: tuple[str, ...]):
        super().__init__()
        self.question, self.model, self.vary = question, question.model, vary
        with torch.no_grad():
            self.still = {s: self._seen(s, question.clip[s]) for s in STREAMS if s not in vary}

    def _seen(self, stream: str, frames: Tensor) -> Pair:
        if not isinstance(self.model, TCA):
            return (frames,)
        with refusals():
            return self.model.tokens(stream, frames)

    def forward(self, *frames: Tensor) -> Float[Tensor, " n"]:
        seen = {s: self._seen(s, x) for s, x in zip(self.vary, frames, strict=True)}
        for s, (first, *others) in self.still.items():
            seen[s] = (first.expand(len(frames[0]), *first.shape[1:]), *others)
        remaining = self.model.fusion if isinstance(self.model, TCA) else self.model
        return self.question.chosen(remaining(*seen["semantic"], *seen["motion"]))


def questions(
    model: Callable,
    frames: Frames | tuple[Frames, Frames],
    target: Classes,
    against: Classes | None,
    baseline: Baseline,
    needs_baseline: bool,
) -> list[Question]:
    """Return one question for each clip; raises ExplanationError for what no method can answer."""
    clips = _clips(model, frames)
    references = _references(model, clips, baseline, isinstance(frames, Tensor))
    read = tuple(model.fusion.streams) if isinstance(model, TCA) else STREAMS
    if needs_baseline:
        _check_references(clips, references, baseline, read)
    found, count = [], len(clips["semantic"])
    for n, (one, other) in enumerate(_classes(model, clips, target, against)):
        clip, reference = ({s: x[n : n + 1] for s, x in what.items()} for what in (clips, references))
        found.append(Question(model, clip, reference, one, other, read, f"clip {n + 1} of {count}"))
    return found


@contextlib.contextmanager
def undisturbed(model: Callable) -> Iterator[None]:
    """Explain in evaluation mode, with gradients through frozen streams; afterwards mode and random states are as
    before."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    training, state = [module.training for module in modules], np.random.get_state()  # noqa: NPY002  captum's
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.random.fork_rng(range(torch.cuda.device_count())))
        if hasattr(model, "explaining"):
            stack.enter_context(model.explaining())
        try:
            if modules:
                model.eval()
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002
            for module, before in zip(modules, training, strict=True):
                module.training = before


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Raise ExplanationError with what a stream or its grid says of a clip that it refuses."""
    try:
        yield
    except ValueError as error:
        raise ExplanationError(str(error)) from error


def _clips(model: Callable, frames: Frames | tuple[Frames, Frames]) -> ByStream:
    if isinstance(frames, Tensor):
        _check_frames(frames, "the clip")
        if not hasattr(model, "pick"):
            raise ExplanationError(f"a {type(model).__name__} picks no frames: give those of both streams, as a pair")
        with refusals():
            frames = model.pick(frames)
    elif len(frames) != len(STREAMS):
        raise ExplanationError(f"frames of {' and '.join(STREAMS)} expected, or one tensor; got {len(frames)} tensors")
    found = dict(zip(STREAMS, frames, strict=True))
    for s, x in found.items():
        _check_frames(x, f"{s} frames")
    if len({len(x) for x in found.values()}) > 1:
        raise ExplanationError(f"the streams are given different numbers of clips: {[len(x) for x in found.values()]}")
    return {s: _own(x) for s, x in found.items()}


def _own(frames: Tensor) -> Tensor:
    """Return frames that Captum may mark, in single precision at least."""
    frames = frames.clone() if frames.is_inference() else frames.detach()
    return frames.to(torch.promote_types(frames.dtype, torch.float32))


def _check_frames(frames: Tensor, name: str) -> None:
    if not frames.is_floating_point():
        raise ExplanationError(f"{name}: no method can take the gradient of {frames.dtype}; divide by 255")
    if frames.ndim != 5 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ExplanationError(f"{name}: [batch, time, height, width, 3] expected, got {list(frames.shape)}")
    low, high = (float(x) for x in frames.detach().aminmax())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # NaN as well
        raise ExplanationError(f"{name}: must lie in [0, 1], got {low:.3g} to {high:.3g}; divide 0-255 by 255")


def _references(model: Callable, clips: ByStream, baseline: Baseline, of_one: bool) -> ByStream:
    if isinstance(baseline, str):
        if baseline not in BASELINES:
            raise ExplanationError(
                f"unknown baseline {baseline!r}; there are {', '.join(BASELINES)}, or give a tensor, or a pair"
            )
        if baseline == "mean_frame":
            return {s: x.mean(dim=1, keepdim=True).expand_as(x) for s, x in clips.items()}
        return {s: x.new_tensor(0.5 if baseline == "grey" else 0).expand_as(x) for s, x in clips.items()}
    given = baseline
    if isinstance(baseline, Tensor):
        picked = of_one and baseline.ndim == 5 and baseline.shape[1] > 1  # a clip like the one that is explained
        with refusals():
            given = model.pick(baseline) if picked else (baseline, baseline)
    if len(given) != len(STREAMS):
        raise ExplanationError(f"a baseline is a name, a tensor or a pair, and not {len(given)} tensors")
    found = {}
    for (s, x), one in zip(clips.items(), given, strict=True):
        if not one.is_floating_point():
            raise ExplanationError(f"the baseline of {s} is {one.dtype}; divide by 255")
        try:
            found[s] = _own(one).to(x).expand_as(x)
        except RuntimeError as error:
            raise ExplanationError(
                f"the baseline of {s}, {list(one.shape)}, does not broadcast to its frames, {list(x.shape)}"
            ) from error
        _check_frames(found[s], f"the baseline of {s}")
    return found


def _check_references(clips: ByStream, references: ByStream, baseline: Baseline, read: tuple[str, ...]) -> None:
    """Refuse clips that are their own baseline: nothing lies between the two that could be attributed."""
    if isinstance(baseline, str) and baseline == "mean_frame":
        short = [s for s in read if clips[s].shape[1] == 1]
        if short:
            raise ExplanationError(
                f"mean_frame needs several frames, and {' and '.join(short)} has one, which is its own mean; "
                "take 'grey' or 'black'"
            )
    for n in range(len(clips["semantic"])):
        if all(torch.equal(clips[s][n], references[s][n]) for s in read):
            raise ExplanationError(f"clip {n + 1} is its own baseline, so there is nothing to attribute; take another")


def _classes(
    model: Callable, clips: ByStream, target: Classes, against: Classes | None
) -> list[tuple[int, int | None]]:
    """Return target and rival of each clip."""
    count = len(clips["semantic"])
    if isinstance(model, TCA):
        classes = len(model.config.class_names)
    else:
        with torch.no_grad():
            classes = model(*(x[:1] for x in clips.values())).shape[-1]
    found = []
    for name, given in (("target", target), ("against", against)):
        each = given if given is None else torch.as_tensor(given).tolist()
        each = each if isinstance(each, list) else [each] * count
        if len(each) != count:
            raise ExplanationError(f"{name}: one class for all clips or {count} expected, got {given}")
        wrong = [k for k in each if k is not None and not (isinstance(k, int) and 0 <= k < classes)]
        if wrong:
            raise ExplanationError(f"{name} {wrong[0]} is no class: the model has {classes}, numbered from 0")
        found.append(each)
    for one, other in zip(*found, strict=True):
        if one == other:
            raise ExplanationError(f"class {one} is held against itself; against= another, or none for its logit")
    return list(zip(*found, strict=True))
