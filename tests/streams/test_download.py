"""One file over HTTP: broken connections are resumed, other files refused, and nothing half-done has its name."""

import os
from types import SimpleNamespace

import pytest
from file_server import CONTENT, DIGEST

from tcar.ground import locks
from tcar.streams import download as http_download
from tcar.streams.download import FetchError, download


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(http_download, "PAUSE", 0)
    monkeypatch.setattr(http_download, "ATTEMPTS", 3)


@pytest.fixture
def get(server, tmp_path):
    """Download the server's file with the given expectations."""

    def call(**expected) -> bytes:
        path = download(f"{server.url}/file.pt", tmp_path / "deep" / "file.pt", **expected)
        assert {p.name for p in path.parent.iterdir()} == {"file.pt", ".file.pt.lock"}  # no part, no tag left
        return path.read_bytes()

    return call


def kept(tmp_path) -> bytes:
    return (tmp_path / "deep" / "file.pt.part").read_bytes()


def test_a_file_arrives_whole_and_checked(get, server):
    assert get(size=len(CONTENT), sha256=DIGEST) == CONTENT
    assert server.asked == [("GET", "/file.pt", None)]


def test_a_connection_that_breaks_is_resumed_where_it_broke(get, server):
    server.drops = [1_500_000, 2_000_000]
    assert get(sha256=DIGEST) == CONTENT
    assert [asked[2] for asked in server.asked] == [None, "bytes=1500000-", "bytes=3500000-"]


def test_a_later_call_resumes_what_an_earlier_one_left(get, server, tmp_path):
    server.drops = [2_000_000] + [0] * 9
    with pytest.raises(FetchError, match=r"broke off after 2,000,000 of 5,120,000 bytes; 2,000,000 bytes are kept"):
        get()
    assert kept(tmp_path) == CONTENT[:2_000_000]
    assert not (tmp_path / "deep" / "file.pt").exists()
    server.drops, server.asked = [], []
    assert get(sha256=DIGEST) == CONTENT
    assert [asked[2] for asked in server.asked] == ["bytes=2000000-"]


def test_a_part_that_is_whole_already_is_only_checked(get, server, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file.pt.part").write_bytes(CONTENT)
    (tmp_path / "deep" / "file.pt.part.tag").write_text(server.tag)
    assert get() == CONTENT
    assert [asked[2] for asked in server.asked] == ["bytes=5120000-"]


def test_a_server_without_ranges_is_asked_for_all_again(get, server):
    server.ranges, server.drops = False, [3_000_000]
    assert get(sha256=DIGEST) == CONTENT


def test_a_file_that_changed_in_between_is_not_pieced_together(get, server, tmp_path):
    """Without a known digest nothing else would tell: the two versions are equally long."""
    server.drops = [2_000_000] + [0] * 9
    with pytest.raises(FetchError):
        get()
    server.files["/file.pt"], server.tag, server.drops = CONTENT[::-1], '"2"', []
    assert get() == CONTENT[::-1]


@pytest.mark.parametrize("tag", ["", 'W/"1"'])
def test_without_a_strong_tag_nothing_is_resumed(get, server, tag):
    server.tag, server.drops = tag, [2_000_000]
    assert get() == CONTENT
    assert [asked[2] for asked in server.asked] == [None, None]


def test_a_file_that_another_process_fetches_is_left_to_it(get, server, tmp_path):
    message = f"another process fetches it.*held by process {os.getpid()} on"
    lock = tmp_path / "deep" / ".file.pt.lock"
    with locks.alone(lock, RuntimeError, "busy"), pytest.raises(FetchError, match=message):
        get()
    assert server.asked == []
    assert get() == CONTENT


def test_a_wrong_size_is_refused_before_anything_is_fetched(get, tmp_path):
    with pytest.raises(FetchError, match=r"the file there has 5,120,000 bytes, 5,120,001 expected: it is another"):
        get(size=len(CONTENT) + 1)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == [".file.pt.lock"]


def test_a_wrong_size_is_refused_where_the_server_states_none(get, server, tmp_path):
    server.lengths = False
    assert get(sha256=DIGEST) == CONTENT
    (tmp_path / "deep" / "file.pt").unlink()
    with pytest.raises(FetchError, match=r"5,120,000 bytes arrived, 9 expected"):
        get(size=9)
    assert not (tmp_path / "deep" / "file.pt.part").exists()


def test_a_wrong_digest_is_refused_and_nothing_kept_of_it(get, tmp_path):
    assert get(sha256=DIGEST[:8]) == CONTENT  # the beginning is enough, as file names have it
    (tmp_path / "deep" / "file.pt").unlink()
    with pytest.raises(FetchError, match=f"its SHA-256 is {DIGEST}, 00000000 expected"):
        get(sha256="0" * 8)
    assert not list((tmp_path / "deep").glob("file.pt*part"))


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_web_page_is_no_checkpoint(get, server, tmp_path, kind):
    server.files["/file.pt"], server.kind = b"\n<!DOCTYPE html><title>Log in</title>", kind
    with pytest.raises(FetchError, match="a web page, not a file"):
        get()
    assert not (tmp_path / "deep" / "file.pt").exists()
    assert not (tmp_path / "deep" / "file.pt.part").exists()


def test_a_refusal_is_final_and_a_passing_fault_is_not(get, server):
    server.failures = [503, 500]
    assert get() == CONTENT
    server.failures, server.asked = [403], []
    with pytest.raises(FetchError, match="the server answers 403 Forbidden"):
        get()
    assert len(server.asked) == 1


def test_a_server_that_is_not_there_is_given_up_after_some_attempts(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(FetchError, match="refused"):
        download("http://127.0.0.1:9/file.pt", tmp_path / "file.pt")


def test_a_full_disk_is_seen_before_it_is_full(get, monkeypatch, tmp_path):
    monkeypatch.setattr(http_download.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(FetchError, match=r"0\.0 GB are needed, 0\.0 GB are free"):
        get()
    assert not (tmp_path / "deep" / "file.pt.part").exists()
