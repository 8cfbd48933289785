"""The memory of the notebooks that read tokens, with as many clips as the real dataset has and its shapes.

    python tests/benchmarks/memory.py                         2,000, 20,000 and 193,690 clips: hours on two cores
    python tests/benchmarks/memory.py --sizes 2000 20000 --notebooks 03_training 04_evaluation --device cpu

Sizes count training and validation; test clips come on top, as published. Feature stores are files with holes that have
one block of numbers a clip (8 kB a clip on the disk instead of 1.1 MB); all other numbers are zero. Videos are links to
one rendered file. The fusion is tiny and trained for an epoch of at most 100 steps (`few_steps`), and the solver of
linear probes ends after three: this is about reading, not about computing. Of the extraction, which lists all clips,
the first batches are made (`few_steps`), and what follows reads the stores above. All else of each notebook is run as
the pipeline runs it.

Writes tests/benchmarks/results/memory-<machine>.json. Exit status 1 where a notebook takes more than 8 GiB in all its
processes, or its memory grows by more than a tenth with the number of clips.
"""

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from math import prod
from pathlib import Path

import few_steps
import nbformat
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from stores import sparse_store  # noqa: E402

from tcar.ground import log  # noqa: E402
from tcar.ground.processes import usable_cores  # noqa: E402
from tcar.lab import execution, notebooks, params, pipeline, real_plans, results
from tcar.lab.rehearsal import imitation, weights  # noqa: E402
from tcar.lab.rehearsal.measuring import Watch, memory_kind  # noqa: E402
from tcar.streams.registry import stream_spec  # noqa: E402
from tcar.tabletop.dataset import entry, write_annotations  # noqa: E402

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
NOTEBOOKS = ("01_extractors", "03_training", "04_evaluation", "05_ablations", "06_interpretability")
SIZES = (2_000, 20_000, 193_690)
READ = real_plans.CLIPS["train"] + real_plans.CLIPS["validation"]
LIMIT, FLAT = 8 * 2**30, 0.1
INTERVAL = 0.2  # seconds between two looks: a small run has its peak within a second
BLOCK = 4096  # bytes of a clip that are no hole
STEPS = 3  # of the solver of linear probes
SMALL = {
    "fusion_width": 16, "heads": 1, "fusion_blocks": 1, "cross_width": 0, "epochs": 1, "warmup_epochs": 0,
    "seeds": [0], "methods": ["cross_attention", "semantic"], "full_size_streams": [], "ablation_heads": [2],
    "ablation_fusions": ["late_concat"], "evaluation_views": ["1"], "ablation_seeds": [0], "attention_clips": 2,
    "attribution_steps": 2,
    "precision": "fp32", "stream_precision": "fp32",  # CPUs are slow at 16 bits, and take more memory at 32
}  # fmt: skip


def prepared(folder: Path, size: int, device: str) -> params.Params:
    """A run as the audit and the extraction leave it, of so many clips."""
    own = {"name": f"memory-{size}", "runs": str(folder / "runs"), "figures": str(folder / "figures"),
           "data_root": str(folder / f"data-{size}"), "device": device,
           "semantic_checkpoint": str(folder / "dinov2_vits14.safetensors"),
           "motion_checkpoint": str(folder / "i3d_r50.pyth")}  # fmt: skip
    run = params.load(ROOT / "params" / "ssv2.yaml", **own, **SMALL)
    weights.imitate(run, seed=0)
    texts, rng, entries, number = imitation.texts(), np.random.default_rng(0), {}, 0
    for split, published in real_plans.CLIPS.items():
        count = round(published * size / READ)
        ids = [str(n) for n in range(number + 1, number + 1 + count)]
        labels = rng.permutation(count) % real_plans.CLASSES
        entries[split] = [entry(i, texts[n], imitation.OBJECTS) for i, n in zip(ids, labels, strict=True)]
        number += count
    (run.data_root / "videos").mkdir(parents=True)
    write_annotations(run.data_root, texts, entries)
    everything = [row["id"] for rows in entries.values() for row in rows]
    imitation.film(imitation.planned(10, 0)[0], folder)
    (path,) = folder.glob("*.webm")
    for one in everything:
        (run.data_root / "videos" / f"{one}.webm").symlink_to(path)
    results.write(run.results_dir / "audit.json", {"classes": texts, "quarantined": [], "rotated": 0})
    made = {role: store(run, role, everything) for role in ("semantic", "motion")}
    results.write(run.results_dir / "extractors.json", {"stores": made})
    return run


