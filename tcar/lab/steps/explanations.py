"""Measure which methods of explanation say anything of the model, on clips whose truth is known.

    tcar explanations params/demo.yaml

Twins differ in one factor, so where they differ decides between them. One clip of every pair of twins is explained
against its twin in `explanation_sets` sets of each family by the methods that read tokens, and in
`explanation_pixel_sets` of them by those that go back to pixels (integrated gradients of 20 clips at
least, to see whether they converge); so are a fusion with fresh weights, and one that was
trained with permuted labels. A method passes when the share of its mass that lies where the twins differ, less their
share of the clip, is above that of the frame difference on the same grid and above its own for both of these fusions,
paired by clip and over sets (`tcar.explain.verdicts`). What is there already, after a kill too, is not made again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tcar.evaluate import mean_interval
from tcar.explain.keeping import keep
from tcar.explain.scoring import DECISIVE, FRAME_DIFFERENCE, MEASURES, MOST, MOVER, REFERENCES
from tcar.explain.verdicts import RIVALS, verdict
from tcar.fusion.kinds import create_fusion
from tcar.ground import log, processes, sources
from tcar.lab import results
from tcar.lab.measured import EXPLANATIONS
from tcar.lab.params import ParameterError
from tcar.lab.steps import gallery
from tcar.lab.steps.apart import packaged_weights, publish
from tcar.lab.steps.clips import ground_truth, healthy_clips
from tcar.lab.steps.explained_clips import (
    CONVERGENCE,
    HEADLINE,
    KINDS,
    LATE,
    PERMUTED,
    PIXELS,
    TOKENS,
    UNTRAINED,
    Asked,
    keep_fusions,
    measure,
)
from tcar.lab.steps.fits import Fit, fit_all, tokens_of
from tcar.lab.steps.fusion import fusion_config
from tcar.lab.steps.methods import bootstrap, trained
from tcar.lab.steps.model import model_folder, open_model
from tcar.streams.weights import state_digest

if TYPE_CHECKING:
    from tcar.lab.params import Params
    from tcar.train.tokens import StoredTokens

ALL, BOUND = "all", "bound"
LEAST_CONVERGED, CONVERGED_CLIPS = 0.03, 20
LOG = log.get("explanations")


def build(run: Params) -> Path:
    """Explain the clips, judge the methods, write `explanations.json`, keep the verdicts beside the model, and draw the
    gallery with them.

    Raises ParameterError for another dataset than Tabletop, or where the notebooks have not trained the model yet.
    """
    if run.data.dataset != "tabletop":
        raise ParameterError(f"dataset is {run.data.dataset!r}: what decides a clip is known of Tabletop's alone")
    if not (run.results_dir / "training.json").is_file():
        raise ParameterError(f"{run.run_dir}: there is no model to explain yet; `tcar paper` trains it")
    fusions = _fusions(run)
    clips = chosen(run)
    # Those that take longest first.
    asked = [Asked(run, fusions, clip, kind) for kind in KINDS for clip in clips[kind]]
    found = list(log.progress(_each(run, asked), len(asked), "explaining", "clips"))
    by: dict[str, list[dict]] = {kind: [] for kind in KINDS}
    for row, one in zip(found, asked, strict=True):
        by[one.kind].append(row)
    values = {"split": run.evaluation.evaluation_split, "sets": _sets(by), **summary(run, by)}
    path = publish(run, EXPLANATIONS, values, inputs=packaged_weights(run))
    keep(model_folder(run), state_digest("fusion", open_model(run).fusion), values["verdicts"])
    LOG.info(f"a gallery to open in a browser: {results.relative(gallery.build(run), run.root)}")
    return path


def chosen(run: Params) -> dict[str, list[str]]:
    """Give the clips to explain by kind: in each set of a family, one of every pair of twins."""
    index = ground_truth(run)
    split = run.evaluation.evaluation_split
    healthy = {clip.id for clip in healthy_clips(run, split)[split]}
    deep, sets = run.interpretability.explanation_pixel_sets, run.interpretability.explanation_sets
    # Integrated gradients alone are taken of further sets, for so many clips together.
    numbers = {PIXELS: range(deep), CONVERGENCE: range(deep, 2 * deep), TOKENS: range(sets or len(index))}
    found: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for clip, told in sorted(index.items(), key=lambda item: int(item[0])):
        number = int(told["set"].rpartition("-")[2])
        # Of two twins the one whose class comes first, and by turns the other: neither side of a pair is left out.
        first = sorted([clip, told["twin"]], key=lambda one: index[one]["class"])[number % 2]
        if clip == first and {clip, told["twin"]} <= healthy:
            for kind, some in numbers.items():
                found[kind] += [clip] * (number in some)
    found[CONVERGENCE] = found[CONVERGENCE][: max(0, CONVERGED_CLIPS - len(found[PIXELS]))]
    return found


def _fusions(run: Params) -> Path:
    """Keep the fusions that are explained: the model's, one with fresh weights, one of permuted labels, and late
    concatenation; gives their folder, whose name is their digest and that of the code that explains."""
    model = open_model(run)
    config = model.config.fusion
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.common.seed)
        fresh = create_fusion(config)
    fits = {PERMUTED: _permuted(run), LATE: _late(run)}
    fusions = {HEADLINE: (config, model.fusion.state_dict()), UNTRAINED: (config, fresh.state_dict())}
    fusions |= {name: (fit.fusion, fit.state_dict) for name, fit in fits.items() if fit}
    code = sources.code_digest("tcar.lab.steps.explained_clips")
    digest = results.digest([
        code, state_digest("fusion", model.fusion), run.common.seed, sorted(fusions),
        *(str(fit.folder.name) for fit in fits.values() if fit),
    ])  # fmt: skip
    folder = run.run_dir / "explanations" / digest
    keep_fusions(folder, fusions)
    return folder


def _permuted(run: Params) -> Fit:
    """Train the headline method on the run's training clips with their labels permuted among them."""
    tokens = tokens_of(run, "train", "validation")
    order = np.random.default_rng(run.common.seed).permutation(len(tokens["train"]))
    shuffled: dict[str, StoredTokens] = tokens | {
        "train": replace(tokens["train"], labels=tokens["train"].labels[order])
    }
    config = {PERMUTED: fusion_config(run, run.fusion.fusion)}
    return fit_all(run, config, [run.common.seed], shuffled)[PERMUTED][0]


