"""A small fusion on random tokens, for tests of the trainer; as a script, one process of a training."""

import json
import os
import signal
import socket
import sys
from pathlib import Path

import numpy as np
import torch
from fusions import GRIDS
from memory_store import in_memory

from tcar.fusion.kinds import FusionConfig
from tcar.lab import params
from tcar.lab.params import Params
from tcar.streams.grids import grid_coordinates
from tcar.train.tasks import TokenTask
from tcar.train.tokens import StoredTokens

CLASSES = 5
FUSION = FusionConfig(semantic_width=12, motion_width=10, num_classes=CLASSES, width=16, heads=2, blocks=1, mlp_ratio=2,
                      dropout=0, drop_path=0)  # fmt: skip
# 50 steps over 5 epochs, of 8 clips each.
SMALL = {"epochs": 5, "warmup_epochs": 1, "batch_size": 8, "learning_rate": 0.01, "log_steps": 1, "device": "cpu"}


def tokens(clips: int, seed: int) -> StoredTokens:
    """Random tokens whose mean tells the class, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    labels, values = rng.integers(0, CLASSES, clips), []
    for stream, width in (("semantic", 12), ("motion", 10)):
        xyz = grid_coordinates(GRIDS[stream]).flatten(0, 1).numpy().astype(np.float32)
        drawn = rng.normal(size=(clips, len(xyz), width))
        drawn[:, :, 0] += labels[:, None]
        values += [drawn.astype(np.float16), xyz]
    return in_memory(*values, labels, [f"{seed}-{number}" for number in range(clips)])


def run(**changes) -> Params:
    """The parameters of a small training."""
    return params.from_values(SMALL | changes)


def token_task(
    asked: Params, train: int = 78, validation: int = 21, seed: int = 0, fusion: FusionConfig = FUSION
) -> TokenTask:
    """A task of so many clips; neither number is a multiple of a batch."""
    return TokenTask(fusion, tokens(train, 1), tokens(validation, 2), asked, seed)


class Recorder:
    """A watcher that keeps all it is told."""

    def __init__(self):
        self.begun, self.steps, self.epochs, self.ended = {}, [], [], ""

    def start(self, run):
        self.begun = run

    def step(self, row):
        self.steps.append(row)

    def epoch(self, row):
        self.epochs.append(row)

    def end(self, reason):
        self.ended = reason


class Kills(Recorder):
    """A watcher that ends its own process by SIGKILL at a step."""

    def __init__(self, at: int):
        super().__init__()
        self.at = at

    def step(self, row):
        if row["step"] == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def kill_at_file(moment: int, root: Path) -> None:
    """End this process by SIGKILL just before it opens, renames or removes a file below `root`, the moment counted
    from 1."""
    left = [moment]

    def hook(event: str, arguments: tuple) -> None:
        if event in ("open", "os.rename", "os.remove", "os.rmdir") and str(arguments[0]).startswith(str(root)):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def main(folder: str, changes: dict) -> None:
    """Train, and write down what the watcher of the main process was told."""
    from tcar.ground import log
    from tcar.train.trainer import train

    log.configure("WARNING")
    asked, recorder = run(**changes), Recorder()
    found = train(token_task(asked), folder, [recorder])
    if int(os.environ.get("RANK", "0")) == 0:
        told = {"steps": recorder.steps, "epochs": found.history, "begun": recorder.begun, "reason": found.reason}
        Path(folder, "told.json").write_text(json.dumps(told))
    torch.save(found.state_dict, Path(folder, f"weights-of-{os.environ.get('RANK', '0')}.pt"))


def from_a_notebook(folder: str, changes: dict) -> None:
    """Do the same in two processes forked from this one, which has used torch's threads before, as a notebook does."""
    from accelerate import notebook_launcher

    torch.set_num_threads(2)
    weights = torch.randn(512, 512, requires_grad=True)
    (weights @ weights).square().mean().backward()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    notebook_launcher(main, (folder, changes), 2, use_port=port)


if __name__ == "__main__":
    started = from_a_notebook if "notebook" in sys.argv else main
    started(sys.argv[1], json.loads(sys.argv[2]))
