"""Only what a clip itself does counts against it: faults that the machine has, injected where they come about."""

import errno
import io
import os
import resource
from pathlib import Path

import psutil
import pytest
from faulty import DYING, Faulty, StaleClip, sent
from videos import write_video

from tcar.data import workers
from tcar.data.archives import Source
from tcar.data.audit import audit
from tcar.data.container import VideoError
from tcar.data.loader import Loader
from tcar.data.machine import MachineError, fault_of, reason_of
from tcar.data.ssv2 import Clip
from tcar.data.unpack import Joined
from tcar.data.views import ProtocolReader
from tcar.data.worker_process import WorkerProcess
from tcar.data.workers import Failure, isolated_map

FULL, STALE = errno.ENOSPC, errno.ESTALE
READ = ProtocolReader("1", (4,))


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(workers, "PAUSE", 0.01)


def test_what_passes_costs_no_item_and_the_second_try_has_the_machine_to_itself(tmp_path):
    faults = [f"{name} {what} 1" for name, what in
              {"full": FULL, "stale": STALE, "files": errno.EMFILE, "io": errno.EIO, "killed": "die",
               "stalled": "stall", "late": "hang"}.items()]  # fmt: skip
    items = [item for pair in zip(faults, [f"sound{i}" for i in range(7)], strict=True) for item in pair]
    found = dict(isolated_map(Faulty(tmp_path), items, workers=2, time_limit=3.0))
    assert found == {number: item.split()[0].upper() for number, item in enumerate(items)}
    assert (tmp_path / "beside").read_text() == "0"


def test_a_fault_that_stays_ends_the_work_and_names_the_disk(tmp_path):
    what = FULL
    with pytest.raises(MachineError, match=f"{os.strerror(what)}: '/disk/of/bad'; this is the machine's fault"):
        list(isolated_map(Faulty(tmp_path), ["a", f"bad {what} 9", "b"], workers=1))
    assert (tmp_path / "bad").read_text() == "xx"


def test_a_process_that_is_kept_from_working_is_no_fault_of_its_item(tmp_path):
    """Stopped twice: were it the item, it would be of the broken ones."""
    with pytest.raises(MachineError, match="got no further in 1 s: it was stopped"):
        list(isolated_map(Faulty(tmp_path), ["bad stall 9"], workers=1, time_limit=1.0))


@pytest.mark.parametrize(("status", "spent", "kind"), [
    (psutil.STATUS_DISK_SLEEP, 0.1, "machine"), (psutil.STATUS_RUNNING, 0.3, "machine"),
    (psutil.STATUS_RUNNING, 9.0, "timed out"), (psutil.STATUS_SLEEPING, 0.1, "timed out"),
])  # fmt: skip
def test_how_a_late_process_stands_says_whose_fault_it_is(status, spent, kind):
    """A decoder that loops uses its core, one that waits for a disk or for a core does not."""
    worker = WorkerProcess(str, 10.0)
    worker._seen = type("seen", (), {"status": lambda: status})
    assert worker._lateness(spent).kind == kind


def test_a_process_that_dies_while_it_sends_takes_no_other_result_along():
    found = dict(isolated_map(sent, [0, DYING, 1, 2], workers=2, time_limit=60.0))
    assert found.pop(1) == Failure("crashed", "the process ended with exit code -9")
    assert {number: len(frames) for number, frames in found.items()} == {0: 1, 2: 1, 3: 1}


def clips(folder: Path, count: int) -> list[Clip]:
    return [Clip(str(i), write_video(folder / f"{i}.webm", 13 + i), 0, "", "", ()) for i in range(count)]


def test_a_disk_that_fails_while_a_file_is_read_is_told_from_a_damaged_file(tmp_path, monkeypatch):
    """libav takes the error for the end of the file; the file, read again, does not."""
    (clip,) = clips(tmp_path, 1)
    clip.path.write_bytes(clip.path.read_bytes()[: clip.path.stat().st_size // 2])
    assert READ((clip, 0)) == "truncated"
    opened = Path.open

    def failing(path, *arguments, **settings):
        if path == clip.path and "rb" in arguments:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return opened(path, *arguments, **settings)

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(OSError, match="Input/output error"):
        READ((clip, 0))


def test_too_many_open_files_are_no_fault_of_the_clip(tmp_path):
    (clip,) = clips(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(held) + 1, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            READ((clip, 0))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for handle in held:
            os.close(handle)
    assert len(READ((clip, 0))[0]) == 4


def test_a_dataset_that_is_gone_is_not_one_of_missing_videos(tmp_path):
    lost = Clip("1", tmp_path / "videos" / "1.webm", 0, "", "", ())
    with pytest.raises(MachineError, match="no such folder of videos"), Loader(READ, workers=1) as loader:
        next(loader.groups([[lost]]))
    assert loader.broken == {}
    lost.path.parent.mkdir()
    assert READ((lost, 0)) == "missing"


def test_an_audit_that_the_machine_ends_keeps_what_it_found_and_blames_no_clip(tmp_path, monkeypatch):
    made, journal = clips(tmp_path, 3), tmp_path / "journal"
    monkeypatch.setattr("tcar.data.audit.check_within_limits", StaleClip(made[2].id))
    with pytest.raises(MachineError, match="Stale file handle"):
        audit(made, workers=1, journal=journal)
    monkeypatch.undo()
    assert len(journal.read_text().splitlines()) == 2
    assert all(found.ok for found in audit(made, workers=1, journal=journal))


def test_an_archive_that_the_disk_does_not_give_is_not_one_to_download_again(tmp_path, monkeypatch):
    path = tmp_path / "part-00"
    path.write_bytes(b"x" * 10)
    source = Source(path, 10)
    assert Joined([source]).read(4) == b"xxxx"
    stale = io.BytesIO()
    stale.readinto = stale.read = lambda *_: (_ for _ in ()).throw(OSError(STALE, os.strerror(STALE)))
    monkeypatch.setattr(Source, "open", lambda _: stale)
    with pytest.raises(OSError, match=f"Stale file handle: '{path}'"):
        Joined([source]).read(4)


def test_faults_are_found_behind_other_errors_and_only_faults():
    shown = ValueError("no frames")
    shown.__cause__ = KeyError("x")
    shown.__cause__.__context__ = over = OSError(errno.EDQUOT, "over quota")
    assert fault_of(shown) is over
    assert fault_of(FileNotFoundError(errno.ENOENT, "x")) is None and fault_of(ValueError("x")) is None
    assert reason_of(VideoError("nowhere.webm", "truncated")) == "truncated"
