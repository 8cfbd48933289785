"""Archives written by tarfile and zipfile, in every form the real ones come in, become the same dataset."""

import errno
import gzip
import hashlib
import io
import json
import math
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from archive_files import (
    FORMS,
    LABELS_ZIP,
    SPLITS,
    STEM,
    VIDEOS,
    WHOLE,
    annotations,
    bare,
    cut,
    damaged_first,
    invent,
    labels_zip,
    one_file,
    only_later,
    page_as_archive,
    page_as_first,
    plain_tar,
    shortened,
    shortened_zip,
    tar,
    unfinished,
    unpacked,
    videos_in_a_zip,
    web_page,
    without_two,
    wrapped_each,
    write,
    zipped,
)

from tcar.data import archives, prepare, unpack
from tcar.data.ssv2 import load_split


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder, hidden ones too."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def wanted(videos: dict[str, bytes]) -> dict[str, str]:
    return {f"{i}.webm": hashlib.sha256(content).hexdigest() for i, content in videos.items()}


EVERYTHING = wanted(VIDEOS)


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    (tmp_path / "downloads").mkdir()
    return tmp_path / "downloads", tmp_path / "dataset"


def run(*folders: Path, options: tuple[str, ...] = ()) -> int:
    return prepare.main([*map(str, folders), *options])


def report(dataset: Path) -> dict:
    return json.loads((dataset / "prepare.json").read_text())


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_dataset(folders, form, capsys):
    downloads, dataset = folders
    write(downloads, form() | labels_zip())
    assert run(*folders) == 0
    assert digests(dataset / "videos") == EVERYTHING
    found = report(dataset)
    assert (found["complete"], found["videos"], found["listed"]) == (True, 60, SPLITS)
    assert found["bytes"] == sum(map(len, VIDEOS.values()))
    assert found["missing"] == found["surplus"] == found["refused"] == []
    clips = [clip for split in SPLITS for clip in load_split(dataset, split)]
    assert {clip.id: clip.path.read_bytes() for clip in clips} == VIDEOS
    assert capsys.readouterr().out.endswith("complete\n")


@pytest.mark.parametrize("form", ["zip", "folder", "old", "old zip", "both", "in the dataset"])
def test_the_label_files_in_every_form(folders, form):
    downloads, dataset = folders
    old = annotations(prefix="something-something-v2-")
    if form == "both":
        old = {name: content.replace(b"pen", b"pencil") for name, content in old.items()}
    files = {
        "zip": labels_zip(),
        "folder": {f"labels/{name}": content for name, content in annotations().items()},
        "old": old,
        "old zip": labels_zip(prefix="something-something-v2-"),
        "both": {f"older/{name}": content for name, content in old.items()} | labels_zip(),
        "in the dataset": {f"../dataset/labels/{name}": content for name, content in annotations().items()},
    }
    write(downloads, one_file() | files[form])
    assert run(*folders) == 0
    clip = load_split(dataset, "train")[0]
    assert (clip.caption, clip.label) == ("holding a pen", 0)
    if form != "in the dataset":
        assert {name: (dataset / name).read_bytes() for name in annotations()} == annotations()


def test_two_label_files_that_differ(folders, capsys):
    downloads, _ = folders
    changed = {f"other/{name}": content.replace(b"pen", b"pin") for name, content in annotations().items()}
    write(downloads, one_file() | labels_zip() | changed)
    assert run(*folders) == 2
    error = capsys.readouterr().err
    assert "train.json" in error and LABELS_ZIP in error and "differ; remove the one" in error


@pytest.mark.parametrize("left_out", ["labels.json", "train.json", "test.json"])
def test_label_files_that_are_missing(folders, left_out, capsys):
    downloads, dataset = folders
    write(downloads, one_file() | {k: v for k, v in annotations().items() if k != left_out})
    assert run(*folders) == 2
    assert f"no {left_out} in the downloads" in capsys.readouterr().err
    assert not (dataset / "videos").exists()
    assert run(*folders, options=("--allow-missing",)) == (2 if left_out == "labels.json" else 0)


