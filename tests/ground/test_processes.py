"""No process outlives the one that started it, whichever way that ends."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tcar.ground.processes import end_with_parent

SCRIPT = Path(__file__).parents[1].joinpath("support", "orphans.py")
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{SCRIPT.parents[2]}:{SCRIPT.parent}", "OMP_NUM_THREADS": "1"}


def until(condition, what: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("kind", ["pool", "crew", "kernel"])
def test_nothing_is_left_of_a_process_that_was_killed(tmp_path, kind):
    """`pool` and `kernel` have one worker at work and one that waits; the kernel is that of a notebook in a run."""
    signs = tmp_path / "signs"
    signs.mkdir()
    with subprocess.Popen([sys.executable, str(SCRIPT), kind, str(signs)], env=ENVIRONMENT) as parent:
        wanted = 2 if kind == "kernel" else 1
        until(lambda: len(list(signs.iterdir())) >= wanted or parent.poll() is not None, "its children did not start")
        children = psutil.Process(parent.pid).children(recursive=True)
        assert {int(sign.name) for sign in signs.iterdir()} <= {child.pid for child in children}
        parent.send_signal(signal.SIGKILL)
    try:
        until(lambda: all(map(gone, children)), "children of a killed process live on", 20)
    finally:
        for child in filter(psutil.Process.is_running, children):
            child.kill()


def _wait_for(lifeline) -> None:
    end_with_parent(lifeline)
    time.sleep(60)


def test_a_process_ends_when_its_lifeline_is_closed_though_its_parent_lives():
    context = multiprocessing.get_context("spawn")
    lifeline, end = context.Pipe(duplex=False)
    process = context.Process(target=_wait_for, args=(lifeline,))
    process.start()
    end.close()
    process.join(30)
    assert process.exitcode == 1


def test_a_rank_ends_with_its_launcher_and_another_process_outlives_its_shell(tmp_path):
    """The launcher is a shell here, which is killed once the process it has started says that it runs."""
    sleeper = "from tcar.ground.processes import end_with_launcher; import time\nend_with_launcher()\n"
    sleeper += f"open({str(tmp_path / 'sign')!r} + str(__import__('os').getpid()), 'w'); time.sleep(60)"
    left = []
    for name in ("TORCHELASTIC_RUN_ID", "NOTHING"):
        command = ["sh", "-c", '"$0" -c "$1"; true', sys.executable, sleeper]
        with subprocess.Popen(command, env=ENVIRONMENT | {name: "x"}) as shell:
            until(lambda: len(list(tmp_path.glob("sign*"))) > len(left), "it did not start")  # noqa: B023
            (child,) = psutil.Process(shell.pid).children()
            left.append(child)
            shell.kill()
    until(lambda: gone(left[0]), "a rank lives on without its launcher", 20)
    assert not gone(left[1])
    left[1].kill()
