"""What is installed, found and missing, and what a parameter file will take of this machine, each fault with its fix:
`make doctor`, or `tcar doctor PARAMS [--measure]`.

`installation` looks at what every run needs, `fitness` at what this one does. Exit status 1 when something is broken,
0 when there are only remarks.
"""

import os
import sys
from collections.abc import Callable, Iterator

from tcar.ground.errors import ParameterError
from tcar.lab.doctor import fitness, installation
from tcar.lab.doctor.finding import FAULT, REINSTALL, Finding
from tcar.lab.params import Params

# By what a check is called when it dies. Those of the installation take nothing, those of fitness the run.
INSTALLATION: dict[str, Callable[[], Iterator[Finding]]] = {
    "Python": installation.check_python, "torch": installation.check_torch, "GPU": installation.check_accelerator,
    "system": installation.check_system, "decoders": installation.check_decoders,
    "Jupyter kernel": installation.check_jupyter, "typst": installation.check_typst,
}  # fmt: skip
FITNESS: dict[str, Callable[[Params], Iterator[Finding]]] = {
    "machine": fitness.check_machine, "disk": fitness.check_disks, "memory": fitness.check_memory,
    "fusions": fitness.check_fusions, "watching": fitness.check_watching, "dataset": fitness.check_dataset,
    "checkpoints": fitness.check_checkpoints, "baselines": fitness.check_baselines,
}  # fmt: skip


def findings(run: Params, measure: bool = False) -> Iterator[Finding]:
    """All findings, as they come; a check that dies is a fault of its own. measure: time a few steps of training."""
    checks = [(name, lambda check=check: check()) for name, check in INSTALLATION.items()]
    checks += [(name, lambda check=check: check(run)) for name, check in FITNESS.items()]
    for subject, check in (*checks, ("hours", lambda: fitness.check_hours(run, measure))):
        try:
            yield from check()
        except (ValueError, ParameterError) as error:  # of a parameter that this machine or its libraries do not know
            yield Finding(subject, FAULT, " ".join(str(error).split()), "correct it in the parameter file")
        except Exception as error:  # whatever is broken, the rest of the report is still wanted
            yield Finding(subject, FAULT, f"{type(error).__name__}: {error}", REINSTALL)


def report(run: Params, measure: bool = False) -> int:
    """Print every finding; gives 1 where one is a fault."""
    faults, coloured = 0, sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for finding in findings(run, measure):
        print(finding.text(coloured), flush=True)
        faults += finding.state == FAULT
    print(f"\n{faults} fault{'s' * (faults != 1)}" if faults else "\nready")
    return 1 if faults else 0
