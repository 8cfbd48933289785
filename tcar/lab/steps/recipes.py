"""Find for each method how long it trains, and at which rate: fair to all, and decided on validation alone.

    tcar recipes params/demo.yaml

Every method is trained at each learning rate of a grid, and keeps the one with the lowest validation loss. At that rate
it is trained for longer and longer: it has converged at the shortest length for which twice the epochs gain less than
one point of validation top-1. A plateau of one curve is no such evidence, since a rate that ends at zero flattens any
curve. What is there already, after a kill too, is not trained again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tcar.fusion.kinds import FusionConfig
from tcar.lab.measured import RECIPES
from tcar.lab.params import Params
from tcar.lab.steps.apart import packaged_weights, publish
from tcar.lab.steps.fits import LEARNING, Fit, Job, fit_jobs, tokens_of
from tcar.lab.steps.fusion import fusion_config
from tcar.lab.steps.replicates import drawn
from tcar.train.tokens import StoredTokens

GAIN = 0.01  # of validation top-1: what twice the epochs have to add before the shorter training counts as too short
# What a training asks of a method: its name, its learning rate, its epochs.
Asked = tuple[str, float, int]


def measure(run: Params, tokens: Mapping[str, StoredTokens], **sizes: int) -> list[dict[str, Any]]:
    """Train the grid; give a row for each method, learning rate and length. `sizes` are as in `fusion_config`.

    Rows have `method`, `learning_rate`, `epochs`, and means over `recipe_seeds` of `validation_loss`, `validation_top1`
    and `train_loss`, each of the epoch that is kept. Raises TrainingError: a training failed (named).
    """
    grid, methods = run.ablations, run.ablations.replicate_methods
    lengths = sorted(grid.recipe_epochs)
    train = partial(_train, run, tokens, {method: fusion_config(run, method, **sizes) for method in methods})
    rows = train([(m, rate, lengths[0]) for m in methods for rate in grid.recipe_learning_rates])
    rates = {method: _best_rate(rows, method) for method in methods}
    for length in lengths[1:]:
        late = [method for method in methods if not converged(rows, method, rates[method])]
        rows += train([(method, rates[method], length) for method in late])
    return rows


def chosen(rows: Sequence[Mapping]) -> dict[str, dict[str, Any]]:
    """Say what each method is to be trained with.

    Gives method -> `learning_rate`, `epochs`, `converged`, and `gain`, what twice these epochs add to validation top-1;
    where even the longest training has not converged that is the one, and its gain is unknown (None).
    """
    found = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        rate = _best_rate(rows, method)
        here = {row["epochs"]: row for row in rows if (row["method"], row["learning_rate"]) == (method, rate)}
        gains = {e: here[2 * e]["validation_top1"] - here[e]["validation_top1"] for e in here if 2 * e in here}
        enough = [length for length, gain in gains.items() if gain < GAIN]
        length = min(enough, default=max(here))
        found[method] = {
            "learning_rate": rate, "epochs": length, "converged": bool(enough), "gain": gains.get(length),
        }  # fmt: skip
    return found


def converged(rows: Sequence[Mapping], method: str, rate: float) -> bool:
    """Whether some training of a method at a rate gains less than one point by twice its epochs."""
    own = [row for row in rows if (row["method"], row["learning_rate"]) == (method, rate)]
    return chosen(own)[method]["converged"]


def stated(found: Mapping[str, Mapping]) -> str:
    """Write what was chosen as lines of a parameter file."""
    epochs = ", ".join(f"{method}: {row['epochs']}" for method, row in found.items())
    rates = ", ".join(f"{method}: {row['learning_rate']:g}" for method, row in found.items())
    return f"epochs_by_method: {{{epochs}}}\nlearning_rate_by_method: {{{rates}}}"


def build(run: Params) -> Path:
    """Measure the grid, write `recipes.json` and say what follows for a parameter file; gives the path.

    Tabletop is rendered where it is not there yet; of another dataset, notebooks 00 and 01 have made the tokens. Raises
    ParameterError, TrainingError; FeatureError or ResultError where there are none.
    """
    if run.data.dataset == "tabletop":
        tokens, names = drawn(run)
        rows = measure(run, tokens, num_classes=len(names), **tokens["train"].widths)
    else:
        rows = measure(run, tokens_of(run, *LEARNING))
    found = chosen(rows)
    print(stated(found))
    values = {"rows": rows, "chosen": found, "threshold": GAIN, "seeds": run.ablations.recipe_seeds}
    return publish(run, RECIPES, values, seeds=run.ablations.recipe_seeds, inputs=packaged_weights(run))


def _best_rate(rows: Sequence[Mapping], method: str) -> float:
    own = [row for row in rows if row["method"] == method]
    shortest = min(row["epochs"] for row in own)
    first = [row for row in own if row["epochs"] == shortest]
    return min(first, key=lambda row: row["validation_loss"])["learning_rate"]


def _train(
    run: Params, tokens: Mapping[str, StoredTokens], configs: Mapping[str, FusionConfig], asked: Sequence[Asked]
) -> list[dict[str, Any]]:
    seeds = run.ablations.recipe_seeds
    jobs = [Job(_with(run, rate, length), configs[method], seed)
            for method, rate, length in asked for seed in seeds]  # fmt: skip
    fits = iter(fit_jobs(jobs, tokens, run.run_dir))
    return [
        {"method": method, "learning_rate": rate, "epochs": length, **_kept([next(fits) for _ in seeds])}
        for method, rate, length in asked
    ]


def _with(run: Params, rate: float, length: int) -> Params:
    alike = {"epochs_by_method": {}, "learning_rate_by_method": {}}
    return replace(run, training=replace(run.training, learning_rate=rate, epochs=length, **alike))


def _kept(fits: Sequence[Fit]) -> dict[str, float]:
    keys = ("validation_loss", "validation_top1", "train_loss")
    return {key: float(np.mean([fit.best[key] for fit in fits])) for key in keys}
