"""The processes that share an extraction, on one machine or several: who this one is, and waiting for the others."""

import os
import time
from collections import Counter
from dataclasses import dataclass

from tcar.data.workers import worker_count
from tcar.features.making import StoreSpec, records
from tcar.features.packing import FeatureError
from tcar.features.store import DESCRIPTION

PATIENCE = 1800.0  # seconds a rank waits for others that make nothing new
POLL = 0.5  # seconds between two looks for what other ranks have made


@dataclass(frozen=True)
class Ranks:
    """This process among those of a run, as torchrun's environment tells it."""

    rank: int = 0
    world: int = 1
    local: int = 0
    local_world: int = 1

    @classmethod
    def here(cls) -> "Ranks":
        """Read RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE; without them, one process that does everything."""
        names = {"rank": "RANK", "world": "WORLD_SIZE", "local": "LOCAL_RANK", "local_world": "LOCAL_WORLD_SIZE"}
        ranks = cls(**{name: int(os.environ[variable]) for name, variable in names.items() if variable in os.environ})
        if not 0 <= ranks.rank < ranks.world:
            raise FeatureError(f"RANK is {ranks.rank} and WORLD_SIZE {ranks.world}; start the ranks with torchrun")
        return ranks

    def workers(self, asked: int) -> int:
        """Worker processes of this rank: as asked, or its share of the cores of its machine."""
        return asked or max(1, worker_count(0) // self.local_world)


def await_ranks(store: StoreSpec, batches: int, ranks: Ranks) -> None:
    """Wait for what the other ranks make: rank 0 for every batch, the others until it has completed the store.

    Raises FeatureError when nothing new has come for `PATIENCE` seconds: it names the batches and ranks that are late.
    """
    changed, before = time.monotonic(), -1
    while not (store.folder / DESCRIPTION).is_file():
        missing = sorted(set(range(batches)) - records(store.folder).keys())
        if not missing and ranks.rank == 0:
            return
        if len(missing) != before:
            changed, before = time.monotonic(), len(missing)
        elif time.monotonic() - changed > PATIENCE:
            raise FeatureError(_late(store, missing, ranks))
        time.sleep(POLL)


def _late(store: StoreSpec, missing: list[int], ranks: Ranks) -> str:
    if not missing:
        return f"rank 0 has not completed {store.folder} within {PATIENCE:g} s; look at its error, then extract again"
    by_rank = Counter(number % ranks.world for number in missing)
    some = ", ".join(map(str, missing[:10])) + (", …" if len(missing) > 10 else "")
    late = ", ".join(f"rank {rank} ({count})" for rank, count in sorted(by_rank.items()))
    return (
        f"{store.folder}: no new batch for {PATIENCE:g} s, {len(missing)} are missing ({some}) of {late}; look at what "
        "these ranks say and extract again, with any number of processes: what is there is kept"
    )
