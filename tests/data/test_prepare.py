"""Archives written by tarfile and zipfile, in every form the real ones come in, become the same dataset."""

import errno
from pathlib import Path

import pytest
from archive_files import (
    EVERYTHING,
    FORMS,
    LABELS_ZIP,
    SPLITS,
    STEM,
    VIDEOS,
    WHOLE,
    annotations,
    bare,
    bare_videos_in_two_zips,
    cut,
    damaged_first,
    digests,
    labels_zip,
    locked_zip_of_videos,
    one_file,
    only_later,
    page_as_archive,
    page_as_first,
    report,
    run,
    shortened,
    shortened_zip,
    shortened_zip_of_videos,
    unfinished,
    unpacked,
    web_page,
    without_two,
    write,
    zipped,
)

from tcar.data import prepare
from tcar.data.ssv2 import load_split
from tcar.ground import locks


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
        (shortened_zip_of_videos, ["there is no archive", "archive.zip: a zip that is damaged or cut short"]),
        (locked_zip_of_videos, ["archive.zip: ", ".webm is packed in a way that is not read here"]),
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


def test_only_the_first_part_gives_what_is_in_it_and_says_what_is_missing(folders, capsys):
    downloads, dataset = folders
    (first, content), _ = cut(WHOLE, 2).items()
    write(downloads, {first: content} | labels_zip())
    assert run(*folders) == 1
    assert f"{first}, byte {len(content):,}: the archive goes on here" in capsys.readouterr().out
    assert 10 < len(digests(dataset / "videos")) < 40
    assert len(report(dataset)["missing"]) == len(VIDEOS) - len(digests(dataset / "videos"))


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


def test_one_of_two_zips_of_videos_is_not_taken_for_a_shortened_archive(folders, monkeypatch, capsys):
    """An archive has to be as large as the published one; a zip has its directory at its end, and is whole with it."""
    downloads, dataset = folders
    monkeypatch.setattr(prepare, "FULL_SET", len(VIDEOS))
    monkeypatch.setattr(prepare, "FULL_BYTES", len(WHOLE))
    write(downloads, {"a.zip": bare_videos_in_two_zips()["a.zip"]} | labels_zip())
    assert run(*folders) == 1
    assert "35 missing: " in capsys.readouterr().out
    assert len(digests(dataset / "videos")) == 25
    write(downloads, {"b": bare_videos_in_two_zips()["b"]})
    assert run(*folders) == 0


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


def test_room_for_the_videos_of_a_zip_is_that_of_those_that_are_missing(folders, monkeypatch, capsys):
    downloads, dataset = folders
    videos = list(unpacked().items())
    write(downloads, dict(videos[:59]) | {"rest.zip": zipped(dict(videos))} | labels_zip())
    left = len(videos[59][1])
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda _: type("usage", (), {"free": prepare.ROOM + left - 1}))
    assert run(*folders) == 2
    assert "the videos take" in capsys.readouterr().err
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda _: type("usage", (), {"free": prepare.ROOM + left}))
    assert run(*folders) == 0


def test_a_second_call_at_the_same_time_is_turned_away(folders, capsys):
    downloads, dataset = folders
    write(downloads, one_file() | labels_zip())
    dataset.mkdir()
    with locks.alone(dataset / prepare.LOCK, AssertionError, "busy"):
        assert run(*folders) == 2
    assert "another call is at work" in capsys.readouterr().err
    assert run(*folders) == 0


def test_no_such_folder(folders, capsys):
    downloads, dataset = folders
    assert run(downloads / "nowhere", dataset) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
    assert not dataset.exists()
