"""Alerts: when a training goes wrong, it is said where somebody reads it.

An alert is logged, kept in `alerts.jsonl` beside the tables of the run, and handed to senders: a webhook, and Weights &
Biases where that is on. None of them can stop a training. The one that does is "not a number", on purpose.
"""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from tcar.ground import log, records
from tcar.ground.errors import ParameterError
from tcar.train.alert_rules import Row, Rule, epoch_rules, step_rules
from tcar.train.settings import WatchSettings
from tcar.train.watch import NOT_A_NUMBER, StopTraining

FILE = "alerts.jsonl"
TIMEOUT = 5.0  # seconds that a webhook may take


@dataclass(frozen=True)
class Alert:
    """What was wrong, and when: after which step of which epoch (fraction) of which run."""

    run: str
    kind: str
    message: str
    step: int
    epoch: float
    fatal: bool = False

    def __str__(self) -> str:
        return f"{self.run}, step {self.step} (epoch {self.epoch:.4g}): {self.kind}: {self.message}"


class Judge:
    """Says once what is wrong with the rows of a training by some rules, until that has passed."""

    def __init__(self, run: str, rules: Mapping[str, Rule]):
        self.run, self.rules, self.active = run, rules, set()

    def __call__(self, row: Row) -> list[Alert]:
        """What became wrong with this row; what was so before and still is, is left out."""
        wrong = {kind: message for kind, rule in self.rules.items() if (message := rule(row))}
        new, self.active = wrong.keys() - self.active, set(wrong)
        step, epoch = int(row.get("step", 0)), float(row["epoch"])
        return [
            Alert(self.run, kind, message, step, epoch, kind == NOT_A_NUMBER)
            for kind, message in wrong.items() if kind in new
        ]  # fmt: skip


class Alarm:
    """Judges every row of a training; a Watcher.

    folder: where `alerts.jsonl` is kept; the disk that it lies on is watched. `earlier()`: the step rows and the epoch
    rows that are written down, from which a resumed training learns what is usual. Raises StopTraining: not a number.
    """

    def __init__(
        self,
        limits: WatchSettings,
        folder: str | Path,
        senders: Sequence[Callable[[Alert], None]] = (),
        earlier: Callable[[], tuple[Iterable[dict], Iterable[dict]]] | None = None,
    ):
        self.limits, self.folder, self.senders, self.earlier = limits, Path(folder), list(senders), earlier

    def start(self, run: Mapping[str, Any]) -> None:
        """Begin with rules that know nothing but what the rows of the part before teach."""
        self.folder.mkdir(parents=True, exist_ok=True)
        rules = step_rules(self.limits, self.folder, run.get("trained_parameters", 0)), epoch_rules(self.limits)
        self.step_judge, self.epoch_judge = (Judge(run["name"], some) for some in rules)
        if self.earlier and run.get("step", 0):
            for judge, rows in zip((self.step_judge, self.epoch_judge), self.earlier(), strict=True):
                for row in rows:
                    judge(row)

    def step(self, row: Row) -> None:
        """Judge a step row."""
        self._raise(self.step_judge(row))

    def epoch(self, row: Row) -> None:
        """Judge an epoch row."""
        if "train_top1" not in row and row["epoch"] == 1:
            log.get(__name__).info(f"{self.step_judge.run}: no alert for overfitting, of mixed labels")
        self._raise(self.epoch_judge(row))

    def end(self, reason: str) -> None:
        """Wait for what is still being sent: a process that ends takes its messages with it."""
        for sender in self.senders:
            getattr(sender, "finish", lambda: None)()

    def _raise(self, found: list[Alert]) -> None:
        for alert in found:
            log.get(__name__).warning(f"ALERT {alert}")
            for send in (self._keep, *self.senders):
                try:
                    send(alert)
                except Exception as error:  # whatever a sender's library raises, the training is worth more
                    name = getattr(send, "__name__", type(send).__name__)
                    log.get(__name__).warning(f"{name} could not pass an alert on: {error!r}")
        if any(alert.fatal for alert in found):
            raise StopTraining(NOT_A_NUMBER)

    def _keep(self, alert: Alert) -> None:
        with (self.folder / FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(alert), ensure_ascii=False) + "\n")


class Webhook:
    """Posts every alert as JSON to an address, beside the training: `text`, and the fields of the alert.

    address: http(s), or $NAME of the environment variable that holds it. Raises ParameterError: no such variable.
    """

    def __init__(self, address: str, timeout: float = TIMEOUT):
        if address.startswith("$"):
            name = address[1:]
            address = os.environ.get(name, "")
            if not address.startswith(("http://", "https://")):
                raise ParameterError(f"webhook is ${name}, but that environment variable holds no http(s) address")
        self.address, self.timeout, self.failed = address, timeout, False
        self.threads: list[threading.Thread] = []

    def __call__(self, alert: Alert) -> None:
        """Send it from a thread, and come back at once."""
        thread = threading.Thread(target=self._post, args=(alert,), daemon=True)
        self.threads = [t for t in self.threads if t.is_alive()] + [thread]
        thread.start()

    def finish(self) -> None:
        """Wait for what is on its way, and not longer than a post may take."""
        for thread in self.threads:
            thread.join(self.timeout)

    def _post(self, alert: Alert) -> None:
        body = json.dumps({"text": str(alert), **dataclasses.asdict(alert)}).encode()
        try:
            request = urllib.request.Request(self.address, body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=self.timeout):
                pass
        except (OSError, ValueError, HTTPException) as error:  # of the network, of the address, of the answer
            if not self.failed:
                self.failed = True
                # Whoever has the address can post there, and an error in it is told with a part of it.
                why = error if isinstance(error, OSError) else type(error).__name__
                log.get(__name__).warning(f"the webhook does not take alerts ({why}); said once, the run goes on")


def raised(folder: str | Path) -> list[Alert]:
    """The alerts that were kept in a folder, in the order in which they were raised; none where there is no file.

    Raises ResultError: a line that is no alert.
    """
    path = Path(folder) / FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        return [Alert(**json.loads(line)) for line in lines if line.endswith("\n")]  # a kill cuts the last one short
    except (ValueError, TypeError) as error:
        raise records.ResultError(f"{path}: not a list of alerts ({error}); move it away") from None


def review(rows: Iterable[Row], limits: WatchSettings, run: str = "") -> list[Alert]:
    """The alerts that a finished training would have raised by its epochs: what was not watched, looked at later.

    rows: its epoch rows; `step` may be absent and counts as 0. Nothing is logged, kept or sent.
    """
    judge = Judge(run, epoch_rules(limits))
    return [alert for row in rows for alert in judge(row)]


def text(alerts: Sequence[Alert]) -> str:
    """Alerts as Markdown: a sentence where there are none, else one line each."""
    if not alerts:
        return "No alert was raised."
    lines = [
        f"- **{alert.kind}** · {alert.run}, epoch {alert.epoch:.4g}" + (f", step {alert.step}" if alert.step else "")
        + f": {alert.message}"
        for alert in alerts
    ]  # fmt: skip
    count = "1 alert was raised" if len(alerts) == 1 else f"{len(alerts)} alerts were raised"
    return "\n".join([f"**{count}.**", "", *lines])
