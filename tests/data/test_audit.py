import json
import mmap
import os
import time
from pathlib import Path

import numpy as np
import pytest
from videos import write_broken, write_video

from tcar.data import audit as module
from tcar.data.audit import (
    ClipHealth,
    audit,
    load_quarantine,
    quarantine_list,
    require_healthy,
)
from tcar.data.census import statistics
from tcar.data.container import REASONS
from tcar.data.health import MEMORY, check, check_within_limits, note, read_journal, stamp
from tcar.data.ssv2 import Clip, DatasetError
from tcar.data.workers import Failure, isolated_map, worker_count
from tcar.ground.processes import usable_cores


def clip(path: Path, label: int = 0, name: str = "") -> Clip:
    return Clip(name or path.stem, path, label, f"template {label}", "", ())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Three good clips of two classes, and one of every kind of broken file."""
    root = tmp_path_factory.mktemp("dataset")
    good = [clip(write_video(root / f"good{frames}.webm", frames), frames % 2) for frames in (13, 24, 37)]
    broken = [clip(path, name=reason) for reason, path in write_broken(root).items()]
    return good[:1] + broken + good[1:]


@pytest.fixture(scope="module")
def health(dataset):
    return audit(dataset, workers=2)


def test_every_broken_file_is_found_and_no_other(dataset, health):
    assert [found.id for found in health] == [entry.id for entry in dataset]
    assert {found.id: found.reason for found in health if not found.ok} == dict(
        zip(REASONS, REASONS, strict=True)
    )
    assert [(found.frames, found.width, found.height, found.rate) for found in health if found.ok] == [
        (13, 160, 120, 12.0),
        (24, 160, 120, 12.0),
        (37, 160, 120, 12.0),
    ]
    assert all(
        found.bytes == entry.path.stat().st_size
        for found, entry in zip(health, dataset, strict=True)
        if found.id != "missing"
    )


def test_an_interrupted_audit_goes_on(dataset, health, tmp_path, monkeypatch):
    journal = tmp_path / "unfinished.jsonl"
    assert audit(dataset, workers=1, journal=journal) == health  # whatever the number of processes
    lines = journal.read_text().splitlines(keepends=True)
    assert len(lines) == len(dataset)
    journal.write_text("".join(lines[:4]) + lines[4][:30])  # killed while it wrote
    asked = []

    def counted(function, clips, **options):
        asked.extend(clips)
        return isolated_map(function, clips, **options)

    monkeypatch.setattr(module, "isolated_map", counted)
    assert audit(dataset, workers=2, journal=journal) == health
    assert {entry.id for entry in asked} == {json.loads(line)["id"] for line in lines[4:]}
    assert {name: found for name, (found, _) in read_journal(journal).items()} == {found.id: found for found in health}


def test_a_file_that_changed_meanwhile_is_checked_again(tmp_path):
    path, journal = write_video(tmp_path / "a.webm", 13), tmp_path / "unfinished.jsonl"
    note(journal, ClipHealth("a", True, "", frames=99), stamp(path))
    assert audit([clip(path)], journal=journal)[0].frames == 99
    os.utime(path, ns=(0, 0))
    assert audit([clip(path)], journal=journal)[0].frames == 13


def test_a_journal_of_something_else(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"id": "1"}\n{}\n')
    with pytest.raises(DatasetError, match=r"x\.jsonl, line 1: not a finding"):
        read_journal(tmp_path / "x.jsonl")


def test_what_need_not_be_wrong_is_a_warning(tmp_path):
    times = np.cumsum([3, 4, 1, 2] * 8)[:31].tolist()
    uneven = check(clip(write_video(tmp_path / "uneven.webm", times=times)))
    phone = check(clip(write_video(tmp_path / "phone.mp4", codec="libx264", rate=25, rotation=90)))
    single = check(clip(write_video(tmp_path / "single.webm", 1)))
    plain = check(clip(write_video(tmp_path / "plain.webm")))
    assert [found.ok for found in (uneven, phone, single, plain)] == [True] * 4
    assert uneven.warnings == ("variable frame rate",)
    assert phone.warnings == ("rotated",)
    assert single.warnings == ("single frame",)
    assert plain.warnings == ()
    assert single.difference == 0 < plain.difference


def reserve(entry: Clip) -> bool:
    """Stands in for a decoder that is told of pictures of gigabytes."""
    sound = check_within_limits(entry).ok
    mmap.mmap(-1, MEMORY).close()  # reserved, not touched
    return sound


def test_the_memory_of_a_worker_is_bounded(dataset):
    ((_, outcome),) = isolated_map(reserve, dataset[:1])
    assert outcome.kind == "error" and "Cannot allocate memory" in outcome.detail


def test_the_quarantine_list_is_kept(health, tmp_path):
    path = tmp_path / "quarantine.json"
    path.write_text(json.dumps(quarantine_list(health)))
    assert load_quarantine(path) == dict(zip(REASONS, REASONS, strict=True))
    with pytest.raises(DatasetError, match="run the audit"):
        load_quarantine(tmp_path / "other.json")
    path.write_text("{}]")
    with pytest.raises(DatasetError, match="not a quarantine list"):
        load_quarantine(path)


def test_statistics_count_the_healthy(dataset, health):
    found = statistics(dataset, health)
    assert found["clips"] == 3
    assert found["classes"] == {"template 0": 1, "template 1": 2}
    assert found["imbalance"] == 2
    assert found["sizes"] == {"160x120": 3}
    assert found["frames"]["total"] == 13 + 24 + 37
    assert found["durations"]["median"] == pytest.approx(2, abs=0.01)
    assert json.loads(json.dumps(found)) == found


def test_too_many_broken_clips_are_the_fault_of_the_copy():
    health = [ClipHealth(str(number), number > 2, "" if number > 2 else "empty") for number in range(100)]
    require_healthy(health, 0.03)
    with pytest.raises(
        DatasetError, match=r"3 of 100 clips are broken \(3 empty\).*quarantine_threshold=0\.02"
    ):
        require_healthy(health, 0.02)


def behave(item: str) -> str:
    """Stands in for a decoder that a file can kill or hang."""
    if item.startswith("crash"):
        os.abort()
    if item.startswith("hang"):
        time.sleep(600)
    if item.startswith("raise"):
        raise ValueError(item)
    return item.upper()


def test_no_item_takes_another_with_it():
    items = ["a", "crash 1", "b", "crash 2", "hang", "c", "raise", "d"]
    outcomes = dict(isolated_map(behave, items, workers=2, time_limit=1.0))
    assert [outcomes[number] for number in (0, 2, 5, 7)] == ["A", "B", "C", "D"]
    kinds = {items[number]: found.kind for number, found in outcomes.items() if isinstance(found, Failure)}
    assert kinds == {"crash 1": "crashed", "crash 2": "crashed", "hang": "timed out", "raise": "error"}
    assert "ValueError: raise" in outcomes[6].detail


def test_a_file_that_kills_the_decoder_is_one_line_of_the_audit(monkeypatch, tmp_path):
    failures = [Failure("crashed", "exit code -11"), Failure("timed out", "no result within 60 s")]
    monkeypatch.setattr(module, "isolated_map", lambda *_, **__: enumerate(failures))
    found = audit([clip(tmp_path / "a.webm"), clip(tmp_path / "b.webm")])
    assert [(entry.ok, entry.reason, entry.detail) for entry in found] == [
        (False, "crashed the decoder", "exit code -11"),
        (False, "timed out", "no result within 60 s"),
    ]


def test_worker_count():
    assert worker_count(3) == 3
    assert worker_count(0) == usable_cores()
    with pytest.raises(ValueError, match="workers"):
        worker_count(-1)


def test_nothing_to_do():
    assert list(isolated_map(behave, [])) == []
