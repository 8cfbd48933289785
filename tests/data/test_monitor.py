import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import av
import pytest
from videos import write_video

from tcar.__main__ import command
from tcar.data import census
from tcar.data.audit import audit, load_quarantine
from tcar.data.health import ClipHealth, check, read_journal
from tcar.data.monitor import compare, compare_bytes, monitor
from tcar.data.ssv2 import SPLITS, Clip, DatasetError, load_split

pytestmark = pytest.mark.usefixtures("audit_inline")
LABELS = {"Pushing something from left to right": "0", "Showing something behind something": "1"}


@pytest.fixture
def dataset(tmp_path) -> Path:
    """Ten clips in the layout of the dataset, six, two and two of them in the splits."""
    root = tmp_path / "dataset"
    (root / "videos").mkdir(parents=True)
    (root / "labels.json").write_text(json.dumps(LABELS))
    templates = ["Pushing [something] from left to right", "Showing [something] behind [something]"]
    for first, count, split in ((1, 6, "train"), (7, 2, "validation"), (9, 2, "test")):
        entries = [{"id": str(name), "label": "", "template": templates[name % 2], "placeholders": ["Cup"]}
                   for name in range(first, first + count)]
        (root / f"{split}.json").write_text(json.dumps(entries))
    for name in range(1, 11):
        write_video(root / "videos" / f"{name}.webm", 8 + name, width=96, height=64)
    return root


def flip_quietly(path: Path) -> None:
    """Damage the last frame of a video so that it still decodes without an error."""
    with av.open(str(path)) as container:
        last = bytes([packet for packet in container.demux(video=0) if packet.size][-1])
    content, sound = path.read_bytes(), False
    for place in range(len(last) - 1, 0, -1):
        damaged = bytearray(content)
        damaged[content.index(last) + place] ^= 1
        path.write_bytes(damaged)
        if sound := check(Clip("x", path, None, "", "", ())).ok:
            break
    assert sound


def run(root: Path, *options: str) -> int:
    return command("audit", [str(root), "--workers", "1", *options])


def report(root: Path) -> dict:
    return json.loads((root / "audit" / "health.json").read_text())


