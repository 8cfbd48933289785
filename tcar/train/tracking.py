"""What a training measures, written down while it runs: CSV always, TensorBoard and Weights & Biases on request.

A run's folder holds `run.json` (parameters, commit, and each part it ran in), `steps.csv` and `epochs.csv`. Every row
is in the file when the step is over, so a killed run lacks nothing, and a resumed one replaces the rows it repeats.
"""

from __future__ import annotations

import csv
import datetime
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcar.ground import files, log, records
from tcar.train.alerts import Alarm, Alert, Webhook
from tcar.train.settings import WatchSettings
from tcar.train.watch import Watcher

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

RUN, STEPS, EPOCHS = "run.json", "steps.csv", "epochs.csv"


def watchers(limits: WatchSettings, folder: str | Path) -> list[Watcher]:
    """Everything that follows a training by its parameters: CSV, the other trackers, and the alarm behind them.

    folder: the run's own. The alarm comes last, so that what stops a training is written down before it does.
    Raises ParameterError: a webhook whose address is nowhere.
    """
    folder = Path(folder)
    found: list[Watcher] = [CsvTracker(folder)]
    senders: list[Callable[[Alert], None]] = [Webhook(limits.webhook)] if limits.webhook else []
    if "tensorboard" in limits.trackers:
        found.append(LibraryTracker("tensorboard", folder))
    if "wandb" in limits.trackers:
        found.append(LibraryTracker("wandb", folder, limits.wandb_project))
        senders.append(found[-1].alert)
    return [*found, Alarm(limits, folder, senders, lambda: read(folder))]


def read(folder: str | Path) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """The step rows and the epoch rows of a run, also of one that is running; what was not measured is left out.

    Raises ResultError: a file that is not such a table.
    """
    steps, epochs = (CsvTable(Path(folder) / name).rows() for name in (STEPS, EPOCHS))
    return steps, epochs


