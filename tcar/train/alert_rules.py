"""What is wrong with a training, as rules over the rows that it logs.

A rule sees every row and answers with what is wrong for as long as it is, else with an empty text. All but the first
compare with what this training did before, by medians and deviations from them, which single bad rows do not move.
"""

from __future__ import annotations

import math
import shutil
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from tcar.train.settings import WatchSettings

# Normal noise goes so many deviations beyond its median once in 10^9 rows.
DEVIATIONS = 6.0
# GradScaler begins at 2^16 and halves with every overflow: after so many in a row nothing is left to halve.
OVERFLOWS = 20
EXPLOSION_ROWS = 2  # one high norm is a hard batch, which clipping answers
COLLAPSE_ROWS = 10  # a validation or a checkpoint slows a row or two
RISING_EPOCHS = 3  # over which a validation loss is averaged before it counts as rising
RISE = 0.05  # of the lowest validation loss: less is its noise
FLAT_RATE = 0.25  # of the highest learning rate: below it, the schedule itself flattens the curve
# Weights, their average and the two moments of AdamW, in 32 bits each.
BYTES_A_PARAMETER = 16
CHECKPOINTS = 2  # the one being written beside the one that it replaces


@runtime_checkable
class Rule(Protocol):
    """One thing that can be wrong; `fatal` is the reason that ends the training, or empty."""

    kind: str
    fatal: str

    def see(self, row: Mapping[str, float]) -> str:
        """What is wrong after this row, and what helps; empty while nothing is."""


def step_rules(limits: WatchSettings, folder: Path, trained_parameters: int = 0) -> list[Rule]:
    """The rules over step rows. folder: where checkpoints are written; its disk is watched."""
    checkpoint = trained_parameters * BYTES_A_PARAMETER
    return [
        NotANumber(),
        Divergence(limits.alert_window, limits.divergence_margin),
        GradientExplosion(limits.alert_window, limits.gradient_explosion),
        ThroughputCollapse(limits.alert_window, limits.throughput_collapse),
        DiskNearlyFull(folder, max(limits.disk_reserve_gb * 1e9, CHECKPOINTS * checkpoint)),
    ]


def epoch_rules(limits: WatchSettings) -> list[Rule]:
    """The rules over epoch rows."""
    return [
        NotANumber(),
        Plateau(limits.plateau_epochs, limits.plateau_delta),
        Overfitting(limits.overfitting_gap),
    ]


def robust(values: Iterable[float]) -> tuple[float, float]:
    """The median, and the median absolute deviation from it on the scale of a standard deviation (times 1.4826)."""
    values = np.fromiter(values, float)
    median = float(np.median(values))
    return median, 1.4826 * float(np.median(np.abs(values - median)))


class NotANumber:
    """A loss or a gradient norm that is not finite: from there on the weights are lost."""

    kind, fatal = "not a number", "not a number"
    _KEYS = ("loss", "gradient_norm", "train_loss", "validation_loss")

    def __init__(self):
        self.overflows = 0

    def see(self, row: Mapping[str, float]) -> str:
        wrong = [k for k, v in row.items() if (k in self._KEYS or k.startswith("loss/")) and not math.isfinite(v)]
        if "loss_scale" in row:  # then a gradient that overflows is how the scale is found, and the step is left out
            overflow = wrong == ["gradient_norm"]
            self.overflows = self.overflows + 1 if overflow else 0
            if overflow and self.overflows < OVERFLOWS:
                return ""
        if not wrong:
            return ""
        found = ", ".join(f"{key} is {row[key]}" for key in wrong)
        return f"{found}; resume from the last checkpoint with a lower learning_rate or clip_norm, or in fp32 or bf16"


