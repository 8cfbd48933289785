"""What a run needs of published weights comes to its place whole, and what cannot be had is named with its place."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from file_server import CONTENT, DIGEST
from hub_files import hub_cache
from huggingface_hub import constants

from tcar.__main__ import command
from tcar.lab import params
from tcar.lab.fetch import Need, baseline_needs, fetch, needs, state
from tcar.streams.download import FetchError
from tcar.streams.published import CHECKPOINTS, WEIGHTS, Checkpoint, find

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


REPOSITORY = Checkpoint("owner/name", (), "hub", "owner/name", WEIGHTS, "", "transformers")


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
    assert fetch(need) == need.found()
    assert state(need) == (True, "there")
    assert state(need, verify=True) == (True, "there, SHA-256 as published")
    need.found().resolve().write_bytes(b"damaged")
    assert not state(need, verify=True)[0]


def test_no_network_is_used_offline(hub, monkeypatch):
    publish(hub, model__safetensors=CONTENT)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FetchError, match="no network is used"):
        fetch(Need("x", REPOSITORY, None))
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


PUBLISHED = "pytorchvideo/I3D_8x8_R50"


def published_as_content(monkeypatch, **changes) -> None:
    """Let the published file of I3D be the one that the server has."""
    known = replace(CHECKPOINTS[PUBLISHED], bytes=len(CONTENT), sha256=DIGEST, **changes)
    monkeypatch.setitem(CHECKPOINTS, PUBLISHED, known)


def test_what_was_put_there_by_hand_is_found_and_checked(ssv2, monkeypatch, capsys):
    published_as_content(monkeypatch)
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
    published_as_content(monkeypatch, address=f"{server.url}/file.pt")
    assert command("fetch", [PUBLISHED, "--list"]) == 1
    assert server.asked == []
    assert command("fetch", [PUBLISHED]) == 0
    assert (ssv2 / "checkpoints" / "I3D_8x8_R50.pyth").read_bytes() == CONTENT
    server.asked.clear()
    assert command("fetch", [PUBLISHED]) == 0
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


# ---- what a parameter file needs ----
NAMED = yaml.safe_load(SSV2)


def needed(**changes) -> list[tuple[str, Path | None]]:
    return [(need.checkpoint.name, need.target) for need in needs(params.from_values(NAMED | changes))]


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


EXPERTS = {"cast_b16.clip": "openai/clip-vit-base-patch16", "cast_b16.videomae": "MCG-NJU/videomae-base-finetuned-ssv2"}


def of_baselines(**values) -> list[Need]:
    return baseline_needs(params.from_values(values))


def test_a_baseline_needs_what_it_is_published_with_or_what_the_parameters_say(project):
    found = of_baselines(baselines=["cast_b16"])
    assert [(need.purpose, need.checkpoint.name, need.target) for need in found] == [
        (f"baseline {key}", address, None) for key, address in EXPERTS.items()
    ]
    assert [need.advice for need in found] == [f"set baseline_checkpoints: {{{k}: {v}}}" for k, v in EXPERTS.items()]
    file = "checkpoints/videomae.bin"
    stated = {"cast_b16.clip": "me/clip", "cast_b16.videomae": file}
    clip, videomae = of_baselines(baselines=["cast_b16"], baseline_checkpoints=stated)
    assert (clip.checkpoint.name, clip.target, clip.advice) == ("me/clip", None, "")
    assert (videomae.checkpoint.name, videomae.target) == (EXPERTS["cast_b16.videomae"], project / file)
    assert of_baselines(baseline_checkpoints=stated) == []  # no baseline takes them
    assert len(needs(params.from_values(NAMED | {"baselines": ["cast_b16"]}))) == 4


def test_a_baseline_whose_weights_come_with_the_package_needs_nothing(project):
    assert of_baselines(baselines=["cast_tiny"]) == []


def test_the_baseline_that_reads_its_classes_from_a_file_beside_its_weights_needs_that_too(project):
    stated = {"timesformer_vitb16": "checkpoints/timesformer"}
    (need,) = of_baselines(baselines=["timesformer_vitb16"], baseline_checkpoints=stated)
    assert state(need) == (False, "missing")
    need.target.mkdir(parents=True)
    (need.target / "model.safetensors").touch()
    assert state(need) == (False, "there, but the config.json that numbers its classes is not beside it")
    (need.target / "config.json").touch()
    assert state(need) == (True, "there")