class CsvTable:
    """A CSV file that grows by whole rows and is a table at every moment."""

    def __init__(self, path: Path):
        self.path, self.columns = path, []

    def rows(self) -> list[dict[str, float]]:
        """All rows. Raises ResultError where something in the file is no number."""
        text = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        whole = text[: text.rfind("\n") + 1]  # what a kill or a full disk cut short is no row
        try:
            return [
                {key: float(value) for key, value in row.items() if value}
                for row in csv.DictReader(io.StringIO(whole))
            ]
        except (ValueError, TypeError, AttributeError) as error:
            raise records.ResultError(f"{self.path}: not a table of numbers ({error}); move it away") from None

    def keep(self, step: int) -> None:
        """Drop the rows after a step; the training that goes on from there writes them anew."""
        kept = [row for row in self.rows() if row["step"] <= step]
        self.columns = []
        self._write(kept)

    def add(self, row: Mapping[str, float]) -> None:
        """Append a row and hand it to the system; raises OSError, with the file as it was before."""
        new = [key for key in row if key not in self.columns]
        if new:  # the first row, or a value that no row before had: the header changes, and with it the file
            self._write([*self.rows(), row])
            return
        line = self._line(row.get(key, "") for key in self.columns).encode()
        with self.path.open("ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            try:
                written = file.write(line)
            except OSError:
                written = 0
            if written != len(line):
                file.truncate(before)
                raise OSError(f"{self.path}: the disk did not take a row")

    def _write(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Write the whole file in one step: a kill leaves the old one or the new one."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        lines = [self._line(columns)] + [self._line(row.get(key, "") for key in columns) for row in rows]
        files.write_text(self.path, "".join(lines) if columns else "")
        self.columns = columns

    @staticmethod
    def _line(values) -> str:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(values)
        return line.getvalue()


class CsvTracker:
    """Writes `run.json`, `steps.csv` and `epochs.csv`; a Watcher. A disk that is full costs rows, not the training."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.tables = {name: CsvTable(self.folder / name) for name in (STEPS, EPOCHS)}
        self.about: dict[str, Any] = {}
        self.lost = False

    def start(self, run: Mapping[str, Any]) -> None:
        """Write down the run, and drop the rows after the step that it goes on from."""
        self.folder.mkdir(parents=True, exist_ok=True)
        step = run.get("step", 0)
        for table in self.tables.values():
            table.keep(step)
        before = records.load(self.folder / RUN).get("parts", []) if step and (self.folder / RUN).is_file() else []
        part = {"after_step": step, "started": _now(), "ended": None, "reason": None}
        self.about = {**run, "parts": [*before, part | {"commit": run.get("commit")}]}
        records.write(self.folder / RUN, self.about)

    def step(self, row: Mapping[str, float]) -> None:
        """Append to steps.csv."""
        self._add(STEPS, row)

    def epoch(self, row: Mapping[str, float]) -> None:
        """Append to epochs.csv."""
        self._add(EPOCHS, row)

    def end(self, reason: str) -> None:
        """Write down how it ended."""
        if not self.about:  # it never started
            return
        self.about["parts"][-1] |= {"ended": _now(), "reason": reason}
        try:
            records.write(self.folder / RUN, self.about)
        except OSError as error:
            log.get(__name__).warning(f"{self.folder / RUN}: how the run ended could not be written: {error}")

    def _add(self, name: str, row: Mapping[str, float]) -> None:
        try:
            self.tables[name].add(row)
        except OSError as error:
            if not self.lost:
                log.get(__name__).warning(f"{self.folder / name}: rows are lost until there is room: {error}")
            self.lost = True


class LibraryTracker:
    """TensorBoard or Weights & Biases, through accelerate's tracker for it; a Watcher.

    Where the library fails, that is logged once, and the training goes on without it.
    """

    def __init__(self, kind: str, folder: str | Path, project: str = "tcar"):
        self.kind, self.folder, self.project = kind, Path(folder), project
        self.tracker: GeneralTracker | None = None

    def start(self, run: Mapping[str, Any]) -> None:
        """Open it, with the parameters and the commit; rows after the step that the run goes on from are hidden."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.tracker = self._made(run["name"], step := run.get("step", 0))
        self._safely(lambda tracker: tracker.start())
        if self.kind == "wandb" or not step:
            self._safely(lambda tracker: tracker.store_init_configuration(_flat(run)))

    def step(self, row: Mapping[str, float]) -> None:
        """Send a step row, its keys under `step/`."""
        self._log("step", row)

    def epoch(self, row: Mapping[str, float]) -> None:
        """Send an epoch row, its keys under `epoch/`."""
        self._log("epoch", row)

    def end(self, reason: str) -> None:
        """Send what is left, and close it."""
        self._safely(lambda tracker: tracker.finish())
        self.tracker = None

    def alert(self, alert: Alert) -> None:
        """Pass an alert on, where the library is Weights & Biases: by its own mail or chat."""
        title, level = f"{alert.kind}: {alert.run}"[:63], "ERROR" if alert.fatal else "WARN"
        self._safely(lambda tracker: tracker.tracker.alert(title, alert.message, level))

    def _made(self, name: str, step: int) -> GeneralTracker:
        from accelerate import PartialState
        from accelerate.tracking import TensorBoardTracker, WandBTracker

        PartialState()  # the trackers ask it which process they are in; that of an Accelerator, where there is one
        if self.kind == "tensorboard":
            return TensorBoardTracker("tensorboard", self.folder, purge_step=step + 1 if step else None)
        mode = wandb_mode()
        if mode == "offline":
            log.get(__name__).info(f"Weights & Biases: no key, so offline; sync {self.folder}/wandb/* later")
        # A resumed run is a run of its own there, in one group: what was sent can be neither changed nor dropped.
        return WandBTracker(
            self.project, name=f"{name} after step {step}" if step else name, group=name, dir=str(self.folder),
            mode=mode, settings={"console": "off", "save_code": False, "quiet": True},
        )  # fmt: skip

    def _log(self, group: str, row: Mapping[str, float]) -> None:
        values = {f"{group}/{key}": float(value) for key, value in row.items() if key != "step"}
        self._safely(lambda tracker: tracker.log(values, step=int(row["step"])))

    def _safely(self, call: Callable[[GeneralTracker], None]) -> None:
        try:
            if self.tracker is not None:
                call(self.tracker)
        except Exception as error:  # whatever a library raises, the training is worth more
            log.get(__name__).warning(f"{self.kind} failed, and the run goes on without it: {error!r}")
            self.tracker = None


def wandb_mode() -> str | None:
    """"offline" where Weights & Biases would have to ask for a key; else None, and it is what WANDB_MODE says.

    A key is where `wandb login` and its documentation put it: WANDB_API_KEY, WANDB_IDENTITY_TOKEN_FILE, or the netrc
    file with an entry for WANDB_BASE_URL.
    """
    from requests.utils import get_netrc_auth

    stated = any(map(os.environ.get, ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")))
    server = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    return None if stated or get_netrc_auth(server) else "offline"


def _flat(run: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters and what else is known of a run side by side, as numbers and text: trackers take nothing else."""
    values = {**run["parameters"], **{key: value for key, value in run.items() if key != "parameters"}}
    return {
        key: value if isinstance(value, bool | int | float | str) else json.dumps(value, default=str)
        for key, value in values.items()
    }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