class Divergence:
    """The loss, smoothed over a window, is above its lowest by a share of the first, and by more than noise."""

    kind, fatal = "divergence", ""

    def __init__(self, window: int, margin: float):
        self.losses: deque[float] = deque(maxlen=window)
        self.margin, self.first, self.lowest, self.noise = margin, 0.0, math.inf, 0.0

    def see(self, row: Mapping[str, float]) -> str:
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

    kind, fatal = "gradient explosion", ""

    def __init__(self, window: int, factor: float):
        self.logs: deque[float] = deque(maxlen=window)
        self.factor, self.rows = factor, 0

    def see(self, row: Mapping[str, float]) -> str:
        norm = row["gradient_norm"]
        if not math.isfinite(norm) or norm <= 0:
            return ""
        if len(self.logs) < self.logs.maxlen:  # norms change most at the start, and there is nothing to compare with
            self.logs.append(math.log(norm))
            return ""
        # In logarithms, because norms are skewed: their noise is a factor.
        median, deviation = robust(self.logs)
        if math.log(norm) <= median + max(math.log(self.factor), DEVIATIONS * deviation):
            self.rows = 0
            self.logs.append(math.log(norm))
            return ""
        self.rows += 1
        if self.rows < EXPLOSION_ROWS:
            return ""
        usual = f"{math.exp(median):.3g}"
        return f"the gradient norm is {norm:.3g}, usual is {usual}; lower learning_rate, or clip_norm to about {usual}"


class ThroughputCollapse:
    """Clips a second stay below a share of their median."""

    kind, fatal = "throughput collapse", ""

    def __init__(self, window: int, share: float):
        self.usual: deque[float] = deque(maxlen=window)
        self.share, self.rows = share, 0

    def see(self, row: Mapping[str, float]) -> str:
        speed = row["clips_per_second"]
        median = float(np.median(self.usual)) if self.usual else 0.0
        known = len(self.usual) >= self.usual.maxlen // 2
        if not known or speed >= self.share * median:
            self.rows = 0
            self.usual.append(speed)  # slow rows stay out of it, or the slowness would soon be the usual
            return ""
        self.rows += 1
        if self.rows < COLLAPSE_ROWS:
            return ""
        waiting = row.get("data_wait", 0.0)
        cause = "add workers, or a faster disk" if waiting > 0.5 else "see what else runs on this machine"
        return (
            f"{speed:.3g} clips a second, usual are {median:.3g}; {waiting:.0%} of a step is waiting for clips: {cause}"
        )


class DiskNearlyFull:
    """The disk of the checkpoints has less room than the next ones need."""

    kind, fatal = "disk nearly full", ""

    def __init__(self, folder: Path, reserve: float):
        self.folder, self.reserve, self.low = folder, reserve, False

    def see(self, row: Mapping[str, float]) -> str:
        try:
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            return f"the disk of {self.folder} cannot be asked: {error}"
        # A tenth more to clear it, or a log file that grows would set it off again and again.
        self.low = free < self.reserve * (1.1 if self.low else 1.0)
        return (
            f"{free / 1e9:.3g} GB are free at {self.folder}, {self.reserve / 1e9:.3g} GB should be; make room there"
            if self.low
            else ""
        )


class Plateau:
    """No epoch of the last ones has a better validation accuracy or a lower validation loss."""

    kind, fatal = "plateau", ""

    def __init__(self, epochs: int, delta: float):
        self.epochs, self.delta = epochs, delta
        self.top1, self.loss, self.since, self.rate = -math.inf, math.inf, 0, 0.0

    def see(self, row: Mapping[str, float]) -> str:
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

    kind, fatal = "overfitting", ""

    def __init__(self, gap: float):
        self.gap, self.losses, self.lowest = gap, deque(maxlen=RISING_EPOCHS), math.inf

    def see(self, row: Mapping[str, float]) -> str:
        self.losses.append(row["validation_loss"])
        self.lowest = min(self.lowest, row["validation_loss"])
        if "train_top1" not in row:
            return ""
        gap, loss = row["train_top1"] - row["validation_top1"], float(np.mean(self.losses))
        if gap <= self.gap or len(self.losses) < RISING_EPOCHS or loss <= self.lowest * (1 + RISE):
            return ""
        return (
            f"top-1 is {gap:.0%} higher in training than in validation, whose loss rose from {self.lowest:.4g} to "
            f"{loss:.4g}; more dropout, drop_path, token_drop or weight_decay, or stop earlier"
        )
