"""Training of the fusion on cached tokens: one fit, or many side by side.

A fit depends on its fusion, recipe, seed and tokens alone: it runs on one thread with seeded generators, so
it gives the same weights by itself and beside others. `fit_many` keeps it under the digest of all that made
it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tcar import log, results
from tcar.losses import build_loss
from tcar.models.fusion import FusionConfig, create_fusion, fusion_cost
from tcar.params import Training
from tcar.processes import end_with_parent
from tcar.tokens import ARRAYS, TokenSet, TrainingError

_CODE = ("tcar.train.heads", "tcar.models.fusion")
_RECIPE = ("batch_size", "learning_rate", "weight_decay", "warmup_epochs", "label_smoothing", "clip_norm")
# What so few clips leave between two layers stays in the cache of one core.
_EVALUATION_BATCH = 32


@dataclass(frozen=True)
class Job:
    """One fit to do; `epochs` above 0 overrides the recipe's number for this job alone."""

    name: str
    fusion: FusionConfig
    seed: int
    epochs: int = 0


@dataclass(frozen=True, eq=False)
class Fit:
    """A trained fusion: the weights of its best epoch, and what every epoch measured.

    `history` has a row for each epoch, from 1: `epoch`, `learning_rate` (at its start), `train_loss` (with
    label smoothing and dropout), `gradient_norm` (mean, before clipping), `validation_loss` (without either),
    `validation_top1` (a fraction). `seconds` is wall-clock time, which repetitions do not share.
    """

    fusion: FusionConfig
    seed: int
    history: list[dict]
    best_epoch: int
    state_dict: dict[str, Tensor]
    seconds: float


def fit(fusion: FusionConfig, train: TokenSet, validation: TokenSet, recipe: Training, seed: int, *,
        name: str = "", epochs: int = 0, on_epoch: Callable[[dict], None] | None = None) -> Fit:
    """Train with AdamW, linear warm-up and a cosine to zero; keep the epoch of the best validation top-1.

    Equal top-1 goes to the lower validation loss. `epochs` above 0 overrides the recipe's; `on_epoch` gets
    each row of the history as it is made. AdamW: Loshchilov & Hutter 2019, arXiv:1711.05101.

    Raises:
        TrainingError: tokens, labels or recipe that do not fit; a loss that is not finite (job, epoch, step).
    """
    name, epochs = name or f"{fusion.kind}, seed {seed}", epochs or epochs_of(fusion, recipe)
    _check(name, fusion, train, validation, recipe, epochs)
    start, history, best = time.perf_counter(), [], None
    with reproducible(seed):
        model, loss_of = create_fusion(fusion), build_loss(recipe.label_smoothing)
        groups = parameter_groups(model, recipe.weight_decay)
        optimiser = torch.optim.AdamW(groups, recipe.learning_rate, fused=True)
        steps = math.ceil(len(train) / recipe.batch_size)
        warmup, total = recipe.warmup_epochs * steps, epochs * steps
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate_factor(step, warmup, total))
        order = torch.Generator().manual_seed(seed)
        for epoch in range(1, epochs + 1):
            row = {"epoch": epoch, "learning_rate": schedule.get_last_lr()[0]}
            where = f"{name}, epoch {epoch}"
            row |= _train_epoch(model, train, recipe, loss_of, optimiser, schedule, order, where)
            row |= _validate(model, validation)
            if not math.isfinite(row["validation_loss"]):
                raise TrainingError(f"{where}: the validation loss is {row['validation_loss']}; see whether the "
                                    "validation tokens are finite, or lower learning_rate")
            history.append(row)
            score = (row["validation_top1"], -row["validation_loss"])
            if best is None or score > best[0]:
                best = score, epoch, {key: value.clone() for key, value in model.state_dict().items()}
            if on_epoch:
                on_epoch(row)
    return Fit(fusion, seed, history, best[1], best[2], time.perf_counter() - start)


def fit_many(jobs: Sequence[Job], train: TokenSet, validation: TokenSet, recipe: Training, root: str | Path,
             workers: int = 0) -> list[Fit]:
    """Do all fits side by side, one process and one thread each; what `root` already holds is not repeated.

    Returns the fits in the order of the jobs. Each is kept in `root/<key>/` as `model.safetensors`,
    `fit.json` and `fit.meta.json` (seconds). The key is the digest of the training code, fusion, recipe, seed
    and tokens; neither the name of a job nor the number of workers (0 = all cores) is part of it.

    Raises:
        TrainingError: a job failed (the others are stopped), a process died, or a kept fit is damaged.
    """
    given = {
        "code": results.code_digest(*_CODE), "torch": torch.__version__, "train": train.digest(),
        "validation": validation.digest(), "recipe": {name: getattr(recipe, name) for name in _RECIPE},
    }  # fmt: skip
    jobs = [dataclasses.replace(job, epochs=job.epochs or epochs_of(job.fusion, recipe)) for job in jobs]
    work = {}
    for job in jobs:
        inputs = given | {"fusion": dataclasses.asdict(job.fusion), "seed": job.seed, "epochs": job.epochs}
        work[job] = Path(root, results.digest(inputs)), inputs
    # By folder, because jobs of different names may be the same fit.
    todo = {folder: (job, inputs) for job, (folder, inputs) in work.items() if not _kept(folder)}
    log.get(__name__).info(f"{len(jobs)} fits, {len(todo)} of them to train")
    if todo:
        _train_all(todo, train, validation, recipe, Path(root), workers)
    return [_load(work[job][0], job) for job in jobs]


