"""What `test_training.py` measures, each in a process of its own and without the type checker of the tests.

    python tests/benchmarks/training_speed.py FOLDER WHAT [ARGUMENTS AS JSON]

Prints one line of JSON, from the first process where there are several. The tokens are random.
"""

import json
import os
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from memory_store import in_memory

from tcar.fusion.kinds import FusionConfig, create_fusion
from tcar.ground import log
from tcar.lab import params
from tcar.streams.grids import grid_coordinates
from tcar.train.processes import Processes
from tcar.train.recipe import parameter_groups, reproducible
from tcar.train.stepping import Stepper, on_device
from tcar.train.tasks import TokenTask
from tcar.train.tokens import StoredTokens
from tcar.train.trainer import train, train_together
from tcar.train.training import Member

# The demo's fusion and tokens.
FUSION = FusionConfig(semantic_width=128, motion_width=128, num_classes=32, width=64, heads=4, mlp_ratio=2, dropout=0,
                      drop_path=0, window="time")  # fmt: skip
BATCH, STEPS = 24, 40


def tokens(clips: int, width: int = 128) -> StoredTokens:
    rng, values = np.random.default_rng(0), []
    for grid in ((4, 4, 4), (2, 4, 4)):
        xyz = grid_coordinates(grid).reshape(-1, 3).numpy()
        values += [rng.normal(size=(clips, len(xyz), width)).astype(np.float16), xyz]
    return in_memory(*values, rng.integers(0, 32, clips), [str(clip) for clip in range(clips)])


def task_of(run, fusion: FusionConfig = FUSION, clips: int = BATCH * STEPS) -> TokenTask:
    return TokenTask(fusion, tokens(clips), tokens(BATCH), run, 0)


class Rows:
    def __init__(self):
        self.rows = []

    def start(self, run): ...
    def step(self, row):
        self.rows.append(row)

    def epoch(self, row): ...
    def end(self, reason): ...


def step(folder: Path) -> dict:
    """Steps in turn, of one model on the same batches; processor time, as others share the machine."""
    run = params.from_values({"batch_size": BATCH, "device": "cpu"})
    with reproducible(0):
        made, data = Stepper(task_of(run), Processes(run, False)), tokens(BATCH * STEPS)
        model = create_fusion(FUSION)
        optimiser = torch.optim.AdamW(parameter_groups(model, 0.05), 0.001, fused=True)
        slices = made.slices(1)
        arrays, labels = data.floats(range(len(data))), torch.from_numpy(data.labels)

        def bare(places: list[int]) -> None:
            index = torch.tensor(places)
            values = [arrays[0][index], arrays[1], arrays[2][index], arrays[3]]
            loss = torch.nn.functional.cross_entropy(model(*values), labels[index], label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
            optimiser.step()

        alone, ours = [], []
        for _ in range(5):
            batches = made.task.batches("train", [part for parts in slices for part in parts], 1, {})
            for number, (part,) in enumerate(slices):
                start = time.process_time()
                bare(part.places)
                middle = time.process_time()
                made.step(on_device(made.task, [next(batches)], made.processes.device), number, 1)
                alone.append(middle - start)
                ours.append(time.process_time() - middle)
    return {"bare": statistics.median(alone), "trainer": statistics.median(ours)}


def memory(folder: Path, checkpointing: bool) -> dict:
    """By how much a process grows, up to the backward pass of each block, in one step of a deep fusion."""
    torch.set_num_threads(1)
    fusion = replace(FUSION, width=256, blocks=6, self_blocks=4, checkpointing=checkpointing)
    run = params.from_values({"batch_size": 64, "device": "cpu"})
    made = Stepper(task_of(run, fusion, 128), Processes(run, False))
    read = made.task.batches("train", [part for parts in made.slices(1) for part in parts], 1, {})
    batches = on_device(made.task, list(read), made.processes.device)
    process = psutil.Process()
    held = [process.memory_info().rss]
    for module in made.learner.model.fusion.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_full_backward_hook(lambda *_: held.append(process.memory_info().rss))
    made.step([batches[0]], 0, 1)
    return {"mb": (max(held) - held[0]) / 2**20}


def training(folder: Path, **changes) -> dict:
    """A whole training: clips a second, the processor time of a clip over all processes, the share of waiting, and its
    last loss.
    """
    asked = {"batch_size": BATCH, "device": "cpu", "epochs": 3, "log_steps": 5} | changes
    run, seen = params.from_values(asked), Rows()
    task, before = task_of(run), time.process_time()
    history = train(task, folder, [seen]).history
    clips = len(history) * (len(task.labels["train"]) + len(task.labels["validation"]))
    cpu = (time.process_time() - before) * int(os.environ.get("WORLD_SIZE", "1")) / clips
    speed = statistics.median(row["clips_per_second"] for row in seen.rows) if seen.rows else 0.0
    waits, loss = [row["data_wait"] for row in seen.rows], history[-1]["train_loss"]
    return {"speed": speed, "cpu": cpu, "waits": waits, "loss": loss}


def company(folder: Path, heads: int = 5) -> dict:
    """Seconds and bytes read of trainings in one pass, and in a pass each; processor time, as others share the machine.
    """
    run = params.from_values({"batch_size": BATCH, "device": "cpu", "epochs": 2, "warmup_epochs": 1})
    fusions = [replace(FUSION, mlp_ratio=2 + number / 8) for number in range(heads)]
    data, read, found = [tokens(BATCH * STEPS), tokens(BATCH)], StoredTokens.read, {}

    def counted(self: StoredTokens, *asked) -> tuple:
        parts = read(self, *asked)
        found["bytes"] += sum(part.nbytes for stream in parts for part in stream)
        return parts

    StoredTokens.read = counted
    for name, groups in (("together", [fusions]), ("alone", [[one] for one in fusions])):
        found["bytes"], began = 0, time.process_time()
        for group in groups:
            tasks = [TokenTask(fusion, *data, run, 0) for fusion in group]
            train_together([Member(task, folder / f"{name}-{task.fusion.mlp_ratio}") for task in tasks])
        found[name] = {"seconds": time.process_time() - began, "bytes": found["bytes"]}
    return {name: found[name] for name in ("together", "alone")}


if __name__ == "__main__":
    log.configure("WARNING")
    arguments = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    measures = {"step": step, "memory": memory, "training": training, "company": company}
    found = measures[sys.argv[2]](Path(sys.argv[1]), **arguments)
    if int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps(found))
