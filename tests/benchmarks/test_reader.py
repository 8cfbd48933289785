"""How long the annotation files of the real dataset take to read, against what parsing their JSON takes alone."""

import csv
import json
import random
import re
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import json, re, resource, sys, time
from pathlib import Path
from tcar.data.ssv2 import load_split

def peak():
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    # Linux hands ru_maxrss on from the process that started this one.
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1e3

def timed(function):
    began = time.process_time()
    found = function()
    return time.process_time() - began, found

root, splits, before = sys.argv[1], ("train", "validation"), peak()
reading, clips = timed(lambda: [load_split(root, split) for split in splits])
memory, count = peak() - before, sum(map(len, clips))
del clips
parsing, _ = timed(lambda: [json.loads(open(f"{root}/{split}.json", encoding="utf-8").read()) for split in splits])
print(f"{count:,} clips: {reading:.2f} s of processor time, {reading / parsing:.1f} times json.loads alone; "
      f"{memory:.0f} MB more at the peak")
"""


def test_reading_the_real_lists_against_parsing_their_json(shared, tmp_path, capsys):
    rng, labels = random.Random(0), json.loads((shared / "ssv2" / "labels.json").read_text())
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    names = sorted(labels, key=lambda name: int(labels[name]))
    things = [f"{colour} {thing}" for colour in ("red", "small", "wooden") for thing in ("pen", "bottle", "potato")]
    for split in ("train", "validation"):
        with (shared / "ssv2" / f"{split}.csv").open() as file:
            rows = list(csv.reader(file))[1:]
        (tmp_path / f"{split}.json").write_text(json.dumps([entry(i, names[int(k)], rng, things) for i, k in rows]))
    program = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    with capsys.disabled():
        print(f"\n{done.stdout.strip()}")


def entry(identifier: str, name: str, rng: random.Random, things: list[str]) -> dict:
    """An entry as the official files have it; the captions are made up."""
    filled = [rng.choice(things) for _ in re.findall("something", name, re.IGNORECASE)]
    words = iter(filled)
    return {
        "id": identifier,
        "label": re.sub("something", lambda _: next(words), name, flags=re.IGNORECASE).lower(),
        "template": re.sub("something", r"[\g<0>]", name, flags=re.IGNORECASE),
        "placeholders": filled,
    }
