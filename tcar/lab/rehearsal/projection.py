"""What the steps of a rehearsal have taken, and what follows from it for the published dataset."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nbformat

from tcar.data.prepare import FULL_BYTES
from tcar.lab import pipeline, results
from tcar.lab.demand import sizes
from tcar.lab.params import Params
from tcar.lab.real_plans import ALL_CLIPS, CLIPS
from tcar.lab.rehearsal import imitation
from tcar.lab.rehearsal.measuring import occupied, taken
from tcar.lab.steps.streams import ROLES

GIB = 2**30
PREPARE, AGAIN, DOCTOR = "prepare", "prepare again", "doctor"
NOTEBOOKS = tuple(step.name for step in pipeline.TABLE)
STEPS = (PREPARE, AGAIN, DOCTOR, *NOTEBOOKS, pipeline.REPORT.name)
NOISE = 0.05  # share of a step's seconds
READ, FITS, OPINION, LOOKED = "clips", "clips x epochs", "second_opinion_clips", "umap_clips"
# What the time of a cell grows with that calls one of these; all other cells take what they take with any number of
# clips. Two read at most as many clips as a parameter says.
GROWING = {
    "audited": READ, "second_opinion": OPINION, "extract": READ, "linear_probes": READ, "fit_all": FITS,
    "fit_variants": FITS, "tokens_by_source": READ, "score_variants": READ, "train_baselines": FITS, "scored": READ,
    "protocol_rows": READ, "baseline_logits": READ, "look": LOOKED, "importance_by_group": LOOKED,
    "laid_out": LOOKED, "joint_window": FITS,
}  # fmt: skip


@dataclass(frozen=True)
class Rehearsal:
    """A rehearsal in its folder: the parameters as given and as rehearsed, and what was reduced, in words."""

    folder: Path
    clips: int
    seed: int
    whole: Params
    run: Params
    reduced: tuple[str, ...]

    @property
    def params_file(self) -> Path:
        """The parameter file that runs."""
        return self.folder / f"{self.run.common.name}.yaml"

    def notes(self, step: str) -> Path:
        """Where it is kept what a step has taken."""
        return self.folder / "measured" / f"{step.replace(' ', '-')}.json"


def row(rehearsal: Rehearsal, name: str) -> dict[str, Any]:
    """What a step has taken, and what follows from it for the published dataset; bytes and seconds.

    What grows is multiplied, what is fixed is not. The bytes of tokens, videos and the table of linear probes are
    known, and so they are counted instead.
    """
    found, growing, whole = taken(rehearsal.notes(name)), growing_seconds(rehearsal, name), rehearsal.whole
    factors = growth(rehearsal)
    # Unpacking a few clips is lost in the start of the process.
    told = name != PREPARE or growing[READ] > NOISE * found.seconds
    seconds = found.seconds + sum((factors[kind] - 1) * took for kind, took in growing.items())
    disk, passing = found.disk, max(0, found.most - found.disk)
    ahead = {"seconds": seconds if told else None, "memory": found.memory, "disk": disk, "passing": passing}
    if name == PREPARE:
        ahead["disk"] = FULL_BYTES
    elif name == "00_data_audit":
        ahead["disk"] += round(occupied(rehearsal.run.run_dir / "audit") * (factors[READ] - 1))
    elif name == "01_extractors":
        ahead["disk"] += sum(sizes.token_bytes(whole, role, ALL_CLIPS - rehearsal.clips) for role in ROLES)
        ahead["passing"] = max(passing, sizes.probe_bytes(whole, CLIPS["train"] + CLIPS["validation"]))
    return {"step": name, **asdict(found), "passing": passing, "grows_with": list(growing), "projected": ahead}


def growth(rehearsal: Rehearsal) -> dict[str, float]:
    """By what the seconds that grow with something are to be multiplied."""
    whole, clips, share = rehearsal.whole, rehearsal.clips, ALL_CLIPS / rehearsal.clips
    tested = Counter(planned.split for planned in imitation.planned(clips, rehearsal.seed))["test"]
    opinion, umap = whole.data.second_opinion_clips, whole.interpretability.umap_clips
    return {
        READ: share,
        FITS: share * _epochs(whole) / _epochs(rehearsal.run),
        OPINION: min(opinion, ALL_CLIPS) / max(1, min(opinion, clips)),
        LOOKED: min(umap, CLIPS["test"]) / min(umap, tested),
    }


def _epochs(run: Params) -> int:
    """The epochs of all methods together."""
    return sum(run.training.epochs_of(method) for method in run.training.methods)


def growing_seconds(rehearsal: Rehearsal, name: str) -> dict[str, float]:
    """The seconds of a step that grow with the dataset, by what they grow with.

    Of several attempts, all that the rest of the last one does not explain.
    """
    found, growing = taken(rehearsal.notes(name)), {}
    if name == PREPARE:  # the second call finds all done
        again = taken(rehearsal.notes(AGAIN)).seconds
        return {READ: max(0.0, found.seconds - found.attempts * again)}
    if name in NOTEBOOKS:
        executed = rehearsal.run.run_dir / "notebooks" / f"{name}.ipynb"
        for cell in nbformat.read(executed, as_version=4).cells:
            if kind := grows_with(cell):
                growing[kind] = growing.get(kind, 0.0) + cell.metadata.papermill.duration
    if FITS in growing:
        growing[FITS] = min(growing[FITS], _in_epochs(rehearsal.run, name))
    last = sum(growing.values())
    more = max(1.0, (found.seconds - found.attempts * (found.last - last)) / last) if last else 1.0
    return {kind: seconds * more for kind, seconds in growing.items()}


def _in_epochs(run: Params, name: str) -> float:
    """The seconds that the epochs of a step's trainings took, without the start of the processes they ran in."""
    if name == "03_training":
        kept = results.load(run.results_dir / "training.meta.json")["extra"]["seconds"]
        return sum(map(sum, kept.values()))
    return sum(row["seconds"] for row in results.load(run.results_dir / "ablations.meta.json")["extra"]["rows"])