def _late(run: Params) -> Fit | None:
    return next(iter(trained(run).get(LATE, [])), None)


def _each(run: Params, asked: Sequence[Asked]) -> Iterator[dict]:
    workers = min(run.workers, len(asked))
    if workers < 2:
        yield from map(measure, asked)
        return
    with processes.pool(workers) as pool:
        yield from pool.map(measure, asked)


def _sets(by: Mapping[str, Sequence[dict]]) -> dict[str, int]:
    sets = {row["set"] for some in by.values() for row in some}
    return {"clips": len(by[TOKENS]), "pixel_clips": len(by[PIXELS]), "sets": len(sets)}


def summary(run: Params, by: Mapping[str, Sequence[dict]]) -> dict[str, Any]:
    """Put what was found of single clips together: `scores`, `verdicts`, `cells`, `binding`, `convergence`, `moments`
    and `curves`; every mean has its interval over twin sets."""
    deep = by[PIXELS]
    table = _table([*deep, *by[TOKENS]])
    return {
        "scores": _scores(run, table),
        "verdicts": verdicts(run, table),
        "cells": _cells(run, table),
        "binding": _binding(run, table),
        "convergence": _convergence([*deep, *by[CONVERGENCE]]),
        "moments": _moments(run, deep),
        "curves": _curves(run, deep),
    }


Key = tuple[str, str, str, str]  # model, method, stream, mask


def _table(found: Sequence[dict]) -> dict[Key, dict[str, dict]]:
    """All rows by what they are of, and clip by clip."""
    table: dict[Key, dict[str, dict]] = defaultdict(dict)
    for clip in found:
        for row in clip["rows"]:
            key = row["model"], row["method"], row["stream"], row["mask"]
            table[key][clip["clip"]] = row | {name: clip[name] for name in ("group", "set", "pair")}
    return table


def _mean(run: Params, rows: Sequence[dict], name: str) -> dict:
    values = np.array([row[name] for row in rows], float)
    return mean_interval(values, [row["set"] for row in rows], bootstrap(run)) | {"n": len(rows)}


def _scores(run: Params, table: Mapping[Key, dict[str, dict]]) -> list[dict]:
    """The measures of each method, stream, mask and group of the headline model, and of the references."""
    scored = []
    for (model, method, stream, mask), by_clip in sorted(table.items()):
        if model != HEADLINE:
            continue
        rows = list(by_clip.values())
        for group in (ALL, *sorted({row["group"] for row in rows})):
            own = [row for row in rows if group in (ALL, row["group"])]
            scored.append(
                {"method": method, "stream": stream, "mask": mask, "group": group}
                | {name: _mean(run, own, name) for name in (*MEASURES, MOST)}
            )
    return scored


