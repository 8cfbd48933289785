"""Which pixels the decision depends on."""

from collections.abc import Callable
from dataclasses import dataclass

from captum.attr import IntegratedGradients
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Attribution:
    """Attribution of a logit to pixels: signed values, their magnitude per pixel, and the completeness error.

    `error` is how far the values miss the difference between the logit of the clip and that of the reference.
    """

    values: Float[Tensor, "b t h w 3"]
    map: Float[Tensor, "b t h w"]
    error: Float[Tensor, " b"]


def saliency(
    model: Callable[[Tensor], Tensor],
    frames: Float[Tensor, "b t h w 3"],
    target: int | Int[Tensor, " b"],
    *,
    steps: int = 32,
    reference: float | int | Tensor = 0,
) -> Attribution:
    """Attribute the target's logit to the pixels of clips in [0, 1], through the frozen streams.

    The gradients of `steps` points between the `reference` clip and this one are integrated, one batch of them in
    memory at a time. Source: integrated gradients, Sundararajan et al. 2017. Raises ValueError for frames not float.
    """
    if not frames.is_floating_point():
        raise ValueError(f"saliency needs float frames in [0, 1], got {frames.dtype}; divide uint8 by 255")
    frames = frames.detach().clone().requires_grad_()  # captum marks its input, which is the caller's
    values, error = IntegratedGradients(model).attribute(
        frames,
        baselines=reference,
        target=target,
        n_steps=steps,
        internal_batch_size=len(frames),
        return_convergence_delta=True,
    )
    values = values.detach()
    return Attribution(values, values.abs().sum(dim=-1), error)
