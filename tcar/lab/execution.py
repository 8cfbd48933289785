"""Runs one notebook headless with papermill, showing what it prints while it runs."""

import io
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import nbformat.sign
import papermill
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from papermill.exceptions import PapermillExecutionError

from tcar.ground import files, log
from tcar.lab import params
from tcar.lab.notebooks import NotebookError

START_TIMEOUT = 120  # seconds a kernel may take to answer, on a loaded machine
# Figures belong into the executed notebook, whatever backend the shell has set for scripts.
BACKEND = "module://matplotlib_inline.backend_inline"


class _ThisPython(KernelSpecManager):
    """Knows one kernel, that of this interpreter: a kernelspec named python3 found elsewhere may belong to
    another environment."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        # At its own level of logging a kernel calls every shutdown after a failed cell an error.
        argv.append("--IPKernelApp.log_level=CRITICAL")
        metadata = {"supported_encryption": ["curve"]}
        return KernelSpec(argv=argv, display_name="Python 3 (tcar)", language="python", metadata=metadata)


class ThisPythonKernel(AsyncKernelManager):
    """Starts kernels of this interpreter, over encrypted TCP (the ipc transport lost kernels in numbers)."""

    def __init__(self, **settings):
        super().__init__(kernel_spec_manager=_ThisPython(), transport_encryption="auto", **settings)


class Echo:
    """Passes what a kernel prints on to the terminal and a log file, whole lines at a time."""

    def __init__(self, terminal: io.TextIOBase, file: io.TextIOBase):
        self.terminal, self.file, self.rest = terminal, file, ""

    def write(self, text: str) -> None:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            line = line.rstrip("\r").rpartition("\r")[2]  # of a bar that redraws itself, its last state
            print(f"    {line}", file=self.terminal, flush=True)
            print(line, file=self.file, flush=True)

    def flush(self) -> None:
        """Lines are flushed as they are written."""

    def close(self) -> None:
        """Write out a last line that had no end."""
        if self.rest:
            self.write("\n")


def execute(source: Path, target: Path, parameters: Mapping[str, Any], logfile: Path) -> None:
    """Run `source` with these parameters; `target` is there when it has succeeded, and only then.

    It is signed, so that Jupyter shows its widgets when it is opened again.

    A failed notebook is kept as `<name>.failed.ipynb` beside it. What the kernel prints goes to the terminal
    and to logfile. A secret parameter is handed over in the environment, since the notebook keeps the others. Raises
    NotebookError naming the cell and the error.
    """
    hidden = {key: f"TCAR_{key.upper()}" for key in params.secrets(parameters)}
    given = {**parameters, **{key: f"${variable}" for key, variable in hidden.items()}}
    told = {variable: parameters[key] for key, variable in hidden.items()}
    for folder in (target.parent, logfile.parent):
        folder.mkdir(parents=True, exist_ok=True)
    failed = target.with_suffix(".failed.ipynb")
    failed.unlink(missing_ok=True)
    files.drop_drafts(target.parent)
    with (
        _environment(TCAR_NOTEBOOK=source.stem, MPLBACKEND=BACKEND, **told),
        logfile.open("w", encoding="utf-8") as file,
        files.drafted(target) as part,
    ):
        echo = Echo(sys.stdout, file)
        try:
            _with_one_retry(source, part, given, echo)
        except KeyboardInterrupt:
            # The cell that was cut off is reported once more at exit, in hundreds of lines.
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
            raise
        except (PapermillExecutionError, RuntimeError, TimeoutError) as error:
            message, traceback = _describe(error, part)
            if part.exists():
                part.replace(failed)
                message += f"\nnotebook: {failed}"
            echo.close()
            print(traceback, message, sep="\n", file=file)
            raise NotebookError(f"{message}\nlog: {logfile}") from None
        echo.close()
        quieten(part)
        sign(part)


def quieten(path: Path) -> None:
    """Take from an executed notebook the lines that said how far something was: the log has them, a reader needs none.

    What has ended is still said, and all else that a cell printed.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                lines = output.text.splitlines(keepends=True)
                output.text = "".join(line for line in lines if not log.is_progress(line))
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.output_type != "stream" or out.text.strip()]
    nbformat.write(notebook, path)


def sign(path: Path) -> None:
    """Tell this user's Jupyter that a notebook is to be trusted: it shows no widget of one that it has not run itself.
    """
    nbformat.sign.NotebookNotary().sign(nbformat.read(path, as_version=4))


def _with_one_retry(source: Path, part: Path, parameters: dict[str, Any], echo: Echo) -> None:
    """Run the notebook; a kernel that does not start (a port just taken, a busy machine) gets another try."""
    # Every notebook is handed parameters of other groups too, on purpose: papermill need not warn of each.
    logging.getLogger("papermill").setLevel(logging.ERROR)
    for attempt in (1, 2):
        try:
            papermill.execute_notebook(
                source, part, parameters, kernel_name="python3", language="python", cwd=source.parent,
                kernel_manager_class=ThisPythonKernel, start_timeout=START_TIMEOUT, progress_bar=False,
                stdout_file=echo, stderr_file=echo,
            )  # fmt: skip
            return
        except (RuntimeError, TimeoutError):
            if attempt == 2 or _running_cell(part):
                raise


def _describe(error: Exception, part: Path) -> tuple[str, str]:
    """What failed, in a few lines, and the whole traceback."""
    if not isinstance(error, PapermillExecutionError):
        cell = _running_cell(part)
        if cell is None:
            return f"the kernel did not start: {error}\n`make doctor` says what is wrong", ""
        return f"code cell {cell}: the kernel died ({error}); most often the memory was used up", ""
    traceback = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
    place = re.findall(rf"Cell In\[{error.exec_count}\], line (\d+)", traceback)
    deepest = re.findall(r"(\S*\btcar/\S+\.py):(\d+), in ", traceback)
    message = [f"code cell {error.exec_count}: {error.ename}: {error.evalue}"]
    if place:
        number, lines = int(place[0]), error.source.splitlines()
        shown = range(max(number - 3, 0), min(number + 1, len(lines)))
        message += [f"{'>' if n + 1 == number else ' '} {n + 1:3} | {lines[n]}" for n in shown]
    if deepest:
        message.append("raised in {}, line {}".format(*deepest[-1]))
    return "\n".join(message), traceback


def _running_cell(part: Path) -> int | None:
    """The number of the code cell begun last when the notebook was written; None before the first."""
    if not part.exists():
        return None
    code = [cell for cell in nbformat.read(part, as_version=4).cells if cell.cell_type == "code"]
    begun = [n for n, cell in enumerate(code, 1) if cell.metadata.get("papermill", {}).get("start_time")]
    return begun[-1] if begun else None


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Set environment variables for the kernels started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({name: value} if value is not None else {})
