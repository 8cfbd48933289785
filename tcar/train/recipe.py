"""What all trainings have in common: how long, at which rate, what decays, and when one has converged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from tcar.fusion.kinds import FusionConfig
    from tcar.train.settings import Recipe


def epochs_of(fusion: FusionConfig, recipe: Recipe) -> int:
    """The recipe's number of epochs for this fusion."""
    return recipe.epochs_of(fusion.method)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """The groups of an optimiser, those of them that are not empty: what decays, and what does not.

    Matrices of layers decay; norms, biases, embeddings, tables of positions and bare parameters (streams, readout) do
    not.
    """
    decaying, others = [], []
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            matrix = name.endswith("weight") and parameter.ndim > 1 and not isinstance(module, nn.Embedding)
            # A learned position is a linear layer by its form, and an embedding by what it does.
            (decaying if matrix and "position" not in f"{path}.{name}" else others).append(parameter)
    groups = {"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}
    return [group for group in groups if group["params"]]


def rate_factor(step: int, warmup: int, total: int) -> float:
    """The share of the learning rate at a step: a straight line up for `warmup` steps, then a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def improvement(history: Sequence[dict], window: int = 0) -> float:
    """How much validation top-1 rose over the last `window` epochs (0 = a quarter).

    Both ends are means over a third of the window. Infinite where the history is too short to tell.
    """
    top1 = [row["validation_top1"] for row in history]
    window = window or max(1, len(top1) // 4)
    smooth = max(1, window // 3)
    if len(top1) < window + smooth:
        return math.inf
    before = top1[-window - smooth : -window]
    return float(np.mean(top1[-smooth:]) - np.mean(before))


def converged(history: Sequence[dict], window: int = 0, threshold: float = 0.01) -> bool:
    """Whether validation top-1 is on a plateau: it rose by less than `threshold` in the last `window` epochs.

    A learning rate that ends at zero flattens any curve, so this is necessary and not sufficient: compare with a
    training of more epochs as well.
    """
    return improvement(history, window) < threshold


@contextmanager
def one_thread() -> Iterator[None]:
    """Have torch add up in the same order whatever the machine: one thread for each operation."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """One thread and a seeded generator, both of which are put back."""
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
