"""One call for one video: `tcar.study("clip.mp4").view()`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float

from tcar.data.video import probe
from tcar.explain import methods as known_methods
from tcar.explain.curves import growing_clip
from tcar.explain.errors import ExplanationError
from tcar.explain.keeping import Verdicts, kept
from tcar.explain.methods import CELLS, Clip, explain
from tcar.explain.patching import patch_streams
from tcar.explain.studied import SHOWN_FRAMES, Seen, Studied
from tcar.ground import log
from tcar.ground.errors import unknown
from tcar.models.opening import Opened, frames_of, open_model
from tcar.models.tca import TCA
from tcar.streams.weights import state_digest
from tcar.tabletop.settings import TabletopSettings

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from tcar.viewer import Contents, Viewer

DEFAULT = (CELLS, "rollout", "gradient_rollout", "grad_cam", "integrated_gradients", "frame_ablation")
ANSWERS = 5


class Study(Studied):
    """What explains the answer of a model to one video, to look at, to write down and to score."""

    def contents(self, **more) -> Contents:
        """Give all of it as the viewer takes it; `more` are fields of `Contents`, such as its place in a gallery."""
        from tcar.explain.showing import contents

        return replace(contents(self), **more)

    def view(self) -> Viewer:
        """Show it in a notebook, to play and to ask."""
        from tcar.viewer import Viewer

        return Viewer(self.contents())

    def to_html(self, path: str | Path) -> Path:
        """Write it to one file that any browser plays, and that asks no network for anything."""
        from tcar.viewer import to_html

        return to_html(self.contents(), path)

    def figure(self, method: str) -> Figure:
        """Draw the maps of a method over the frames, or its moments; raises ExplanationError for one that was not
        asked for."""
        from tcar.explain.showing import figure

        if method not in self.explanations:
            raise ExplanationError(f"method {method!r} is not of this study: {unknown(method, self.explanations)}")
        return figure(self, method)

    def scores(self) -> pd.DataFrame:
        """Score every map against where the twins differ and what acts, a row a method and stream.

        Raises ExplanationError for a video whose truth is not known: one outside a Tabletop dataset.
        """
        from tcar.explain.scoring import rows

        if self.seen.known is None:
            raise ExplanationError(
                f"{self.seen.name}: what decides is known of Tabletop's clips alone, ROOT/videos/ID.webm beside their "
                "ground_truth/"
            )
        if self.seen.known.undrawn:
            raise ExplanationError(f"{self.seen.name}: where the twins differ is not known: {self.seen.known.undrawn}")
        import pandas as pd

        maps = {(m, s): v for m, made in self.explanations.items() for s, v in made.maps.items()}
        frames = dict(zip(("semantic", "motion"), self.seen.clip, strict=True))
        return pd.DataFrame(rows(maps, self.seen.known, {s: frames[s][0] for s in self.model.fusion.streams}))


@dataclass(frozen=True)
class Reading:
    """How a video and its model are read, and what else is known of them: `upright` and the checkpoints are those of
    `tcar.predict`.

    `other` is a video whose streams and cells take the places of the clip's own, of a clip of Tabletop its twin unless
    it is given; `drawn` are the settings that such a clip was rendered with, None: those of the demo are tried. `seed`
    is that of the methods that draw.
    """

    other: str | Path | np.ndarray | None = None
    drawn: TabletopSettings | None = None
    seed: int = 0
    semantic_checkpoint: str | Path | None = None
    motion_checkpoint: str | Path | None = None
    upright: bool = True


def study(
    video: str | Path | np.ndarray,
    model: str | Path | TCA | None = None,
    *,
    target: str | int | None = None,
    against: str | int | None = None,
    methods: Sequence[str] | None = None,
    progress: bool = True,
    **reading: Any,
) -> Study:
    """Explain what a model answers to a video: where, when and through which stream.

    `video` and `model` are those of `tcar.predict`. `target` is the class to explain, by name or index (default: the
    answer), `against` one that it is explained against: their difference of logits; of a clip of Tabletop it is the
    twin's class unless it is given. `methods` are of `tcar.explain.METHODS`, by default those that fit. reading: fields
    of `Reading`, such as `other`, a video to exchange streams with.

    Raises ExplanationError for methods, classes, clips and names that do not fit, and what `tcar.predict` raises.
    """
    for method in methods or ():
        known_methods.check(method)
    if strange := [name for name in reading if name not in {field.name for field in fields(Reading)}]:
        raise ExplanationError(f"{strange[0]!r}: {unknown(strange[0], [field.name for field in fields(Reading)])}")
    how = Reading(**reading)
    opened = open_model(model, how.semantic_checkpoint, how.motion_checkpoint)
    network, names = opened.network.eval(), opened.network.config.class_names
    seen = Seen.of(video, network, how.upright, how.drawn)
    if len(seen.shown) == 1:
        raise ExplanationError(f"{seen.name}: it is one frame, in which nothing happens; give a video of several")
    other = how.other if how.other is not None or seen.known is None else seen.known.twin_video
    beside = None if other is None else Seen.of(other, network, how.upright, how.drawn)
    with torch.no_grad():
        logits = network(*seen.clip)[0]
    chosen = int(logits.argmax()) if target is None else _class(target, names, "target")
    rival = _rival(seen, beside, chosen, names) if against is None else _class(against, names, "against")
    if rival == chosen:
        raise ExplanationError(f"against is {names[chosen]!r}, which is the target as well: give another class")
    attention = _attention(network, seen.clip)
    fitting = methods or _fitting(bool(attention), beside is not None and rival is not None)
    exchanged = {"other": beside.clip} if beside else {}
    made = {
        method: explain(network, seen.clip, method, chosen, rival, **exchanged, seed=how.seed)
        for method in (log.progress(fitting, len(fitting), "explaining", "methods") if progress else fitting)
    }
    whole = torch.from_numpy(frames_of(video, _whole(video, network), how.upright))[None] / 255
    grown = growing_clip(network, whole, chosen, temperature=opened.temperature)
    answers = _answers(opened, seen, beside, {chosen, *(() if rival is None else (rival,))})
    return Study(opened, seen, beside, chosen, rival, made, answers, grown, attention, _verdicts(opened))


def _class(given: str | int, names: Sequence[str], argument: str) -> int:
    """The index of a class that is given by name or index."""
    if isinstance(given, str):
        if given not in names:
            raise ExplanationError(f"{argument} {given!r}: {unknown(given, names)}")
        return list(names).index(given)
    if not 0 <= given < len(names):
        raise ExplanationError(f"{argument} is {given}, but the model has the classes 0 to {len(names) - 1}")
    return int(given)


def _rival(seen: Seen, beside: Seen | None, target: int, names: Sequence[str]) -> int | None:
    """The twin's class, or where that is the answer, the clip's own; None where neither is known."""
    labels = [one.known.label for one in (beside, seen) if one is not None and one.known is not None]
    found = [list(names).index(label) for label in labels if label in names]
    return next((index for index in found if index != target), None)


def _fitting(attends: bool, twins: bool) -> tuple[str, ...]:
    """The default methods that a model and its clips allow."""
    left_out = {*(() if twins else (CELLS,)), *(() if attends else known_methods.ATTENTION)}
    return tuple(method for method in DEFAULT if method not in left_out)


def _whole(video: str | Path | np.ndarray, model: TCA) -> int:
    """How many frames of a video stand for all of it: no fewer than the model reads."""
    length = len(video) if isinstance(video, np.ndarray) else probe(video).frames
    return max(min(length, SHOWN_FRAMES), model.config.semantic_frames, model.config.motion_frames)


def _answers(
    opened: Opened, seen: Seen, other: Seen | None, asked: set[int]
) -> dict[str, list[tuple[str, float]]]:
    """The most probable classes by what is exchanged, and those that are `asked` for, whatever they are given."""
    names = opened.network.config.class_names
    if other is None:
        with torch.no_grad():
            logits = {"neither": opened.network(*seen.clip)}
    else:
        logits = patch_streams(opened.network, seen.clip, other.clip).logits
    found = {}
    for swap, values in logits.items():
        shares = (values[0] / opened.temperature).softmax(dim=0)
        ranked = shares.argsort(descending=True).tolist()
        shown = [k for place, k in enumerate(ranked) if place < ANSWERS or k in asked]
        found[swap] = [(names[k], float(shares[k])) for k in shown]
    return found


@torch.no_grad()
def _attention(model: TCA, clip: Clip) -> dict[str, Float[np.ndarray, "h n m"]]:
    from tcar.explain.attention import named_attention

    _, steps = model(*clip, return_intermediates=True)
    return {name: weights[0].float().numpy() for name, weights in named_attention(steps).items()}


def _verdicts(opened: Opened) -> Verdicts:
    return kept(opened.folder, state_digest("fusion", opened.network.fusion)) if opened.folder else {}