def logits(fit: Fit, tokens: TokenSet) -> Float[np.ndarray, "n c"]:
    """The logits of a trained fusion for every clip."""
    with reproducible(fit.seed):
        model = create_fusion(fit.fusion)
        model.load_state_dict(fit.state_dict)
        return _logits(model, tokens).numpy()


def epochs_of(fusion: FusionConfig, recipe: Training) -> int:
    """The recipe's number of epochs for this kind of fusion."""
    return recipe.epochs_by_method.get(fusion.kind, recipe.epochs)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """The groups of an optimiser, those of them that are not empty: what decays, and what does not.

    Matrices of layers decay; norms, biases, embeddings, tables of positions and bare parameters (streams, readout) do
    not.
    """
    decaying, others = [], []
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            matrix = name.endswith("weight") and parameter.ndim > 1 and not isinstance(module, nn.Embedding)
            # A learned position is a linear layer by its form, and an embedding by what it does.
            (decaying if matrix and "position" not in f"{path}.{name}" else others).append(parameter)
    groups = {"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}
    return [group for group in groups if group["params"]]


def rate_factor(step: int, warmup: int, total: int) -> float:
    """The share of the learning rate at a step: a straight line up for `warmup` steps, then a cosine to
    zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def improvement(history: Sequence[dict], window: int = 0) -> float:
    """How much validation top-1 rose over the last `window` epochs (0 = a quarter).

    Both ends are means over a third of the window. Infinite where the history is too short to tell.
    """
    top1 = [row["validation_top1"] for row in history]
    window = window or max(1, len(top1) // 4)
    smooth = max(1, window // 3)
    if len(top1) < window + smooth:
        return math.inf
    before = top1[-window - smooth : -window]
    return float(np.mean(top1[-smooth:]) - np.mean(before))


def converged(history: Sequence[dict], window: int = 0, threshold: float = 0.01) -> bool:
    """Whether validation top-1 is on a plateau: it rose by less than `threshold` in the last `window` epochs.

    A learning rate that ends at zero flattens any curve, so this is necessary and not sufficient: compare
    with a fit of more epochs as well (`Job.epochs`).
    """
    return improvement(history, window) < threshold


def _check(name: str, fusion: FusionConfig, train: TokenSet, validation: TokenSet, recipe: Training,
           epochs: int) -> None:
    classes, warmup = fusion.num_classes, recipe.warmup_epochs
    for split, tokens in {"train": train, "validation": validation}.items():
        if not len(tokens):
            raise TrainingError(f"{name}: there are no {split} clips")
        for field, array in {"semantic_width": tokens.semantic, "motion_width": tokens.motion}.items():
            if (width := getattr(fusion, field)) != array.shape[2]:
                raise TrainingError(f"{name}: {field} is {width}, {split} tokens are {array.shape[2]} wide")
        wrong = (tokens.labels < 0) | (tokens.labels >= classes)
        if wrong.any():
            clip, label = tokens.ids[i := int(wrong.argmax())], tokens.labels[i]
            raise TrainingError(f"{name}: {split} clip {clip} has label {label}, num_classes is {classes}")
    if epochs <= warmup:
        raise TrainingError(f"{name}: epochs is {epochs}, but must be above warmup_epochs, which is {warmup}")


@contextlib.contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """One thread (how sums are split depends on their number) and a seeded generator; both are put back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def _inputs(tokens: TokenSet, index: Int[Tensor, " b"]) -> list[Tensor]:
    """One batch in float32; converted batch by batch, because the whole in float32 takes twice the memory."""
    semantic, semantic_xyz, motion, motion_xyz = (torch.from_numpy(getattr(tokens, a)) for a in ARRAYS[:4])
    semantic, motion = (values.index_select(0, index) for values in (semantic, motion))
    return [values.float() for values in (semantic, semantic_xyz, motion, motion_xyz)]


def _train_epoch(model, train, recipe, loss_of, optimiser, schedule, order, where: str) -> dict[str, float]:
    model.train()
    labels, losses, norms = torch.from_numpy(train.labels), [], []
    batches = torch.randperm(len(train), generator=order).split(recipe.batch_size)
    for step, index in enumerate(batches, start=1):
        loss = loss_of(model(*_inputs(train, index)), labels[index])
        if not math.isfinite(value := loss.item()):
            raise TrainingError(f"{where}, step {step}: the loss is {value}; lower learning_rate, clip_norm")
        optimiser.zero_grad()
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm or math.inf).item())
        optimiser.step()
        schedule.step()
        losses.append(value * len(index))
    return {"train_loss": sum(losses) / len(train), "gradient_norm": sum(norms) / len(norms)}


