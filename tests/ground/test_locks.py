"""Only one process works in a folder, however the one before it ended."""

import errno
import fcntl
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tcar.ground import locks

HOLD = """
import sys
from pathlib import Path
from tcar.ground import locks
with locks.alone(Path(sys.argv[1]), RuntimeError, "busy"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_another_process_is_kept_out_until_the_first_one_is_gone_killed_or_not(tmp_path):
    lock = tmp_path / "lock"
    for kill in (False, True):
        command = [sys.executable, "-c", HOLD, str(lock)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, **pipes, cwd=Path(__file__).parents[2]) as other:
            assert other.stdout.readline() == b"held\n"
            with pytest.raises(ValueError, match="wait for it") as found, locks.alone(lock, ValueError, "wait for it"):
                pass
            assert f"held by process {other.pid} on {socket.gethostname()}" in str(found.value)
            if kill:
                other.kill()
            else:
                other.stdin.close()
            other.wait()
        with locks.alone(lock, ValueError, "wait for it"):
            pass


def test_an_error_inside_comes_out_as_it_is_and_frees_the_folder(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError, match="inside"), locks.alone(tmp_path / "lock", ValueError, "busy"):
            raise KeyError("inside")


def test_a_disk_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locks.alone(tmp_path / "lock", ValueError, "busy"):
        assert "this disk knows no locks (No locks available)" in caplog.text
