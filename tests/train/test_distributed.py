"""Two processes against one: the same curve, the same weights, and every clip counted once; however they are started.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from token_task import Recorder, run, token_task

from tcar.train.trainer import train

# 78 clips to train on and 21 to validate: the last total batch is short, and no number of processes divides 21 batches.
ONE = {"batch_size": 8, "label_smoothing": 0.1, "weight_averaging": 0.5, "mixup": 0.4, "mix_probability": 0.5}
TWO = ONE | {"batch_size": 4, "accumulation": 1, "checkpoint_steps": 4, "device": "auto"}
SCRIPT = Path(__file__).parents[1].joinpath("support", "token_task.py")


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
# Its name notwithstanding, "multi_gpu" starts processes of this machine's kind; with "cpu" it would want MPI.
ACCELERATE = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1",
              "--mixed_precision=no", "--dynamo_backend=no"]  # fmt: skip


def launched(folder: Path, changes: dict, launcher: list[str] = TORCHRUN, *arguments: str) -> dict:
    """Train in processes that a launcher starts; return what the watchers of the main process were told."""
    path = f"{SCRIPT.parents[2]}:{SCRIPT.parent}"
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, *launcher, str(SCRIPT), str(folder), json.dumps(changes), *arguments]
    subprocess.run(command, env=environment, check=True, timeout=300)
    return json.loads((folder / "told.json").read_text())


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder, recorder, asked = tmp_path_factory.mktemp("one"), Recorder(), run(**ONE)
    alone = train(token_task(asked), folder, [recorder])
    apart = tmp_path_factory.mktemp("two")
    return alone, recorder, launched(apart, TWO), apart


def test_the_same_loss_curve_over_50_steps(both):
    _, recorder, two, _ = both
    assert two["begun"]["processes"] == 2 and two["begun"]["total_batch"] == recorder.begun["total_batch"] == 8
    assert [row["step"] for row in two["steps"]] == list(range(1, 51))
    for ours, theirs in zip(recorder.steps, two["steps"], strict=True):
        for key in ("loss", "learning_rate", "epoch"):
            assert theirs[key] == pytest.approx(ours[key], abs=1e-5), (key, ours["step"])
        # Of gradients, so more sensitive to rounding than the loss: how much depends on the machine's processor.
        assert theirs["gradient_norm"] == pytest.approx(ours["gradient_norm"], rel=1e-4), ours["step"]


def test_the_same_epochs_with_every_clip_counted_once(both):
    alone, _, two, _ = both
    assert len(two["epochs"]) == 5
    for ours, theirs in zip(alone.history, two["epochs"], strict=True):
        assert theirs["validation_top1"] == ours["validation_top1"]
        assert theirs["validation_top1"] * 21 == pytest.approx(round(theirs["validation_top1"] * 21))
        for key in ("train_loss", "validation_loss", "gradient_norm"):
            assert theirs[key] == pytest.approx(ours[key], abs=1e-5), key


def test_both_processes_end_with_the_same_weights(both):
    alone, _, _, apart = both
    first, second = (torch.load(apart / f"weights-of-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first.keys() == alone.state_dict.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name])
        if "bias" not in name:  # that of the keys has no gradient but rounding, which the optimiser magnifies
            torch.testing.assert_close(value, alone.state_dict[name], atol=1e-3, rtol=1e-2)


def test_one_process_goes_on_where_two_have_stopped(both, tmp_path):
    """The total batch is the same, so the training is."""
    _, _, two, apart = both
    folder = shutil.copytree(apart, tmp_path / "copy")
    shutil.rmtree(folder / "checkpoints" / "step-000000050")
    asked, recorder = run(**ONE | {"checkpoint_steps": 4}), Recorder()
    train(token_task(asked), folder, [recorder])
    assert recorder.begun["step"] == 48
    assert recorder.steps[-1]["loss"] == pytest.approx(two["steps"][-1]["loss"], abs=1e-5)
    assert recorder.epochs[-1]["train_loss"] == pytest.approx(two["epochs"][-1]["train_loss"], abs=1e-5)


@pytest.mark.parametrize("launcher", ["command", "notebook"])
def test_the_launchers_of_accelerate_start_the_same_training(both, tmp_path, launcher):
    _, _, two, apart = both
    told = launched(tmp_path, TWO, ACCELERATE) if launcher == "command" else launched(tmp_path, TWO, [], "notebook")
    assert told["begun"]["processes"] == 2
    for key in ("loss", "gradient_norm", "learning_rate"):
        assert [row[key] for row in told["steps"]] == [row[key] for row in two["steps"]]
    ours, theirs = (torch.load(folder / "weights-of-1.pt", weights_only=True) for folder in (tmp_path, apart))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
