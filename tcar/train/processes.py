"""The processes of a training, one or many, over accelerate."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    broadcast_object_list,
    gather_object,
    patch_environment,
)
from jaxtyping import Float
from torch import Tensor

from tcar.ground.processes import end_with_launcher
from tcar.train.settings import Run
from tcar.train.watch import TrainingError


class Processes:
    """The processes of a training, one or many, and what they tell one another."""

    def __init__(self, run: Run, partly_used: bool):
        """Raises TrainingError for a device or a precision that is not to be had here."""
        settings, device = run.trainer, run.device
        end_with_launcher()  # else a rank would wait for ever for those that went with it
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise TrainingError(f"device is {device}, and no such is found; set it to auto or cpu")
        # A notebook may train in one precision after another, and accelerate keeps the first for the whole process.
        AcceleratorState._reset_state(True)
        self.partly_used, self.asked = partly_used, (device, settings.precision)
        self.accelerator = self.accelerator_of_one()
        self.main = self.accelerator.is_main_process
        self.count, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        self.device = self.accelerator.device
        if self.count < (wanted := int(os.environ.get("WORLD_SIZE", "1"))):
            raise TrainingError(
                f"{wanted} processes were started (WORLD_SIZE), and on {self.device} each would train by itself: set "
                "device to cpu, or start one"
            )

    def accelerator_of_one(self) -> Accelerator:
        """Return an accelerator for one model: in fp16 each has a scale of its own."""
        device, precision = self.asked
        handler = DistributedDataParallelKwargs(
            broadcast_buffers=False, find_unused_parameters=self.partly_used, gradient_as_bucket_view=True
        )
        # Left to itself where there is no GPU, accelerate takes each of several processes for one that trains alone.
        cpu = device == "cpu" or (device == "auto" and not torch.accelerator.is_available())
        mixed = "no" if precision == "fp32" else precision
        try:
            with patch_environment(**({"ACCELERATE_TORCH_DEVICE": device} if ":" in device else {})):
                made = Accelerator(cpu=cpu, mixed_precision=mixed, kwargs_handlers=[handler])
            # accelerate would go on in fp32 without a word.
            if precision == "fp16" and made.device.type == "cpu":
                raise ValueError("a CPU has no such")
        except ValueError as error:
            raise TrainingError(f"precision is {precision}: {error}; set it to bf16 or fp32") from error
        return made

    def added(self, values: Sequence[float]) -> list[float]:
        """Return the sums of these values over all processes."""
        if self.count == 1:
            return list(values)
        kind = torch.float32 if self.device.type == "mps" else torch.float64
        return self.accelerator.reduce(torch.tensor(values, dtype=kind, device=self.device), "sum").tolist()

    def whole(self, values: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Return the rows of all processes: each is one process's and zero in the others, so that the sum is exact."""
        if self.count == 1:
            return values
        return self.accelerator.reduce(values.to(self.device), "sum").cpu()

    def from_main(self, value: Any) -> Any:
        """Return the main process's value on all processes."""
        return broadcast_object_list([value])[0] if self.count > 1 else value

    def merged(self, values: dict) -> dict:
        """Return the entries of all processes, in the order of their keys."""
        found = gather_object([values]) if self.count > 1 else [values]
        return dict(sorted({key: value for some in found for key, value in some.items()}.items()))
