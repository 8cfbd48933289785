"""One entry that cannot be used, of whatever kind, is one line of the report, and the rest is prepared without it."""

import os
import stat
from pathlib import Path

import pytest
from archive_files import (
    EVERYTHING,
    STEM,
    VIDEOS,
    annotations,
    bare_videos_in_two_zips,
    digests,
    labels_zip,
    one_file,
    report,
    run,
    tar,
    unpacked,
    write,
    zipped,
)

from tcar.data import archives, prepare


def refuse(monkeypatch, module, name: str, stray: str) -> None:
    """Have the system refuse one entry, as it does to whoever is not its owner (root it refuses nothing)."""
    usual = getattr(module, name)

    def refusing(path, *arguments, **keywords):
        if Path(path).name == stray:
            raise PermissionError(13, "Permission denied", str(path))
        return usual(path, *arguments, **keywords)

    monkeypatch.setattr(module, name, refusing)


def test_entries_that_are_no_file_or_cannot_be_read_are_left_out(folders, monkeypatch, capsys):
    downloads, dataset = folders
    write(downloads, one_file() | labels_zip() | {"lost+found/x": b"", "locked.bin": b"x", "Thumbs.db": b"\xd0\xcf"})
    refuse(monkeypatch, archives.os, "scandir", "lost+found")
    refuse(monkeypatch, archives.Path, "open", "locked.bin")
    (downloads / "itself").symlink_to("itself")
    (downloads / "nothing.webm").symlink_to("nowhere")
    (downloads / "null").symlink_to("/dev/null")
    (downloads / "up").symlink_to("..")
    (downloads / "round").symlink_to(".")
    os.mkfifo(downloads / "1.webm")
    os.mknod(downloads / "socket", stat.S_IFSOCK | 0o600)
    unprintable = downloads / os.fsdecode(b"caf\xe9")
    os.mkfifo(unprintable)
    assert run(*folders) == 0
    assert digests(dataset / "videos") == EVERYTHING
    assert "left out: " in capsys.readouterr().out
    lines = report(dataset)["left_out"]
    expected = {
        "lost+found": "cannot be listed (Permission denied)", "locked.bin": "cannot be read (Permission denied)",
        "itself": "cannot be read (Too many", "nothing.webm": "a link to nothing", "null": "or to no file",
        "up": "a link to a folder that these downloads lie in", "round": "was looked into already",
        "1.webm": "no file, but a pipe", "socket": "no file, but a pipe", unprintable.name: "no file, but a pipe",
    }  # fmt: skip
    assert len(lines) == len(expected)
    for name, reason in expected.items():
        assert any(line.startswith(f"{downloads / name}: ") and reason in line for line in lines), (name, lines)


def test_a_linked_folder_elsewhere_is_looked_into(folders):
    downloads, dataset = folders
    write(dataset.with_name("disk"), unpacked())
    write(downloads, labels_zip())
    (downloads / "linked").symlink_to(dataset.with_name("disk"))
    assert run(*folders) == 0
    assert digests(dataset / "videos") == EVERYTHING
    assert report(dataset)["left_out"] == []


def test_a_zip_that_windows_packed(folders):
    downloads, dataset = folders
    videos = {name.replace("/", "\\"): content for name, content in unpacked().items()}
    hostile = {"..\\..\\7.webm": b"x", "C:\\8.webm": b"x", "\\9.webm": b"x", f"{STEM}\\..\\..\\10.webm": b"x"}
    labels = {f"labels\\{name}": content for name, content in annotations().items()}
    write(downloads, {"archive.zip": zipped({f"{STEM}\\": b""} | videos | hostile), "labels.zip": zipped(labels)})
    before = sorted(dataset.parent.rglob("*"))
    assert run(*folders) == 0
    assert digests(dataset / "videos") == EVERYTHING
    assert sorted(path for path in dataset.parent.rglob("*") if not path.is_relative_to(dataset)) == before
    assert [line.partition(": ")[0] for line in report(dataset)["refused"]] == list(hostile)


