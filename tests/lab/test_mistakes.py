"""Mistakes that people make in a parameter file: each is named, with its file and its fix, before anything runs."""

import pytest

from tcar.lab import fitness, params
from tcar.lab.fitness import FAULT
from tcar.lab.params import ParameterError

REAL = "dataset: ssv2\ndata_root: nowhere\n"
SMALL = "semantic: dinov2_vits14\nsemantic_checkpoint: "
# What the file says; what the error or the fault says of it, the key first and the fix last.
REFUSED = [
    ("methods: [cross_atention]", "methods is", "did you mean 'cross_attention'?"),
    ("methods: cross_attention", "methods is 'cross_attention' (text)", "expected list[str]"),
    ("methods: [motion]", "methods is ['motion']", "add it"),
    ("methods: [cross_attention, motion, motion]", "methods is", "expected each once"),
    ("seeds: []", "seeds is []", "expected at least 1 of them"),
    ("seeds: 3", "seeds is 3 (int)", "expected list[int]"),
    ("seeds: [-1]", "seeds is [-1]", "expected at least 0"),
    ("heads: 5", "heads has [5] where fusion_width is 64", "each head needs an even, whole number of channels"),
    ("classes: [200]", "classes names [200]", "it has [0, 6,"),
    (f"{REAL}classes: [200]", "classes is [200]", "leave it []"),
    ("classes: all", "classes is 'all' (text)", "expected list[int]"),
    ("motion: i3d_r5", "motion is 'i3d_r5'", "did you mean 'i3d_r50'?"),
    ("semantic: i3d_r50", "semantic is 'i3d_r50'", "expected one of dinov2_tiny"),
    ("full_size_streams: [dino]", "full_size_streams names 'dino'", "expected one of"),
    ("motion_grid: [4, 7, 7]", "motion_grid is [4, 7, 7]", "no axis can have more"),
    ("motion_grid: [2, 4]", "motion_grid is [2, 4]", "expected at least 3 of them"),
    ("epochs: 1", "epochs is 1", "must be above warmup_epochs, which is 2"),
    ("epochs: 30.0", "epochs is 30.0 (float)", "expected int"),
    ("epoch: 30", "unknown parameter 'epoch'", "did you mean 'epochs'?"),
    ("epochs: 30\nepochs: 20", "the key 'epochs' stands there twice", ""),
    ("learning_rate: 3e-4", "learning_rate is '3e-4' (text)", "write 3.0e-4"),
    ("learning_rate:", "learning_rate is None (nothing)", "expected float"),
    ("dropout: 1.5", "dropout is 1.5", "expected at most 0.95"),
    ("batch_size: 0", "batch_size is 0", "expected at least 1"),
    ("device: gpu", "device is 'gpu'", "expected auto, cpu, mps, cuda"),
    ("precision: fp16\ndevice: cpu", "precision is fp16", "set it to bf16 or fp32"),
    ("token_type: fp8", "token_type is 'fp8'", "expected one of fp16, bf16"),
    ("baselines: [cast]", "baselines is ['cast']", "did you mean 'cast_b16'?"),
    ("trackers: [wandbs]", "trackers is ['wandbs']", "did you mean 'wandb'?"),
    ("view_flip: 0.5", "view_flip is 0.5, but views is 1", "set views to 2 or more"),
    (f"{REAL}control: reversed", "control is 'reversed'", "leave it empty"),
    ("name: my/run", "name is 'my/run'", "letters, digits"),
    ("publish: maybe", "publish is 'maybe' (text)", "expected bool"),
    ("- heads: 4", "expected lines `key: value`", ""),
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
