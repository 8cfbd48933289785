"""A file over HTTP, resumed where it broke off, and believed only when its size and digest are right."""

import hashlib
import http.client
import math
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tcar.ground import locks, log
from tcar.ground.errors import TcarError

CHUNK = 1_000_000  # bytes read at a time: progress counts in megabytes
TIMEOUT = 30.0  # seconds without a byte before a connection counts as broken
ATTEMPTS, PAUSE = 5, 1.0  # how often a connection may bring nothing, and seconds before the next
MARGIN = 50_000_000  # bytes of disk that stay free
WEB_PAGE = "a web page, not a file; its server may want a login, or has moved the file"


class FetchError(TcarError, ValueError):
    """A checkpoint that could not be fetched; the message says why."""


class _Broken(Exception):
    """A connection that broke off: what has arrived is kept, and the rest asked for again."""


def download(address: str, path: Path, *, size: int | None = None, sha256: str | None = None) -> Path:
    """Fetch a file to `path`, which exists only once the whole file has arrived and was checked.

    What arrived before a connection broke lies in `<path>.part` and is resumed, by a later call too, while the server
    says that its file is unchanged. `size` in bytes and `sha256` (whole, or the beginning of it) are what the file must
    have, where they are known. A connection that breaks is tried again after `PAUSE` seconds; `ATTEMPTS` of them may
    bring nothing. Raises FetchError: no connection, a refusal, a web page or another file instead of this one, a wrong
    size or digest, a full disk, another process that fetches it.
    """
    busy = f"{path}: another process fetches it; wait for that"
    part, idle = path.with_name(f"{path.name}.part"), 0
    with locks.alone(path.with_name(f".{path.name}.lock"), FetchError, busy):
        while True:
            before = _length(part)
            try:
                _append(address, part, size)
                break
            except (_Broken, OSError, http.client.HTTPException) as error:
                if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                    raise FetchError(f"{address}: the server answers {error.code} {error.reason}") from error
                idle = 0 if _length(part) > before else idle + 1
                if idle >= ATTEMPTS:
                    kept = f"; {_length(part):,} bytes are kept and resumed" if _length(part) else ""
                    raise FetchError(f"{address}: {getattr(error, 'reason', error)}{kept}") from error
                time.sleep(PAUSE)
        _check_content(address, part, sha256)
        os.replace(part, path)
        _tag(part).unlink(missing_ok=True)
    return path


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_disk(folder: Path, needed: int) -> None:
    """Raise FetchError where the disk of a folder has no room for so many bytes."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed + MARGIN:
        raise FetchError(f"{folder}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")


def _append(address: str, part: Path, size: int | None) -> None:
    """Read the rest of a file into its part; raises _Broken where it ends early, FetchError where it is another."""
    have = _length(part)
    if size is not None and have == size:
        return
    request = urllib.request.Request(address, headers={"User-Agent": "tcar", "Accept-Encoding": "identity"})
    if have and _tag(part).is_file() and (size is None or have < size):
        # If-Range: the server sends the rest of the same file, or all of one that has changed since.
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", _tag(part).read_text(encoding="ascii"))
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing left to send, either because all is here or because it is another file
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return
        part.unlink(missing_ok=True)
        raise _Broken("what was kept is no part of the file") from error
    with response:
        begin, total = _extent(response, have)
        if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
            raise FetchError(f"{address}: {WEB_PAGE}")
        if size is not None and total is not None and total != size:
            raise FetchError(f"{address}: the file there has {total:,} bytes, {size:,} expected: it is another file")
        if total is not None:
            check_disk(part.parent, total - begin)
        _remember(part, response)
        with part.open("ab") as file:
            file.truncate(begin)
            left = None if total is None else math.ceil((total - begin) / CHUNK)
            for block in log.progress(_blocks(response), left, part.name.removesuffix(".part"), "MB"):
                file.write(block)
    have = _length(part)
    if total is not None and have < total:
        raise _Broken(f"the connection broke off after {have:,} of {total:,} bytes")
    if size is not None and have != size:
        part.unlink()
        raise FetchError(f"{address}: {have:,} bytes arrived, {size:,} expected: it is another file")


def _extent(response: http.client.HTTPResponse, have: int) -> tuple[int, int | None]:
    """Return where a response begins in the file, and the size of the whole file where the server says it."""
    if response.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if found is None or int(found[1]) != have:
            raise _Broken("the server sent another range than was asked for")
        return have, None if found[2] == "*" else int(found[2])
    length = response.headers.get("Content-Length")
    return 0, int(length) if length is not None else None


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while block := response.read(CHUNK):
        yield block


def _remember(part: Path, response: http.client.HTTPResponse) -> None:
    """Keep what names this version of the file: without it nothing is resumed, since it may have changed."""
    name = response.headers.get("ETag") or response.headers.get("Last-Modified")
    if name and not name.startswith("W/"):  # a weak tag does not promise the same bytes
        _tag(part).write_text(name, encoding="ascii")
    else:
        _tag(part).unlink(missing_ok=True)


def _check_content(address: str, part: Path, sha256: str | None) -> None:
    """Remove a file that is not the wanted one, since nothing can come of resuming it, and raise FetchError."""
    problem = ""
    with part.open("rb") as file:
        if file.read(64).lstrip()[:1] == b"<":  # no checkpoint begins so, and every web page does
            problem = WEB_PAGE
    if not problem and sha256 and not (found := digest(part)).startswith(sha256):
        problem = f"its SHA-256 is {found}, {sha256} expected: it is another file, or was damaged on its way"
    if problem:
        part.unlink()
        raise FetchError(f"{address}: {problem}")


def _tag(part: Path) -> Path:
    return part.with_name(f"{part.name}.tag")


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
