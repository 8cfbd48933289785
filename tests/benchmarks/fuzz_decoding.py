"""Damage thousands of small videos and see what becomes of each: exact frames, an error, or frames that are wrong.

    python tests/benchmarks/fuzz_decoding.py --files 2000 --seed 0

Exits with 1 where a file hung or crashed the reader, or a wrong frame got past both the reader and the digests.
"""

import argparse
import itertools
import json
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "support"), str(Path(__file__).parents[2])]

import numpy as np  # noqa: E402
from damage import DAMAGE, FORMATS, Case, attempt, judge, reference, write_format  # noqa: E402

from tcar.data.workers import isolated_map  # noqa: E402


def run(files: int, seed: int, workers: int) -> tuple[dict, list[Case]]:
    """Outcomes by format and by damage, and the cases that must not be: hangs, crashes, wrong frames unnoticed."""
    by_format, by_damage, totals, bad = defaultdict(Counter), defaultdict(Counter), Counter(), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        intact = {kind: write_format(folder, kind) for kind in FORMATS}
        for path in intact.values():
            np.save(folder / f"{path.stem}.npy", reference(path))
        kinds = [(kind, damage) for kind in FORMATS for damage in DAMAGE]
        cases = [
            Case(intact[kind], kind, damage, seed * 10**6 + number)
            for number, (kind, damage) in zip(range(files), itertools.cycle(kinds), strict=False)
        ]
        for done, (number, outcome) in enumerate(isolated_map(attempt, cases, workers=workers, time_limit=60.0), 1):
            case = cases[number]
            result = judge(outcome)
            if result.startswith("UNACCEPTABLE"):
                bad.append(case)
                print(f"{result}: {case.format}, {case.damage}, seed {case.seed}: {outcome}", file=sys.stderr)
            totals[result] += 1
            by_format[case.format][result] += 1
            by_damage[case.damage][result] += 1
            if done % 500 == 0:
                print(f"{done} of {files}", file=sys.stderr, flush=True)
    return {"files": files, "seed": seed, "outcomes": totals, "format": by_format, "damage": by_damage}, bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0)
    chosen = parser.parse_args()
    found, bad = run(chosen.files, chosen.seed, chosen.workers)
    print(json.dumps(found, indent=1, sort_keys=True))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
