"""What a parameter file needs, where it goes, and what is said of what is there."""

from pathlib import Path

import pytest

from tcar.lab import params
from tcar.lab.needs import Need, baseline_needs, needs, state

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


CAST = {"cast_b16.clip": "openai/clip-vit-base-patch16", "cast_b16.videomae": "MCG-NJU/videomae-base-finetuned-ssv2"}


def of_baselines(**values) -> list[Need]:
    return baseline_needs(params.from_values(values))


def test_a_baseline_needs_what_it_is_published_with_or_what_the_parameters_say(project):
    found = of_baselines(baselines=["cast_b16"])
    assert [(need.purpose, need.checkpoint.name, need.target) for need in found] == [
        (f"baseline {key}", address, None) for key, address in CAST.items()
    ]
    assert [need.advice for need in found] == [f"set baseline_checkpoints: {{{k}: {v}}}" for k, v in CAST.items()]
    file = "checkpoints/videomae.bin"
    stated = {"cast_b16.clip": "me/clip", "cast_b16.videomae": file}
    clip, videomae = of_baselines(baselines=["cast_b16"], baseline_checkpoints=stated)
    assert (clip.checkpoint.name, clip.target, clip.advice) == ("me/clip", None, "")
    assert (videomae.checkpoint.name, videomae.target) == (CAST["cast_b16.videomae"], project / file)
    assert of_baselines(baseline_checkpoints=stated) == []  # no baseline takes them
    assert len(needs(params.from_values(SSV2 | {"baselines": ["cast_b16"]}))) == 4


def test_a_baseline_of_random_weights_needs_nothing(project):
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
