"""Downloads of Something-Something-V2 in small, written by tarfile and zipfile in every form the real ones come in."""

import gzip
import hashlib
import io
import json
import random
import tarfile
import zipfile
from pathlib import Path

from tcar.__main__ import command

STEM = "20bn-something-something-v2"
LABELS_ZIP = "20bn-something-something-download-package-labels.zip"
SPLITS = {"train": 40, "validation": 12, "test": 8}


def invent(count: int, size: int, seed: int = 0) -> dict[str, bytes]:
    """Content by id, of sizes up to `size`; random bytes, since no compression shortens videos."""
    rng = random.Random(seed)
    return {str(i): rng.randbytes(rng.randint(1, size)) for i in rng.sample(range(1, 220_848), count)}


VIDEOS = invent(sum(SPLITS.values()), 4000)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder, hidden ones too."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def wanted(videos: dict[str, bytes]) -> dict[str, str]:
    return {f"{i}.webm": hashlib.sha256(content).hexdigest() for i, content in videos.items()}


EVERYTHING = wanted(VIDEOS)


def run(*folders: Path, options: tuple[str, ...] = ()) -> int:
    return command("prepare", [*map(str, folders), *options])


def report(dataset: Path) -> dict:
    return json.loads((dataset / "prepare.json").read_text())


def tar(videos: dict[str, bytes], *extra: tuple[tarfile.TarInfo, bytes], folder: str = STEM) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        if folder:
            top = tarfile.TarInfo(folder)
            top.type = tarfile.DIRTYPE
            archive.addfile(top)
        for identifier, content in videos.items():
            member = tarfile.TarInfo(f"{folder}/{identifier}.webm".removeprefix("/"))
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member, content in extra:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


WHOLE = gzip.compress(tar(VIDEOS), mtime=0)


def cut(whole: bytes, count: int = 20) -> dict[str, bytes]:
    """Parts of equal length and a shorter last one, by name."""
    length = len(whole) // count + 50
    parts = {f"{STEM}-{i:02d}": whole[i * length : (i + 1) * length] for i in range(count)}
    assert 0 < len(parts[f"{STEM}-{count - 1:02d}"]) < length
    return parts


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def annotations(videos=tuple(VIDEOS), prefix: str = "") -> dict[str, bytes]:
    """The label files, the ids dealt out to the splits in their order."""
    left, files = iter(videos), {"labels": {"Holding something": "0", "Turning something": "1"}}
    for split, count in SPLITS.items():
        ids = [next(left) for _ in range(count)] if split != "test" else list(left)
        filled = {"label": "holding a pen", "template": "Holding [something]", "placeholders": ["a pen"]}
        files[split] = [{"id": i} | (filled if split != "test" else {}) for i in ids]
    return {f"{prefix}{name}.json": json.dumps(content).encode() for name, content in files.items()}


def labels_zip(**keywords) -> dict[str, bytes]:
    inside = {f"labels/{name}": content for name, content in annotations(**keywords).items()}
    return {LABELS_ZIP: zipped(inside | {"labels/test-answers.csv": b"", "__MACOSX/labels/._train.json": b"\0"})}


def bare() -> dict[str, bytes]:
    return cut(WHOLE)


def wrapped_each() -> dict[str, bytes]:
    return {f"{name}.zip": zipped({name: content}) for name, content in cut(WHOLE).items()}


def two_zips_of_parts() -> dict[str, bytes]:
    parts = cut(WHOLE)
    return {f"{STEM}-{i:02d}.zip": zipped(dict(list(parts.items())[10 * i : 10 * i + 10]), 0) for i in (0, 1)}


def two_parts_named_zip() -> dict[str, bytes]:
    return {f"{name}.zip": content for name, content in cut(WHOLE, 2).items()}


def one_file() -> dict[str, bytes]:
    return {f"{STEM}.tar.gz": WHOLE}


def one_file_under_any_name() -> dict[str, bytes]:
    return {"video (1).bin": WHOLE, "holiday.tar.gz": gzip.compress(b"no tar"), "notes-01.txt": b"{"}


def plain_tar() -> dict[str, bytes]:
    return {f"{STEM}.tar": gzip.decompress(WHOLE)}


def unpacked() -> dict[str, bytes]:
    return {f"{STEM}/{identifier}.webm": content for identifier, content in VIDEOS.items()}


