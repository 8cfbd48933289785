"""One line of the doctor's report."""

from dataclasses import dataclass

OK, REMARK, FAULT = "ok", "remark", "FAULT"
COLOURS = {OK: "32", REMARK: "33", FAULT: "31;1"}
REINSTALL = "run `make setup`; where that changes nothing, `make clean-venv setup`"
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """What was found of a subject; `fix` is shown where the state is not ok."""

    subject: str
    state: str
    detail: str
    fix: str = ""

    def text(self, coloured: bool = False) -> str:
        """The finding as it is printed: a row, and its fix on a second one."""
        state = f"{self.state:8}"
        state = f"\x1b[{COLOURS[self.state]}m{state}\x1b[0m" if coloured else state
        fix = f"\n{'':28}-> {self.fix}" if self.state != OK else ""
        return f"{state}{self.subject:20}{self.detail}{fix}"


def judged(subject: str, fine: bool, detail: str, fix: str = "") -> Finding:
    """A finding that is ok or a fault."""
    return Finding(subject, OK if fine else FAULT, detail, fix)


def in_words(size: int) -> str:
    """A number of bytes for people."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.0f} MiB"
