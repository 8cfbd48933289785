"""Mistakes that people make in a parameter file: each is named, with its file and its fix, before anything runs."""

import pytest

from tcar.lab import params
from tcar.lab.doctor import fitness
from tcar.lab.doctor.finding import FAULT
from tcar.lab.params import ParameterError

REAL = "dataset: ssv2\ndata_root: nowhere\n"
SMALL = "semantic: dinov2_vits14\nsemantic_checkpoint: "
# What the file says; what the error or the fault says of it, the key first and the fix last.
REFUSED = [
    ("methods: cross_attention", "methods is 'cross_attention' (text)", "expected list[str]"),
    (f"{REAL}classes: [200]", "classes is [200]", "leave it []"),
    (f"{REAL}control: reversed", "control is 'reversed'", "leave it empty"),
    ("classes: all", "classes is 'all' (text)", "expected list[int]"),
    ("full_size_streams: [dino]", "full_size_streams names 'dino'", "expected one of"),
    ("epochs: 30.0", "epochs is 30.0 (float)", "expected int"),
    ("learning_rate:", "learning_rate is None (nothing)", "expected float"),
    ("precision: fp16\ndevice: cpu", "precision is fp16", "set it to bf16 or fp32"),
    ("publish: maybe", "publish is 'maybe' (text)", "expected bool"),
]
FAULTS = [
    ("check_checkpoints", SMALL + "w.safetensors", "semantic_checkpoint w.s", "fetch"),
    ("check_checkpoints", SMALL + "w.pth", "semantic_checkpoint: w.pth", "a file"),
    ("check_checkpoints", "semantic_checkpoint: empty.safetensors", "empty.safetensors", "set semantic_checkpoint"),
    ("check_checkpoints", "motion: i3d_r50\nmotion_checkpoint: no/such.pth", "motion_checkpoint no/", "fetch"),
    ("check_dataset", REAL, "set data_root to the folder with labels.json", "tcar prepare"),
    ("check_memory", "batch_size: 10_000_000\ndevice: cpu", "batch_size is 10000000", "lower batch_size"),
    ("check_memory", "batch_clips: 1000000\ndevice: cpu", "batch_clips is 1000000", "lower batch_clips"),
    ("check_fusions", "max_trained_parameters: 1000", "is 1,000", "raise max_trained_parameters"),
    ("check_machine", "device: cuda:63", "device is cuda:63", "set device to auto"),
    ("check_watching", "webhook: $TCAR_NOBODY_HAS_SET_THIS", "webhook is $TCAR_NOBODY", "export TCAR_NOBODY"),
    ("check_disks", "runs: file/runs", "cannot be written", "runs"),
    ("check_disks", "views: 10_000_000", "needed", "set `runs:` to a folder on another disk"),
    ("check_baselines", "baselines: [cast_b16]", "no parameter names it", "baseline_checkpoints"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said", "fix"), REFUSED)
def test_what_cannot_work_is_refused_when_the_file_is_read(project, text, said, fix):
    (project / "mine.yaml").write_text(text + "\n")
    with pytest.raises(ParameterError) as error:
        params.load("mine.yaml")
    message = str(error.value)
    assert message.startswith("mine.yaml: ")
    assert said in message
    assert fix in message


@pytest.mark.parametrize(("check", "text", "said", "fix"), FAULTS)
def test_what_cannot_work_here_is_a_fault_that_the_doctor_finds(project, cache, check, text, said, fix):
    (project / "mine.yaml").write_text(text + "\n")
    (project / "empty.safetensors").touch()
    (project / "file").touch()
    found = [each for each in getattr(fitness, check)(params.load("mine.yaml")) if each.state == FAULT]
    assert any(said in each.detail and fix in each.fix for each in found), found
