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
from tcar.train.alert_rules import Rule, epoch_rules, step_rules
from tcar.train.settings import WatchSettings
from tcar.train.watch import StopTraining

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


class Alarm:
    """Judges every row of a training, and says once what is wrong until that has passed; a Watcher.

    folder: where `alerts.jsonl` is kept; the disk that it lies on is watched. `earlier(step)`: the step rows and the
    epoch rows up to there, from which a resumed training learns what is usual. Raises StopTraining: not a number.
    """

    def __init__(
        self,
        limits: WatchSettings,
        folder: str | Path,
        senders: Sequence[Callable[[Alert], None]] = (),
        earlier: Callable[[int], tuple[Iterable[dict], Iterable[dict]]] | None = None,
    ):
        self.limits, self.folder, self.senders, self.earlier = limits, Path(folder), list(senders), earlier
        self.name, self.rules, self.active, self.told = "", {}, set(), False

    def start(self, run: Mapping[str, Any]) -> None:
        """Begin with rules that know nothing but what the rows up to `run["step"]` teach."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.name, self.active = run["name"], set()
        trained = run.get("trained_parameters", 0)
        self.rules = {"step": step_rules(self.limits, self.folder, trained), "epoch": epoch_rules(self.limits)}
        if self.earlier and run.get("step", 0):
            for when, rows in zip(("step", "epoch"), self.earlier(run["step"]), strict=True):
                for row in rows:
                    self._judge(when, row)

    def step(self, row: Mapping[str, float]) -> None:
        """Judge a step row."""
        self._raise(self._judge("step", row))

    def epoch(self, row: Mapping[str, float]) -> None:
        """Judge an epoch row."""
        if "train_top1" not in row and not self.told:
            log.get(__name__).info(f"{self.name}: no alert for overfitting: no accuracy on the training clips is known")
            self.told = True
        self._raise(self._judge("epoch", row))

    def end(self, reason: str) -> None:
        """Wait for what is still being sent: a process that ends takes its messages with it."""
        for sender in self.senders:
            getattr(sender, "finish", lambda: None)()

    def _judge(self, when: str, row: Mapping[str, float]) -> list[Alert]:
        """What became wrong with this row; what was so before and still is, is left out."""
        found = []
        for rule in self.rules[when]:
            message, key = rule.see(row), (when, rule.kind)
            if message and key not in self.active:
                found.append(self._alert(rule, message, row))
                self.active.add(key)
            elif not message and key in self.active:
                self.active.discard(key)
                log.get(__name__).info(f"{self.name}, step {row['step']:.0f}: {rule.kind} has passed")
        return found

    def _alert(self, rule: Rule, message: str, row: Mapping[str, float]) -> Alert:
        return Alert(self.name, rule.kind, message, int(row["step"]), float(row["epoch"]), bool(rule.fatal))

    def _raise(self, found: list[Alert]) -> None:
        for alert in found:
            log.get(__name__).warning(f"ALERT {alert}")
            for send in (self._keep, *self.senders):
                try:
                    send(alert)
                except Exception as error:  # whatever a sender's library raises, the training is worth more
                    name = getattr(send, "__name__", type(send).__name__)
                    log.get(__name__).warning(f"{name} could not pass an alert on: {error!r}")
        for alert in found:
            if alert.fatal:
                raise StopTraining(alert.kind)

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
        self.address, self.timeout = address, timeout
        self.threads: list[threading.Thread] = []
        self.failed = False

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


def review(rows: Iterable[Mapping[str, float]], limits: WatchSettings, run: str = "") -> list[Alert]:
    """The alerts that a finished training would have raised by its epochs: what was not watched, looked at later.

    rows: its epoch rows; `step` may be absent and counts as 0. Nothing is logged, kept or sent.
    """
    found: list[Alert] = []
    active: set[str] = set()
    rules = epoch_rules(limits)
    for row in rows:
        for rule in rules:
            message = rule.see(row)
            if message and rule.kind not in active:
                found.append(Alert(run, rule.kind, message, int(row.get("step", 0)), row["epoch"], bool(rule.fatal)))
            (active.add if message else active.discard)(rule.kind)
    return found


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
