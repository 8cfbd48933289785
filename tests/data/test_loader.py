"""The loader against reading one clip after the other: same clips, same order, whatever dies, hangs or is left."""

import dataclasses
import gc
import multiprocessing
import os
import signal
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from clip_files import coloured_clips
from crews import BatchedCrew, InlineCrew
from deadly_reader import Told, same

from tcar.data.clip_views import ClipViews
from tcar.data.frame_cache import FrameCache
from tcar.data.loader import Loader
from tcar.data.ssv2 import Clip
from tcar.data.video import read_segments, resize
from tcar.data.views import AugmentConfig
from tcar.data.workers import Failure, isolated_map


def clips(*numbers: int) -> list[Clip]:
    return [Clip(str(number), Path(f"{number}.webm"), None, "", "", ()) for number in numbers]


def batched(numbers: range, size: int) -> list[list[Clip]]:
    return [clips(*numbers[start : start + size]) for start in range(0, len(numbers), size)]


def numbers(loaded) -> list[int]:
    """The numbers that `Told` gave for the clips that were read, after a look at the rest of what it gives."""
    if not loaded.arrays:
        return []
    frames, values = loaded.arrays
    assert frames.dtype == torch.uint8 and frames.shape == (len(loaded.offsets), 2, 3)
    assert frames[:, 0, 0].tolist() == [value // 10 % 251 for value in values.tolist()]
    return values.tolist()


def begun(folder: Path) -> list[tuple[str, int]]:
    """Which clips were begun, in their order, and by which process."""
    lines = (folder / "begun").read_text().splitlines() if (folder / "begun").exists() else []
    return [(name, int(process)) for name, process in map(str.split, lines)]


def until(condition, seconds: float = 60.0) -> None:
    """Wait for something that is sure to happen."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def workers() -> list[psutil.Process]:
    return [psutil.Process(process.pid) for process in multiprocessing.active_children()]


@pytest.fixture
def inline(monkeypatch):
    monkeypatch.setattr("tcar.data.loader.Crew", InlineCrew)


@pytest.mark.parametrize("workers", [1, 3])
def test_groups_come_in_order_and_a_bad_clip_takes_none_along(workers):
    """Clip 2 keeps its process busy while others are done; 3 kills it, 5 trips it, 7 never ends, 8 is known as cut."""
    told = Told({"2": "slow", "3": "exit", "5": "raise", "7": "hang", "8": "name"})
    plan = [clips(2, 4, 3), [], clips(3, 4), clips(5, 9), clips(7), clips(8, 1, 8), clips(1, 6, 0)]
    with Loader(told, workers=workers, time_limit=2.0) as loader:
        found = list(loader.groups(plan, epoch=4))
        assert [numbers(loaded) for loaded in found] == [[24, 44], [], [44], [94], [], [14], [14, 64, 4]]
        assert [loaded.offsets for loaded in found] == [[0, 1], [], [1], [1], [], [1], [0, 1, 2]]
        tripped = "reading it failed: RuntimeError: a bug"
        assert [loaded.broken for loaded in found] == [
            {2: "reading it crashed"}, {}, {0: "reading it crashed"}, {0: tripped}, {0: "reading it timed out"},
            {0: "truncated", 2: "truncated"}, {},
        ]  # fmt: skip
        assert loader.broken == {
            "3": "reading it crashed", "5": tripped, "7": "reading it timed out", "8": "truncated",
        }  # fmt: skip


@pytest.mark.parametrize("crew", [InlineCrew, BatchedCrew])
def test_a_clip_asked_for_twice_is_there_twice_however_they_come_back(monkeypatch, crew):
    """Both come back before the first group is taken: of old, the one was lost for the other."""
    monkeypatch.setattr("tcar.data.loader.Crew", crew)
    for told in (Told(), Told({"3": "name"})):
        found = list(Loader(told, workers=2, ahead=20).groups([clips(2, 3, 4, 5), clips(3), clips(3, 3, 1)]))
        kept = [[20, 30, 40, 50], [30], [30, 30, 10]] if not told.acts else [[20, 40, 50], [], [10]]
        assert [numbers(loaded) for loaded in found] == kept
        assert sum(len(loaded.broken) for loaded in found) == (4 if told.acts else 0)


class Moody:
    """Reads a clip whenever it is asked for it but once."""

    def __init__(self, fails_at: int):
        self.fails_at, self.asked = fails_at, 0

    def __call__(self, item):
        self.asked += 1
        return "truncated" if self.asked == self.fails_at else (1,)


@pytest.mark.parametrize(("fails_at", "outcomes"), [(1, [False, False, False]), (2, [True, False, False])])
def test_once_broken_a_clip_stays_so_whatever_was_read_meanwhile(monkeypatch, fails_at, outcomes):
    """Its later readings have begun before it fails, or not, depending on the time that others take."""
    for crew, ahead in ((InlineCrew, 1), (InlineCrew, 9), (BatchedCrew, 9)):
        monkeypatch.setattr("tcar.data.loader.Crew", crew)
        found = list(Loader(Moody(fails_at), workers=1, ahead=ahead).groups([clips(0)] * 3))
        assert [bool(loaded.offsets) for loaded in found] == outcomes, (crew, ahead)


def test_what_is_known_as_broken_is_not_tried_and_can_be_mended(tmp_path):
    told = Told({"1": "name"}, tmp_path)
    with Loader(told, workers=1) as loader:
        loader.broken["2"] = "missing"
        for _ in range(2):
            (found,) = loader.groups([clips(0, 1, 2)])
            assert numbers(found) == [0] and found.broken == {1: "truncated", 2: "missing"}
        assert sorted(name for name, _ in begun(tmp_path)) == ["0", "0", "1"]
        loader.broken = {}
        (found,) = loader.groups([clips(0, 1, 2)])
        assert numbers(found) == [0, 20]


def test_no_more_is_read_ahead_than_was_agreed(tmp_path):
    """With a clip that lets others wait: they stop at the limit until the group is there."""
    told = Told({"1": "wait"}, tmp_path)
    with Loader(told, workers=2, ahead=5) as loader:
        stream = loader.groups(batched(range(40), 4))
        taker = threading.Thread(target=lambda: next(stream), daemon=True)
        taker.start()
        until(lambda: len(begun(tmp_path)) == 9)  # the group asked for, and five
        time.sleep(0.5)
        assert {name for name, _ in begun(tmp_path)} == {str(number) for number in range(9)}
        (tmp_path / "1").touch()
        taker.join()
        until(lambda: len(begun(tmp_path)) == 13)
        time.sleep(0.5)
        assert len(begun(tmp_path)) == 13
        rest = [number for loaded in stream for number in numbers(loaded)]
        assert rest == [10 * number for number in range(4, 40)]


def test_groups_are_asked_for_as_they_are_needed(inline):
    """A plan of a million groups is not made at once."""
    made = []

    def endless():
        for number in range(10**6):
            made.append(number)
            yield clips(number)

    stream = Loader(Told(), workers=1, ahead=3).groups(endless())
    assert [numbers(next(stream))[0] for _ in range(10)] == [10 * number for number in range(10)]
    stream.close()
    assert len(made) < 20


def test_processes_stay_from_one_reading_to_the_next_even_where_one_was_left(tmp_path):
    with Loader(Told({"11": "slow"}, tmp_path), workers=2) as loader:
        stream = loader.groups(batched(range(10, 30), 2), epoch=1)
        assert numbers(next(stream)) == [101, 111]
        first = {worker.pid for worker in workers()}
        stream.close()
        found = [numbers(loaded) for loaded in loader.groups(batched(range(4), 2), epoch=2)]
        assert found == [[2, 12], [22, 32]]  # nothing of the reading that was left
        assert {worker.pid for worker in workers()} == first and len(first) == 2
        assert {process for _, process in begun(tmp_path)} <= first


def test_a_process_that_dies_with_nothing_to_do_is_replaced_and_no_clip_blamed():
    with Loader(Told(), workers=1) as loader:
        assert [numbers(loaded) for loaded in loader.groups([clips(1)])] == [[10]]
        (worker,) = workers()
        worker.send_signal(signal.SIGKILL)
        until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
        found = list(loader.groups([clips(2), clips(3)]))
        assert [numbers(loaded) for loaded in found] == [[20], [30]] and loader.broken == {}


def test_processes_and_threads_end_with_the_loader_however_it_ends():
    threads = threading.active_count()
    loader = Loader(Told({"3": "hang"}), workers=2)
    stream = loader.groups(batched(range(8), 2))
    next(stream)
    left = workers()
    loader.close()
    assert len(list(stream)) == 0
    assert [numbers(loaded) for loaded in loader.groups([clips(7)])] == [[70]]  # by new processes
    left += workers()
    del loader, stream
    dropped = Loader(Told(), workers=1)
    list(dropped.groups([clips(1)]))
    left += workers()
    del dropped
    gc.collect()
    until(lambda: not any(worker.is_running() for worker in left), 10)
    assert len(left) == 4 and threading.active_count() == threads


def test_errors_come_to_the_one_who_asks(inline):
    def broken_plan():
        yield clips(1)
        raise ValueError("a bug in the plan")

    with Loader(Told(), workers=1) as loader:
        stream = loader.groups(broken_plan())
        with pytest.raises(ValueError, match="a bug in the plan"):
            list(stream)
        first = loader.groups([clips(1), clips(2)])
        next(first)
        with pytest.raises(RuntimeError, match="close that iterator first"):
            next(loader.groups([clips(3)]))
        first.close()
        assert numbers(next(loader.groups([clips(3)]))) == [30]


@pytest.mark.parametrize("pin", [False, True])
def test_memory_is_page_locked_where_that_is_asked_for_and_only_there(inline, monkeypatch, pin):
    """There is no GPU here: what is asked of torch, and of which device the thread asks it."""
    asked, devices, empty = [], [], torch.empty
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: devices.append((device, threading.current_thread())))
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory, **k: asked.append(pin_memory) or empty(*a, **k))
    (found,) = Loader(Told(), workers=1, pin=pin).groups([clips(4, 5)])
    assert numbers(found) == [40, 50]
    assert asked == [pin, pin]
    assert [device for device, _ in devices] == [1] * pin
    assert all(thread is not threading.main_thread() for _, thread in devices)


def test_page_locked_memory_without_cuda_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="leave pin off"):
        Loader(Told(), pin=True)


def test_frames_from_files_and_from_the_cache(tmp_path):
    made = coloured_clips(tmp_path, 5)
    cut = tmp_path / "cut.webm"
    cut.write_bytes(made[0].path.read_bytes()[:300])
    made[3] = dataclasses.replace(made[3], path=cut)
    cache = FrameCache.open(tmp_path / "cache", 10**8)
    plain = ClipViews((4,), 24, False, AugmentConfig(24), {}, 0)
    for read in (plain, dataclasses.replace(plain, cache=cache), dataclasses.replace(plain, cache=cache)):
        with Loader(read, workers=1) as loader:
            first, second = loader.groups([made[:2], made[2:]])
        assert second.broken == {1: "truncated"} and second.offsets == [0, 2]
        for loaded, some in ((first, made[:2]), (second, [made[2], made[4]])):
            frames, labels = loaded.arrays
            assert labels.tolist() == [clip.label for clip in some]
            for ours, clip in zip(frames.numpy(), some, strict=True):
                np.testing.assert_array_equal(ours, resize(read_segments(clip.path, 4), 24))
    used = int((cache.folder / "used").read_text())
    assert used == sum(path.stat().st_size for path in cache.folder.glob("*.npy")) > 0


def test_what_a_process_gives_is_what_it_made():
    """Arrays of any size and layout, writable, in whatever they stand; and what cannot be sent is that item's fault."""
    kinds = [np.zeros((0, 3)), np.arange(6).reshape(2, 3).T, np.arange(20)[::3], np.full(10**6, 7, np.uint8)]
    kinds.append(np.float32(2))
    wanted = [{"a": kind, "b": [kind, "text"]} for kind in kinds] + [None]
    found = dict(isolated_map(same, [*wanted, threading.Lock], workers=2))
    assert found[5] is None and found[6] == Failure("crashed", "the process ended with exit code 1")
    for number, kind in enumerate(kinds):
        for ours in (found[number]["a"], found[number]["b"][0]):
            assert ours.dtype == kind.dtype and np.array_equal(ours, kind)
            assert not isinstance(ours, np.ndarray) or ours.flags.writeable


def test_a_process_has_its_next_item_before_anybody_asks_for_the_last(tmp_path):
    """Nobody asks on: one item more than there are processes is done, and no other is begun."""
    items = [(clip, 0) for clip in clips(*range(5))]
    with closing(isolated_map(Told(folder=tmp_path), items, workers=1)) as outcomes:
        first = next(outcomes)
        until(lambda: len(begun(tmp_path)) == 3)
        (process,) = workers()
        until(lambda: process.status() == psutil.STATUS_SLEEPING)
        assert [name for name, _ in begun(tmp_path)] == ["0", "1", "2"]
        assert sorted(number for number, _ in [first, *outcomes]) == list(range(5))


def test_a_crew_that_cannot_start_says_so(tmp_path):
    """A reader that the processes cannot import."""
    with Loader(Unloadable(), workers=1) as loader, pytest.raises(RuntimeError, match="could not start"):
        list(loader.groups([clips(1)]))


class Unloadable:
    def __reduce__(self):
        return os._exit, (1,)

    def __call__(self, item):
        return (1,)
