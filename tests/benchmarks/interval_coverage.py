"""How often the 95% intervals of accuracy, twin accuracy and a paired difference hold the truth, by number of sets.

    python tests/benchmarks/interval_coverage.py [DATASETS]

Draws 2000 data sets a line by default, whose coverages are known to half a point, and prints one line of JSON for each
number of sets; `results/interval_coverage.jsonl` keeps them. Where 95% is true, one line in a thousand is below 93.5%.
A test has 200 data sets.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from known_truth import coverage

SETS = (5, 10, 26, 60, 150)  # 26: the test sets of a family in the demo


def main(datasets: int = 2000) -> None:
    """Print what was measured."""
    for sets in SETS:
        print(json.dumps({"sets": sets, "datasets": datasets, **coverage(sets, datasets, seed=1)}), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
