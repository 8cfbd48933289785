"""Unpacking that is killed or interrupted at any moment goes on, and ends with the same dataset."""

import gzip
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from archive_files import VIDEOS, annotations, cut, digests, invent, labels_zip, report, tar, wanted, write, zipped

from tcar.data import archives, unpack


def test_progress_counts_every_megabyte(folders):
    downloads, dataset = folders
    videos = invent(len(VIDEOS), 100_000, seed=1)
    whole = gzip.compress(tar(videos), compresslevel=1, mtime=0)
    write(downloads, cut(whole))
    (archive,) = archives.survey(downloads).archives
    assert archive.size == len(whole)
    dataset.mkdir()
    with unpack.Joined(archive.beginning()) as stream:
        ticks = sum(1 for _ in unpack.store_videos(stream, dataset, {}, []))
    assert ticks == math.ceil(len(whole) / 1e6) > 2
    assert digests(dataset) == wanted(videos)


MANY = invent(1500, 3000, seed=2)


ALL_OF_MANY = wanted(MANY)


@pytest.fixture(scope="module", params=["parts", "zip"])
def many(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    if request.param == "zip":
        files = {"videos.zip": zipped({f"{i}.webm": content for i, content in MANY.items()})}
    else:
        files = cut(gzip.compress(tar(MANY), compresslevel=1, mtime=0))
    write(folder, files | labels_zip(videos=tuple(MANY)))
    return folder


def start(downloads: Path, dataset: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "tcar", "prepare", str(downloads), str(dataset)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2],
        # A shell that starts the tests in the background has them ignore an interrupt, and what they start as well.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def stored(dataset: Path) -> int:
    folder = dataset / "videos"
    return sum(not name.startswith(".") for name in os.listdir(folder)) if folder.is_dir() else 0


def wait_for(process: subprocess.Popen, dataset: Path, count: int) -> None:
    while process.poll() is None and stored(dataset) < count:
        time.sleep(0.001)


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_any_moment_and_called_again_gives_the_same(many, tmp_path, seed):
    rng = random.Random(seed)
    for share in (0.0, *sorted(rng.random() * 0.9 for _ in range(3))):
        process = start(many, tmp_path)
        wait_for(process, tmp_path, round(share * len(MANY)))
        time.sleep(rng.random() * (0.02 if share else 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode in (0, -signal.SIGKILL)
        for name, digest in digests(tmp_path / "videos").items() if stored(tmp_path) else ():
            assert name.startswith(".") or digest == ALL_OF_MANY[name]  # nothing half-written has a name
    process = start(many, tmp_path)
    output, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    assert digests(tmp_path / "videos") == ALL_OF_MANY
    assert report(tmp_path)["complete"]
    assert {path.name for path in tmp_path.iterdir()} == {
        *annotations(), "test-answers.csv", "videos", "prepare.json", ".prepare.lock",
    }  # fmt: skip


def test_interrupted_by_hand_it_leaves_nothing_half_done(many, tmp_path):
    process = start(many, tmp_path)
    wait_for(process, tmp_path, 200)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert b"the same command goes on here" in errors
    assert b"Traceback" not in errors
    left = digests(tmp_path / "videos")
    assert 200 <= len(left) < len(MANY)
    assert left.items() <= ALL_OF_MANY.items()
    assert start(many, tmp_path).wait() == 0
    assert digests(tmp_path / "videos") == ALL_OF_MANY
