"""A rehearsal that is killed once in every step and continued, to its end.

    python tests/benchmarks/killed_rehearsal.py params/ssv2.yaml FOLDER --clips 400

The arguments are those of `tcar rehearse`. SIGKILL comes some seconds after a step has begun, at a random
moment; what has run before is not run again. Says what happened at each kill; the exit status is that of the last call.
"""

import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

LONGEST = 40.0  # seconds into a step


def lines(process: subprocess.Popen) -> Iterator[str]:
    """What it prints, line by line, passed on."""
    for line in process.stdout:
        sys.stdout.write(line)
        sys.stdout.flush()
        yield line


def main(arguments: list[str]) -> int:
    """Call the command until it ends by itself."""
    dice, killed = random.Random(0), set()
    while True:
        command = [sys.executable, "-m", "tcar", "rehearse", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        step, timer = "", None
        for line in lines(process):
            if found := re.fullmatch(r"== (.+)\n", line):
                if timer:
                    timer.cancel()
                step, timer = found[1], None
                if step not in killed:
                    timer = threading.Timer(dice.uniform(1, LONGEST), os.kill, (process.pid, signal.SIGKILL))
                    timer.start()
        status = process.wait()
        if timer:
            timer.cancel()
        if status != -signal.SIGKILL:
            print(f"killed in {len(killed)} steps: {', '.join(sorted(killed))}; ended with status {status}")
            return status
        killed.add(step)
        print(f"-- killed in {step}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
