"""Notebook 04: calibration, and scoring by the published protocols with several views of a clip.

One view is scored from the tokens in the store. Of more views nothing is stored: each clip is decoded once, its views
go through the frozen streams and the fusions of all methods and seeds, and the probabilities of its views are averaged,
as VideoMAE and CAST do it. What has been scored is kept in the run's folder, batch by batch, so that a run that is
killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import save
from torch import Tensor, nn

from tcar.data.loader import Loaded, Loader
from tcar.data.ssv2 import fingerprint
from tcar.data.views import PROTOCOLS, ProtocolReader, cut
from tcar.evaluate import (
    EvaluationError,
    Scoring,
    class_twins,
    fit_temperature,
    kinship_order,
    metrics,
    over_seeds,
)
from tcar.fusion.kinds import create_fusion
from tcar.ground import files, log, sources
from tcar.lab import results
from tcar.lab.steps.clips import class_groups, ground_truth, healthy_clips
from tcar.lab.steps.fits import device_of
from tcar.lab.steps.methods import bootstrap, scoring
from tcar.lab.steps.streams import ROLES, stores, stream
from tcar.streams.grids import pool_tokens
from tcar.streams.registry import weights_digest

if TYPE_CHECKING:
    from tcar.data.ssv2 import Clip
    from tcar.lab.params import Params
    from tcar.lab.steps.fits import Fit

_CODE = ("tcar.lab.steps.evaluation", "tcar.fusion.kinds")

logger = log.get(__name__)


@dataclass(frozen=True)
class Calibration:
    """One temperature for each seed, and the calibration error `before` and `after` on the same rows, with intervals.

    `fitted` counts the validation clips that the temperatures were fitted on.
    """

    temperatures: list[float]
    fitted: int
    rows: Int[np.ndarray, " m"]
    before: dict
    after: dict


def calibrate(
    run: Params,
    scored: Sequence[Float[np.ndarray, "n c"]],
    labels: Int[np.ndarray, " n"],
    ids: Sequence[str],
    known: Sequence[Mapping],
) -> Calibration:
    """Calibrate the scored logits, one array a seed, with temperatures of validation clips.

    `known` are those that each training fitted on all of validation (`tcar.evaluate.calibration`). Where the scored
    clips are themselves those of validation they are not taken: half of the clips, drawn by the run's seed and by whole
    twin sets, fit the temperatures, and the other half is scored. Raises EvaluationError where there is nothing to
    halve.
    """
    index = ground_truth(run)
    sets = np.array([index[name]["set"] if index else name for name in ids])
    rows, fitted = np.arange(len(ids)), known[0]["clips"]
    temperatures = [one["temperature"] for one in known]
    if run.evaluation.evaluation_split == "validation":
        chosen = np.random.default_rng(run.common.seed).permutation(np.unique(sets))
        if len(chosen) < 2:
            raise EvaluationError(f"validation has {len(chosen)} independent clips: calibrating and scoring takes two")
        inside = np.isin(sets, chosen[: len(chosen) // 2])
        rows, fitted = np.flatnonzero(~inside), int(inside.sum())
        temperatures = [fit_temperature(one[inside], labels[inside]) for one in scored]

    def error(divisors: Sequence[float]) -> dict:
        bins, told = run.evaluation.calibration_bins, sets[rows].tolist()
        settings = Scoring(sets=told, bootstrap=bootstrap(run), calibration_bins=bins)
        pairs = zip(scored, divisors, strict=True)
        return over_seeds([metrics(one[rows] / divisor, labels[rows], settings) for one, divisor in pairs])["ece"]

    return Calibration(temperatures, fitted, rows, error([1.0] * len(scored)), error(temperatures))


def class_order(
    run: Params, confusion: Sequence[Sequence[int]], labels: Int[np.ndarray, " n"], settings: Scoring
) -> list[int]:
    """Give the classes with kin beside each other: groups and twins where the dataset has them, or what is confused."""
    twins = None if settings.twins is None else class_twins(labels, settings.twins, len(confusion))
    return kinship_order(np.array(confusion), class_groups(run), twins).tolist()


def protocol_rows(
    run: Params, fits: Mapping[str, Sequence[Fit]], one_view: Mapping[str, dict], ids: Sequence[str]
) -> list[dict]:
    """Give `views`, `method`, `top1`, `top5` (with intervals) and `clips` of each protocol that the parameters name.

    `one_view` are the scores of each method on the tokens of these clips in the store (`tcar.evaluate.over_seeds`);
    methods that have no fusion in `fits` have one view alone.
    """
    rows = []
    for views in run.evaluation.evaluation_views:
        means, count = one_view, len(ids)
        if views != "1":
            split = run.evaluation.evaluation_split
            by_id = {clip.id: clip for clip in healthy_clips(run, split)[split]}
            logits, kept = scored_views(run, fits, [by_id[name] for name in ids], views)
            labels, settings, count = np.array([by_id[name].label for name in kept]), scoring(run, kept), len(kept)
            means = {
                method: over_seeds([metrics(one, labels, settings) for one in some])
                for method, some in logits.items()
            }
        rows += [
            {"views": views, "method": method, "top1": mean["top1"], "top5": mean["top5"], "clips": count}
            for method, mean in means.items()
        ]
    return rows


def scored_views(
    run: Params, fits: Mapping[str, Sequence[Fit]], clips: Sequence[Clip], views: str
) -> tuple[dict[str, list[Float[np.ndarray, "n c"]]], list[str]]:
    """Score clips by a protocol of `tcar.data.views.PROTOCOLS`; give each fit's logits and the ids of their rows.

    The logits are the logarithms of the probabilities averaged over views. A clip that cannot be read is missing for
    all methods and named in a warning. Raises EvaluationError where none is left, or where the weights of a
    stream are not those that made the store.
    """
    models = [_model(fit) for some in fits.values() for fit in some]
    made = {
        "code": sources.code_digest(*_CODE),
        "views": views,
        "stores": [store.key for store in stores(run).values()],
        "fits": [_digest(fit) for some in fits.values() for fit in some],
        "clips": fingerprint(clips),
        "upright": run.data.upright,
    }
    folder = run.run_dir / "views" / f"{views}-{results.digest(made)[:16]}"
    size = run.streams.batch_clips
    batches = {folder / f"{start:06}.npz": clips[start : start + size] for start in range(0, len(clips), size)}
    if todo := {path: batch for path, batch in batches.items() if not path.is_file()}:
        folder.mkdir(parents=True, exist_ok=True)
        _score(run, models, todo, views)
    parts, broken = [], {}
    for path in batches:
        with np.load(path) as part:
            parts.append((part["logits"], part["ids"].tolist()))
            broken |= dict(part["broken"].tolist())
    ids = [name for _, names in parts for name in names]
    if broken:
        some = ", ".join(f"{name} ({why})" for name, why in list(broken.items())[:5])
        logger.warning("%s views: %d of %d clips left out: %s", views, len(broken), len(clips), some)
    if not ids:
        raise EvaluationError(f"none of {len(clips)} clips can be read; run the audit again (notebook 00)")
    for other in folder.parent.glob(f"{views}-*"):
        if other != folder:  # of earlier fits
            files.remove_folder(other, ["*.npz"])
    rows = iter(np.concatenate([logits for logits, _ in parts if logits.size], axis=1))
    return {method: [next(rows) for _ in some] for method, some in fits.items()}, ids


def _digest(fit: Fit) -> list:
    weights = {key: value.detach().cpu().contiguous() for key, value in fit.state_dict.items()}
    return [asdict(fit.fusion), hashlib.sha256(save(weights)).hexdigest()]


def _model(fit: Fit) -> nn.Module:
    model = create_fusion(fit.fusion)
    model.load_state_dict(fit.state_dict)
    return model.eval()


def _score(run: Params, models: Sequence[nn.Module], todo: Mapping[Path, Sequence[Clip]], views: str) -> None:
    """Decode, score and keep one batch after the other; workers decode the next while this one is computed."""
    scorer = _Scorer(run, models, views)
    groups = ([clip] for batch in todo.values() for clip in batch)
    loader = Loader(scorer.read, workers=run.common.workers, ahead=run.streams.batch_clips)
    with loader, closing(loader.groups(groups)) as decoded:
        for path, batch in log.progress(todo.items(), len(todo), f"{views} views", "batches"):
            found = dict(zip([clip.id for clip in batch], islice(decoded, len(batch)), strict=True))
            read = {name: one for name, one in found.items() if one.offsets}
            broken = [(name, one.broken[0]) for name, one in found.items() if one.broken]
            logits, ids = scorer(list(read.values())), np.array(list(read), str)
            with files.drafted(path) as draft:
                np.savez(draft, logits=logits, ids=ids, broken=np.array(broken, str).reshape(-1, 2))


class _Scorer:
    """The frozen streams and the fusions, on the run's device."""

    def __init__(self, run: Params, models: Sequence[nn.Module], views: str):
        self.run, self.device, self.cuts = run, device_of(run), PROTOCOLS[views][1]
        self.read = ProtocolReader(
            views, tuple(getattr(run.streams, f"{role}_frames") for role in ROLES), run.data.upright
        )
        self.fusions = [model.to(self.device) for model in models]
        self.streams = {role: stream(run, role).to(self.device) for role in ROLES}
        for role, store in stores(run).items():
            made = results.load(store.root / "store.json")["made"]
            if made["weights"] != weights_digest(self.streams[role]):
                raise EvaluationError(
                    f"{role}: {store.stream} has other weights now than those that made {store.root}; run notebook 01 "
                    "again, and the training after it"
                )

    @torch.inference_mode()
    def __call__(self, found: Sequence[Loaded]) -> Float[np.ndarray, "f n c"]:
        """The logarithms of each fusion's mean probabilities for each clip; clips of one size go together."""
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for number, one in enumerate(found):
            by_shape.setdefault(one.arrays[0].shape, []).append(number)
        scores: dict[int, Tensor] = {}
        for numbers in by_shape.values():
            frames, places = (torch.cat([found[number].arrays[part] for number in numbers]) for part in (0, 1))
            made = self._log_probabilities(frames.to(self.device), places.to(self.device)).cpu()
            scores |= dict(zip(numbers, made, strict=True))
        if not scores:
            return np.empty((len(self.fusions), 0, 0), np.float32)
        return torch.stack([scores[number] for number in range(len(found))], dim=1).numpy()

    def _log_probabilities(self, frames: Tensor, places: Tensor) -> Float[Tensor, "b f c"]:
        rows = torch.arange(len(frames), device=self.device)[:, None]
        by_role = [self.read.places(places, reader) for reader in range(len(ROLES))]
        views = []
        for samplings in zip(*by_role, strict=True):
            for place in self.cuts:
                pairs = zip(ROLES, samplings, strict=True)
                tokens = [part for role, times in pairs for part in self._tokens(role, cut(frames[rows, times], place))]
                views.append(torch.stack([fusion(*tokens).log_softmax(1) for fusion in self.fusions], dim=1))
        return torch.stack(views).logsumexp(0) - math.log(len(views))

    def _tokens(self, role: str, frames: Tensor) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "n 3"]]:
        """Tokens as an extraction pools them, in single precision."""
        lower = torch.autocast(self.device.type, torch.bfloat16, enabled=self.run.streams.stream_precision == "bf16")
        with lower:
            pooled = pool_tokens(self.streams[role](frames), tuple(getattr(self.run.streams, f"{role}_grid")))
        return pooled.values.flatten(1, 2).float(), pooled.coordinates.flatten(0, 1).float()
