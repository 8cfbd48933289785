"""Fetching: what the Hub or a server has comes to its place whole, and what cannot be had is named with its place."""

import json
from pathlib import Path

import pytest
from file_server import CONTENT, DIGEST
from hub_files import hub_cache
from huggingface_hub import constants

from tcar.__main__ import command
from tcar.lab.fetch import fetch
from tcar.lab.needs import Need, state
from tcar.streams.download import FetchError
from tcar.streams.published import CHECKPOINTS, Checkpoint, find
from tcar.streams.registry import create_stream
from tcar.streams.weights import CheckpointError

SSV2 = """
dataset: ssv2
semantic: dinov2_vits14
semantic_checkpoint: checkpoints/dinov2_vits14.safetensors
motion: i3d_r50
motion_checkpoint: checkpoints/i3d_r50.pyth
"""


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


def test_weights_whose_classes_are_numbered_by_a_file_beside_them_come_with_it(hub, tmp_path):
    publish(hub, model__safetensors=CONTENT)
    for place in ("folder", "one/mine.safetensors"):
        need = Need("x", REPOSITORY, tmp_path / place, labelled=True)
        assert fetch(need).parent == (tmp_path / place if place == "folder" else tmp_path / "one")
        assert (need.found().parent / "config.json").read_bytes() == b"{}"
        assert state(need) == (True, "there")
    cached = Need("x", REPOSITORY, None, labelled=True)
    (fetch(cached).parent / "config.json").unlink()
    assert state(cached) == (False, "there, but the config.json that numbers its classes is not beside it")
    fetch(cached)
    assert state(cached)[0]


def test_weights_of_ones_own_are_neither_replaced_nor_given_the_published_classes(hub, tmp_path):
    publish(hub, model__safetensors=CONTENT)
    (tmp_path / "mine.safetensors").write_bytes(b"tuned for hours")
    need = Need("x", REPOSITORY, tmp_path / "mine.safetensors", labelled=True)
    assert fetch(need).read_bytes() == b"tuned for hours"
    assert hub.asked == []
    assert state(need)[0] is False
    assert not (tmp_path / "config.json").exists()


def test_another_file_in_the_place_of_a_published_one_is_named_and_left_alone(hub, tmp_path):
    publish(hub, model__safetensors=CONTENT)
    need = Need("x", REPOSITORY, tmp_path / "model")
    need.target.mkdir()
    (need.target / "config.json").write_text("mine")
    with pytest.raises(FetchError, match="config.json: is there, and is not the published file"):
        fetch(need)
    assert [(path.name, path.read_text()) for path in need.target.iterdir()] == [("config.json", "mine")]
    (need.target / "config.json").write_bytes(b"{}")
    assert fetch(need).is_file() and fetch(need).parent == need.target


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
    assert state(need) == (True, "there")
    assert state(need, verify=True) == (True, "there, SHA-256 as published")
    need.found().resolve().write_bytes(b"damaged")
    assert not state(need, verify=True)[0]


def test_no_network_is_used_when_only_local_files_are_wanted(hub):
    publish(hub, model__safetensors=CONTENT)
    with pytest.raises(FetchError, match="no network is used"):
        fetch(Need("x", REPOSITORY, None), local_files_only=True)
    assert hub.asked == []


def test_the_demo_needs_nothing(project, capsys):
    (project / "demo.yaml").write_text("semantic: dinov2_tiny\nmotion: i3d_tiny\n")
    assert command("fetch", ["demo.yaml"]) == 0
    assert "come with the package" in capsys.readouterr().out


@pytest.fixture
def ssv2(project, cache) -> Path:
    (project / "ssv2.yaml").write_text(SSV2)
    return project


def test_without_a_network_the_command_says_what_to_fetch_and_where_to_put_it(ssv2, capsys):
    assert command("fetch", ["ssv2.yaml"]) == 1
    lines = capsys.readouterr().out.partition("fetch by hand:\n")[2].splitlines()
    assert lines == [
        "  facebook/dinov2-small: https://huggingface.co/facebook/dinov2-small/resolve/main/model.safetensors (88 MB) "
        "-> checkpoints/dinov2_vits14.safetensors",
        "  pytorchvideo/I3D_8x8_R50: https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/I3D_8x8_R50.pyth "
        "(225 MB) -> checkpoints/i3d_r50.pyth",
    ]


