"""Clips in the order asked for, read ahead by worker processes that survive a bad file.

With torch's DataLoader a process that dies ends the run, and a file that hangs stops it for ever. Here each clip has a
time limit, and a process that dies or hangs over one is replaced.
"""

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from tcar.data.ssv2 import Clip
from tcar.data.workers import Crew, Failure

CLIP_LIMIT = 60.0  # seconds; reading a clip takes a hundredth of one

Reader = Callable[[tuple[Clip, int]], tuple[np.ndarray | int, ...] | str]


@dataclass(frozen=True, eq=False)
class Loaded:
    """What was read of a group of clips.

    `offsets` are the places in the group of the clips that could be read. `arrays` has a tensor for each of the
    reader's values, with a row for each of these clips; it is empty where no clip could be read. `broken` has the
    reason for every other clip by its offset.
    """

    offsets: list[int]
    arrays: tuple[Shaped[Tensor, "b ..."], ...]
    broken: dict[int, str]


class Loader:
    """Reads groups of clips with processes that live as long as it does.

    `read` takes (clip, epoch) and returns arrays or numbers, of the same shapes for every clip, or as text why the clip
    has none; it runs in `workers` processes (0: one for every core) and must be picklable. It has `time_limit` seconds
    for a clip. A clip for which it returns text, raises, dies or takes too long is missing from its group, and stands
    with the reason in `broken`; it is not read again until it is taken out of there.

    At most `ahead` clips, but at least two for each process, are read beyond the group that is asked for, which bounds
    the memory. What comes out, and in what order, depends on `read`, the clips and `broken` alone.

    pin: put the arrays into page-locked memory, from which a GPU copies while it computes; raises ValueError where no
    CUDA is. Processes start with the first clip, and end with `close`, with `with`, or when the loader is deleted.
    """

    def __init__(self, read: Reader, *, workers: int = 0, time_limit: float = CLIP_LIMIT, ahead: int = 0,
                 pin: bool = False):  # fmt: skip
        if pin and not torch.cuda.is_available():
            raise ValueError("page-locked memory (pin) is for CUDA, which is not to be had here: leave pin off")
        self._crew = Crew(read, workers=workers, time_limit=time_limit)
        self.ahead, self.pin = max(ahead, 2 * self._crew.size), pin
        self.broken: dict[str, str] = {}
        self._open: _Reading | None = None
        weakref.finalize(self, self._crew.close)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End all processes, and the groups that are being read; a later call of `groups` starts new ones."""
        if self._open is not None:
            self._open.stop()
        self._crew.close()

    def groups(self, groups: Iterable[Sequence[Clip]], epoch: int = 0) -> Iterator[Loaded]:
        """Read groups of clips, one after the other, as `epoch` sees them; a clip may come more than once.

        Closing the iterator gives up what was not taken yet. Raises RuntimeError where another such iterator of this
        loader has been begun and not closed, and where processes cannot start.
        """
        if self._open is not None:
            raise RuntimeError("these clips are asked for while others are being read: close that iterator first")
        device = torch.cuda.current_device() if self.pin else None
        self._open = _Reading(self._crew, groups, epoch, self.ahead, dict(self.broken), device)
        try:
            for group, loaded in self._open:
                self.broken |= {group[offset].id: reason for offset, reason in loaded.broken.items()}
                yield loaded
        finally:
            self._open.stop()
            self._open = None


@dataclass(eq=False)
class _Group:
    clips: Sequence[Clip]
    found: dict[int, Any] = field(default_factory=dict)


class _Reading:
    """One way through groups of clips; a thread puts a group together while the user has the one before it."""

    def __init__(self, crew: Crew, groups: Iterable[Sequence[Clip]], epoch: int, ahead: int, broken: dict[str, str],
                 device: int | None):  # fmt: skip
        self.crew, self.epoch, self.ahead, self.broken, self.device = crew, epoch, ahead, broken, device
        self.unfinished: deque[_Group] = deque()
        self.todo, self.places = self._in_order(groups), {}
        self.given = self.taken = 0  # clips
        self.left = False
        self.thread = ThreadPoolExecutor(1, "groups", self._choose_device)

    def __iter__(self) -> Iterator[tuple[Sequence[Clip], Loaded]]:
        """Yield groups and what was read of them; an error of the thread is raised here."""
        coming = self.thread.submit(self._next)
        while not self.left and (found := coming.result()) is not None:
            self.taken += len(found[0])
            coming = self.thread.submit(self._next)
            yield found

    def stop(self) -> None:
        """End the thread; the processes stay, and what they hold is thrown away."""
        self.left = True
        self.crew.forget()  # which ends the thread's waiting
        self.thread.shutdown(cancel_futures=True)
        self.crew.forget()

    # --- in the thread -----------------------------------------------------------------------------------

    def _choose_device(self) -> None:
        if self.device is not None:
            torch.cuda.set_device(self.device)  # else page-locked memory would open the first one as well

    def _next(self) -> tuple[Sequence[Clip], Loaded] | None:
        """Return the next group and what was read of it; None after the last."""
        while not self.left:
            self._deal()
            if not self.unfinished:
                break
            group = self.unfinished[0]
            if len(group.found) == len(group.clips):
                self.unfinished.popleft()
                return group.clips, self._loaded(group)
            if (outcome := self.crew.collect()) is not None:
                group, offset = self.places.pop(outcome[0])
                group.found[offset] = outcome[1]
        return None

    def _deal(self) -> None:
        """Give out as many clips as may be read ahead."""
        while self.given < self.taken + self.ahead + (len(self.unfinished[0].clips) if self.unfinished else 0):
            if (item := next(self.todo, None)) is None:
                return
            group, offset = item
            clip = group.clips[offset]
            if clip.id in self.broken:
                group.found[offset] = self.broken[clip.id]
            else:
                self.places[self.given] = item
                self.crew.give(self.given, (clip, self.epoch))
            self.given += 1

    def _in_order(self, groups: Iterable[Sequence[Clip]]) -> Iterator[tuple[_Group, int]]:
        for clips in groups:
            group = _Group(clips)
            self.unfinished.append(group)
            yield from ((group, offset) for offset in range(len(clips)))

    def _loaded(self, group: _Group) -> Loaded:
        broken = {}
        for offset, clip in enumerate(group.clips):
            outcome = group.found[offset]
            reason = _reason(outcome) if isinstance(outcome, Failure) else outcome if isinstance(outcome, str) else ""
            # Once broken, always: a second reading may have begun before the first failed, or not, as it happens.
            if reason := self.broken.get(clip.id, reason):
                broken[offset] = self.broken[clip.id] = reason
        offsets = [offset for offset in range(len(group.clips)) if offset not in broken]
        values = zip(*(group.found[offset] for offset in offsets), strict=True)
        return Loaded(offsets, tuple(map(self._stacked, values)), broken)

    def _stacked(self, values: Sequence[np.ndarray | int]) -> Shaped[Tensor, "b ..."]:
        first = np.asarray(values[0])
        kind = torch.from_numpy(np.empty(0, first.dtype)).dtype
        stacked = torch.empty((len(values), *first.shape), dtype=kind, pin_memory=self.device is not None)
        target = stacked.numpy()  # torch would copy with threads of its own
        for row, value in enumerate(values):
            target[row] = value
        return stacked


def _reason(failure: Failure) -> str:
    if failure.kind == "error":
        return f"reading it failed: {failure.detail.strip().splitlines()[-1]}"
    return f"reading it {failure.kind}"
