"""What the audit says of clips that decord sees otherwise: real clips, and files that are wrong in known ways."""

from dataclasses import replace
from pathlib import Path

import pytest
from deadly_reader import Told
from videos import write_video

from tcar.data import second_opinion as module
from tcar.data.audit import audit
from tcar.data.health import ClipHealth
from tcar.data.second_opinion import disagreements, second_opinion
from tcar.data.ssv2 import Clip

pytestmark = pytest.mark.usefixtures("audit_inline")
CLIPS = Path(__file__).parents[3] / "shared" / "clips"


def clip(path: Path) -> Clip:
    return Clip(path.stem, path, None, "", "", ())


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the real clips are not there")
def test_real_clips_are_read_alike():
    clips = [clip(path) for path in sorted(CLIPS.iterdir())]
    health = [ClipHealth(clip.id, True, "") for clip in clips]
    found = second_opinion(clips, health, len(clips), 0, workers=1)
    assert (found["clips"], found["broken"], found["differs"]) == (len(clips), 0, [])


@pytest.mark.parametrize(("name", "options", "what"), [
    ("b_frames.avi", {"codec": "mpeg4", "rate": 25, "bf": "2", "qscale": "2"}, "pictures"),
    ("stream.ts", {"codec": "libx264", "bf": "2"}, "not opened"),
    ("turned.mp4", {"codec": "libx264", "rotation": 180}, ""),
])  # fmt: skip
def test_files_that_decord_is_known_to_take_for_others(tmp_path, name, options, what):
    found = disagreements(write_video(tmp_path / name, 60, **options))
    assert ", ".join(found) == what
    assert str(tmp_path) not in " ".join(found.values())


def test_a_clip_that_is_turned_is_told_from_other_pictures(tmp_path):
    path = write_video(tmp_path / "clip.mp4", codec="libx264", rotation=90)
    assert disagreements(path, upright=False) == {"orientation": "as shown"}


def test_what_is_broken_and_read_all_the_same(tmp_path):
    whole = write_video(tmp_path / "whole.webm", 24)
    (tmp_path / "cut.webm").write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    (tmp_path / "empty.webm").touch()
    (tmp_path / "none.webm").write_bytes(b"no video at all" * 100)
    clips = [clip(tmp_path / f"{name}.webm") for name in ("whole", "cut", "empty", "none")]
    health = audit(clips, 1)
    assert [found.ok for found in health] == [True, False, False, False]
    found = second_opinion(clips, health, 1, 0, workers=1)
    assert (found["clips"], found["broken"]) == (1, 2)
    assert [(row["id"], row["what"]) for row in found["differs"]] == [("cut", "read all the same")]


def test_clips_are_drawn_by_the_seed_and_none_are_asked_for(tmp_path, monkeypatch):
    clips = [clip(write_video(tmp_path / f"{number}.webm", 8, width=96, height=64)) for number in range(5)]
    health = audit(clips, 1)
    asked = []
    monkeypatch.setattr(module, "isolated_map", lambda _, items, **options: asked.append(items) or [])
    for seed in (1, 1, 2):
        second_opinion(clips, health, 3, seed)
    drawn = [[found.id for found, _ in items] for items in asked]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(len(set(ids)) == 3 for ids in drawn)
    assert second_opinion(clips, health, 0, 0)["clips"] == 0 and asked[-1] == []


def test_a_crash_and_a_hang_of_the_other_reader_are_findings(tmp_path, monkeypatch):
    good = clip(write_video(tmp_path / "good.webm", 8, width=96, height=64))
    deadly = [replace(good, id=act) for act in ("exit", "hang")]
    monkeypatch.setattr(module, "Comparison", lambda upright: Told({"exit": "exit", "hang": "hang"}))
    monkeypatch.setattr(module, "TIME_LIMIT", 2.0)
    found = second_opinion(deadly, audit([good], 1) * 2, 2, 0, workers=1)
    assert {row["id"]: row["what"] for row in found["differs"]} == {"exit": "crash", "hang": "time-out"}
