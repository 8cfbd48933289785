"""What the planned runs on the real dataset take in disk, hours and money: products of what was measured on a GPU.

Every number says what it is multiplied from. What nobody measured is None, and so is any sum that it is part of. Money
is hours times the parameter `gpu_hour_price`, an assumption and nobody's offer.
"""

import json
from dataclasses import dataclass
from functools import cache
from math import prod

from tcar.ground.sources import PACKAGE
from tcar.lab import real_plans
from tcar.lab.demand import hours, sizes
from tcar.lab.params import Params, load
from tcar.lab.steps.streams import ROLES

GPU = "NVIDIA H100 80GB HBM3"  # that was measured
MODEL_ALONE = "h100-streams.json"  # speeds of streams on it with frames in memory


@dataclass(frozen=True)
class Item:
    """One thing that a run takes: `gigabytes` (10^9 bytes) of disk, or `hours` of one GPU; `source` says from what."""

    run: str
    work: str
    gigabytes: float | None
    hours: float | None
    source: str


@cache
def real_run(gpu: str = GPU) -> tuple[Item, ...]:
    """List what each planned run takes of disk and of one GPU, in the order of the work, with the sum of its hours."""
    found = []
    for name, file in real_plans.plan_files(PACKAGE.parent).items():
        run = load(file)
        planned = hours.hours(run, gpu)
        items = [_tokens(name, run), *_model_alone(name, run, gpu)]
        said = f"measured on one {gpu} by tests/benchmarks/gpu.py"
        items += [Item(name, one.work, None, one.hours, one.source.replace(said, "as measured")) for one in planned]
        whole = None if any(one.hours is None for one in planned) else sum(one.hours for one in planned)
        items.append(Item(name, "together", None, whole, "; ".join(one.work for one in planned)))
        found += [*items, _headline(name, run, gpu)]
    return tuple(found)


def _tokens(name: str, run: Params) -> Item:
    clips = sum(sizes.clip_counts(run).values())
    size = sum(sizes.token_bytes(run, role, clips) for role in ROLES)
    counts = " + ".join(f"{prod(sizes.grid(run, role))} x {sizes.width(run, role)}" for role in ROLES)
    return Item(name, "tokens", size / 1e9, None, f"{clips:,} clips of {counts} numbers in {run.streams.token_type}")


def _model_alone(name: str, run: Params, gpu: str) -> list[Item]:
    """The streams of which no extraction was measured, where their speed on frames in memory was."""
    made = json.loads((hours.BENCHMARKS / MODEL_ALONE).read_text(encoding="utf-8"))
    whole = hours.benchmarked(gpu).get("from_files", {})
    items, clips = [], sum(sizes.clip_counts(run).values())
    for stream in (getattr(run.streams, role) for role in ROLES):
        if made["gpu"] == gpu and stream not in whole and stream in made["on_device"]:
            rate = made["on_device"][stream]["clips_per_second"]
            source = f"{clips:,} clips at {rate:.0f} a second, frames in memory: without reading and writing"
            items.append(Item(name, f"extraction, {stream} alone", None, clips / rate / 3600, source))
    return items


def _headline(name: str, run: Params, gpu: str) -> Item:
    """One training of the headline method with one seed, from the steps of this very fusion."""
    made = hours.benchmarked(gpu).get("fusion_steps", {}).get(f"{name}, eager")
    clips, epochs = sizes.clip_counts(run)["train"], run.training.epochs
    if made is None:
        return Item(name, "headline, one seed", None, None, "no step of this fusion was measured on such a machine")
    rate = made["clips_per_second"]
    source = f"{epochs} epochs of {clips:,} clips at {rate:,.0f} a second, batches of {made['batch']} in memory"
    return Item(name, "headline, one seed", None, clips * epochs / rate / 3600, source)
