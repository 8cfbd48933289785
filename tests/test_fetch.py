"""Fetching: broken connections are resumed, other files refused, and what cannot be had is named with its place."""

import hashlib
import http.server
import json
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from tcar import params
from tcar.models import download as http_download
from tcar.models import fetch as fetching
from tcar.models.checkpoints import CheckpointError
from tcar.models.download import FetchError, download
from tcar.models.fetch import Need, fetch, main, needs
from tcar.models.published import CHECKPOINTS, Checkpoint, find
from tcar.models.streams import create_stream

CONTENT = bytes(range(256)) * 20_000  # 5.12 MB: several blocks
DIGEST = hashlib.sha256(CONTENT).hexdigest()
COMMIT = "0" * 39 + "1"


class Server(http.server.ThreadingHTTPServer):
    """A server of `files` (path -> bytes) that can be told to misbehave; `asked` are the requests it got."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.asked = {"/file.pt": CONTENT}, []
        self.drops, self.ranges, self.kind, self.tag = [], True, "application/octet-stream", '"1"'
        self.failures = []  # statuses to answer with before anything is served
        self.lengths = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body: bool):
        server, content = self.server, self.server.files.get(self.path)
        server.asked.append((self.command, self.path, self.headers.get("Range")))
        if server.failures or content is None:
            status = server.failures.pop(0) if server.failures else 404
            self.send_response(status)
            if status == 404 and "/resolve/" in self.path:  # as the Hub says that a repository has no such file
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        begin, wanted = 0, self.headers.get("Range")
        if wanted and server.ranges and self.headers.get("If-Range", server.tag) == server.tag:
            begin = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
        if begin >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        if server.lengths:
            self.send_header("Content-Length", str(len(content) - begin))
        self.send_header("Content-Type", server.kind)
        if "/resolve/" in self.path:
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(server.files.get("digest of", content)).hexdigest()}"')
        elif server.tag:
            self.send_header("ETag", server.tag)
        self.end_headers()
        if body:
            end = min(len(content), begin + server.drops.pop(0)) if server.drops else len(content)
            self.wfile.write(content[begin:end])
        self.close_connection = True


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = Server()
    thread = threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield served
    served.shutdown()
    served.server_close()
    thread.join()


@pytest.fixture
def get(server, tmp_path):
    """Download the server's file with the given expectations, without waiting between attempts."""

    def call(**expected) -> bytes:
        path = download(f"{server.url}/file.pt", tmp_path / "deep" / "file.pt", pause=0, **expected)
        assert [p.name for p in path.parent.iterdir()] == ["file.pt"]  # no part, no tag left
        return path.read_bytes()

    return call


def kept(tmp_path) -> bytes:
    return (tmp_path / "deep" / "file.pt.part").read_bytes()


# --- one file over HTTP


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
        get(attempts=3)
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
        get(attempts=1)
    server.files["/file.pt"], server.tag, server.drops = CONTENT[::-1], '"2"', []
    assert get() == CONTENT[::-1]


@pytest.mark.parametrize("tag", ["", 'W/"1"'])
def test_without_a_strong_tag_nothing_is_resumed(get, server, tag):
    server.tag, server.drops = tag, [2_000_000]
    assert get() == CONTENT
    assert [asked[2] for asked in server.asked] == [None, None]


def test_a_wrong_size_is_refused_before_anything_is_fetched(get, tmp_path):
    with pytest.raises(FetchError, match=r"the file there has 5,120,000 bytes, 5,120,001 expected: it is another"):
        get(size=len(CONTENT) + 1)
    assert list((tmp_path / "deep").iterdir()) == []


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
        download("http://127.0.0.1:9/file.pt", tmp_path / "file.pt", attempts=2, pause=0)