def half_unpacked() -> dict[str, bytes]:
    """What a broken tar leaves behind: some videos, the last of them too short, and all the parts."""
    some = list(VIDEOS)[:20]
    return {f"{STEM}/{i}.webm": VIDEOS[i][: -1 if i == some[-1] else None] for i in some} | bare()


def nested_and_mixed() -> dict[str, bytes]:
    parts = list(cut(WHOLE).items())
    first = {f"a/b/{name}": content for name, content in parts[:7]}
    return first | {f"c/{name} (1)": content for name, content in parts[5:12]} | {
        "later.zip": zipped(dict(parts[10:])), ".DS_Store": b"\0\1", "README.txt": b"read me", "a/empty": b"",
        "something-something-v2-readme.txt": b"read me", f"{STEM}-03.crdownload": parts[3][1][:100],
    }  # fmt: skip


def a_shortened_part_beside_a_whole_one() -> dict[str, bytes]:
    parts = cut(WHOLE)
    name = f"{STEM}-05"
    return parts | {name: parts[name][:-9], f"again/{name}.zip": zipped({name: parts[name]})}


def tar_of_bare_videos() -> dict[str, bytes]:
    """As somebody packs the folder again: no folder inside, a name of their own."""
    return {"mine.tar": tar(VIDEOS, folder="")}


def videos_in_a_zip() -> dict[str, bytes]:
    return {"archive.zip": zipped(unpacked() | {f"__MACOSX/{STEM}/._{next(iter(VIDEOS))}.webm": b"\0"})}


def bare_videos_in_two_zips() -> dict[str, bytes]:
    """Stored and packed, one of them with the label files inside."""
    videos = [(f"{i}.webm", content) for i, content in VIDEOS.items()]
    return {"a.zip": zipped(dict(videos[:25]), zipfile.ZIP_STORED), "b": zipped(dict(videos[25:]) | annotations())}


def half_in_a_zip_half_in_parts() -> dict[str, bytes]:
    """A zip of what somebody had unpacked, beside the parts, of which one is missing."""
    return without_two() | {"rest.zip": zipped(unpacked())}


FORMS = [
    bare, wrapped_each, two_zips_of_parts, two_parts_named_zip, one_file, one_file_under_any_name, plain_tar, unpacked,
    half_unpacked, nested_and_mixed, a_shortened_part_beside_a_whole_one, tar_of_bare_videos, videos_in_a_zip,
    bare_videos_in_two_zips, half_in_a_zip_half_in_parts,
]  # fmt: skip


def without_two() -> dict[str, bytes]:
    return {name: content for name, content in bare().items() if not name.endswith(("05", "11"))}


def only_later() -> dict[str, bytes]:
    return {name: content for name, content in bare().items() if not name.endswith(("00", "01"))}


def shortened() -> dict[str, bytes]:
    return bare() | {f"{STEM}-05": bare()[f"{STEM}-05"][:-1]}


def shortened_zip() -> dict[str, bytes]:
    return wrapped_each() | {f"{STEM}-05.zip": wrapped_each()[f"{STEM}-05.zip"][:-30]}


def unfinished() -> dict[str, bytes]:
    return {name: c for name, c in bare().items() if not name.endswith("05")} | {f"{STEM}-05.crdownload": b"\0"}


def web_page() -> dict[str, bytes]:
    page = b"<!DOCTYPE html><title>Sign in</title>"
    return bare() | {f"{STEM}-19": page}


def page_as_first() -> dict[str, bytes]:
    return bare() | {f"{STEM}-00": b"<html>" + bare()[f"{STEM}-00"][6:]}


def damaged_first() -> dict[str, bytes]:
    return bare() | {f"{STEM}-00": b"\1" + bare()[f"{STEM}-00"][1:]}


def page_as_archive() -> dict[str, bytes]:
    return {f"{STEM}.tar.gz": b"<html>"}


def shortened_zip_of_videos() -> dict[str, bytes]:
    return {"archive.zip": zipped(unpacked())[:-30]}


def locked_zip_of_videos() -> dict[str, bytes]:
    """Its directory says that the first video is encrypted."""
    content = bytearray(zipped(unpacked()))
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return {"archive.zip": bytes(content)}
