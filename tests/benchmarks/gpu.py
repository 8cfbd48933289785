"""What the real dataset takes on this GPU: reading, frozen streams, extraction and training at full size, in bf16.

    python tests/benchmarks/gpu.py                       # writes tests/benchmarks/results/<name of the GPU>.json
    python tests/benchmarks/gpu.py --videos data/ssv2/videos
    python tests/benchmarks/gpu.py --quick --device cpu  # the same steps in small, to see that they run; writes nothing

Measured with random weights, which cost what published ones do, on rendered clips where no folder of videos is given:
decoding and the audit on all cores; each stream with its frames on the device, as it is and with every switch that may
make it faster; extraction by each stream and by both at once, and the trainings of params/ssv2.yaml on the tokens that
this leaves: all methods in one pass against one after the other, and a step against a bare loop. The hours of all of
`make paper` follow from these by multiplication, and are said to. What is measured is written at once; what takes long
comes last where it can, and `--without` leaves it out.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from gpu_models import PEAKS, fusion_steps, headline, on_device, switched

from tcar.data.health import check_within_limits
from tcar.data.second_opinion import Comparison
from tcar.data.ssv2 import Clip
from tcar.data.video import read_segments
from tcar.data.views import SegmentView
from tcar.data.workers import Failure, isolated_map
from tcar.features import ExtractionSettings, FeatureStore, TokenSpec, extract
from tcar.fusion.kinds import FusionConfig
from tcar.ground import log
from tcar.lab import params
from tcar.lab.steps import ablations
from tcar.lab.steps.methods import method_configs
from tcar.streams.registry import create_stream
from tcar.tabletop.dataset import render_dataset
from tcar.tabletop.settings import TabletopSettings
from tcar.train.recipe import epochs_of
from tcar.train.tasks import TokenTask
from tcar.train.tokens import StoredTokens
from tcar.train.trainer import train_together
from tcar.train.training import Member

BESIDE = {"vjepa2_vitl16_256": 16}  # streams beside those of the parameter file, and the frames of their clips
BATCHES = (16, 64)
CLIPS, TRAINING_CLIPS, VALIDATION_CLIPS, CLASSES = 220_847, 168_913, 24_777, 174
LONG = ("second_opinion", "beside", "switches", "compiled")
VIEWS = 2 * 3  # of the published protocol, beside the one view
RESULTS = Path(__file__).parent / "results"


def decoded(path: Path, frames: int) -> bool:
    """Read a clip as the streams are fed, in a worker process; the frames stay there."""
    return len(read_segments(path, frames)) == frames


def audited(clip: Clip) -> bool:
    return check_within_limits(clip).ok


def compared(clip: Clip) -> bool:
    Comparison(True)((clip, True))
    return True


def a_second(function: Callable, items: Sequence) -> float:
    """Items a second on all cores, of the later half: processes start one after another, and modules are imported."""
    ends = []
    with closing(isolated_map(function, items, time_limit=60)) as outcomes:
        for _, outcome in outcomes:
            if not isinstance(outcome, Failure):
                ends.append(time.perf_counter())
    later = ends[len(ends) // 2 :]
    return (len(later) - 1) / (later[-1] - later[0])


def many(clips: Sequence[Clip], count: int) -> list[Clip]:
    """So many clips: the same files again and again, each time under another id."""
    return [replace(clips[n % len(clips)], id=f"{n}", label=n % CLASSES) for n in range(count)]


def extraction(
    names: dict[str, tuple[int, tuple[int, int, int]]], clips: list[Clip], counts: tuple[int, int], root: Path,
    run: params.Params, device: str,
) -> tuple[dict, list[FeatureStore]]:  # fmt: skip
    """Clips a second from files to a store, by these streams (frames, grid) in one run; the longer store is kept.

    Processes start and kernels are chosen once, which a long extraction does not feel: two lengths are compared.
    """
    wanted = [
        TokenSpec(partial(create_stream, name), grid, SegmentView(frames)) for name, (frames, grid) in names.items()
    ]
    how = ExtractionSettings(
        batch_clips=run.streams.batch_clips, device=device, token_type=run.streams.token_type,
        precision=run.streams.stream_precision,
    )  # fmt: skip
    took, stores = [], []
    for count in counts:
        began = time.perf_counter()
        stores = extract(many(clips, count), wanted, root / f"{'-'.join(names)}-{count}", how)
        took.append(time.perf_counter() - began)
    speed = (counts[1] - counts[0]) / max(1e-9, took[1] - took[0])
    return {"clips_per_second": speed, "clips": counts[1], "start_seconds": took[0] - counts[0] / speed}, stores


class Clock:
    """A watcher that notes when steps and epochs end."""

    def __init__(self):
        self.steps, self.ends = [], []

    def start(self, run): ...

    def step(self, row):
        self.steps.append(time.perf_counter())

    def epoch(self, row):
        self.ends.append(time.perf_counter())

    def end(self, reason): ...


def trainings(configs: list[FusionConfig], tokens: dict[str, StoredTokens], run: params.Params, root: Path) -> dict:
    """Seconds of an epoch: all fusions in one pass over their tokens, and each by itself; in company, of its parts too.

    The second of two epochs, in eager code, from files that the system has in memory. Steps, validation and keeping
    (what is written when an epoch ends) grow differently with the clips.
    """
    run = replace(run, trainer=replace(run.trainer, log_steps=1))
    clips, held = len(tokens["train"]), len(tokens["validation"])
    steps = -(-clips // run.training.batch_size)

    def epoch(together: list[FusionConfig], name: str) -> tuple[float, list[Clock]]:
        clocks, tasks = [Clock() for _ in together], [TokenTask(one, *tokens.values(), run, 0) for one in together]
        heads = [Member(task, root / f"{name}-{n}", [clocks[n]]) for n, task in enumerate(tasks)]
        train_together(heads)
        return clocks[-1].ends[1] - clocks[-1].ends[0], clocks

    alone = {config.kind: epoch([config], f"alone-{config.kind}")[0] for config in configs}
    company, clocks = epoch(configs, "company")
    told = clocks[-1].steps[steps:]  # of the second epoch, each after the step of all heads
    step = (told[-1] - told[0]) / (len(told) - 1)
    validation = clocks[0].ends[1] - told[-1]  # the first head is told once all are scored
    row = sum(part.nbytes for parts in tokens["train"].read([0]) for part in parts)
    return {
        "clips": clips, "validation_clips": held, "heads": len(configs), "steps": steps, "seconds_alone": alone,
        "seconds_in_company": company, "company_over_alone": company / sum(alone.values()),
        "seconds_a_step": step, "seconds_of_validation": validation,
        "seconds_of_keeping": max(0.0, company - steps * step - validation),
        "bytes_read_a_step": row * run.training.batch_size, "bytes_a_second": row * run.training.batch_size / step,
    }  # fmt: skip


def variants(run: params.Params) -> tuple[list[FusionConfig], list[FusionConfig]]:
    """The fusions of a run's methods, and those that its ablations add."""
    first, _ = headline(run, CLASSES)
    sizes = {"semantic_width": first.semantic_width, "motion_width": first.motion_width, "num_classes": CLASSES}
    methods = list(method_configs(run, **sizes).values())
    others = [variant.fusion for variant in ablations.variants(run, **sizes).values()]
    return methods, [config for config in dict.fromkeys(others) if config not in methods]


