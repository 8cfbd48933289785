"""Every method of `tcar.explain.attribute` on real clips at full size: seconds and peak memory of DINOv2-S and I3D-R50.

    python tests/benchmarks/full_size_explanations.py          all of ../shared/clips, cheapest settings
    python tests/benchmarks/full_size_explanations.py --steps 16 --cells 4 5 5 --methods integrated_gradients tubes

Weights are random, frames have the size of their video. More steps and tubes cost time and no memory, as `--batch`
variants of a clip are in memory at once. Each method has a process of its own, which begins with the smallest clip; the
peak is that of its resident memory (VmHWM, Linux alone), model and video reader included, set back before each clip.

Writes tests/benchmarks/results/full-size-explanations-<machine>.json. Exit status 1 where a peak is not under 6 GiB.
"""

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from tcar.data.video import probe, read_segments
from tcar.explain import pixels, tubes
from tcar.ground.processes import usable_cores
from tcar.models.opening import full_size_model

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
LIMIT = 6 * 2**30


@dataclass(frozen=True)
class Cost:
    """What a call may take: steps or samples, clips in memory at once, tubes along time, rows and columns."""

    steps: int
    batch: int
    cells: tuple[int, int, int]


def peak() -> int:
    """The most bytes that were resident since the last `reset`."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def reset() -> None:
    """Begin the peak anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def measure(method: str, videos: list[Path], cost: Cost, rows) -> None:
    """Explain each video by one method, and put a row for each into the queue `rows`."""
    tubes.CELLS = cost.cells
    model = full_size_model()
    for video in videos:
        reset()
        counts = model.config.semantic_frames, model.config.motion_frames
        frames = tuple(torch.from_numpy(read_segments(video, n))[None].float().div_(255) for n in counts)
        began = time.monotonic()
        found = pixels.attribute(model, frames, 0, method=method, steps=cost.steps, batch=cost.batch)
        seconds = time.monotonic() - began
        assert all(torch.isfinite(x).all() and x.any() for x in found.maps.values())
        rows.put({"method": method, "clip": video.name, "frames": list(frames[0].shape[1:4]), "steps": found.steps,
                  "seconds": round(seconds, 1), "peak": peak()})  # fmt: skip
        del frames, found


def machine() -> str:
    """What the result's file is called after."""
    return f"{platform.machine()}-{usable_cores()}-cores"


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("videos", type=Path, nargs="*", help="video files; ../shared/clips if left out")
    parser.add_argument("--methods", nargs="+", default=pixels.METHODS, choices=pixels.METHODS)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--cells", type=int, nargs=3, default=(1, 2, 2), help="tubes along time, rows and columns")
    parser.add_argument("--out", type=Path, default=RESULTS / f"full-size-explanations-{machine()}.json")
    asked = parser.parse_args(arguments)
    videos = asked.videos or [path for path in (ROOT.parent / "shared" / "clips").iterdir() if path.is_file()]
    sizes = {path: prod((probe(path).width, probe(path).height)) for path in videos}
    videos = sorted(videos, key=sizes.get)
    cost, context, rows = Cost(asked.steps, asked.batch, tuple(asked.cells)), multiprocessing.get_context("spawn"), []
    about = {"memory": "VmHWM of the process", "model": "dinov2_vits14 and i3d_r50, random weights", "device": "cpu",
             "cores": usable_cores(), "load": round(os.getloadavg()[0], 1), "torch": torch.__version__,
             "batch": cost.batch, "cells": cost.cells}  # fmt: skip
    for method in asked.methods:
        queue = context.Queue()
        process = context.Process(target=measure, args=(method, videos, cost, queue))
        process.start()
        for _ in videos:
            while queue.empty():
                process.join(0.2)
                if process.exitcode and queue.empty():
                    raise SystemExit(f"{method} ended with exit status {process.exitcode}")
            rows.append(queue.get())
            print(json.dumps(rows[-1]), flush=True)
            most = max(row["peak"] for row in rows)
            about |= {"most": most, "holds": most < LIMIT}
            asked.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
        process.join()
    print(f"most: {most / 2**30:.2f} GiB")
    return 0 if most < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
