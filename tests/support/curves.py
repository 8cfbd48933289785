"""Synthetic trainings, as rows that a trainer would log: noisy and healthy, or with a fault from some step on."""

import math

import numpy as np

EPOCHS, STEPS = 40, 40  # of the longest training here
ABOUT = {
    "name": "first, seed 0", "parameters": {"epochs": 3, "methods": ["a", "b"], "webhook": ""}, "commit": "c0ffee" * 6,
    "trained_parameters": 1234, "step": 0, "seed": 0, "clips": {"train": 5},
}  # fmt: skip


def healthy(seed: int, epochs: int = EPOCHS, steps: int = STEPS):
    """Rows of a healthy training: ("step", row) and ("epoch", row) in the order in which a trainer tells them.

    Its loss falls like that of a network, from ln(classes) to a floor, under warm-up and cosine; all noise is seeded,
    its sizes are drawn too. Gradient norms are log-normal, single hard batches among them. Throughput has slow rows.
    """
    rng = np.random.default_rng(seed)
    first, floor = math.log(rng.integers(8, 175)), rng.uniform(0.05, 1.2)
    noise, speed, total = rng.uniform(0.01, 0.15), rng.uniform(20, 2000), epochs * steps
    pace = rng.uniform(2.0, 5.0)
    for epoch in range(1, epochs + 1):
        for i in range(steps):
            step = (epoch - 1) * steps + i + 1
            fallen = 1 - math.exp(-pace * step / total)
            loss = first - (first - floor) * fallen
            hard = 6.0 if rng.random() < 0.003 else 1.0
            slow = 0.1 if i == 0 or rng.random() < 0.01 else 1.0  # a new epoch, a checkpoint
            yield "step", {
                "step": step,
                "epoch": step / steps,
                "loss": loss * math.exp(rng.normal(0, noise)),
                "learning_rate": rate(step, total),
                "gradient_norm": (0.5 + loss / first) * hard * math.exp(rng.normal(0, 0.4)),
                "clips_per_second": speed * slow * math.exp(rng.normal(0, 0.1)),
                "data_wait": float(rng.uniform(0, 0.1)),
                "memory_mb": 1000.0,
            }
        top1 = 0.8 * (1 - math.exp(-pace * epoch / epochs))
        yield "epoch", {
            "epoch": epoch,
            "step": epoch * steps,
            "train_loss": loss,
            "gradient_norm": 1.0,
            "learning_rate": rate((epoch - 1) * steps + 1, total),
            "validation_loss": (loss + 0.3) * math.exp(rng.normal(0, 0.01)),
            "validation_top1": min(1.0, max(0.0, top1 + rng.normal(0, 0.01))),
            "validation_top5": 0.9,
            "train_top1": min(1.0, top1 + 0.12 * epoch / epochs),
            "seconds": 10.0,
        }


def rate(step: int, total: int) -> float:
    """Warm-up over a tenth, then a cosine to zero."""
    warmup = total // 10
    return 1e-3 * min(1.0, step / warmup) * 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / (total - warmup)))


def changed(seed: int, after: int, epochs: int = EPOCHS, **faults):
    """A healthy training whose values are others after a step: `faults` holds functions of (value, steps since)."""
    for kind, row in healthy(seed, epochs):
        if row["step"] > after:
            since = row["step"] - after
            row = {key: faults[key](value, since) if key in faults else value for key, value in row.items()}
        yield kind, row


def follow(watcher, rows, about=ABOUT, reason="finished", **changes) -> None:
    """Tell a watcher of a training and its rows, and of its end where it comes to one."""
    watcher.start({**about, **changes})
    for kind, row in rows:
        getattr(watcher, kind)(row)
    if reason:
        watcher.end(reason)


def split(rows) -> tuple[list, list]:
    """The step rows and the epoch rows."""
    rows = list(rows)
    return tuple([row for kind, row in rows if kind == wanted] for wanted in ("step", "epoch"))
