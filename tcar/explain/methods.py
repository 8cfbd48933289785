"""Every method of explanation under one name: what it needs, and the maps or the moments that it gives."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from tcar.explain import pixels
from tcar.explain.attention import attention_rollout, named_attention
from tcar.explain.backbone import pixel_rollout
from tcar.explain.errors import ExplanationError
from tcar.explain.gradient_rollout import gradient_rollout
from tcar.explain.patching import patch_cells
from tcar.explain.time import Moments, frame_importance
from tcar.ground.errors import unknown
from tcar.models.tca import TCA

CELLS = "exchanged_cells"  # one cell of the other clip at a time; right by construction where the two are twins
ATTENTION = ("rollout", "rollout_to_pixels", "gradient_rollout")
MAPS = (CELLS, *ATTENTION, *pixels.METHODS)
MOMENTS = {"frame_ablation": "ablation", "frame_shapley": "shapley"}
METHODS = (*MAPS, *MOMENTS)
LABELS = {
    CELLS: "Exchanged cells", "rollout": "Attention rollout", "rollout_to_pixels": "Attention rollout to pixels",
    "gradient_rollout": "Gradient-weighted rollout", "integrated_gradients": "Integrated gradients",
    "gradient_shap": "GradientShap", "smooth_grad": "SmoothGrad", "gradient": "Gradient", "grad_cam": "Grad-CAM",
    "tubes": "Occluded tubes", "frame_ablation": "Frames left out", "frame_shapley": "Shapley values of frames",
}  # fmt: skip

Clip = tuple[Float[Tensor, "1 _ _ _ 3"], Float[Tensor, "1 _ _ _ 3"]]


@dataclass(frozen=True)
class Explanation:
    """What one method says of one clip: maps by stream over the clip, or moments; `note` says what did not converge."""

    method: str
    maps: dict[str, Float[Tensor, "_ _ _"]] = field(default_factory=dict)
    moments: Moments | None = None
    signed: bool = False
    note: str = ""
    error: float | None = None


def explain(
    model: TCA,
    clip: Clip,
    method: str,
    target: int,
    against: int | None = None,
    *,
    other: Clip | None = None,
    **running: int | bool | str,
) -> Explanation:
    """Explain the logit of `target`, or its lead over `against`, for one clip by one method of `METHODS`.

    `clip` are the frames in [0, 1] of the two streams, `other` those that exchanged cells take. running: `batch`
    variants of a clip in memory at once (1), the `seed` of what is drawn (0), whether `progress` is shown, and `steps`
    and `samples` as `tcar.explain.pixels` and `tcar.explain.time` take them.
    Raises ExplanationError for a method that is unknown, or does not fit the model or the clip.
    """
    check(method)
    if method in MOMENTS:
        own = {key: running[key] for key in ("samples", "seed", "progress") if key in running}
        moments = frame_importance(model, clip, target, against, method=MOMENTS[method], **own)
        return Explanation(method, moments=moments, signed=True)
    if method == CELLS:
        if other is None or against is None:
            raise ExplanationError(f"{method} takes another clip's cells: give that clip, and its class as against")
        maps = patch_cells(model, clip, other, target, against)
        return Explanation(method, _first(maps), signed=True)
    if method in ATTENTION:
        return Explanation(method, _first(_attention(model, clip, method, target, against)))
    own = {key: value for key, value in running.items() if key != "samples"}
    made = pixels.attribute(model, clip, target, against, method=method, **own)
    failed = made.converged is not None and not bool(made.converged.all())
    note = f"did not converge: relative error {float(made.error.max()):.1%} after {made.steps} steps" if failed else ""
    error = None if made.error is None else float(made.error.max())
    return Explanation(method, _first(made.maps), signed=True, note=note, error=error)


def check(method: str, known: tuple[str, ...] = METHODS) -> None:
    """Raise ExplanationError where a method is none of those that are known."""
    if method not in known:
        raise ExplanationError(f"method {method!r}: {unknown(method, known)}")


def _attention(model: TCA, clip: Clip, method: str, target: int, against: int | None) -> dict[str, Tensor]:
    if method == "rollout_to_pixels":
        return pixel_rollout(model, clip)
    grids = {role: getattr(model.config, f"{role}_grid") for role in model.fusion.streams}
    with torch.no_grad():
        inputs = *model.tokens("semantic", clip[0]), *model.tokens("motion", clip[1])
    if method == "gradient_rollout":
        return gradient_rollout(model.fusion, inputs, target, against, grids=grids)
    with torch.no_grad():
        _, steps = model.fusion(*inputs, return_intermediates=True)
    if not named_attention(steps):
        raise ExplanationError(f"{method}: {model.config.fusion.kind} has no attention to follow; explain its pixels")
    return attention_rollout(steps, grids)


def _first(maps: dict[str, Float[Tensor, "1 t y x"]]) -> dict[str, Float[Tensor, "t y x"]]:
    return {stream: values[0].detach().cpu() for stream, values in maps.items()}
