"""What is cut short, damaged or hostile in an archive is told, spoils nothing, and is mended by a sound one."""

import gzip
import io
import random
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from archive_files import (
    EVERYTHING,
    STEM,
    VIDEOS,
    WHOLE,
    bare,
    cut,
    digests,
    labels_zip,
    one_file,
    plain_tar,
    report,
    run,
    tar,
    unpacked,
    videos_in_a_zip,
    wanted,
    wrapped_each,
    write,
    zipped,
)


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
        (member(f"{STEM}/..\\12.webm"), b"x"),
    ]  # fmt: skip
    harmless = [(member(f"{STEM}/run.sh"), b"x"), (member("١.webm"), b"x")]
    write(downloads, {f"{STEM}.tgz": gzip.compress(tar(VIDEOS, *hostile, *harmless, *hostile))} | labels_zip())

    def outside() -> list[Path]:
        return sorted(path for path in dataset.parent.rglob("*") if not path.is_relative_to(dataset))

    before = outside()
    assert run(*folders) == 0
    assert digests(dataset / "videos") == EVERYTHING
    assert outside() == before
    assert len(report(dataset)["refused"]) == len(hostile)
    assert not any(path.is_symlink() for path in (dataset / "videos").iterdir())
    assert "9 refused: ../../outside.webm: the name leads out" in capsys.readouterr().out


def test_a_damaged_zip_of_videos_names_the_video_and_is_mended_by_a_sound_one(folders, capsys):
    downloads, dataset = folders
    sound = videos_in_a_zip()["archive.zip"]
    with zipfile.ZipFile(io.BytesIO(sound)) as archive:
        thirtieth = archive.infolist()[30]
    damaged = bytearray(sound)
    damaged[thirtieth.header_offset + 200] ^= 1
    write(downloads, {"archive.zip": bytes(damaged)} | labels_zip())
    for _ in range(2):
        assert run(*folders) == 1
        assert f"archive.zip ({thirtieth.filename}): damaged" in capsys.readouterr().out
        assert len(digests(dataset / "videos")) == 29  # of 30 before it; the last one is not followed by a sound one
        assert digests(dataset / "videos").items() <= EVERYTHING.items()
        assert report(dataset)["unread"]
    written = {path.name: path.stat().st_mtime_ns for path in (dataset / "videos").iterdir()}
    write(downloads, {"archive.zip": sound})
    assert run(*folders) == 0
    again = {path.name: path.stat().st_mtime_ns for path in (dataset / "videos").iterdir()}
    assert {name: again[name] for name in written} == written
    assert digests(dataset / "videos") == EVERYTHING


def test_names_in_a_zip_are_not_trusted(folders):
    downloads, dataset = folders
    link = zipfile.ZipInfo(f"{STEM}/9.webm")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    hostile = [("../../outside.webm", b"x"), ("../7.webm", b"x"), ("/tmp/8.webm", b"x"), (link, b"/etc/passwd"),
               ("..\\12.webm", b"x")]  # fmt: skip
    buffer = io.BytesIO(zipped(unpacked()))
    with zipfile.ZipFile(buffer, "a") as archive:
        for name, content in [*hostile, ("run.sh", b"x")]:
            archive.writestr(name, content)
    write(downloads, {"archive.zip": buffer.getvalue()} | labels_zip())
    before = sorted(path for path in dataset.parent.rglob("*") if not path.is_relative_to(dataset))
    assert run(*folders) == 0
    assert digests(dataset / "videos") == EVERYTHING
    assert sorted(path for path in dataset.parent.rglob("*") if not path.is_relative_to(dataset)) == before
    assert len(report(dataset)["refused"]) == len(hostile)
