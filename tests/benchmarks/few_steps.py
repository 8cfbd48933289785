"""Imported before anything is trained or extracted: both end after a few steps, in this process and in those it starts.

For `memory.py`, which wants to know what the steps of a large run hold, and not to wait for all of them.
"""

import shutil
from collections import namedtuple
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

from tcar.data.ssv2 import Clip
from tcar.features import FeatureStore, extraction
from tcar.lab.params import Params
from tcar.lab.steps import fits, streams
from tcar.lab.steps.fits import Job
from tcar.train.stepping import Slice, Stepper
from tcar.train.tokens import StoredTokens

MOST = 100
BATCHES = 2  # of clips whose tokens are extracted: one for each of two workers
whole, plain, make = Stepper.slices, fits._work, extraction.make


class Enough(Exception):
    """The first batches are extracted."""


def slices(self: Stepper, epoch: int) -> list[list[Slice]]:
    return whole(self, epoch)[:MOST]


def work(one: dict[Path, Job], tokens: Mapping[str, StoredTokens]) -> None:
    """What a worker process does; that it is found in this module has the process import it."""
    plain(one, tokens)


def extract(run: Params, clips: dict[str, list[Clip]]) -> dict[str, FeatureStore]:
    """Begin to extract all of these clips, on a disk that has room for them, and give the stores that are complete."""

    def begin(jobs, batches, *how):
        make(jobs, batches[:BATCHES], *how)
        raise Enough

    disk = namedtuple("Usage", "total used free")(2**50, 0, 2**50)
    with mock.patch.object(extraction, "make", begin), mock.patch.object(shutil, "disk_usage", return_value=disk):
        try:
            streams.extract(run, clips)
        except Enough:
            return streams.stores(run)
    raise AssertionError("there was nothing to extract")


Stepper.slices, fits._work = slices, work
