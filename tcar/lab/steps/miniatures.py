"""Measure published designs in miniature beside the headline method, on the same clips.

    tcar miniatures params/demo.yaml

CAST and TimeSformer are built as wide and deep as the small streams, begin with a pre-training on the same stand-in
tasks, and are trained on the clips of the run; the headline method is trained on its stored tokens, as ever. What is
the same wherever it runs (sizes, GFLOPs, accuracy) stands in `miniatures.json`; milliseconds, megabytes and seconds of
the machine stand in its `.meta.json`. What is trained already, after a kill too, is not trained again.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tcar.data.workers import Failure, isolated_map
from tcar.evaluate import metrics, over_seeds, paired_difference
from tcar.lab import results
from tcar.lab.measured import MINIATURES
from tcar.lab.params import ParameterError
from tcar.lab.steps.apart import packaged_weights, publish
from tcar.lab.steps.baselines import baseline_logits, baseline_task, train_on_clips
from tcar.lab.steps.clips import class_names, healthy_clips
from tcar.lab.steps.extractors import peak_bytes
from tcar.lab.steps.fits import LEARNING, Fit, Job, curves, device_of, fit_jobs, tokens_of
from tcar.lab.steps.fusion import fusion_config
from tcar.lab.steps.methods import scored, scoring
from tcar.models.baselines import baseline_cost, find_baseline
from tcar.streams.packaged import packaged
from tcar.train.clip_tasks import ClipTask, StreamTask
from tcar.train.tasks import Slice

if TYPE_CHECKING:
    from tcar.lab.params import Params

METRICS = ("top1", "twin_accuracy")
REPEATS = 30  # of one clip through each model, and a third of it of a training step
TIME_LIMIT = 600.0  # seconds for the memory of one model

Logits = Mapping[str, Sequence[Float[np.ndarray, "n c"]]]


def build(run: Params) -> Path:
    """Train, score and measure what `miniatures` names, write `miniatures.json`, and give its path.

    Raises ParameterError, TrainingError; FeatureError or ResultError where there are no tokens yet.
    """
    settings, headline = run.baselines, run.fusion.fusion
    if not settings.miniatures:
        raise ParameterError("miniatures is empty: name a small baseline, such as timesformer_tiny")
    seeds, split = settings.miniature_seeds, run.evaluation.evaluation_split
    opened = tokens_of(run, *dict.fromkeys((*LEARNING, split)))
    own = fit_jobs([Job(run, fusion_config(run), seed) for seed in seeds], opened, run.run_dir)
    fits = {
        name: [train_on_clips(run, baseline_task(run, name, seed), seed) for seed in seeds]
        for name in settings.miniatures
    }
    logits, kept = baseline_logits(run, fits, split, opened[split].ids)
    ids = [one for one, there in zip(opened[split].ids, kept, strict=True) if there]
    ours = [one[kept] for one in scored(run, {headline: own}, opened[split])[headline]]
    values = compared(run, {headline: ours} | logits, opened[split].labels[kept], ids)
    for name, done in ({headline: own} | fits).items():
        values["methods"][name] |= learned(done) | cost(run, name)
    inputs = [*packaged_weights(run), *(packaged(part) for name in fits for part in find_baseline(name).parts)]
    return publish(run, MINIATURES, values, seeds=seeds, inputs=inputs, extra={"timings": timings(run)})


def compared(run: Params, logits: Logits, labels: Int[np.ndarray, " n"], ids: Sequence[str]) -> dict[str, Any]:
    """Score the headline and its rivals on the same clips: `methods` with their metrics, and paired `comparisons`.

    `logits` has those of each seed by method, the headline's too. A metric that the dataset has not is left out.
    """
    headline, settings = run.fusion.fusion, scoring(run, ids)
    scores = {name: [metrics(one, labels, settings) for one in seeds] for name, seeds in logits.items()}
    means = {name: over_seeds(some) for name, some in scores.items()}
    known = [metric for metric in METRICS if means[headline][metric]["value"] is not None]
    return {
        "headline": headline, "dataset": run.data.dataset, "split": run.evaluation.evaluation_split,
        "clips": len(ids), "seeds": run.baselines.miniature_seeds,
        "methods": {name: {metric: mean[metric] for metric in known} for name, mean in means.items()},
        "comparisons": [
            {"a": headline, "b": rival, "metric": metric, **paired_difference(scores[headline], scores[rival], metric)}
            for rival in logits if rival != headline for metric in known
        ],
    }  # fmt: skip


def learned(done: Sequence[Fit]) -> dict[str, Any]:
    """Say how the trainings of one method went: `epochs`, the `best_epoch` of each seed, whether it has `converged`."""
    told = curves(done)
    return {"epochs": max(len(fit.history) for fit in done)} | {key: told[key] for key in ("best_epoch", "converged")}


def cost(run: Params, name: str) -> dict[str, Any]:
    """Count what a method takes from the pixels of one clip to logits: `parameters`, `trained_parameters`, `gflops`.

    GFLOPs have 2 a multiply-add; `notes` must stand beside its numbers.
    """
    if name != run.fusion.fusion:
        return baseline_cost(name, len(class_names(run))) | {"notes": list(baseline_task(run, name, 0).notes)}
    whole = _task(run, name).build(0).tca.parameter_table()[-1]
    counted = {"parameters": whole["total"], "trained_parameters": whole["trained"], "gflops": whole["gflops"]}
    return counted | {"notes": []}


# --- what depends on the machine


@dataclass
class _Timed:
    """A model on its device, a batch of decoded clips as it takes them, and its optimiser."""

    model: nn.Module
    frames: tuple[Tensor, ...]
    labels: Tensor
    optimiser: torch.optim.Optimizer

    def answer(self) -> None:
        """Give the logits of one clip."""
        self.model.eval()
        with torch.inference_mode():
            self.model(*(part[:1] for part in self.frames)).sum().item()  # a device answers before it has finished

    def learn(self) -> None:
        """Do a step of training."""
        self.model.train()
        self.optimiser.zero_grad()
        loss = F.cross_entropy(self.model(*self.frames), self.labels)
        loss.backward()
        self.optimiser.step()
        loss.item()


def timings(run: Params, repeats: int = REPEATS) -> dict[str, dict]:
    """Measure each method on this machine, from decoded frames, all in turn so that they share what disturbs them.

    Gives `milliseconds` of one clip (`p10`, `p50`, `p90`), `step_milliseconds` of a training step of
    `baseline_batch_size` clips (median) and by it `epoch_seconds` of the training clips without decoding,
    `peak_megabytes` (10^6 bytes) of memory for one clip, weights included; and `device`, `threads`, `repeats`.
    """
    names = [run.fusion.fusion, *run.baselines.miniatures]
    made = {name: _prepared(run, name) for name in names}
    answers = _in_turn({name: one.answer for name, one in made.items()}, repeats)
    steps = _in_turn({name: one.learn for name, one in made.items()}, max(3, repeats // 3))
    clips, size = len(healthy_clips(run, "train")["train"]), run.baselines.baseline_batch_size
    rows = {}
    for name in names:
        p10, p50, p90 = (1000 * float(value) for value in np.percentile(answers[name], (10, 50, 90)))
        step = statistics.median(steps[name])
        # a process of its own for each: what one has held can be held again without being asked for
        ((_, peak),) = isolated_map(_memory, [(run, name)], workers=1, time_limit=TIME_LIMIT)
        rows[name] = {
            "milliseconds": {"p10": p10, "p50": p50, "p90": p90}, "step_milliseconds": 1000 * step,
            "epoch_seconds": step * -(-clips // size), "peak_megabytes": None if isinstance(peak, Failure) else peak,
            "device": str(device_of(run)), "threads": torch.get_num_threads(), "repeats": repeats,
        }  # fmt: skip
    return rows


def _in_turn(todo: Mapping[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Time each of several things so many times in seconds, one after the other, after a first round that warms up."""
    spent: dict[str, list[float]] = {name: [] for name in todo}
    for _ in range(repeats + 1):
        for name, work in todo.items():
            began = time.perf_counter()
            work()
            spent[name].append(time.perf_counter() - began)
    return {name: seconds[1:] for name, seconds in spent.items()}