def test_what_has_changed_from_one_audit_to_the_next(dataset, capsys):
    assert run(dataset) == 0
    assert report(dataset)["changes"]["new"] == [str(name) for name in range(1, 11)]
    assert load_quarantine(dataset / "audit" / "quarantine.json") == {}
    videos = dataset / "videos"
    kept = {name: (videos / f"{name}.webm").read_bytes() for name in (1, 2, 3)}
    (videos / "1.webm").write_bytes(kept[1][: len(kept[1]) // 2])
    (videos / "2.webm").unlink()
    flip_quietly(videos / "3.webm")
    assert run(dataset) == 1
    assert "more than" in capsys.readouterr().err
    changes = report(dataset)["changes"]
    assert {kind: ids for kind, ids in changes.items() if ids} == {
        "newly broken": ["1"], "vanished": ["2"], "altered": ["3"],
    }  # fmt: skip
    assert load_quarantine(dataset / "audit" / "quarantine.json") == {
        "1": "truncated", "2": "missing", "3": "altered",
    }  # fmt: skip
    assert run(dataset, "--threshold", "0.3") == 0
    assert not any(report(dataset)["changes"].values())  # and they are not forgotten
    assert set(load_quarantine(dataset / "audit" / "quarantine.json")) == {"1", "2", "3"}
    for name, content in kept.items():
        (videos / f"{name}.webm").write_bytes(content)
    assert run(dataset) == 0
    assert report(dataset)["changes"]["repaired"] == ["1", "2", "3"]
    history = [json.loads(line) for line in (dataset / "audit" / "history.jsonl").read_text().splitlines()]
    assert [entry["broken"] for entry in history] == [0, 3, 3, 0]
    assert history[1]["changes"]["newly broken"] == 1
    assert not (dataset / "audit" / "unfinished.jsonl").exists()


def test_other_bytes_can_be_accepted(dataset):
    run(dataset)
    write_video(dataset / "videos" / "5.webm", 20)
    assert run(dataset) == 1
    assert report(dataset)["reasons"] == {"altered": 1}
    assert run(dataset, "--accept") == 0
    assert run(dataset) == 0


def test_a_clip_of_another_folder_is_read_from_there(dataset, tmp_path, capsys):
    assert run(dataset, "--into", str(tmp_path / "elsewhere"), "--splits", "validation") == 0
    assert "2 clips, 0 quarantined" in capsys.readouterr().out
    assert not (dataset / "audit").exists()


def test_an_audit_of_one_split_keeps_what_is_known_of_the_others(dataset, capsys):
    kept = (dataset / "videos" / "7.webm").read_bytes()
    assert run(dataset) == 0
    (dataset / "videos" / "7.webm").write_bytes(b"")
    flip_quietly(dataset / "videos" / "9.webm")
    assert run(dataset) == 1
    capsys.readouterr()
    (dataset / "videos" / "1.webm").unlink()
    assert run(dataset, "--splits", "train") == 1
    assert "audited: train; of 4 other clips what was known is kept" in capsys.readouterr().out
    quarantined = {"1": "missing", "7": "empty", "9": "altered"}
    assert load_quarantine(dataset / "audit" / "quarantine.json") == quarantined
    found = report(dataset)
    assert {kind: ids for kind, ids in found["changes"].items() if ids} == {"vanished": ["1"]}
    assert (found["checked"], found["clips"], found["unlisted"]) == (
        10, {"train": 6, "validation": 2, "test": 2}, [],
    )  # fmt: skip
    assert found["statistics"]["validation"]["clips"] == found["statistics"]["test"]["clips"] == 1
    # With the list of a split gone nobody knows whose clips are left: they are kept as well.
    (dataset / "test.json").rename(dataset / "elsewhere.json")
    assert run(dataset, "--splits", "train", "validation") == 1
    assert load_quarantine(dataset / "audit" / "quarantine.json") == quarantined
    (dataset / "elsewhere.json").rename(dataset / "test.json")
    (dataset / "videos" / "7.webm").write_bytes(kept)
    assert run(dataset) == 1
    # Trusted is still what was first found sound.
    assert load_quarantine(dataset / "audit" / "quarantine.json") == {"1": "missing", "9": "altered"}
    assert report(dataset)["changes"]["new"] == []


def test_an_audit_of_one_split_leaves_the_work_of_an_interrupted_one(dataset):
    journal = dataset / "audit" / "unfinished.jsonl"
    splits = {split: load_split(dataset, split) for split in SPLITS}
    journal.parent.mkdir()
    audit(splits["train"] + splits["test"], 1, journal=journal)
    begun = read_journal(journal)
    assert run(dataset, "--splits", "test") == 0
    assert read_journal(journal) == {name: begun[name] for name in map(str, range(1, 7))}
    assert run(dataset) == 0
    assert not journal.exists()


def test_bad_input_is_another_exit_status(dataset, tmp_path, capsys):
    assert command("audit", [str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no such dataset folder" in capsys.readouterr().err
    assert command("audit", [str(tmp_path / "none.yaml")]) == 2
    assert run(dataset, "--threshold", "2") == 2
    assert "--threshold is 2" in capsys.readouterr().err


def test_a_parameter_file_says_where_and_how_many_may_be_broken(dataset, project, capsys):
    file = project / "mine.yaml"
    file.write_text(f"name: mine\nworkers: 1\ndataset: ssv2\ndata_root: {dataset}\nquarantine_threshold: 0.1\n")
    (dataset / "videos" / "4.webm").write_bytes(b"")
    assert command("audit", [str(file)]) == 0
    assert load_quarantine(project / "runs" / "mine" / "audit" / "quarantine.json") == {"4": "empty"}
    assert command("audit", [str(file), "--threshold", "0.05"]) == 1
    assert "1 empty" in capsys.readouterr().err


def test_two_audits_of_one_folder(dataset):
    (dataset / "audit").mkdir()
    with (dataset / "audit" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DatasetError, match="another audit"):
            monitor({"train": []}, dataset / "audit")


def test_the_command(dataset):
    command = [sys.executable, "-m", "tcar", "audit", str(dataset), "--workers", "1", "--splits", "test"]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("2 clips, 0 quarantined\nnew: 2 (9, 10)\n")


def test_repetitions_and_strangers(dataset):
    """The same film twice, once in another container; one file that no list names."""
    videos = dataset / "videos"
    with av.open(str(videos / "1.webm")) as source, av.open(str(videos / "7.mp4"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    (videos / "7.mp4").rename(videos / "7.webm")
    (videos / "99.webm").write_bytes((videos / "2.webm").read_bytes())
    (videos / os.fsdecode(b"\xe9.mp4")).touch()
    splits = {split: load_split(dataset, split) for split in SPLITS}
    found = monitor(splits, dataset / "audit", workers=1)
    assert found["duplicates"] == found["across splits"] == [["1", "7"]]
    assert found["unlisted"] == ["99.webm", "\\udce9.mp4"]
    assert report(dataset)["unlisted"] == found["unlisted"]
    assert found["statistics"]["train"]["clips"] == 6
    assert found["statistics"]["train"]["object words"] == {"cup": 6}
    assert found["statistics"]["train"]["template words"]["pushing"] == 3
    assert found["statistics"]["train"]["differences"]["clips"] == 6


def test_what_is_trusted_is_what_was_first_found_sound():
    sound = ClipHealth("1", True, "", digest="a")
    first = compare_bytes(sound, None)
    assert (first.ok, first.trusted) == (True, "a")
    broken = compare_bytes(ClipHealth("1", False, "truncated", digest="b"), first)
    assert (broken.reason, broken.trusted) == ("truncated", "a")
    other = compare_bytes(ClipHealth("1", True, "", digest="c"), broken)
    assert (other.ok, other.reason, other.trusted) == (False, "altered", "a")
    assert compare_bytes(sound, other).ok
    accepted = compare_bytes(ClipHealth("1", True, "", digest="c"), other, accept=True)
    assert (accepted.ok, accepted.trusted) == (True, "c")


def test_clips_that_are_no_longer_listed_have_vanished():
    sound = ClipHealth("1", True, "")
    assert compare({"1": sound, "2": sound}, [sound])["vanished"] == ["2"]


def test_what_is_unlike_the_rest():
    health = [ClipHealth(str(n), True, "", width=427, height=240, rate=12.0) for n in range(20)]
    health += [ClipHealth("tall", True, "", width=70, height=240, rate=12.0),
               ClipHealth("fast", True, "", width=427, height=240, rate=30.0),
               ClipHealth("broken", False, "empty")]
    assert census.unusual(health) == {"rate": ["fast"], "aspect": ["tall"]}
    mixed = [ClipHealth(str(n), True, "", width=100, height=100 + 50 * (n % 2), rate=12.0) for n in range(20)]
    assert census.unusual(mixed) == {}


def test_groups_of_classes_by_their_first_word():
    assert census.verb_groups(["Putting a", "Pushing b", "Putting c"]) == {
        "Putting": ["Putting a", "Putting c"], "Pushing": ["Pushing b"],
    }  # fmt: skip
    assert sum(map(len, census.verb_groups(list(LABELS)).values())) == 2


def test_differences_by_group():
    health = [ClipHealth(str(n), True, "", difference=float(n)) for n in range(4)] + [ClipHealth("x", False, "empty")]
    groups = {"0": "still", "1": "still", "2": "wild", "x": "wild"}
    found = {name: (part["clips"], part["median"]) for name, part in census.differences(health, groups).items()}
    assert found == {"still": (2, 0.5), "wild": (1, 2)}
