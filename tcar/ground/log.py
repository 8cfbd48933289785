"""Logging, configured once, and progress that can be read on a terminal, in Jupyter and in a log file."""

import ast
import logging
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
# Between two lines of progress: so many seconds, or this share of the time so far, but never more than so many seconds.
INTERVAL, SHARE, LONGEST = 5.0, 0.05, 120.0
_PROGRESS = re.compile(r"\d\d:\d\d:\d\d .*: \d+(/\d+ \(\d+%\))?( [^,]+)?, [\d.]+(/s| s each)(, .* left)?")


class _CurrentStream(logging.StreamHandler):
    """Writes to the stream of the moment: Jupyter and pytest replace sys.stdout after logging is set up."""

    def __init__(self):
        logging.Handler.__init__(self)

    @property
    def stream(self):
        # Jupyter paints stderr red, so there the log goes to stdout; a command keeps stdout for its answer.
        return sys.stdout if _kernel() else sys.stderr


def configure(level: str = "INFO", logfile: Path | None = None) -> None:
    """Send the log of tcar to the terminal and, where given, to a file too; a second call replaces the first.

    level: DEBUG, INFO, WARNING or ERROR. Raises ValueError for any other.
    """
    logger = logging.getLogger("tcar")
    logger.setLevel(level)
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
        handler.close()
    stream = _CurrentStream()
    stream.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(stream)
    if logfile is not None:
        Path(logfile).parent.mkdir(parents=True, exist_ok=True)
        # Names of files need not be text.
        file = logging.FileHandler(logfile, encoding="utf-8", errors="backslashreplace")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
        logger.addHandler(file)


def get(name: str) -> logging.Logger:
    """The logger of a module of tcar; call it with `__name__`."""
    return logging.getLogger(name if name.partition(".")[0] == "tcar" else f"tcar.{name}")


def progress(iterable: Iterable[T], total: int | None = None, description: str = "", unit: str = "") -> Iterator[T]:
    """Go through `iterable` and show how far it is: a bar where somebody sees it move, else lines.

    total: how many items there are; taken from the iterable where it knows. unit: what an item is ("clips").
    """
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)
    if interactive():
        from tqdm.auto import tqdm

        yield from tqdm(iterable, total=total, desc=description or None, unit=f" {unit}" if unit else "it")
        return
    if not logging.getLogger("tcar").handlers:
        configure()
    logger, began, done = get("progress"), time.monotonic(), 0
    told = began
    for item in iterable:
        yield item
        done += 1
        now = time.monotonic()
        if now - told >= max(INTERVAL, min(LONGEST, SHARE * (now - began))) and done != total:
            logger.info(progress_line(description, done, total, now - began, unit))
            told = now
    seconds = time.monotonic() - began
    logger.info(f"{description or 'progress'}: {done}{f' {unit}' if unit else ''} in {duration(seconds)}")


def progress_line(description: str, done: int, total: int | None, seconds: float, unit: str = "") -> str:
    """One line of progress: done, total, rate and, where the total is known, the time left."""
    rate = done / seconds if seconds > 0 else 0.0
    speed = f"{rate:.1f}/s" if rate >= 1 or rate == 0 else f"{1 / rate:.1f} s each"
    count = f"{done}{f'/{total} ({100 * done // total}%)' if total else ''}{f' {unit}' if unit else ''}"
    left = f", {duration((total - done) / rate)} left" if total and rate else ""
    return f"{description or 'progress'}: {count}, {speed}{left}"


def is_progress(line: str) -> bool:
    """Whether a line of a log is one of `progress_line`: how far something was, not that it has ended."""
    return _PROGRESS.fullmatch(line.strip()) is not None


def duration(seconds: float) -> str:
    """A time span as people read it: 4.2 s, 1:05, 2:03:10."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def injected(namespace: Mapping[str, Any]) -> list[str]:
    """The names that papermill passed to the notebook with these globals; none where it is run without.

    papermill sets no variable of its own; what it leaves in a kernel is the cell it injects, in the history.
    """
    history = namespace.get("In", ())
    cells = map(str, history if isinstance(history, list) else ())
    passed = [ast.parse(cell).body for cell in cells if cell.startswith("# Parameters\n")]
    lines = [line for body in passed for line in body if isinstance(line, ast.Assign)]
    return [target.id for line in lines for target in line.targets if isinstance(target, ast.Name)]


def _kernel() -> bool:
    """Whether this process is a Jupyter kernel (a terminal IPython is not)."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, "kernel")


def interactive() -> bool:
    """Whether somebody sees a bar move: a terminal, or a notebook that is open rather than run headless."""
    if not _kernel():
        return sys.stderr.isatty()
    from IPython import get_ipython

    names = get_ipython().user_ns
    # JupyterLab sets the first for each kernel it starts, VS Code puts the second among the variables.
    opened = "JPY_SESSION_NAME" in os.environ or "__vsc_ipynb_file__" in names
    return opened and "TCAR_NOTEBOOK" not in os.environ and not injected(names)
