"""Imported before anything is trained: an epoch ends after so many steps, in this process and in those it starts.

For `memory.py`, which wants to know what the steps of a large training hold, and not to wait for all of them.
"""

from collections.abc import Mapping
from pathlib import Path

from tcar.stages import trainings
from tcar.stages.trainings import Job
from tcar.train.stepping import Slice, Stepper
from tcar.train.tokens import StoredTokens

MOST = 100
whole, plain = Stepper.slices, trainings._work


def slices(self: Stepper, epoch: int) -> list[list[Slice]]:
    return whole(self, epoch)[:MOST]


def work(one: dict[Path, Job], tokens: Mapping[str, StoredTokens]) -> None:
    """What a worker process does; that it is found in this module has the process import it."""
    plain(one, tokens)


Stepper.slices, trainings._work = slices, work
