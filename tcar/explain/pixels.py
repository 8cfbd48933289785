"""Which pixels of a clip the decision depends on, in both streams at once, by the methods of Captum."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from captum.attr import GradientShap, IntegratedGradients, NoiseTunnel, Saliency
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tcar.explain.errors import ExplanationError
from tcar.explain.questions import Baseline, Classes, Decision, Frames, Pair, Question, questions, refusals, undisturbed
from tcar.explain.token_maps import grad_cam
from tcar.explain.tubes import tube_effects, tube_shape
from tcar.ground import log
from tcar.models.tca import TCA
from tcar.streams.stream import NOISE

STEPS = (16, 32, 64, 128, 256)  # of integrated gradients, until they are complete
SAMPLES = 32  # of the methods that draw
SIGMA = 0.1  # of what they draw: the noise of SmoothGrad's paper is 0.1 to 0.2 of the range of the pixels
TOLERANCE = 0.01  # relative completeness error


@dataclass(frozen=True)
class Attribution:
    """What a method found, by stream that the model reads.

    values: of each number of a clip, for methods of pixels; none of tokens or tubes.
    maps: signed, over the whole clip; of pixels, tokens before they are pooled, or tubes.
    error: how far the values miss the rise from the baseline to the clip, as a share of this rise, for methods whose
    values should sum to it. converged: whether it is under 1%. steps: the points or samples taken, of the clip that
    took most.
    """

    method: str
    values: dict[str, Float[Tensor, "b _ _ _ 3"]]
    maps: dict[str, Float[Tensor, "b _ _ _"]]
    error: Float[Tensor, " b"] | None = None
    steps: int | None = None
    converged: Bool[Tensor, " b"] | None = None


@dataclass(frozen=True)
class _Settings:
    steps: int | Literal["auto"]
    batch: int = 1
    seed: int = 0
    progress: bool = False

    def __post_init__(self):
        for name in ("steps", "batch"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1 or name == "steps" and value == "auto"):
                wanted = "'auto' or a whole number" if name == "steps" else "a whole number"
                raise ExplanationError(f"{name} is {value!r}, but must be {wanted} of at least 1")

    @property
    def samples(self) -> int:
        return SAMPLES if self.steps == "auto" else self.steps


@dataclass(frozen=True)
class _Found:
    """What a method found of one clip."""

    values: dict[str, Tensor] = field(default_factory=dict)
    maps: dict[str, Tensor] = field(default_factory=dict)
    error: float | None = None
    steps: int | None = None


def attribute(
    model: Callable,
    frames: Frames | tuple[Frames, Frames],
    target: Classes,
    against: Classes | None = None,
    *,
    method: str,
    baseline: Baseline = "grey",
    steps: int | Literal["auto"] = "auto",
    **running: int | bool,
) -> Attribution:
    """Attribute the logit of `target`, less that of `against`, to pixels, tokens or tubes of both streams.

    model: a TCA, or what else takes frames of both streams to logits. frames: float in [0, 1], of both streams, or one
    clip, of which the model picks. method: one of `METHODS`.

    - integrated_gradients: complete; `steps` doubles from 16 to 256 until the error is under 1%, clip by clip.
    - gradient_shap: the same in expectation, over baselines with noise of 0.1; smooth_grad: the mean gradient under
      noise of 0.1; both of `steps` samples (32).
    - gradient: of the pixels. grad_cam: of tokens, of a TCA alone. tubes: the fall of the logit without each.

    baseline: "grey" (0.5), "black", "mean_frame" (of the clip, repeated), or tensors that broadcast to the frames; of
    integrated_gradients, gradient_shap and tubes. The values of both streams together sum to the rise from it.
    running: `batch` variants of a clip in memory at once (1), the `seed` of what is drawn (0; for each clip anew), and
    `progress`, whether to show how far it is.

    Sources: Sundararajan et al. 2017; Lundberg and Lee 2017; Smilkov et al. 2017; Simonyan et al. 2014; Selvaraju et
    al. 2017; Zeiler and Fergus 2014. Raises ExplanationError for a method, class, clip or baseline that does not fit.
    """
    settings = _Settings(steps, **running)
    if method not in METHODS:
        raise ExplanationError(f"unknown method {method!r}; there are {', '.join(METHODS)}")
    if method == "grad_cam" and not isinstance(model, TCA):
        raise ExplanationError(f"grad_cam explains the tokens of a TCA, and a {type(model).__name__} is not one")
    found = []
    with undisturbed(model):
        for question in questions(model, frames, target, against, baseline, method in _WITH_BASELINE):
            torch.manual_seed(settings.seed)
            np.random.seed(settings.seed % 2**32)  # noqa: NPY002  captum draws from numpy's own state
            found.append(_METHODS[method](replace(question, about=f"{method}, {question.about}"), settings))
    values, maps = (_together([getattr(one, name) for one in found]) for name in ("values", "maps"))
    maps = maps or {s: x.sum(dim=-1) for s, x in values.items()}
    if found[0].error is None:
        return Attribution(method, values, maps, steps=found[0].steps)
    error = torch.tensor([one.error for one in found])
    return Attribution(method, values, maps, error, max(one.steps for one in found), error < TOLERANCE)


# --- methods -----------------------------------------------------------------------------------------------


def _integrated_gradients(question: Question, settings: _Settings) -> _Found:
    decision = Decision(question, question.read)
    frames, baseline = question.frames, question.references
    with torch.no_grad():
        rise = float(decision(*frames) - decision(*baseline))
    for steps in STEPS if settings.steps == "auto" else (settings.steps,):
        batch = min(settings.batch, steps)
        with _shown(decision, math.ceil(steps / batch), f"{question.about}, {steps} steps", settings.progress):
            values = IntegratedGradients(decision).attribute(
                frames, baselines=baseline, n_steps=steps, internal_batch_size=batch
            )
        error = _relative(_sum(values) - rise, rise)
        if error < TOLERANCE:
            break
    return _of_pixels(question, values, error, steps)


def _gradient_shap(question: Question, settings: _Settings) -> _Found:
    decision, samples = Decision(question, question.read), settings.samples
    sums, gap = [torch.zeros_like(x) for x in question.frames], 0.0
    evaluations = 3 * math.ceil(samples / settings.batch)  # of the gradient, and of both ends
    with _shown(decision, evaluations, question.about, settings.progress):
        for done in range(0, samples, settings.batch):
            count = min(settings.batch, samples - done)
            drawn = tuple(_drawn_about(x, count) for x in question.references)
            # Captum draws among baselines with replacement, so each draw is told to it as a way from 0 of its own.
            ways = tuple(x - start for x, start in zip(question.frames, drawn, strict=True))
            values, missed = GradientShap(lambda *x, drawn=drawn: decision(*map(torch.add, drawn, x))).attribute(
                ways, tuple(torch.zeros_like(x[:1]) for x in ways), n_samples=1, return_convergence_delta=True
            )
            for total, more in zip(sums, values, strict=True):
                total += more.detach().sum(dim=0, keepdim=True)
            gap += float(missed.sum(dtype=torch.float64))
    values = tuple(x / samples for x in sums)
    gap /= samples
    return _of_pixels(question, values, _relative(gap, _sum(values) - gap), samples)


def _smooth_grad(question: Question, settings: _Settings) -> _Found:
    decision, samples = Decision(question, question.read), settings.samples
    batch = min(settings.batch, samples)

    def bounded(*frames: Tensor) -> Tensor:
        return decision(*(x.clamp(-NOISE, 1 + NOISE) for x in frames))  # of so many draws a few lie beyond

    with _shown(decision, math.ceil(samples / batch), question.about, settings.progress):
        values = NoiseTunnel(Saliency(bounded)).attribute(
            question.frames,
            nt_type="smoothgrad",
            nt_samples=samples,
            nt_samples_batch_size=batch,
            stdevs=SIGMA,
            abs=False,
        )
    return _of_pixels(question, values, None, samples)


def _gradient(question: Question, settings: _Settings) -> _Found:
    decision = Decision(question, question.read)
    frames = tuple(x.requires_grad_() for x in question.frames)  # or captum warns that it does so itself
    return _of_pixels(question, Saliency(decision).attribute(frames, abs=False))


def _grad_cam(question: Question, settings: _Settings) -> _Found:
    with refusals():
        return _Found(maps=grad_cam(question.model, question.clip, question.chosen))


def _tubes(question: Question, settings: _Settings) -> _Found:
    maps = {}
    for s in question.read:  # one alone, as nothing but its own tokens changes
        decision, frames = Decision(question, (s,)), question.clip[s]
        evaluations = 1 + math.ceil(math.prod(tube_shape(frames)) / settings.batch)
        with _shown(decision, evaluations, f"{question.about}, {s}", settings.progress):
            maps[s] = tube_effects(decision, frames, question.baseline[s], settings.batch).detach()
    return _Found(maps=maps)


_METHODS: dict[str, Callable[[Question, _Settings], _Found]] = {
    "integrated_gradients": _integrated_gradients,
    "gradient_shap": _gradient_shap,
    "smooth_grad": _smooth_grad,
    "gradient": _gradient,
    "grad_cam": _grad_cam,
    "tubes": _tubes,
}
METHODS = tuple(_METHODS)
_WITH_BASELINE = ("integrated_gradients", "gradient_shap", "tubes")


def _of_pixels(question: Question, values: Pair, error: float | None = None, steps: int | None = None) -> _Found:
    return _Found({s: x.detach() for s, x in zip(question.read, values, strict=True)}, {}, error, steps)


def _together(found: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return what was found of each clip as one batch, by stream; of one clip without a copy."""
    return found[0] if len(found) == 1 else {s: torch.cat([one[s] for one in found]) for s in found[0]}


def _drawn_about(baseline: Tensor, count: int) -> Tensor:
    noise = torch.randn(count, *baseline.shape[1:], dtype=baseline.dtype, device=baseline.device)
    return noise.mul_(SIGMA).add_(baseline).clamp_(0, 1)


def _sum(values: Pair) -> float:
    return sum(float(x.detach().sum(dtype=torch.float64)) for x in values)


def _relative(gap: float, rise: float) -> float:
    """Return a gap as a share of a rise; infinite where there is no rise to share."""
    return abs(gap) / abs(rise) if rise else math.inf if gap else 0.0


@contextlib.contextmanager
def _shown(decision: nn.Module, evaluations: int, description: str, progress: bool) -> Iterator[None]:
    """Show how many of its evaluations a method has made, where that is wanted."""
    if not progress:
        yield
        return
    bar = log.progress(range(evaluations), description=description, unit="evaluations")

    def count(*_) -> None:  # what a hook returns would take the place of the output
        next(bar, None)

    counting = decision.register_forward_hook(count)
    try:
        yield
        count()  # the bar moves as the next one begins
    finally:
        counting.remove()
        bar.close()
