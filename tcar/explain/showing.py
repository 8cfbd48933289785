"""A study as the viewer takes it, and as figures."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import matplotlib as mpl
import numpy as np
from jaxtyping import Bool, Float, UInt8

from tcar.explain.methods import LABELS
from tcar.fusion.base import CrossFusion
from tcar.fusion.blocks import OTHER
from tcar.ground.errors import ParameterError
from tcar.ground.project import find_root, revision
from tcar.streams.grids import grid_coordinates
from tcar.viewer import Contents, Footer, ShownClip, ShownMap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tcar.explain.studied import Seen, Studied
    from tcar.models.tca import TCA

STAMP = "not of the model"  # over what a method shows that failed the tests of `tcar.explain.verdicts`
_TOLD = ("kind", "window", "blocks", "heads", "width")


def contents(study: Studied) -> Contents:
    """Give a study as the viewer takes it."""
    model, seen = study.model, study.seen
    clips = [_clip(study)] + ([_beside(study.other)] if study.other else [])
    told = seen.known
    return Contents(
        title=told.label if told else seen.name,
        clips=tuple(clips),
        streams=tuple(model.fusion.streams),
        grids={role: tuple(getattr(model.config, f"{role}_grid")) for role in model.fusion.streams},
        windows=windows(model),
        answers=study.answers,
        target=study.named(study.target),
        against=None if study.against is None else study.named(study.against),
        group=told.group if told else "",
        wrong=None if told is None else study.answers["neither"][0][0] != told.label,
        footer=_footer(study),
    )


def windows(model: TCA) -> dict[str, Bool[np.ndarray, "n m"] | None]:
    """Say which tokens of the other stream a token may read, by direction; None: all of them."""
    if not isinstance(model.fusion, CrossFusion):
        return {}
    xyz = {s: grid_coordinates(getattr(model.config, f"{s}_grid")).flatten(0, 1) for s in OTHER}
    masks = model.fusion.geometry(xyz, {})["other"]
    return {f"{s}_from_{OTHER[s]}": None if masks[s] is None else masks[s].cpu().numpy() for s in OTHER}


def _clip(study: Studied) -> ShownClip:
    seen, growing = study.seen, study.growing
    importance, maps = {}, []
    for method, made in study.explanations.items():
        if made.moments is not None:
            importance[LABELS[method]] = made.moments.times.double().numpy(), made.moments.values[0].double().numpy()
        for stream, values in made.maps.items():
            verdict = study.passed.get((method, stream))
            maps.append(ShownMap(LABELS[method], stream, values.float().numpy(), made.signed, verdict, made.note))
    return _shown(
        seen,
        probability=(growing.times.double().numpy(), growing.probabilities.double().numpy()),
        moment=growing.moment,
        importance=importance,
        maps=tuple(maps),
        attention=_of_use(study.attention),
    )


def _of_use(attention: dict[str, Float[np.ndarray, "_ _ _"]]) -> dict[str, Float[np.ndarray, "_ _ _"]]:
    """Attention without what nobody reads on: of a last block with a readout, only this one leaves."""
    numbered = {name: int(found[1]) for name in attention if (found := re.match(r"self(\d+)", name))}
    last = {name for name, number in numbered.items() if number == max(numbered.values())}
    return {name: weights[:, :1] if name in last else weights for name, weights in attention.items()}


def _beside(seen: Seen) -> ShownClip:
    return _shown(seen)


def _shown(seen: Seen, **more) -> ShownClip:
    truth = seen.known
    decisive = None if truth is None or truth.decisive is None or not truth.decisive.any() else truth.decisive
    known = {} if truth is None else {
        "label": truth.label, "events": truth.events, "decisive": decisive,
        "roles": {role: mask for role, mask in truth.roles.items() if mask.any()},
    }  # fmt: skip
    return ShownClip(seen.name, seen.shown, seconds=seen.seconds, **known, **more)


def _footer(study: Studied) -> Footer:
    config = asdict(study.model.config.fusion)
    told = {"semantic": study.model.config.semantic, "motion": study.model.config.motion}
    told |= {key: str(config[key]) for key in _TOLD}
    truth = study.seen.known
    remarks = [study.opened.note]
    if truth and truth.undrawn:
        remarks.append(f"Where the twins differ is not shown: {truth.undrawn}")
    return Footer(commit=_commit(), parameters=told, synthetic=truth is not None, remarks=tuple(remarks))


def _commit() -> str:
    """The commit of the project's code; "" where the package is installed without it."""
    try:
        return (revision(find_root(Path(__file__).parent))["commit"] or "")[:12]
    except ParameterError:
        return ""


def overlay(
    frames: UInt8[np.ndarray, "t h w 3"], weights: Float[np.ndarray, "t2 h2 w2"], peak: float = 3.0
) -> Float[np.ndarray, "t h w 3"]:
    """Lay a coarse map over grey frames, stretched to their time and size.

    The scale is absolute: where the map is at most its mean, as everywhere in an even map, the frame shows;
    from `peak` times its mean on it is opaque. Maps of different clips and models can so be compared.
    """
    height, width = frames.shape[1:3]
    steps = ((np.arange(len(frames)) + 0.5) / len(frames) * len(weights)).astype(int)
    lift = (weights / max(float(weights.mean()), 1e-12) - 1) / (peak - 1)
    heat = np.stack([cv2.resize(lift[step].astype(np.float32), (width, height)) for step in steps]).clip(0, 1)
    grey = frames.mean(axis=-1, keepdims=True).repeat(3, axis=-1) / 255
    opacity = 0.8 * heat[..., None]
    return (1 - opacity) * grey + opacity * mpl.colormaps["inferno"](0.3 + 0.7 * heat)[..., :3]


def figure(study: Studied, method: str) -> Figure:
    """Draw the maps of a method over the frames of a study, a strip a stream, or the moments that it gives."""
    import matplotlib.pyplot as plt

    made, seen = study.explanations[method], study.seen
    asked = study.named(study.target) + ("" if study.against is None else f"\nagainst {study.named(study.against)}")
    if made.moments is not None:
        fig, axis = plt.subplots(figsize=(6.5, 2), layout="constrained")
        axis.bar(made.moments.times.numpy(), made.moments.values[0].numpy(), width=0.8 / len(made.moments.times))
        axis.set(xlabel="place in the clip, 0 start, 1 end", ylabel="logits", xlim=(0, 1), title=asked)
        axis.axhline(0, color="black", linewidth=0.5)
        return fig
    columns = np.linspace(0, len(seen.shown) - 1, min(8, len(seen.shown))).round().astype(int)
    frames = seen.shown[columns]
    rows = 1 + len(made.maps)
    height = 6.5 / len(columns) * frames.shape[1] / frames.shape[2]
    size = (6.5, rows * height + 0.6)
    fig, axes = plt.subplots(rows, len(columns), figsize=size, squeeze=False, layout="constrained")
    strips = {"": frames / 255}
    strips |= {stream: overlay(frames, values.abs().float().numpy()) for stream, values in made.maps.items()}
    for line, (stream, pictures) in zip(axes, strips.items(), strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(stream)
    failed = [stream for stream in made.maps if study.passed.get((method, stream)) is False]
    stamp = f" ({STAMP}: {', '.join(failed)})" if failed else ""
    fig.suptitle(f"{LABELS[method]}{stamp}\n{asked}", fontsize=8)
    return fig