def undecodable_name() -> bytes:
    return zipped({"ü.bin": b"x"}).replace("ü".encode(), b"\xff\xff")


@pytest.mark.parametrize(("name", "content", "reason"), [
    ("a.7z", b"7z\xbc\xaf\x27\x1c\0\4", "an archive of 7-Zip"), ("a.rar", b"Rar!\x1a\7\0", "an archive of RAR"),
    ("a.tar.xz", b"\xfd7zXZ\0\0", "packed by xz"), ("a.tar.bz2", b"BZh91AY", "packed by bzip2"),
    ("a.zip", zipped({"inner.zip": zipped(unpacked())}), "a zip within a zip"),
    ("a.zip", undecodable_name(), "a zip that is damaged or cut short"),
    ("5.mp4", b"x", "one of 1 video(s) that the published set does not have"),
])  # fmt: skip
def test_what_is_not_read_here_is_named(folders, name, content, reason):
    downloads, dataset = folders
    write(downloads, one_file() | labels_zip() | {name: content})
    assert run(*folders) == 0
    (line,) = report(dataset)["left_out"]
    assert line.startswith(str(downloads / name)) and reason in line


def test_an_encrypted_zip_beside_a_sound_archive(folders):
    downloads, dataset = folders
    locked = bytearray(zipped({"1.txt": b"x"}))
    locked[locked.index(b"PK\x01\x02") + 8] |= 1
    write(downloads, one_file() | labels_zip() | {"a.zip": bytes(locked)})
    assert run(*folders) == 0
    (line,) = report(dataset)["left_out"]
    assert "a.zip: 1.txt is packed in a way that is not read here (encrypted)" in line


def test_capitals_in_the_suffix(folders):
    downloads, dataset = folders
    names = list(unpacked().items())
    write(downloads, {name.upper(): content for name, content in names[:30]} | labels_zip())
    write(downloads, {"rest.zip": zipped({name.upper(): content for name, content in names[30:]})})
    assert run(*folders) == 0
    assert digests(dataset / "videos") == EVERYTHING


def test_stock_is_taken_of_videos_as_the_reader_finds_them(folders):
    downloads, dataset = folders
    write(downloads, unpacked() | labels_zip())
    assert run(*folders) == 0
    first, second, third = (dataset / "videos" / f"{name}.webm" for name in list(VIDEOS)[:3])
    first.rename(first.with_suffix(".mp4"))
    second.rename(second.with_suffix(".MKV"))
    third.rename(third.with_suffix(".mp4"))
    third.with_suffix(".avi").write_bytes(b"x")  # which of them?
    third.with_suffix(".webm").symlink_to(third.name)  # to itself
    found = prepare.inspect(dataset)
    assert (found.missing, found.videos, found.surplus) == ([third.stem], len(VIDEOS) - 1, [])


def test_a_call_with_fewer_archives_keeps_what_was_noted_of_the_others(folders, capsys):
    downloads, dataset = folders
    first, second = bare_videos_in_two_zips().values()
    hostile = zipped({"../1.webm": b"x"})
    write(downloads, {"a.zip": first, "b.zip": hostile, f"{STEM}.tar": tar({"1": bytes(4000)})[:2000]} | labels_zip())
    assert run(*folders) == 1
    noted = report(dataset)
    assert noted["unread"] and noted["refused"] == ["../1.webm: the name leads out of the folder"]
    for name in ("b.zip", f"{STEM}.tar"):
        (downloads / name).unlink()
    assert run(*folders) == 1
    assert f"{noted['unread']}: not read to its end by an earlier call" in capsys.readouterr().out
    assert {key: report(dataset)[key] for key in ("unread", "refused")} == {
        key: noted[key] for key in ("unread", "refused")
    }
    write(downloads, {"rest": second})
    assert run(*folders) == 0
    assert report(dataset)["refused"] == noted["refused"]
    assert digests(dataset / "videos") == EVERYTHING
