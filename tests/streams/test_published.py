"""The table of published checkpoints: complete, well formed, empty where nothing is known; what is looked up in it."""

import re

import pytest

from tcar.streams.catalogue import BASELINES, CHECKPOINTS, PACKAGED
from tcar.streams.published import checkpoints_for, find, licence, recognise, table
from tcar.streams.registry import list_streams


def test_every_stream_has_a_checkpoint_with_a_licence_and_every_checkpoint_a_stream():
    streams = list_streams()
    for name in streams:
        assert bool(checkpoints_for(name)) != (name in PACKAGED), name
        assert licence(name), name
    served = {stream for checkpoint in CHECKPOINTS.values() for stream in checkpoint.streams}
    assert {stream for stream in served if not stream.startswith("timm:")} <= {*streams, BASELINES}


@pytest.mark.parametrize("checkpoint", CHECKPOINTS.values(), ids=lambda c: c.name)
def test_a_row_is_well_formed(checkpoint):
    assert find(checkpoint.name) is checkpoint
    if checkpoint.kind == "hub":
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", checkpoint.address)
        assert checkpoint.url("x.bin") == f"https://huggingface.co/{checkpoint.address}/resolve/main/x.bin"
    else:
        assert checkpoint.kind in ("file", "page")
        assert checkpoint.address.startswith("https://")
    if checkpoint.kind == "file":
        assert checkpoint.address.endswith(f"/{checkpoint.files[0]}")
        assert checkpoint.bytes is None or checkpoint.megabytes is None
    if checkpoint.sha256 is not None:
        assert re.fullmatch(r"[0-9a-f]{8}|[0-9a-f]{64}", checkpoint.sha256)
        if len(checkpoint.sha256) == 8:  # the part of the digest that its publisher put into the name
            assert checkpoint.files[0].endswith(f"-{checkpoint.sha256}.pth")
    if accuracy := checkpoint.accuracy:
        assert accuracy.source
        assert accuracy.top5 is None or accuracy.top1 < accuracy.top5 < 100


def test_a_checkpoint_is_recognised_by_its_name_and_no_other_is(tmp_path):
    assert recognise("i3d_r50", "Tushar-N/I3D_32x2_R50") is None  # no such file, and no name on the Hub
    for stream, names in {
        "i3d_r50": ["I3D_8x8_R50.pyth", "i3d_r50_kinetics.pth"],
        "dinov2_vits14_reg": ["dinov2_vits14_reg4_pretrain.pth", "dinov2-with-registers-small/model.safetensors"],
    }.items():
        found = []
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.touch()
            found.append(recognise(stream, path))
        assert all(checkpoint in checkpoints_for(stream) for checkpoint in found)
        assert len(set(found)) == (2 if stream == "i3d_r50" else 1)
    assert recognise("dinov2_vits14_reg", tmp_path / "dinov2-with-registers-small") is found[0]
    assert recognise("dinov2_vits14", tmp_path / "dinov2-with-registers-small") is None
    (tmp_path / "mine.pth").touch()
    assert recognise("dinov2_vits14", tmp_path / "mine.pth") is None


def test_no_row_is_there_twice():
    assert len({c.address for c in CHECKPOINTS.values()}) == len(CHECKPOINTS)
    digests = [c.sha256 for c in CHECKPOINTS.values() if c.sha256]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize(
    ("stream", "parameters"),
    [("dinov2_vits14", 22_056_576), ("dinov2_vitb14", 86_580_480), ("dinov2_vitl14", 304_368_640)],
)
def test_published_sizes_are_those_of_the_parameters(stream, parameters):
    """A safetensors file is four bytes a parameter and a header; the published size is rounded to three digits."""
    (checkpoint,) = checkpoints_for(stream)
    assert checkpoint.size() == pytest.approx(4 * parameters / 1e6, rel=5e-3)


def test_unknown_names_get_the_closest_ones():
    with pytest.raises(ValueError, match=r"unknown checkpoint 'facebook/dinov2-smal'.*facebook/dinov2-small"):
        find("facebook/dinov2-smal")
    with pytest.raises(ValueError, match=r"no checkpoint is published for 'dinov2_vits16'.*dinov2_vits14"):
        checkpoints_for("dinov2_vits16")
    with pytest.raises(ValueError, match="timm has no published weights of 'resnet5'; did you mean resnet50"):
        checkpoints_for("timm:resnet5")


def test_models_of_timm_are_found_where_timm_says():
    (outside,) = checkpoints_for("timm:vit_base_patch16_clip_224.openai")
    assert (outside.kind, outside.address) == ("hub", "timm/vit_base_patch16_clip_224.openai")
    assert outside.size() is None
    (inside,) = checkpoints_for("timm:resnet50")  # without a tag, the one that timm takes
    assert inside is CHECKPOINTS["timm/resnet50.a1_in1k"]


def test_the_rows_for_a_notebook_leave_what_is_unknown_empty():
    rows = {row["checkpoint"]: row for row in table()}
    assert list(rows) == list(CHECKPOINTS)
    assert rows["pytorchvideo/I3D_8x8_R50"]["top1"] == 73.27  # pytorchvideo's model zoo
    assert rows["pytorchvideo/I3D_8x8_R50"]["megabytes"] == 224.7
    assert rows["SlowFast/I3D_8x8_R50"]["megabytes"] == ""
    assert rows["openai/clip-vit-base-patch16"]["top1"] == ""
    assert rows["facebook/vjepa2-vitg-fpc64-384"]["top1"] == 77.3  # its readme
    assert not any(value is None for row in rows.values() for value in row.values())