def test_the_baselines_of_a_parameter_file_are_listed_like_its_streams(ssv2, cache, capsys):
    with (ssv2 / "ssv2.yaml").open("a") as file:
        file.write("baselines: [cast_b16, timesformer_vitb16]\n")
        file.write("baseline_checkpoints: {timesformer_vitb16: checkpoints/timesformer}\n")
    assert command("fetch", ["ssv2.yaml", "--list"]) == 1
    said, by_hand = capsys.readouterr().out.split("fetch by hand:\n")
    clip = "openai/clip-vit-base-patch16"
    assert f"baseline cast_b16.clip: {clip} in the cache of the Hub: missing\n" in said
    assert "facebook/timesformer-base-finetuned-ssv2 in checkpoints/timesformer: missing\n" in said
    assert [line.partition(":")[0].strip() for line in by_hand.splitlines()][2:] == [
        clip, "MCG-NJU/videomae-base-finetuned-ssv2", "facebook/timesformer-base-finetuned-ssv2",
    ]  # fmt: skip
    assert by_hand.endswith("-> checkpoints/timesformer/ (config.json and its weights) [tuned on SSv2 itself: "
                            "as a stream, say so beside every number]\n")  # fmt: skip
    hub_cache(cache, clip, {"config.json": b"{}", "model.safetensors": b"1"})
    command("fetch", ["ssv2.yaml", "--list"])
    said = capsys.readouterr().out
    assert f"{clip} in the cache of the Hub: there\n  -> set baseline_checkpoints: {{cast_b16.clip: {clip}}}\n" in said


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
    assert command("fetch", ["ssv2.yaml"]) == 1
    said = capsys.readouterr().out
    assert "i3d_r50.pyth: there, but it has 5,119,999 bytes and the published file 5,120,000" in said
    assert "dinov2_vits14.safetensors: there\n" in said
    (ssv2 / "checkpoints" / "i3d_r50.pyth").write_bytes(CONTENT)
    assert command("fetch", ["ssv2.yaml"]) == 0
    capsys.readouterr()
    assert command("fetch", ["ssv2.yaml", "--verify"]) == 1  # the other one is not DINOv2
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
    assert command("fetch", [whole.name, "--list"]) == 1
    assert server.asked == []
    assert command("fetch", [whole.name]) == 0
    assert (ssv2 / "checkpoints" / "I3D_8x8_R50.pyth").read_bytes() == CONTENT
    server.asked.clear()
    assert command("fetch", [whole.name]) == 0
    assert server.asked == []


def test_where_the_package_is_installed_files_go_right_here(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tcar.ground.project.PACKAGE", tmp_path / "lib" / "tcar")
    monkeypatch.chdir(tmp_path)
    assert command("fetch", ["i3d_r50", "--list"]) == 1
    assert "in checkpoints/I3D_8x8_R50.pyth: missing" in capsys.readouterr().out
    (tmp_path / "run.yaml").write_text("motion: i3d_r50")
    assert command("fetch", ["run.yaml", "--list"]) == 2
    assert "the installed package has no parameter files" in capsys.readouterr().err


def test_wrong_names_are_said_with_the_right_ones(ssv2, capsys):
    for wrong, said in (
        ("nothing.yaml", "no such parameter file"),
        ("facebook/dinov2-smol", "facebook/dinov2-small"),
        ("i3d_r5", "i3d_r50"),
    ):
        assert command("fetch", [wrong]) == 2
        assert said in capsys.readouterr().err


def test_what_was_fetched_is_what_a_stream_loads(hub, tmp_path):
    """From the Hub to tokens: weights of the real layout and size, through the code that a user runs."""
    from safetensors.torch import save_file

    random = create_stream("dinov2_vits14", seed=3)
    weights = {key: value.contiguous() for key, value in random.backbone.state_dict().items()}
    save_file(weights, tmp_path / "served.safetensors", metadata={"format": "pt"})
    publish(hub, model__safetensors=(tmp_path / "served.safetensors").read_bytes())
    path = fetch(Need("x", REPOSITORY, tmp_path / "checkpoints" / "dinov2_vits14.safetensors"))
    loaded = create_stream("dinov2_vits14", checkpoint=path).backbone.state_dict()
    assert loaded.keys() == weights.keys()
    assert all((loaded[key] == weights[key]).all() for key in weights)
    with pytest.raises(CheckpointError, match="dinov2_vitb14"):
        create_stream("dinov2_vitb14", checkpoint=path)