def _task(run: Params, name: str) -> ClipTask:
    """What is trained under a name, from clips: streams and fusion for the headline, else a baseline."""
    if name == run.fusion.fusion:
        return StreamTask(healthy_clips(run), class_names(run), run, 0)
    return baseline_task(run, name, 0)


def _prepared(run: Params, name: str) -> _Timed:
    task, device, size = _task(run, name), device_of(run), run.baselines.baseline_batch_size
    places = list(range(min(size, len(task.clips["train"]))))
    with closing(task), closing(task.batches("train", [Slice(places)], 0, {})) as batches:
        batch = next(batches)
    model = task.build(0).to(device)
    groups = task.groups(model, task.recipe.learning_rate, task.recipe.weight_decay)
    optimiser = torch.optim.AdamW(groups, lr=task.recipe.learning_rate)
    return _Timed(model, task.ready(batch.inputs, device), batch.labels.to(device), optimiser)


def _memory(asked: tuple[Params, str]) -> float:
    """The megabytes that the process of one model comes to hold beyond its libraries, on a GPU what it took there."""
    run, name = asked
    task, device = _task(run, name), device_of(run)
    frames = torch.zeros(1, sum(task.views.frames), task.views.size, task.views.size, 3, dtype=torch.uint8)
    first = task.build(0)  # imports what it needs; held, so that the next one takes memory of its own
    before = peak_bytes()
    with torch.inference_mode():
        task.build(0).to(device).eval()(frames.to(device))
    del first
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return (peak_bytes() - before) / 1e6


def shown(values: Mapping[str, Any], measured: Mapping[str, Any]) -> list[dict[str, str]]:
    """Rows for a notebook: what stands in the result, and beside it what was measured on the machine that made it."""
    from tcar.lab.plots import label
    from tcar.lab.steps.words import shown as estimate

    rows = []
    for name, row in values["methods"].items():
        told = measured.get(name, {})
        peak = told.get("peak_megabytes")
        rows.append({
            "method": label(name), **{metric: estimate(row[metric]) for metric in METRICS if metric in row},
            "trained (M)": f"{row['trained_parameters'] / 1e6:.2f}", "all (M)": f"{row['parameters'] / 1e6:.2f}",
            "GFLOPs": f"{row['gflops']:.2f}", "epochs": str(row["epochs"]),
            "ms a clip (p50)": f"{told['milliseconds']['p50']:.1f}" if told else "",
            "s an epoch": f"{told['epoch_seconds']:.0f}" if told else "",
            "peak MB": "" if peak is None else f"{peak:.0f}", "note": "; ".join(row["notes"]),
        })  # fmt: skip
    return rows


def timings_of(path: Path) -> dict[str, dict]:
    """What `timings` measured when a `miniatures.json` was made."""
    return results.load(path.with_suffix(".meta.json"))["extra"]["timings"]
