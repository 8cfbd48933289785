"""Notebook 01: the published streams at full size, counted and measured, and linear readers of the run's own tokens."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int

from tcar.data.video import read_segments
from tcar.data.workers import Failure, isolated_map
from tcar.evaluate import Scoring, metrics
from tcar.ground import log
from tcar.lab.steps.clips import class_groups, ground_truth, one_per_class
from tcar.lab.steps.fits import device_of
from tcar.lab.steps.methods import bootstrap
from tcar.lab.steps.streams import describe
from tcar.streams.published import PACKAGED
from tcar.streams.registry import create_stream, list_streams, stream_spec
from tcar.train.linear import Features, Table, fit_linear

if TYPE_CHECKING:
    from tcar.data.ssv2 import Clip
    from tcar.features import FeatureStore
    from tcar.lab.params import Params

TIME_LIMIT = 1800.0  # seconds for one stream: the largest on a slow machine, and a process that hangs ends

INVERSE_PENALTY = 0.01  # scikit-learn's C
BATCH = 2**26  # bytes of tokens that are read at once

logger = log.get(__name__)


@dataclass(frozen=True)
class _Task:
    """A stream to measure, the videos to measure it on, and where."""

    name: str
    videos: tuple[Path, ...]
    device: str


def count_full_size(run: Params) -> list[dict]:
    """Count every registered full-size stream, and what else the parameters name, without weights and without running.

    One row a stream as `describe` gives it, for one clip of the stream's own frames and size, and its number of
    `tokens`. Raises ValueError for a stream that is not registered.
    """
    registered = [name for name in list_streams() if name not in PACKAGED]
    rows = []
    names = list(dict.fromkeys([*registered, *run.full_size.full_size_streams]))
    for name in log.progress(names, description="counting full-size streams", unit="streams"):
        with torch.device("meta"):
            row = describe(create_stream(name))
        rows.append(row | {"tokens": prod(row["grid"])})
    # By family, small to large: names alone would mix the sizes.
    return sorted(rows, key=lambda r: (r["role"] != "semantic", r["name"].partition("_vit")[0], r["parameters"]))


def measure_full_size(run: Params, found: list[Clip]) -> list[dict]:
    """Run the full-size streams that the parameters name, with random weights, on a few clips, each in its own process.

    One row a stream. `seconds` is the median over the clips from decoded frames to tokens, one clip at a time, after a
    first pass that does not count; `fastest` and `slowest` are its range. `megabytes` (10^6 bytes) is the most memory
    that the stream needed, weights included: on a GPU what was allocated there, else what the process held beyond the
    libraries. `device` and `threads` say where. A stream whose process failed, died or took too long has `failed`, the
    reason, instead.
    """
    names, rows = run.full_size.full_size_streams, []
    device = run.common.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    videos = tuple(clip.path for clip in one_per_class(found, run.full_size.full_size_clips))
    for name in log.progress(names, description="measuring full-size streams", unit="streams"):
        # One at a time: side by side they would take the cores from each other. A time limit needs a process anyway.
        ((_, outcome),) = isolated_map(_measure, [_Task(name, videos, device)], workers=1, time_limit=TIME_LIMIT)
        if isinstance(outcome, Failure):
            reason = outcome.detail.strip().splitlines()[-1]
            logger.warning("%s was not measured: %s, %s", name, outcome.kind, reason)
            outcome = {"name": name, "failed": f"{outcome.kind}: {reason}"}
        rows.append(outcome)
    return rows


def full_size_table(counts: list[dict], measurements: list[dict]) -> list[dict]:
    """Return a row for each full-size stream, for a notebook: what nobody measured is empty."""
    known = {row["name"]: row for row in measurements}
    rows = []
    for row in counts:
        found = known.get(row["name"], {})
        rows.append(
            {
                "stream": row["name"],
                "role": row["role"],
                "frames": row["frames"],
                "pixels": row["input_size"],
                "width": row["width"],
                "grid": "×".join(map(str, row["grid"])),
                "tokens": row["tokens"],
                "parameters (M)": f"{row['parameters'] / 1e6:,.1f}",
                "GFLOPs": f"{row['gflops']:,.0f}",
                "seconds a clip": found.get("failed") or (f"{found['seconds']:.2f}" if found else ""),
                "peak MB": f"{found['megabytes']:,.0f}" if "megabytes" in found else "",
            }
        )
    return rows


def measured_where(measurements: list[dict]) -> str:
    """Say on what the streams were measured."""
    found = {(row["device"], row["threads"], row["clips"]) for row in measurements if "seconds" in row}
    if not found:
        return "No stream was measured in this run."
    places = (f"{device} ({_count(n, 'thread')}, {_count(clips, 'clip')})" for device, n, clips in sorted(found))
    return f"Measured here, with random weights, on {' and '.join(places)}."


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _measure(task: _Task) -> dict:
    spec, on_gpu = stream_spec(task.name), task.device.startswith("cuda")
    clips = [torch.from_numpy(read_segments(path, spec.frames))[None].to(task.device) for path in task.videos]
    before = peak_bytes()
    stream = create_stream(task.name).to(task.device)
    stream(clips[0])
    spent = [_seconds(stream, clip, task.device) for clip in clips]
    peak = torch.cuda.max_memory_allocated(task.device) if on_gpu else peak_bytes() - before
    return {
        "name": task.name,
        "seconds": statistics.median(spent),
        "fastest": min(spent),
        "slowest": max(spent),
        "megabytes": peak / 1e6,
        "clips": len(clips),
        "device": torch.cuda.get_device_name(task.device) if on_gpu else task.device,
        "threads": torch.get_num_threads(),
    }


def _seconds(stream: torch.nn.Module, clip: torch.Tensor, device: str) -> float:
    began = time.perf_counter()
    tokens = stream(clip)
    if device != "cpu":
        tokens.values.flatten()[0].item()  # a device answers before it has finished; a value waits for it
    return time.perf_counter() - began


def peak_bytes() -> int:
    """The most memory this process has held so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # on Linux, ru_maxrss begins with the size of the process that started this one
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def linear_probes(run: Params, opened: dict[str, FeatureStore], found: dict[str, list[Clip]]) -> list[dict]:
    """Score logistic regressions on pooled tokens, trained on the training clips, on the validation clips.

    One row a stream, pooling and target: `value` with its interval over clips (Tabletop: over twin sets), and
    `chance`, the share of the largest class. "averaged" pools all tokens, "in order" keeps the moments apart. A target
    of which training shows one kind alone is left out. Tokens are read once, and pooled to a table in the run's folder
    that ends with this function: 4 bytes a number and moment.
    """
    groups, rows, device = class_groups(run), [], device_of(run)
    targets = {"class": lambda clip: clip.label} | ({"group": lambda clip: groups[clip.label]} if groups else {})
    for role, store in opened.items():
        train, rest = ([clip for clip in found[split] if clip.id in store.places] for split in ("train", "validation"))
        answers = {target: [np.array([of(clip) for clip in part]) for part in (train, rest)]
                   for target, of in targets.items()}  # fmt: skip
        with Table(run.run_dir, store.grid[0] * store.width) as table:
            for batch in _moments(store, [clip.id for clip in [*train, *rest]], device):
                table.append(batch)
            for pooling, blocks in (("averaged", store.grid[0]), ("in order", 1)):
                features = Features(table, device, run.common.workers, blocks)
                for target, (known, asked) in answers.items():
                    if len(set(known.tolist())) < 2:
                        continue
                    scored = _probe(run, features, known, asked, _sets(run, rest))
                    rows.append({"stream": role, "pooling": pooling, "target": target, **scored})
    return rows