def _validate(model: nn.Module, validation: TokenSet) -> dict[str, float]:
    predicted, labels = _logits(model, validation), torch.from_numpy(validation.labels)
    top1 = (predicted.argmax(dim=1) == labels).double().mean()
    return {"validation_loss": cross_entropy(predicted, labels).item(), "validation_top1": top1.item()}


@torch.inference_mode()
def _logits(model: nn.Module, tokens: TokenSet) -> Float[Tensor, "n c"]:
    model.eval()
    batches = torch.arange(len(tokens)).split(_EVALUATION_BATCH)
    return torch.cat([model(*_inputs(tokens, index)) for index in batches])


def _train_all(todo: dict[Path, tuple[Job, dict]], train, validation, recipe, root: Path, workers: int):
    """Train in worker processes that map the tokens from one temporary copy; the longest jobs start first."""
    usable = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))  # Linux alone has it
    workers = min(workers or len(usable(0)), len(todo))
    shape = train.semantic.shape[1], train.motion.shape[1]
    cost = {f: job.epochs * fusion_cost(job.fusion, *shape)["gflops"] for f, (job, _) in todo.items()}
    longest_first = sorted(todo, key=cost.get, reverse=True)
    context = multiprocessing.get_context("spawn")  # a fork of a process that has threads may hang
    messages, (lifeline, end) = context.SimpleQueue(), context.Pipe(duplex=False)
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tcar-tokens-") as shared:
        try:
            train.save(Path(shared, "train"))
            validation.save(Path(shared, "validation"))
        except OSError as error:
            raise TrainingError(f"{shared}: the copy of the tokens that all fits read could not be written "
                                f"({error.strerror or error}); set TMPDIR to a folder on a larger disk") from error
        given = shared, recipe, messages, lifeline
        with ProcessPoolExecutor(workers, context, _start_worker, given) as pool:
            try:
                futures = {pool.submit(_work, folder, *todo[folder]) for folder in longest_first}
                _follow(futures, messages, sum(job.epochs for job, _ in todo.values()))
            except BrokenProcessPool as error:
                raise TrainingError("a training process died, often for want of memory: lower workers. In a "
                                    'script, call this under `if __name__ == "__main__":`') from error
            except BaseException:
                end.close()
                pool.shutdown(cancel_futures=True)
                raise


def _follow(futures: set[Future], messages, epochs: int) -> None:
    """Show how far all jobs are together, and every few seconds what one of them has reached."""
    told = time.monotonic()
    for line in log.progress(_messages(futures, messages), epochs, "training", "epochs"):
        if time.monotonic() - told >= log.INTERVAL:
            log.get(__name__).info(line)
            told = time.monotonic()


def _messages(futures: set[Future], messages) -> Iterator[str]:
    """What the workers say until all are done; raises what the first failed one raised."""
    while futures:
        done, futures = wait(futures, timeout=0.2, return_when=FIRST_COMPLETED)
        while not messages.empty():
            yield messages.get()
        for future in done:
            future.result()


_worker: dict = {}  # what all jobs of one worker process share


def _start_worker(shared: str, recipe: Training, messages, lifeline) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers an interrupt
    end_with_parent(lifeline)
    tokens = {split: TokenSet.load(Path(shared, split)) for split in ("train", "validation")}
    _worker.update(tokens, recipe=recipe, messages=messages)


def _work(folder: Path, job: Job, inputs: dict) -> None:
    def tell(row: dict) -> None:
        reached = f"epoch {row['epoch']}/{job.epochs}, loss {row['train_loss']:.3f}"
        _worker["messages"].put(f"{job.name}: {reached}, validation top-1 {row['validation_top1']:.3f}")

    given = (_worker[what] for what in ("train", "validation", "recipe"))
    done = fit(job.fusion, *given, job.seed, name=job.name, epochs=job.epochs, on_epoch=tell)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(done.state_dict, folder / "model.safetensors")
    results.write(folder / "fit.meta.json", {"seconds": done.seconds})
    # Last, and moved into place whole: its presence says that the fit is complete.
    values = {"made_from": inputs, "best_epoch": done.best_epoch, "history": done.history}
    results.write(folder / "fit.json", values)


def _kept(folder: Path) -> bool:
    return (folder / "fit.json").exists()


def _load(folder: Path, job: Job) -> Fit:
    try:
        values, meta = results.load(folder / "fit.json"), results.load(folder / "fit.meta.json")
        state = load_file(folder / "model.safetensors")
    except (OSError, SafetensorError, results.ResultError) as error:
        raise TrainingError(f"the fit in {folder} is damaged ({error}); delete it and run again") from error
    return Fit(job.fusion, job.seed, values["history"], values["best_epoch"], state, meta["seconds"])