def projected(measured: dict, run: params.Params) -> dict:
    """Hours of `make paper` for the whole real dataset: what was measured, multiplied; disks and faults add to them.

    Every head costs what the mean of those measured in company does, in eager code: as many steps and validation clips
    as the dataset has, and the keeping of an epoch. Six views cost six times one.
    """
    together, trained = measured["from_files"]["together"]["clips_per_second"], measured["trainings"]
    methods, others = variants(run)
    epochs = sum(epochs_of(config, run.training) for config in methods) * len(run.training.seeds)
    epochs += sum(epochs_of(config, run.training) for config in others) * len(run.ablations.ablation_seeds)
    epoch = trained["seconds_of_keeping"] + trained["seconds_a_step"] * -(-TRAINING_CLIPS // run.training.batch_size)
    epoch += trained["seconds_of_validation"] / trained["validation_clips"] * VALIDATION_CLIPS
    seconds = {
        "audit": CLIPS / measured["reading"]["audit"],
        "extraction": CLIPS * run.streams.views / together,
        "trainings": epochs * epoch / trained["heads"],
        "views of the validation clips": VALIDATION_CLIPS * VIEWS / together,
    }
    if opinion := measured["reading"].get("second_opinion"):
        seconds["second opinion"] = min(run.data.second_opinion_clips, CLIPS) / opinion
    hours = {step: spent / 3600 for step, spent in seconds.items()}
    alone = {n: CLIPS / found["clips_per_second"] / 3600 for n, found in measured["from_files"].items()}
    return {"extraction_hours": alone, "head_epochs": epochs, "steps": hours, "hours": sum(hours.values())}


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; gives 1 where there is no GPU to measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--videos", type=Path, help="a folder of .webm files; left out: rendered clips")
    parser.add_argument("--clips", type=int, default=384, help="videos to read")
    parser.add_argument("--quick", action="store_true", help="small streams and few clips; nothing is written")
    parser.add_argument("--without", nargs="*", default=[], choices=LONG, help="leave out what takes long")
    given = parser.parse_args(arguments)
    log.configure()
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        print("there is no GPU here: nothing was measured (--quick --device cpu runs the same steps in small)")
        return 1
    device, quick = torch.device(given.device), given.quick
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    peak = next((tflops for gpu, tflops in PEAKS.items() if gpu in name.split()[1:2] + name.split("-")), None)
    asked = params.load("params/demo.yaml" if quick else "params/ssv2.yaml")
    precision = "fp32" if device.type == "cpu" else "bf16"
    run = replace(
        asked, common=replace(asked.common, device=given.device),
        training=replace(asked.training, epochs=2, epochs_by_method={}, warmup_epochs=0),
        trainer=replace(asked.trainer, compiled=False, precision=precision),
        streams=replace(asked.streams, stream_precision=precision),
    )  # fmt: skip
    if quick:
        run = replace(run, training=replace(run.training, batch_size=4))  # an epoch has several steps
    streams = run.streams
    pair = {
        getattr(streams, role): (getattr(streams, f"{role}_frames"), tuple(getattr(streams, f"{role}_grid")))
        for role in ("semantic", "motion")
    }
    beside = {} if quick or "beside" in given.without else BESIDE
    frames = {n: found[0] for n, found in pair.items()} | beside
    measured: dict = {"gpu": name, "torch": torch.__version__, "bf16_peak_tflops": peak}
    began = time.perf_counter()

    def note(key: str, value: dict) -> None:
        measured.update({key: value, "seconds": time.perf_counter() - began})
        print(f"{measured['seconds']:5.0f} s  {key}", file=sys.stderr, flush=True)
        if not quick:
            RESULTS.mkdir(exist_ok=True)
            written = RESULTS / f"{name.replace(' ', '_')}.json"
            written.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        few = 12 if quick else given.clips
        paths = sorted(given.videos.glob("*.webm"))[:few] if given.videos else rendered(root / "data", few)
        measured["videos"] = str(given.videos.name) if given.videos else "rendered, 320 x 240 (synthetic)"
        clips = [Clip(path.stem, path, 0, "", "", ()) for path in paths]
        often, most = many(clips, 8 * few), max(found for found, _ in pair.values())
        opinion = {} if "second_opinion" in given.without else {"second_opinion": a_second(compared, clips)}
        note("reading", {
            "decoding": a_second(partial(decoded, frames=most), [clip.path for clip in often]),
            "audit": a_second(audited, often[: 4 * few]), **opinion,
        })  # fmt: skip
        batches = (2,) if quick else BATCHES
        note("on_device", {n: on_device(n, count, batches, device, peak) for n, count in frames.items()})
        counts = (6, 18) if quick else (128, 1024)
        wanted = {**pair, **{n: (count, (8, 7, 7)) for n, count in beside.items()}}
        found = {n: extraction({n: one}, clips, counts, root, run, given.device)[0] for n, one in wanted.items()}
        more = counts if quick else (256, 5120)
        found["together"], stores = extraction(pair, clips, more, root, run, given.device)
        slowest = min(measured["reading"]["decoding"], 1 / sum(
            1 / measured["on_device"][n]["clips_per_second"] for n in pair))  # fmt: skip
        found["together"]["share_of_the_slower"] = found["together"]["clips_per_second"] / slowest
        note("from_files", found)
        kept = many(clips, more[1])
        cut = more[1] * 7 // 8
        tokens = {
            "train": StoredTokens.of(*stores, kept[:cut]), "validation": StoredTokens.of(*stores, kept[cut:]),
        }  # fmt: skip
        methods = variants(run)[0]
        note("trainings", trainings(methods[:2] if quick else methods, tokens, run, root / "trainings"))
    note("projected", projected(measured, asked))
    runs = {run.common.name: run} | ({} if quick else {"ssv2_vjepa2": params.load("params/ssv2_vjepa2.yaml")})
    steps = fusion_steps(runs, CLASSES, device, compiling=False)
    alone, trained = measured["trainings"]["seconds_alone"][run.fusion.fusion], measured["trainings"]
    eager = steps[f"{run.common.name}, eager"]
    note("training", eager | {"trainer_over_bare": alone / (trained["steps"] * eager["seconds"])})
    note("fusion_steps", steps)
    if "switches" not in given.without:
        note("switches", {n: switched(n, count, measured["on_device"][n]["batch"], device, not quick and n in pair)
                          for n, count in frames.items()})  # fmt: skip
    if not quick and "compiled" not in given.without:
        note("fusion_steps", fusion_steps(runs, CLASSES, device, compiling=True))
    print(json.dumps(measured, indent=1))
    return 0


def rendered(folder: Path, count: int) -> list[Path]:
    """Render clips of the size of the real ones."""
    sets = max(1, count // 32)
    one = {"validation_sets": 1, "test_sets": 1}
    render_dataset(folder, TabletopSettings(train_sets=sets, **one, width=320, height=240), limit=count)
    return sorted((folder / "videos").iterdir())[:count]


if __name__ == "__main__":
    sys.exit(main())
