"""Linear readers of more rows than memory holds: a table on disk, read in chunks, fitted by full-batch L-BFGS.

The objective is that of scikit-learn's LogisticRegression on standardised columns, and so is its optimum. On the CPU
chunks are computed side by side, one thread each, and added up in their order: the numbers do not depend on how many
cores there are.
"""

import os
import queue
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import minimize
from torch import Tensor

from tcar.data.workers import worker_count
from tcar.ground import log
from tcar.train.recipe import one_thread
from tcar.train.tokens import ahead

CHUNK = 2**25  # bytes of the table that are read at once: enough for a matrix product, little beside a model
STEPS = 1000
# Of the largest entry of the gradient, and of the loss, a step: far below what shows in a probability, and above the
# rounding of single precision.
GRADIENT, DESCENT = 1e-6, 1e-12
FLAT = 1e-6  # of its mean: a column that varies by less is constant in single precision

logger = log.get(__name__)
Result = TypeVar("Result")


class Table:
    """Rows of `width` float32 numbers in a file of `folder` without a name: the system frees it with the process.

    Raises OSError naming the folder where the disk is full.
    """

    def __init__(self, folder: str | Path, width: int):
        self.folder, self.width, self.rows = Path(folder), width, 0
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 - closed at the end of `with`

    def __enter__(self) -> "Table":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def append(self, rows: Float[np.ndarray, "n width"]) -> None:
        """Write rows behind those that are there."""
        try:
            self._file.write(np.ascontiguousarray(rows, np.float32))
            self._file.flush()
        except OSError as error:
            error.filename = str(self.folder)  # the file itself has no name
            raise
        self.rows += len(rows)

    def read(self, start: int, into: Float[np.ndarray, "n width"]) -> None:
        """Read as many rows as `into` has, from row `start` on; from any thread."""
        if os.preadv(self._file.fileno(), [memoryview(into).cast("B")], 4 * self.width * start) != into.nbytes:
            raise IndexError(f"rows {start} to {start + len(into)} asked of a table of {self.rows}")


class Features:
    """The rows of a table as numbers on a device; with `blocks`, so many blocks of columns are averaged.

    `workers` threads (0: one for every core) read and compute on the CPU; beside another device, one reads ahead.
    """

    def __init__(self, table: Table, device: torch.device, workers: int = 0, blocks: int = 1):
        self.table, self.device, self.blocks = table, device, blocks
        self.width, self.rows_at_once = table.width // blocks, max(1, CHUNK // (4 * table.width))
        self._threads = worker_count(workers) if device.type == "cpu" else 2
        self._buffers = queue.SimpleQueue()
        for _ in range(self._threads):
            shape, pinned = (self.rows_at_once, table.width), device.type == "cuda"
            self._buffers.put(torch.empty(shape, pin_memory=pinned))

    def over(self, rows: range, work: Callable[[Tensor, slice], Result]) -> Iterator[Result]:
        """What `work` makes of each chunk and its place among `rows`, in order; it may change a chunk, not keep it."""

        def chunk(start: int) -> Result:
            place = slice(start, min(start + self.rows_at_once, len(rows)))
            buffer = self._buffers.get()
            try:
                values = buffer[: place.stop - place.start]
                self.table.read(rows.start + start, values.numpy())
                values = values.to(self.device)
                return work(values.unflatten(1, (self.blocks, -1)).mean(1) if self.blocks > 1 else values, place)
            finally:
                self._buffers.put(buffer)

        return ahead(chunk, range(0, len(rows), self.rows_at_once), self._threads)


@dataclass(frozen=True)
class LinearReader:
    """A fitted reader: the logits of features x are weights @ ((x - mean) / deviation) + bias."""

    mean: Float[Tensor, " d"]
    deviation: Float[Tensor, " d"]
    weights: Float[Tensor, "c d"]
    bias: Float[Tensor, " c"]

    def log_probabilities(self, features: Features, rows: range) -> Float[np.ndarray, "n c"]:
        """The logarithms of the probabilities of each class, for these rows of a table."""

        def score(values: Tensor, _: slice) -> np.ndarray:
            return torch.addmm(self.bias, self._standard(values), self.weights.T).log_softmax(1).cpu().numpy()

        with one_thread():
            return np.concatenate(list(features.over(rows, score)))

    def _standard(self, values: Tensor) -> Tensor:
        return values.sub_(self.mean).div_(self.deviation)


