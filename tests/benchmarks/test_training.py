"""What the trainer adds to a bare loop, how long it waits for tokens, and what checkpointing and processes change.

Ratios of two things measured side by side in one run (`make benchmark`), on random tokens, by `training_speed.py`.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("training_speed.py")


def measured(folder: Path, what: str, processes: int = 0, **arguments) -> dict:
    """What the script measures; under torchrun with so many processes, where they are given."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes else []
    command = [sys.executable, *launcher, str(SCRIPT), str(folder), what, json.dumps(arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    done = subprocess.run(command, env=environment, check=True, timeout=500, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def load() -> str:
    """How busy the machine was: what is measured by the clock means little where others want its cores as well."""
    return f"(load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores)"


def test_a_step_against_a_bare_loop(tmp_path, capsys):
    found = measured(tmp_path, "step")
    with capsys.disabled():
        print(f"\na step of the trainer takes {found['trainer'] / found['bare']:.3f} times that of a bare loop, "
              f"{1000 * found['bare']:.1f} ms of processor time {load()}")  # fmt: skip
    assert found["trainer"] <= 1.05 * found["bare"]


def test_waiting_for_tokens(tmp_path, capsys):
    waits = measured(tmp_path, "training")["waits"]
    with capsys.disabled():
        print(f"\nwaiting for kept tokens takes {100 * statistics.mean(waits):.2f}% of a step, "
              f"at most {100 * max(waits):.2f}% {load()}")  # fmt: skip
    assert statistics.mean(waits) < 0.05


def test_five_heads_in_one_pass_against_five_passes(tmp_path, capsys):
    """Each batch is read once for all; on a CPU, reading is the smaller part of a step."""
    found = measured(tmp_path, "company")
    one, five = found["together"], found["alone"]
    with capsys.disabled():
        print(f"\nfive heads in one pass take {one['seconds'] / five['seconds']:.2f} times the processor time of five "
              f"passes, and read {one['bytes'] / five['bytes']:.2f} times the bytes {load()}")  # fmt: skip
    assert one["bytes"] * 5 == five["bytes"]
    assert one["seconds"] < 1.1 * five["seconds"]


def test_memory_with_and_without_checkpointing(tmp_path, capsys):
    plain, twice = (measured(tmp_path, "memory", checkpointing=checkpointing)["mb"] for checkpointing in (False, True))
    with capsys.disabled():
        print(f"\na step of a deep fusion takes {plain:.0f} MB, with its blocks computed twice {twice:.0f} MB: "
              f"{twice / plain:.2f} times as much")  # fmt: skip
    assert twice < plain


def test_a_compiled_fusion_against_a_plain_one(tmp_path, capsys):
    """The same numbers, but for rounding; the steps that compile, a minute in all, do not count in the median."""
    plain, compiled = (measured(tmp_path / str(c), "training", compiled=c) for c in (False, True))
    with capsys.disabled():
        print(f"\na compiled fusion trains {compiled['speed'] / plain['speed']:.2f} times as many clips a second")
    assert compiled["loss"] == pytest.approx(plain["loss"], rel=1e-3)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two processes want two cores")
def test_two_processes_against_one(tmp_path, capsys):
    """The same total batch by one process or by two, of one thread each, in three pairs that follow one another.

    By the clock they gain what the machine has to give; in processor time a clip may cost little more than alone.
    """
    ratios: dict[str, list[float]] = {"speed": [], "cpu": []}
    for pair in range(3):
        one = measured(tmp_path / f"one-{pair}", "training", batch_size=48)
        two = measured(tmp_path / f"two-{pair}", "training", 2, batch_size=24)
        for key, found in ratios.items():
            found.append(two[key] / one[key])
    speed, cpu = (statistics.median(found) for found in ratios.values())
    each = ", ".join(f"{ratio:.2f}" for ratio in ratios["speed"])
    with capsys.disabled():
        print(f"\ntwo processes take {speed:.2f} times ({each}) as many clips a second as one, and {cpu:.2f} times its "
              f"processor time for a clip {load()}")  # fmt: skip
    assert cpu < 1.5