def verdicts(run: Params, table: Mapping[Key, dict[str, dict]]) -> list[dict]:
    """Judge each method and stream on where the twins differ, all groups together."""
    judged = []
    for (model, method, stream, mask), by_clip in sorted(table.items()):
        if model != HEADLINE or mask != DECISIVE or method in REFERENCES:
            continue
        others = [table.get((rival, method, stream, DECISIVE), {}) for rival in (UNTRAINED, PERMUTED)]
        clips = sorted(set(by_clip).intersection(*others))
        own = np.array([by_clip[clip]["mass"] for clip in clips])
        rivals = [[by_clip[clip][f"{FRAME_DIFFERENCE}_mass"] for clip in clips]]
        rivals += [[other[clip]["mass"] for clip in clips] for other in others]
        rivals = {name: np.array(values) for name, values in zip(RIVALS, rivals, strict=True)}
        said = verdict(own, rivals, [by_clip[clip]["set"] for clip in clips], bootstrap(run))
        judged.append({
            "method": method, "stream": stream, "measure": "mass", "clips": len(clips), "passed": said.passed,
            "differences": said.differences,
        })  # fmt: skip
    return judged


def _cells(run: Params, table: Mapping[Key, dict[str, dict]]) -> list[dict]:
    """How much of what its grid allows the exchange of cells reaches, by stream and group, and how much more than
    rollout."""
    found = []
    for stream in ("semantic", "motion"):
        cells = table.get((HEADLINE, "exchanged_cells", stream, DECISIVE), {})
        rollout = table.get((HEADLINE, "rollout", stream, DECISIVE), {})
        rows = [
            {**cells[clip], "share": cells[clip]["mass"] / cells[clip][MOST],
             "more": cells[clip]["mass"] - rollout[clip]["mass"]}
            for clip in cells if clip in rollout
        ]  # fmt: skip
        for group in (ALL, *sorted({row["group"] for row in rows})):
            own = [row for row in rows if group in (ALL, row["group"])]
            found.append({
                "stream": stream, "group": group, "share": _mean(run, own, "share"), "more": _mean(run, own, "more"),
            })  # fmt: skip
    return found


def _binding(run: Params, table: Mapping[Key, dict[str, dict]]) -> list[dict]:
    """On clips of bound classes, how much more of what cross-attention reads falls on what acts than of late
    concatenation's saliency, by stream and method."""
    found = []
    for stream in ("semantic", "motion"):
        late = table.get((LATE, "grad_cam", stream, MOVER), {})
        for method in ("rollout", "gradient_rollout"):
            own = table.get((HEADLINE, method, stream, MOVER), {})
            rows = [
                {**own[clip], "late": late[clip]["mass"], "more": own[clip]["mass"] - late[clip]["mass"]}
                for clip in own if clip in late and own[clip]["group"] == BOUND
            ]  # fmt: skip
            if rows:
                means = {name: _mean(run, rows, key) for name, key in
                         (("cross_attention", "mass"), (LATE, "late"), ("difference", "more"))}  # fmt: skip
                found.append({"stream": stream, "method": method, **means})
    return found


def _convergence(deep: Sequence[dict]) -> dict[str, Any]:
    """How far integrated gradients miss the sum that they must have, over the clips, in relative errors."""
    errors = np.array([row["convergence"]["error"] for row in deep if row["convergence"]["error"] is not None])
    if not len(errors):
        return {"clips": 0}
    return {
        "clips": len(errors), "median": float(np.median(errors)), "p95": float(np.quantile(errors, 0.95)),
        "below": {"threshold": LEAST_CONVERGED, "share": float((errors < LEAST_CONVERGED).mean())},
        "unconverged": sum(bool(row["convergence"]["note"]) for row in deep),
    }  # fmt: skip


def _moments(run: Params, deep: Sequence[dict]) -> list[dict]:
    """The share of each method's moments inside the events less the events' share of time, of each model."""
    by: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for clip in deep:
        for row in clip["moments"]:
            if row["inside"] is not None:
                by[row["model"], row["method"]].append({"value": row["inside"], "set": clip["set"]})
    return [
        {"model": model, "method": method, "inside": _mean(run, rows, "value")}
        for (model, method), rows in sorted(by.items())
    ]


def _curves(run: Params, deep: Sequence[dict]) -> list[dict]:
    """The areas under insertion and deletion of each method."""
    by: dict[str, list[dict]] = defaultdict(list)
    for clip in deep:
        for row in clip["curves"]:
            by[row["method"]].append(row | {"set": clip["set"]})
    return [
        {"method": method} | {name: _mean(run, rows, name) for name in ("insertion", "deletion")}
        for method, rows in sorted(by.items())
    ]
