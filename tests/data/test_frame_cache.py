"""The cache gives the frames that decoding gives, holds its limit whoever writes, and forgets files that changed."""

import errno
import multiprocessing
import os
import socket

import numpy as np
import pytest
from videos import read_number, write_video

from tcar.data.container import VideoError
from tcar.data.frame_cache import FrameCache
from tcar.data.video import read_frames

SIZE = 31 * 120 * 160 * 3 + 128  # bytes that a clip of these tests takes


@pytest.fixture
def clip(tmp_path):
    return write_video(tmp_path / "clip.webm")


def used(cache):
    return int((cache.folder / "used").read_text())


def stored(folder):
    return sorted(path.name for path in folder.glob("*.npy"))


def test_frames_are_those_of_decoding_before_and_after_they_are_kept(tmp_path, clip):
    cache, wanted = FrameCache.open(tmp_path / "cache", 10 * SIZE), [30, 0, 7, 7]
    expected = read_frames(clip, wanted)
    assert np.array_equal(cache.read(clip, wanted), expected) and len(stored(cache.folder)) == 1
    again = cache.read(clip, wanted)
    assert np.array_equal(again, expected) and again.flags.writeable
    assert [read_number(frame) for frame in again] == wanted
    assert cache.count(clip) == 31
    assert used(cache) == SIZE == (cache.folder / stored(cache.folder)[0]).stat().st_size


def test_what_is_kept_is_read_without_the_decoder(tmp_path, clip, monkeypatch):
    cache = FrameCache.open(tmp_path / "cache", 10 * SIZE)
    cache.read(clip, [0])
    monkeypatch.setattr("tcar.data.frame_cache.Video", None)
    assert read_number(cache.read(clip, [5])[0]) == 5


def test_beyond_the_limit_clips_are_decoded_and_nothing_is_dropped(tmp_path):
    clips = [write_video(tmp_path / f"{i}.webm", rate=12 + i) for i in range(3)]
    cache = FrameCache.open(tmp_path / "cache", 2 * SIZE + 1)
    for _ in range(2):
        for clip in clips:
            assert np.array_equal(cache.read(clip, [4]), read_frames(clip, [4]))
        assert len(stored(cache.folder)) == 2 and used(cache) == 2 * SIZE
    kept = stored(cache.folder)
    reopened = FrameCache.open(tmp_path / "cache", 2 * SIZE + 1)
    reopened.read(clips[2], [0])
    assert stored(cache.folder) == kept and used(reopened) == 2 * SIZE


def test_a_file_that_changed_is_decoded_anew(tmp_path, clip):
    cache = FrameCache.open(tmp_path / "cache", 10 * SIZE)
    cache.read(clip, [0])
    write_video(clip, frames=20)
    os.utime(clip, ns=(1, 1))
    assert cache.count(clip) == 20
    with pytest.raises(IndexError, match="frames 25 to 25 asked of 20"):
        cache.read(clip, [25])


def test_an_entry_that_is_cut_short_is_written_again(tmp_path, clip):
    cache = FrameCache.open(tmp_path / "cache", 10 * SIZE)
    cache.read(clip, [0])
    entry = cache.folder / stored(cache.folder)[0]
    entry.write_bytes(entry.read_bytes()[:1000])
    with pytest.raises(ProcessLookupError):
        os.kill(gone := 2**22 + 1, 0)  # above the largest number of a process
    left_over = cache.folder / f".{socket.gethostname()}~{gone}~x.npy"
    left_over.write_bytes(b"cut off")
    cache = FrameCache.open(tmp_path / "cache", 10 * SIZE)
    assert used(cache) == 1000 and not left_over.exists()
    assert read_number(cache.read(clip, [9])[0]) == 9


def test_a_broken_video_is_an_error_and_is_not_kept(tmp_path, clip):
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    cache = FrameCache.open(tmp_path / "cache", 10 * SIZE)
    with pytest.raises(VideoError):
        cache.read(clip, [0])
    assert stored(cache.folder) == [] and used(cache) == 0


def _read_all(cache, clips):
    for clip in clips:
        cache.read(clip, [0])


def test_processes_share_one_limit(tmp_path):
    clips = [write_video(tmp_path / f"{i}.webm", rate=12 + i) for i in range(6)]
    cache = FrameCache.open(tmp_path / "cache", 3 * SIZE)
    context = multiprocessing.get_context("spawn")
    crew = [context.Process(target=_read_all, args=(cache, order)) for order in (clips, clips[::-1])]
    for process in crew:
        process.start()
    for process in crew:
        process.join()
    assert [process.exitcode for process in crew] == [0, 0]
    assert 0 < len(stored(cache.folder)) <= 3
    assert used(cache) <= 3 * SIZE


def _full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_costs_the_cache_and_no_clip(tmp_path, monkeypatch, caplog):
    """The first clip was kept before the disk was full; of the next nothing stays, and no third one is tried."""
    clips = [write_video(tmp_path / f"{i}.webm", rate=12 + i) for i in range(3)]
    cache = FrameCache.open(tmp_path / "cache", 10 * SIZE)
    cache.read(clips[0], [0])
    save, asked = np.save, []
    monkeypatch.setattr(np, "save", lambda file, frames: (asked.append(1), save(file, frames[:3]), _full()))
    for clip in clips:
        assert np.array_equal(cache.read(clip, [30, 2]), read_frames(clip, [30, 2]))
    assert len(asked) == 1 and len(list(cache.folder.glob("*.npy"))) == 1
    assert caplog.text.count("No space left on device") == 1 and "frame_cache_gb" in caplog.text
    monkeypatch.undo()
    assert used(FrameCache.open(cache.folder, 10 * SIZE)) == SIZE


def test_a_disk_that_takes_no_byte_more_and_one_that_may_not_be_written_cost_no_clip(tmp_path, clip, monkeypatch):
    cache = FrameCache.open(tmp_path / "cache", 10 * SIZE)
    monkeypatch.setattr(os, "open", _full)
    assert read_number(cache.read(clip, [7])[0]) == 7
    assert stored(cache.folder) == []


def test_a_cache_without_room_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds nothing"):
        FrameCache.open(tmp_path, 0)
