"""What is wrong with a training, as rules over the rows that it logs.

A rule sees every row and answers with what is wrong for as long as it is. All but the first compare with what this
training did before, by medians and deviations from them, which single bad rows do not move.
"""

from __future__ import annotations

import math
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from tcar.train.settings import WatchSettings
from tcar.train.watch import LEAST_SCALE, NOT_A_NUMBER

# Normal noise goes so many deviations beyond its median once in 10^9 rows.
DEVIATIONS = 6.0
EXPLOSION_ROWS = 2  # one high norm is a hard batch, which clipping answers
RISING_EPOCHS = 3  # over which a validation loss is averaged before it counts as rising
RISE = 0.05  # of the lowest validation loss: less is its noise
FLAT_RATE = 0.25  # of the highest learning rate: below it, the schedule itself flattens the curve
# Weights, their average and the two moments of AdamW, in 32 bits each.
BYTES_A_PARAMETER = 16
CHECKPOINTS = 2  # the one being written beside the one that it replaces

Row = Mapping[str, float]
Rule = Callable[[Row], str]  # what is wrong after a row, and what helps; "" while nothing is


def step_rules(limits: WatchSettings, folder: Path, trained_parameters: int = 0) -> dict[str, Rule]:
    """The rules over step rows by the kind of their alerts; the disk of `folder`, that of checkpoints, is watched."""
    reserve = max(limits.disk_reserve_gb * 1e9, CHECKPOINTS * trained_parameters * BYTES_A_PARAMETER)
    return {
        NOT_A_NUMBER: not_a_number,
        "divergence": Divergence(limits.alert_window, limits.divergence_margin),
        "gradient explosion": GradientExplosion(limits.alert_window, limits.gradient_explosion),
        "disk nearly full": DiskNearlyFull(folder, reserve),
    }


def epoch_rules(limits: WatchSettings) -> dict[str, Rule]:
    """The rules over epoch rows by the kind of their alerts."""
    return {
        NOT_A_NUMBER: not_a_number,
        "plateau": Plateau(limits.plateau_epochs, limits.plateau_delta),
        "overfitting": Overfitting(limits.overfitting_gap),
    }


def not_a_number(row: Row) -> str:
    """A loss or a gradient norm that is not finite: from there on the weights are lost."""
    watched = {"loss", "train_loss", "validation_loss"}
    if row.get("loss_scale", 0.0) < LEAST_SCALE:  # above it, a gradient that overflows is how the scale is found
        watched.add("gradient_norm")
    wrong = [k for k, v in row.items() if (k in watched or k.startswith("loss/")) and not math.isfinite(v)]
    if not wrong:
        return ""
    found = ", ".join(f"{key} is {row[key]}" for key in wrong)
    return f"{found}; resume from the last checkpoint with a lower learning_rate or clip_norm, or in fp32 or bf16"


def robust(values: Iterable[float]) -> tuple[float, float]:
    """The median, and the median absolute deviation from it on the scale of a standard deviation (times 1.4826)."""
    values = np.fromiter(values, float)
    median = float(np.median(values))
    return median, 1.4826 * float(np.median(np.abs(values - median)))


class Divergence:
    """The loss, smoothed over a window, is above its lowest by a share of the first, and by more than noise."""

    def __init__(self, window: int, margin: float):
        self.losses: deque[float] = deque(maxlen=window)
        self.margin, self.first, self.lowest, self.noise = margin, 0.0, math.inf, 0.0

    def __call__(self, row: Row) -> str:
        if math.isfinite(row["loss"]):
            self.losses.append(row["loss"])
        if len(self.losses) < self.losses.maxlen:
            return ""
        level, noise = robust(self.losses)
        self.first = self.first or level
        if level < self.lowest:
            # The noise of that time: of a window that is on its way up, the deviation is mostly the rise itself.
            self.lowest, self.noise = level, noise
        if level <= self.lowest + max(self.margin * abs(self.first), DEVIATIONS * self.noise):
            return ""
        return f"the loss rose from {self.lowest:.4g} to {level:.4g}; lower learning_rate or warm up longer"


class GradientExplosion:
    """The gradient norm is far above its median, on two rows in succession."""

    def __init__(self, window: int, factor: float):
        self.logs: deque[float] = deque(maxlen=window)
        self.factor, self.rows = factor, 0

    def __call__(self, row: Row) -> str:
        norm = row["gradient_norm"]
        if not math.isfinite(norm) or norm <= 0:
            return ""
        # In logarithms, because norms are skewed: their noise is a factor.
        now, known = math.log(norm), len(self.logs) == self.logs.maxlen  # norms change most at the start
        median, deviation = robust(self.logs) if known else (math.inf, 0.0)
        if now <= median + max(math.log(self.factor), DEVIATIONS * deviation):
            self.rows = 0
            self.logs.append(now)
            return ""
        self.rows += 1
        if self.rows < EXPLOSION_ROWS:
            return ""
        usual = f"{math.exp(median):.3g}"
        return f"the gradient norm is {norm:.3g}, usual is {usual}; lower learning_rate, or clip_norm to about {usual}"


class DiskNearlyFull:
    """The disk of the checkpoints has less room than the next ones need."""

    def __init__(self, folder: Path, reserve: float):
        self.folder, self.reserve, self.low = folder, reserve, False

    def __call__(self, row: Row) -> str:
        try:
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            return f"the disk of {self.folder} cannot be asked: {error}"
        # A tenth more to clear it, or a log file that grows would set it off again and again.
        self.low = free < self.reserve * (1.1 if self.low else 1.0)
        if not self.low:
            return ""
        return f"{free / 1e9:.3g} GB are free at {self.folder}, {self.reserve / 1e9:.3g} GB should be; make room there"


class Plateau:
    """No epoch of the last ones has a better validation accuracy or a lower validation loss."""

    def __init__(self, epochs: int, delta: float):
        self.epochs, self.delta = epochs, delta
        self.top1, self.loss, self.since, self.rate = -math.inf, math.inf, 0, 0.0

    def __call__(self, row: Row) -> str:
        top1, loss, rate = row["validation_top1"], row["validation_loss"], row.get("learning_rate", 0.0)
        self.rate, self.since = max(self.rate, rate), self.since + 1
        if top1 > self.top1 + self.delta or loss < self.loss * (1 - self.delta):
            self.top1, self.loss, self.since = max(top1, self.top1), min(loss, self.loss), 0
        if self.since < self.epochs or rate < FLAT_RATE * self.rate or self.top1 > 1 - self.delta:
            return ""
        return (
            f"no better in {self.since} epochs than top-1 {self.top1:.1%}, loss {self.loss:.4g}; "
            "stop here, or lower learning_rate"
        )


class Overfitting:
    """Training accuracy is far above validation accuracy, and the validation loss is rising."""

    def __init__(self, gap: float):
        self.gap, self.losses, self.lowest = gap, deque(maxlen=RISING_EPOCHS), math.inf

    def __call__(self, row: Row) -> str:
        self.losses.append(row["validation_loss"])
        self.lowest = min(self.lowest, row["validation_loss"])
        if "train_top1" not in row:  # mixed labels have no accuracy
            return ""
        gap, loss = row["train_top1"] - row["validation_top1"], float(np.mean(self.losses))
        if gap <= self.gap or len(self.losses) < RISING_EPOCHS or loss <= self.lowest * (1 + RISE):
            return ""
        return (
            f"top-1 is {gap:.0%} higher in training than in validation, whose loss rose from {self.lowest:.4g} to "
            f"{loss:.4g}; more dropout, drop_path, token_drop or weight_decay, or stop earlier"
        )
