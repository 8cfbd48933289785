"""What follows a training: trackers, alarms, pruners, behind one small interface.

The trainer calls its watchers on the main process only and knows nothing more of them.
"""

from typing import Any, Protocol, runtime_checkable

from tcar.ground.errors import TcarError

# How a training ends; others are "pruned" (of a search), and "failed: …".
FINISHED, EARLY, NOT_A_NUMBER, INTERRUPTED = "finished", "stopped early", "not a number", "interrupted"
LEAST_SCALE = 1e-3  # of the loss in fp16: a gradient that is not finite below it is so at any scale


class TrainingError(TcarError, RuntimeError):
    """A training that cannot start or go on; the message names it and the cause."""


class StopTraining(Exception):
    """A watcher asks for the end of the training; `reason` is the word that the training ends with."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@runtime_checkable
class Watcher(Protocol):
    """Something that follows a training: a tracker, an alarm, a pruner."""

    def start(self, run: dict[str, Any]) -> None:
        """Learn of the run, and forget what was seen of another.

        run: `name`, `parameters` (flat), `commit`, `trained_parameters`, `step` (the last one of the checkpoint that it
        goes on from, 0 = a new training), and what else the trainer knows. Rows after `step` are seen once more.
        """

    def step(self, row: dict[str, float]) -> None:
        """See an optimiser step that is logged.

        row: `step`, `epoch` (fraction), `loss`, one `loss/<name>` a term, `learning_rate`, `gradient_norm` (before
        clipping), `clips_per_second`, `data_wait` (share of the step's time spent on waiting for a batch, 0 to 1),
        `memory_mb` (peak: of the device on a GPU, else of the process), `loss_scale` (fp16 only).
        Raises StopTraining: the training shall end here, in order, with its best and last checkpoint kept.
        """

    def epoch(self, row: dict[str, float]) -> None:
        """See a validation.

        row: `epoch` (whole, from 1), `step`, `train_loss`, `gradient_norm` (mean), `learning_rate` (at its start),
        `validation_loss`, `validation_top1`, `validation_top5` (fractions), `train_top1` (fraction; absent on mixed
        labels), `seconds`. Raises StopTraining as `step` does.
        """

    def end(self, reason: str) -> None:
        """Learn how it ended.

        reason: "finished", "stopped early", "not a number", "interrupted", "pruned", or "failed: …".
        """