def fit_linear(features: Features, rows: range, labels: Int[np.ndarray, " n"], inverse_penalty: float) -> LinearReader:
    """Fit the logistic regression with the L2 penalty of scikit-learn's `C` on the standardised features of some rows.

    `labels` are 0 to c - 1, each at least once. The result is the optimum to about 1e-4 in probabilities, and the same
    in each run on a device. Liu & Nocedal 1989 (L-BFGS). Raises ValueError for labels that do not fit; a fit that does
    not converge is told in a warning.
    """
    classes = int(labels.max()) + 1 if len(labels) else 0
    if len(labels) != len(rows) or classes < 2 or len(np.unique(labels)) != classes or labels.min() < 0:
        raise ValueError(f"{len(rows)} rows, {len(labels)} labels: one of 0 to c - 1 for each row expected, each used")
    with one_thread():
        return _minimum(features, rows, labels, classes, *_moments(features, rows), inverse_penalty)


def _moments(features: Features, rows: range) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each column, 1 for a constant one; merged in double precision (Chan et al. 1983)."""

    def moments(values: Tensor, _: slice) -> tuple[int, np.ndarray, np.ndarray]:
        values = values.cpu().double().numpy()
        values -= (mean := values.mean(0))
        return len(values), mean, np.square(values, out=values).sum(0)

    count, mean, squares = 0, np.zeros(features.width), np.zeros(features.width)
    for more, other, spread in features.over(rows, moments):
        apart, total = other - mean, count + more
        mean, squares = mean + apart * more / total, squares + spread + apart**2 * count * more / total
        count = total
    deviation = np.sqrt(squares / count)
    deviation[deviation <= FLAT * np.abs(mean)] = 1.0
    found = (torch.from_numpy(values.astype(np.float32)).to(features.device) for values in (mean, deviation))
    return next(found), next(found)


def _minimum(features: Features, rows: range, labels: np.ndarray, classes: int, mean: Tensor, deviation: Tensor,
             inverse_penalty: float) -> LinearReader:  # fmt: skip
    """Minimise the mean loss; of two classes scikit-learn penalises the difference, which is half of both squares."""
    penalty = (2 if classes == 2 else 1) / (inverse_penalty * len(rows))
    answers = torch.from_numpy(labels.astype(np.int64))
    shape = classes, features.width + 1

    def reader(values: np.ndarray) -> LinearReader:
        both = torch.from_numpy(values.reshape(shape).astype(np.float32)).to(features.device)
        return LinearReader(mean, deviation, both[:, :-1].contiguous(), both[:, -1].contiguous())

    def objective(values: np.ndarray) -> tuple[float, np.ndarray]:
        made, total, gradient = reader(values), 0.0, np.zeros(shape)

        def part(chunk: Tensor, place: slice) -> tuple[float, np.ndarray, np.ndarray]:
            chunk, wanted = made._standard(chunk), answers[place].to(chunk.device)[:, None]
            logs = torch.addmm(made.bias, chunk, made.weights.T).log_softmax(1)
            loss = -logs.gather(1, wanted).cpu().double().sum().item()
            error = logs.exp().scatter_add_(1, wanted, logs.new_tensor(-1.0).expand_as(wanted))
            return loss, (error.T @ chunk).cpu().numpy(), error.sum(0).cpu().numpy()

        for loss, to_weights, to_bias in features.over(rows, part):
            total += loss
            gradient[:, :-1] += to_weights
            gradient[:, -1] += to_bias
        weights = values.reshape(shape)[:, :-1]
        gradient /= len(rows)
        gradient[:, :-1] += penalty * weights
        return total / len(rows) + 0.5 * penalty * float((weights**2).sum()), gradient.ravel()

    options = {"maxiter": STEPS, "gtol": GRADIENT, "ftol": DESCENT, "maxls": 50}
    found = minimize(objective, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options=options)
    if not found.success and np.abs(found.jac).max() > 100 * GRADIENT:
        logger.warning("a linear reader of %d classes stopped after %d steps: %s", classes, found.nit, found.message)
    logger.debug("a linear reader of %d classes: %d passes over %d rows", classes, found.nfev, len(rows))
    return reader(found.x)