@pytest.mark.parametrize(
    ("form", "messages"),
    [
        (without_two, [f"part 05 is missing ({STEM}-05)", f"part 11 is missing ({STEM}-11)"]),
        (only_later, ["part 00 is missing", "part 01 is missing"]),
        (shortened, [f"{STEM}-05: cut short, "]),
        (shortened_zip, ["part 05 is missing", f"{STEM}-05.zip: a zip that is damaged or cut short"]),
        (unfinished, ["part 05 is missing", f"{STEM}-05.crdownload: a download that has not ended"]),
        (web_page, [f"{STEM}-19: a web page"]),
        (page_as_first, [f"{STEM}-00: a web page"]),
        (damaged_first, [f"{STEM}-00: does not begin as an archive"]),
        (page_as_archive, ["there is no archive", f"{STEM}.tar.gz: begins neither as"]),
        (videos_in_a_zip, ["there is no archive", "archive.zip: a zip of 60 videos"]),
        (dict, ["60 of 60 listed videos are not in", "there is no archive among the 1 files"]),
    ],
)
def test_what_is_wrong_is_named_before_anything_is_unpacked(folders, form, messages, capsys):
    downloads, dataset = folders
    write(downloads, form() | labels_zip())
    assert run(*folders) == 2
    error = capsys.readouterr().err
    assert all(message in error for message in messages), error
    assert digests(dataset / "videos") == {}


def test_the_published_set_is_known_by_its_size(folders, monkeypatch, capsys):
    downloads, dataset = folders
    parts = bare()
    last = parts.popitem()
    write(downloads, parts | labels_zip())
    monkeypatch.setattr(prepare, "FULL_SET", len(VIDEOS))
    monkeypatch.setattr(prepare, "FULL_BYTES", len(WHOLE))
    assert run(*folders) == 2
    assert "19 file(s), of the 0.0 GB that were published: the last part is missing" in capsys.readouterr().err
    assert digests(dataset / "videos") == {}
    write(downloads, dict([last]))
    assert run(*folders) == 0


def test_a_part_cut_short_keeps_what_comes_before_and_is_gone_on_from(folders, capsys):
    downloads, dataset = folders
    parts = {name: content for name, content in bare().items() if not name.endswith(("18", "19"))}
    parts[f"{STEM}-17"] = parts[f"{STEM}-17"][:-100]  # now the last one: it may be shorter
    write(downloads, parts | labels_zip())
    assert run(*folders) == 1
    output = capsys.readouterr().out
    assert f"{STEM}-17, byte {len(parts[f'{STEM}-17']):,}: the archive goes on here" in output
    assert output.endswith("not complete\n")

    kept = digests(dataset / "videos")
    length = len(gzip_prefix(b"".join(parts.values())))
    whole_before = [identifier for identifier, end in ends(gzip.decompress(WHOLE)).items() if end <= length]
    assert kept == wanted({i: VIDEOS[i] for i in VIDEOS if f"{i}.webm" in kept})
    # The last one before the cut is not vouched for by a header after it.
    assert len(whole_before) - 1 <= len(kept) <= len(whole_before)
    assert report(dataset)["missing"] == sorted((i for i in VIDEOS if f"{i}.webm" not in kept), key=int)

    written = {path.name: path.stat().st_mtime_ns for path in (dataset / "videos").iterdir()}
    write(downloads, bare())
    assert run(*folders) == 0
    again = {path.name: path.stat().st_mtime_ns for path in (dataset / "videos").iterdir()}
    assert {name: again[name] for name in written} == written
    assert "only what is missing or differs is written" in capsys.readouterr().err
    assert digests(dataset / "videos") == EVERYTHING


def gzip_prefix(data: bytes) -> bytes:
    """As much as a cut gzip file yields, by the library's own reader, byte by byte at the end."""
    reader, found = gzip.GzipFile(fileobj=io.BytesIO(data)), bytearray()
    try:
        while piece := reader.read1(1):
            found += piece
    except EOFError:
        pass
    return bytes(found)