def grows_with(cell: Mapping[str, Any]) -> str:
    """What the time of a cell of a notebook grows with; empty where with nothing."""
    called = re.findall(r"\b(\w+)\(", cell["source"]) if cell["cell_type"] == "code" else []
    return next((GROWING[name] for name in called if name in GROWING), "")


def text(rows: Sequence[Mapping[str, Any]], reduced: tuple[str, ...]) -> str:
    """The table for people, with what was reduced and how the projection comes about."""
    head = f"{'':22}{'tries':>6}{'hours':>9}{'GiB':>7}{'disk GB':>9}{'passing':>9}"
    head += f" |{'hours':>9}{'disk GB':>9}{'passing':>9}"
    lines = ["Reduced: " + "; ".join(reduced), "", f"{'':54}measured | projected", head]
    for one in rows:
        ahead = one["projected"]
        hours = "?" if ahead["seconds"] is None else f"{ahead['seconds'] / 3600:.2f}"
        lines.append(
            f"{one['step']:22}{one['attempts']:6}{one['seconds'] / 3600:9.3f}{one['memory'] / GIB:7.2f}"
            f"{one['disk'] / 1e9:9.3f}{one['passing'] / 1e9:9.3f} |{hours:>9}"
            f"{ahead['disk'] / 1e9:9.2f}{ahead['passing'] / 1e9:9.2f}  {', '.join(one['grows_with']) or 'fixed'}"
        )
    hours, disk = (sum(one["projected"][key] or 0 for one in rows) for key in ("seconds", "disk"))
    untold = ", ".join(one["step"] for one in rows if one["projected"]["seconds"] is None)
    without = f" without {untold}, too short here to be told" if untold else ""
    return "\n".join([
        *lines, "",
        f"Projected to {ALL_CLIPS:,} clips on this machine, which nobody measured: {hours / 3600:,.1f} hours{without}, "
        f"{disk / 1e9:,.0f} GB left on the disk; memory as measured, "
        f"at most {max(one['memory'] for one in rows) / GIB:.2f} GiB in a step.",
        "Hours: cells that read clips, times the clips, or as many as the parameter named says; trainings times the "
        "epochs too; all else as measured. What such a cell does once is multiplied too: few clips, too many hours.",
        "Disk: videos as published, tokens and the passing table of linear probes by their shape, findings of the "
        "audit times the clips.",
    ])  # fmt: skip