def store(run: params.Params, role: str, ids: list[str]) -> str:
    """A store of holes, and a block of random numbers in each clip; returns the name of its folder."""
    grid, width = tuple(getattr(run.streams, f"{role}_grid")), stream_spec(getattr(run.streams, role)).width
    name, frames = getattr(run.streams, role), getattr(run.streams, f"{role}_frames")
    made = sparse_store(run.run_dir / "features", ids, grid, width, name=name, frames=frames)
    row, rng = prod(grid) * width * 2, np.random.default_rng(1)
    with (made.root / "tokens.npy").open("r+b") as file:
        begin = file.seek(0, os.SEEK_END) - len(ids) * row
        for place in range(len(ids)):
            block = -(-(begin + place * row) // BLOCK) * BLOCK
            os.pwrite(file.fileno(), rng.standard_normal(BLOCK // 2, np.float32).astype(np.float16).tobytes(), block)
    return made.root.name


def execute(name: str, run: params.Params, folder: Path) -> None:
    """Run a notebook as the pipeline does."""
    notebook = notebooks.read(ROOT / "notebooks" / f"{name}.ipynb")
    content = nbformat.read(notebook.path, as_version=4)
    if name == "01_extractors":
        (cell,) = (one for one in content.cells if one.cell_type == "code" and " extract(run" in one.source)
        cell.source = (f"from tcar.train import linear\n\nlinear.STEPS = {STEPS}\n"
                       "stores, seconds = few_steps.extract(run, clips), 0.0")  # fmt: skip
    content.cells.insert(0, nbformat.v4.new_code_cell("import few_steps"))
    source = folder / f"{name}.ipynb"
    nbformat.write(content, source)
    target = run.run_dir / "notebooks" / f"{name}.ipynb"
    execution.execute(source, target, pipeline._injected(notebook, run), run.logs_dir / f"{name}.log")


def measured(name: str, run: params.Params, folder: Path, repeats: int) -> dict:
    """The most bytes, over so many runs, that a notebook and all that it starts hold, and the seconds of the last."""
    runs = [watched(name, run, folder) for _ in range(repeats)]
    found = [watch.peak for watch in runs]
    return {"bytes": max(found), "runs": found, "seconds": round(runs[-1].seconds, 1)}


def watched(name: str, run: params.Params, folder: Path) -> Watch:
    """Run a notebook and watch it to its end."""
    process = multiprocessing.get_context("spawn").Process(target=execute, args=(name, run, folder))
    process.start()
    watch = Watch()
    watch.follow(process, INTERVAL)
    if process.exitcode:
        raise SystemExit(f"{name} failed, see {run.logs_dir / name}.log")
    return watch


def claims(rows: list[dict]) -> dict[str, dict]:
    """By notebook: the most bytes, how much the largest size takes beyond the smallest (a share), and the verdict."""
    found = {}
    for name in dict.fromkeys(row["notebook"] for row in rows):
        taken = {row["clips"]: row["bytes"] for row in rows if row["notebook"] == name}
        most = max(taken.values())
        growth = round(most / min(taken.values()) - 1, 4) if len(taken) > 1 else None  # one size says nothing of it
        found[name] = {"bytes": most, "growth": growth, "sizes": sorted(taken),
                       "holds": most <= LIMIT and growth is not None and growth <= FLAT}  # fmt: skip
    return found


def machine() -> str:
    """What the result's file is called after."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name().replace(" ", "_")
    return f"{platform.machine()}-{usable_cores()}-cores"


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="clips of training and validation")
    parser.add_argument("--notebooks", nargs="+", default=NOTEBOOKS, choices=NOTEBOOKS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each, of which the most counts")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary one if left out")
    parser.add_argument("--out", type=Path, default=RESULTS / f"memory-{machine()}.json")
    asked = parser.parse_args(arguments)
    log.configure()
    os.environ |= pipeline.OFFLINE
    os.environ["PYTHONPATH"] = os.pathsep.join(
        map(str, (ROOT, Path(__file__).parent, os.environ.get("PYTHONPATH", "")))
    )
    rows: list[dict] = []
    with tempfile.TemporaryDirectory(prefix="tcar-memory-", dir=asked.folder) as name:
        for size in asked.sizes:
            began = time.monotonic()
            folder = Path(name, str(size))
            folder.mkdir()
            run = prepared(folder, size, asked.device)
            print(f"{size:,} clips: prepared in {time.monotonic() - began:.0f} s", flush=True)
            for notebook in asked.notebooks:
                rows.append({"notebook": notebook, "clips": size, **measured(notebook, run, folder, asked.repeats)})
                print(json.dumps(rows[-1]), flush=True)
                how = f"{memory_kind()} of all processes, looked at every {INTERVAL:g} s"
                about = {"memory": how, "device": asked.device, "cores": usable_cores(), "torch": torch.__version__,
                         "most_steps_an_epoch": few_steps.MOST, "steps_of_the_linear_solver": STEPS}  # fmt: skip
                asked.out.write_text(json.dumps({**about, "rows": rows, "claims": claims(rows)}, indent=1) + "\n")
    for notebook, claim in claims(rows).items():
        print(f"{notebook}: {claim}")
    return 0 if all(claim["holds"] for claim in claims(rows).values()) else 1


if __name__ == "__main__":
    sys.exit(main())