def ends(content: bytes) -> dict[str, int]:
    """Where each video's data ends in a tar."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        files = [member for member in archive if member.isfile()]
    return {Path(member.name).stem: member.offset_data + member.size for member in files}


def test_a_shortened_part_that_cannot_be_seen_spoils_no_video(folders, capsys):
    downloads, dataset = folders
    whole = gzip.compress(tar(VIDEOS), compresslevel=0, mtime=0)  # stored: what comes after the gap is read as if sound
    middle = int(len(whole) * 0.6)
    for gap in (1, 512, 5000):
        write(downloads, {f"{STEM}-00": whole[: middle - gap], f"{STEM}-01": whole[middle:]} | labels_zip())
        assert run(*folders) == 1
        assert f"{STEM}-01, byte" in capsys.readouterr().out
        stored = digests(dataset / "videos")
        assert 20 < len(stored) < len(VIDEOS)
        assert stored.items() <= EVERYTHING.items()


@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_part_is_told_and_mended_by_a_sound_one(folders, seed, capsys):
    downloads, dataset = folders
    rng = random.Random(seed)
    damaged = bytearray(gzip.compress(tar(VIDEOS), compresslevel=rng.choice((0, 6)), mtime=0))
    sound = bytes(damaged)
    damaged[rng.randrange(2000, len(damaged))] ^= 1 << rng.randrange(8)
    write(downloads, cut(bytes(damaged)) | labels_zip())
    assert run(*folders) == 1
    assert "damaged here or before" in capsys.readouterr().out
    assert not report(dataset)["complete"]
    assert run(*folders, options=("--allow-missing",)) == 1
    write(downloads, cut(sound))
    assert run(*folders) == 0
    assert digests(dataset / "videos") == EVERYTHING


def test_an_unreadable_header_is_not_taken_for_the_end(folders, capsys):
    downloads, dataset = folders
    content = bytearray(tar(VIDEOS))
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        thirtieth = archive.getmembers()[30]
    content[thirtieth.offset] ^= 1
    write(downloads, {f"{STEM}.tar": bytes(content)} | labels_zip())
    assert run(*folders) == 1
    assert "unreadable header" in capsys.readouterr().out
    assert len(digests(dataset / "videos")) == 28  # of 29 before it; nothing sound comes after the last one
    write(downloads, plain_tar())
    assert run(*folders) == 0
    assert digests(dataset / "videos") == EVERYTHING


def test_a_wrong_checksum_is_told_until_the_archive_has_been_read_to_its_end(folders, capsys):
    downloads, dataset = folders
    write(downloads, {f"{STEM}.tar.gz": WHOLE[:-8] + b"\0\0\0\0" + WHOLE[-4:]} | labels_zip())
    for _ in range(2):
        assert run(*folders) == 1
        assert "CRC" in capsys.readouterr().out
    (downloads / f"{STEM}.tar.gz").unlink()
    last = list(VIDEOS)[-1]  # no sound end vouches for it
    assert report(dataset)["missing"] == [last]
    write(downloads, {f"{last}.webm": VIDEOS[last]})
    assert run(*folders) == 2
    assert "was not read to its end" in capsys.readouterr().err
    write(downloads, one_file())
    assert run(*folders) == 0


def test_a_damaged_zip_names_its_part(folders, capsys):
    downloads, _ = folders
    parts = cut(WHOLE)
    spoilt = bytearray(zipped({f"{STEM}-07": parts[f"{STEM}-07"]}, zipfile.ZIP_STORED))
    spoilt[len(spoilt) // 2] ^= 1
    write(downloads, wrapped_each() | {f"{STEM}-07.zip": bytes(spoilt)} | labels_zip())
    assert run(*folders) == 1
    assert f"{STEM}-07.zip ({STEM}-07)" in capsys.readouterr().out


def test_names_in_the_archive_are_not_trusted(folders, capsys):
    downloads, dataset = folders

    def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
        made = tarfile.TarInfo(name)
        made.type, made.linkname = kind, target
        return made

    ids = list(VIDEOS)
    hostile = [
        (member("../../outside.webm"), b"x"), (member("../7.webm"), b"x"), (member("/tmp/8.webm"), b"x"),
        (member(f"{STEM}/../../9.webm"), b"x"), (member(f"{STEM}/9.webm", tarfile.SYMTYPE, "/etc/passwd"), b""),
        (member(f"{STEM}/{ids[0]}.webm", tarfile.LNKTYPE, f"{STEM}/{ids[1]}.webm"), b""),
        (member(f"{STEM}/10.webm", tarfile.CHRTYPE), b""), (member(f"{STEM}/11.webm", tarfile.FIFOTYPE), b""),
    ]  # fmt: skip
    harmless = [(member(f"{STEM}/..\\12.webm"), b"x"), (member(f"{STEM}/run.sh"), b"x"), (member("١.webm"), b"x")]
    write(downloads, {f"{STEM}.tgz": gzip.compress(tar(VIDEOS, *hostile, *harmless, *hostile))} | labels_zip())

    def outside() -> list[Path]:
        return sorted(path for path in dataset.parent.rglob("*") if not path.is_relative_to(dataset))

    before = outside()
    assert run(*folders) == 0
    assert digests(dataset / "videos") == EVERYTHING
    assert outside() == before
    assert len(report(dataset)["refused"]) == len(hostile)
    assert not any(path.is_symlink() for path in (dataset / "videos").iterdir())
    assert "8 refused: ../../outside.webm: the name leads out" in capsys.readouterr().out


def test_a_part_of_the_dataset_is_taken_where_that_is_asked_for(folders):
    downloads, dataset = folders
    write(downloads, without_two() | labels_zip())
    assert run(*folders, options=("--allow-missing",)) == 0
    stored = digests(dataset / "videos")
    assert 5 < len(stored) < 30
    assert stored.items() <= EVERYTHING.items()
    assert report(dataset)["complete"] is False
    assert len(report(dataset)["missing"]) == len(VIDEOS) - len(stored)
    assert run(*folders) == 2
    write(downloads, bare())
    assert run(*folders) == 0


def test_missing_and_surplus_videos_are_counted_and_named(folders, capsys):
    downloads, dataset = folders
    names = [*list(VIDEOS)[:-2], "900001", "900000"]
    write(downloads, one_file() | labels_zip(videos=tuple(names)))
    assert run(*folders) == 1
    assert report(dataset)["missing"] == ["900000", "900001"]
    assert report(dataset)["surplus"] == sorted(list(VIDEOS)[-2:], key=int)
    assert "2 missing: 900000, 900001" in capsys.readouterr().out
    assert digests(dataset / "videos") == EVERYTHING


def test_an_unpacked_folder_is_linked_hard_where_it_can_be(folders, monkeypatch):
    downloads, dataset = folders
    write(downloads, unpacked() | labels_zip())
    assert run(*folders) == 0
    some = f"{next(iter(VIDEOS))}.webm"
    assert (dataset / "videos" / some).samefile(downloads / STEM / some)
    assert report(dataset)["symbolic_links"] == 0

    def other_disk(*_):
        raise OSError(errno.EXDEV, "other disk")

    monkeypatch.setattr(Path, "hardlink_to", other_disk)
    other = dataset.with_name("other")
    assert run(downloads, other) == 0
    assert report(other)["symbolic_links"] == len(VIDEOS)
    assert digests(other / "videos") == EVERYTHING
    (downloads / STEM / some).unlink()  # a link to nothing is no video
    assert run(downloads, other) == 2
    write(downloads, one_file())
    assert run(downloads, other) == 0
    assert digests(other / "videos") == EVERYTHING


def test_downloads_may_lie_in_the_dataset_folder_itself(folders):
    downloads, _ = folders
    write(downloads, unpacked() | {f"labels/{name}": content for name, content in annotations().items()})
    for _ in range(2):
        assert run(downloads, downloads) == 0
    assert digests(downloads / "videos") == EVERYTHING


def test_what_is_complete_is_not_read_again(folders):
    downloads, dataset = folders
    write(downloads, one_file() | labels_zip())
    assert run(*folders) == 0
    for path in downloads.iterdir():
        path.unlink()
    assert run(*folders) == 0
    (dataset / "videos" / f"{next(iter(VIDEOS))}.webm").write_bytes(b"")  # as a power cut leaves it
    assert run(*folders) == 2
    write(downloads, one_file())
    assert run(*folders) == 0
    assert digests(dataset / "videos") == EVERYTHING


def test_room_on_the_disk_is_looked_for_before(folders, monkeypatch, capsys):
    downloads, dataset = folders
    write(downloads, one_file() | labels_zip())
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda _: type("usage", (), {"free": prepare.ROOM}))
    assert run(*folders) == 2
    assert "0.0 GB more, and 0.3 GB are free" in capsys.readouterr().err
    monkeypatch.setattr(prepare, "FULL_SET", len(VIDEOS))
    assert run(*folders, options=("--allow-missing",)) == 2
    assert "19.4 GB more" in capsys.readouterr().err
    assert digests(dataset / "videos") == {}


def test_a_second_call_at_the_same_time_is_turned_away(folders, capsys):
    downloads, dataset = folders
    write(downloads, one_file() | labels_zip())
    dataset.mkdir()
    with prepare._alone(dataset):
        assert run(*folders) == 2
    assert "another call is at work" in capsys.readouterr().err
    assert run(*folders) == 0


def test_no_such_folder(folders, capsys):
    downloads, dataset = folders
    assert run(downloads / "nowhere", dataset) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
    assert not dataset.exists()


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


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    write(folder, cut(gzip.compress(tar(MANY), compresslevel=1, mtime=0)) | labels_zip(videos=tuple(MANY)))
    return folder


def start(downloads: Path, dataset: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "tcar.data.prepare", str(downloads), str(dataset)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[1])


def stored(dataset: Path) -> int:
    folder = dataset / "videos"
    return sum(not name.startswith(".") for name in os.listdir(folder)) if folder.is_dir() else 0


def wait_for(process: subprocess.Popen, dataset: Path, count: int) -> None:
    while process.poll() is None and stored(dataset) < count:
        time.sleep(0.001)


@pytest.mark.parametrize("seed", range(3))
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
    assert b"run the same command again" in errors
    assert b"Traceback" not in errors
    left = digests(tmp_path / "videos")
    assert 200 <= len(left) < len(MANY)
    assert left.items() <= ALL_OF_MANY.items()
    assert start(many, tmp_path).wait() == 0
    assert digests(tmp_path / "videos") == ALL_OF_MANY