def _sets(run: Params, found: list[Clip]) -> list[str] | None:
    index = ground_truth(run)
    return [index[clip.id]["set"] for clip in found] if index else None


def _moments(store: FeatureStore, ids: Sequence[str], device: torch.device) -> Iterator[Float[np.ndarray, "clips md"]]:
    """Average over space and put the moments side by side; tokens are ordered by time, then place."""
    size = max(1, BATCH // (4 * len(store.coordinates) * store.width))
    starts = range(0, len(ids), size)
    for start in log.progress(starts, len(starts), f"pooling {store.stream}", "batches"):
        tokens = torch.from_numpy(store.load(ids[start : start + size])).to(device).float()
        yield tokens.unflatten(1, (store.grid[0], -1)).mean(2).flatten(1).cpu().numpy()


def _probe(run: Params, features: Features, known: Int[np.ndarray, " n"], asked: Int[np.ndarray, " m"],
           sets: list[str] | None) -> dict:  # fmt: skip
    """Fit on the first rows of the table, whose answers are known, and score the others."""
    shown, labels = np.unique(known, return_inverse=True)
    reader = fit_linear(features, range(len(known)), labels, INVERSE_PENALTY)
    every, asked = np.unique(np.concatenate([shown, asked]), return_inverse=True)
    asked = asked[len(shown) :]
    # A class that training never showed is never named.
    logits = np.full((len(asked), len(every)), -1e9)
    rows = range(len(known), len(known) + len(asked))
    logits[:, np.searchsorted(every, shown)] = reader.log_probabilities(features, rows)
    scores = metrics(logits, asked, Scoring(sets=sets, bootstrap=bootstrap(run)))
    return scores["top1"] | {"chance": float(np.bincount(asked).max() / len(asked))}