def test_a_full_disk_is_seen_before_it_is_full(get, monkeypatch, tmp_path):
    monkeypatch.setattr(http_download.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(FetchError, match=r"0\.0 GB are needed, 0\.0 GB are free"):
        get()
    assert not (tmp_path / "deep" / "file.pt.part").exists()


# --- the Hub


def hub_cache(folder: Path, address: str, files: dict[str, bytes]) -> Path:
    """A repository in the local cache in the layout of the Hub's library: refs, blobs by digest, snapshots of links."""
    repository = folder / f"models--{address.replace('/', '--')}"
    for part in ("refs", "blobs", f"snapshots/{COMMIT}"):
        (repository / part).mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for name, content in files.items():
        blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (repository / "snapshots" / COMMIT / name).symlink_to(f"../../blobs/{blob.name}")
    return repository


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def hub(server, cache, monkeypatch):
    """The server as a Hub with one repository, owner/name, that has a configuration and weights."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    server.files = {"/owner/name/resolve/main/config.json": b"{}"}
    return server


REPOSITORY = Checkpoint(
    "owner/name", (), "hub", "owner/name", ("model.safetensors", "pytorch_model.bin"), "", "transformers"
)


def publish(hub, **files: bytes) -> None:
    hub.files |= {f"/owner/name/resolve/main/{name.replace('__', '.')}": content for name, content in files.items()}


def test_a_repository_goes_into_the_cache_of_the_hub(hub, cache):
    publish(hub, model__safetensors=CONTENT, pytorch_model__bin=b"not wanted")
    need = Need("x", REPOSITORY, None)
    assert need.found() is None
    path = fetch(need)
    assert path == need.found()
    assert path.read_bytes() == CONTENT
    assert path.resolve().name == DIGEST
    assert path.is_relative_to(cache)
    assert not any("bin" in asked[1] for asked in hub.asked)
    hub.asked.clear()
    assert fetch(need) == path
    assert hub.asked == []


def test_a_repository_goes_into_a_folder_or_one_file_where_the_parameters_say_so(hub, tmp_path):
    publish(hub, pytorch_model__bin=CONTENT)
    folder = Need("x", REPOSITORY, tmp_path / "checkpoints" / "name")
    assert fetch(folder) == folder.found() == tmp_path / "checkpoints" / "name" / "pytorch_model.bin"
    assert sorted(p.name for p in folder.target.iterdir()) == ["config.json", "pytorch_model.bin"]
    file = Need("x", REPOSITORY, tmp_path / "checkpoints" / "mine.bin")
    assert fetch(file).read_bytes() == CONTENT
    with pytest.raises(FetchError, match=r"https://huggingface.co/owner/name: has no model\.safetensors"):
        fetch(Need("x", REPOSITORY, tmp_path / "checkpoints" / "mine.safetensors"))


def test_weights_in_several_files_are_whole_only_with_all_of_them(hub):
    index = json.dumps({"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}).encode()
    publish(hub, **{"model.safetensors.index.json": index, "part-1.safetensors": b"1", "part-2.safetensors": b"2"})
    need = Need("x", REPOSITORY, None)
    index_file = fetch(need)
    assert need.found() == index_file
    (index_file.parent / "part-2.safetensors").unlink()
    assert need.found() is None


def test_a_file_that_was_damaged_on_its_way_is_removed(hub, cache):
    """The library checks sizes; the digest is the name that it gives to the file."""
    publish(hub, model__safetensors=CONTENT)
    hub.files["digest of"] = b"what the Hub means to send"
    with pytest.raises(FetchError, match="it was damaged on its way and is removed"):
        fetch(Need("x", REPOSITORY, None))
    assert Need("x", REPOSITORY, None).found() is None


def test_a_cache_that_was_brought_here_by_hand_is_recognised(cache):
    checkpoint = find("facebook/dinov2-small")
    hub_cache(cache, checkpoint.address, {"config.json": b"{}", "model.safetensors": CONTENT})
    need = Need("x", checkpoint, None)
    assert need.found().read_bytes() == CONTENT
    assert fetch(need, local_files_only=True) == need.found()
    assert fetching.state(need) == (True, "there")
    assert fetching.state(need, verify=True) == (True, "there, SHA-256 as published")
    need.found().resolve().write_bytes(b"damaged")
    assert not fetching.state(need, verify=True)[0]


def test_no_network_is_used_when_only_local_files_are_wanted(hub):
    publish(hub, model__safetensors=CONTENT)
    with pytest.raises(FetchError, match="no network is used"):
        fetch(Need("x", REPOSITORY, None), local_files_only=True)
    assert hub.asked == []


# --- the needs of a parameter file, and the command


SSV2 = {
    "dataset": "ssv2",
    "semantic": "dinov2_vits14",
    "semantic_checkpoint": "checkpoints/dinov2_vits14.safetensors",
    "motion": "i3d_r50",
    "motion_checkpoint": "checkpoints/i3d_r50.pyth",
}


def needed(**changes) -> list[tuple[str, Path | None]]:
    return [(need.checkpoint.name, need.target) for need in needs(params.from_values(SSV2 | changes))]


def test_what_a_run_needs_and_where_it_goes(project):
    there = project / "checkpoints"
    assert needed() == [
        ("facebook/dinov2-small", there / "dinov2_vits14.safetensors"),
        ("pytorchvideo/I3D_8x8_R50", there / "i3d_r50.pyth"),
    ]
    assert needed(semantic_checkpoint="", motion_checkpoint="") == [
        ("facebook/dinov2-small", None),
        ("pytorchvideo/I3D_8x8_R50", there / "I3D_8x8_R50.pyth"),
    ]
    # The suffix tells the published files of one stream apart.
    assert needed(motion_checkpoint="elsewhere/x.pkl")[1] == ("SlowFast/I3D_8x8_R50", project / "elsewhere/x.pkl")
    assert needed(motion_checkpoint="x.pth")[1][0] == "mmaction2/I3D_32x2_R50"
    assert needed(motion_checkpoint="x/i3d_r50_kinetics.pth")[1][0] == "Tushar-N/I3D_32x2_R50"
    # Names on the Hub, in the table and outside of it, and a folder of the same form.
    assert needed(semantic_checkpoint="facebook/dinov2-base")[0] == ("facebook/dinov2-base", None)
    assert needed(semantic_checkpoint="me/tuned")[0] == ("me/tuned", None)
    assert needed(semantic_checkpoint="checkpoints/small")[0] == ("facebook/dinov2-small", there / "small")


def test_a_checkpoint_that_nobody_publishes_is_an_error_until_it_is_there(project):
    with pytest.raises(ValueError, match=r"motion_checkpoint: x\.safetensors is none of .* I3D_8x8_R50\.pyth"):
        needed(motion_checkpoint="x.safetensors")
    (project / "x.safetensors").touch()
    assert needed(motion_checkpoint="x.safetensors")[1][1] == project / "x.safetensors"


def test_the_demo_needs_nothing(project, capsys):
    (project / "demo.yaml").write_text("semantic: dinov2_tiny\nmotion: i3d_tiny\n")
    assert main(["demo.yaml"]) == 0
    assert "come with the package" in capsys.readouterr().out


@pytest.fixture
def ssv2(project, cache) -> Path:
    (project / "ssv2.yaml").write_text("".join(f"{key}: {value}\n" for key, value in SSV2.items()))
    return project


def test_without_a_network_the_command_says_what_to_fetch_and_where_to_put_it(ssv2, capsys):
    assert main(["ssv2.yaml"]) == 1
    lines = capsys.readouterr().out.partition("fetch by hand:\n")[2].splitlines()
    assert lines == [
        "  facebook/dinov2-small: https://huggingface.co/facebook/dinov2-small/resolve/main/model.safetensors (88 MB) "
        "-> checkpoints/dinov2_vits14.safetensors",
        "  pytorchvideo/I3D_8x8_R50: https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/I3D_8x8_R50.pyth "
        "(225 MB) -> checkpoints/i3d_r50.pyth",
    ]


def test_what_was_put_there_by_hand_is_found_and_checked(ssv2, monkeypatch, capsys):
    whole = CHECKPOINTS["pytorchvideo/I3D_8x8_R50"]
    monkeypatch.setitem(
        CHECKPOINTS,
        whole.name,
        Checkpoint(whole.name, whole.streams, "file", whole.address, whole.files, "", "", len(CONTENT), None, DIGEST),
    )
    (ssv2 / "checkpoints").mkdir()
    (ssv2 / "checkpoints" / "dinov2_vits14.safetensors").write_bytes(b"any size: none is published exactly")
    (ssv2 / "checkpoints" / "i3d_r50.pyth").write_bytes(CONTENT[:-1])
    assert main(["ssv2.yaml"]) == 1
    said = capsys.readouterr().out
    assert "i3d_r50.pyth: there, but it has 5,119,999 bytes and the published file 5,120,000" in said
    assert "dinov2_vits14.safetensors: there\n" in said
    (ssv2 / "checkpoints" / "i3d_r50.pyth").write_bytes(CONTENT)
    assert main(["ssv2.yaml"]) == 0
    capsys.readouterr()
    assert main(["ssv2.yaml", "--verify"]) == 1  # the other one is not DINOv2
    said = capsys.readouterr().out
    assert "i3d_r50.pyth: there, SHA-256 as published" in said
    assert "there, but its SHA-256 is" in said


def test_the_command_fetches_a_file_to_its_place_and_a_second_time_nothing(ssv2, server, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    whole = CHECKPOINTS["pytorchvideo/I3D_8x8_R50"]
    address = f"{server.url}/file.pt"
    monkeypatch.setitem(
        CHECKPOINTS,
        whole.name,
        Checkpoint(whole.name, whole.streams, "file", address, whole.files, "", "", len(CONTENT), None, DIGEST),
    )
    assert main([whole.name, "--list"]) == 1
    assert server.asked == []
    assert main([whole.name]) == 0
    assert (ssv2 / "checkpoints" / "I3D_8x8_R50.pyth").read_bytes() == CONTENT
    server.asked.clear()
    assert main([whole.name]) == 0
    assert server.asked == []


def test_wrong_names_are_said_with_the_right_ones(ssv2, capsys):
    for wrong, said in (
        ("nothing.yaml", "no such parameter file"),
        ("facebook/dinov2-smol", "facebook/dinov2-small"),
        ("i3d_r5", "i3d_r50"),
    ):
        assert main([wrong]) == 1
        assert said in capsys.readouterr().err


def test_what_was_fetched_is_what_a_stream_loads(hub, tmp_path):
    """From the Hub to tokens: weights of the real layout and size, through the code that a user runs."""
    from safetensors.torch import save_file

    random = create_stream("dinov2_vits14", seed=3)
    state = {key: value.contiguous() for key, value in random.backbone.state_dict().items()}
    save_file(state, tmp_path / "served.safetensors", metadata={"format": "pt"})
    publish(hub, model__safetensors=(tmp_path / "served.safetensors").read_bytes())
    path = fetch(Need("x", REPOSITORY, tmp_path / "checkpoints" / "dinov2_vits14.safetensors"))
    loaded = create_stream("dinov2_vits14", checkpoint=path).backbone.state_dict()
    assert loaded.keys() == state.keys()
    assert all((loaded[key] == state[key]).all() for key in state)
    with pytest.raises(CheckpointError, match="dinov2_vitb14"):
        create_stream("dinov2_vitb14", checkpoint=path)
