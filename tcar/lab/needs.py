"""What published checkpoints a run needs, where each belongs, and whether it is there."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from tcar.lab import results
from tcar.lab.params import Params
from tcar.streams.download import digest
from tcar.streams.published import CHECKPOINTS, WEIGHTS, Checkpoint, checkpoints_for, find

FOLDER = "checkpoints"  # where files go that no parameter names a place for
CONFIG = "config.json"
INDEX = "model.safetensors.index.json"  # on the Hub, in place of weights that were cut into several files
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".pyth", ".pkl")


@dataclass(frozen=True)
class Need:
    """A checkpoint and where it belongs: a file, a folder, or (None) the local cache of the Hub.

    `advice` is what is still to be done once it is there; `labelled` says that its config.json must lie beside it.
    """

    purpose: str
    checkpoint: Checkpoint
    target: Path | None
    advice: str = ""
    labelled: bool = False

    @property
    def is_folder(self) -> bool:
        """Whether it goes into a folder of its own, as the Hub has it."""
        return self.target is not None and self.target.suffix not in SUFFIXES

    @property
    def file(self) -> str:
        """The file of the repository that is wanted at `target`, or the first of those that may be there."""
        names = self.checkpoint.files
        if self.target is None or self.is_folder:
            return names[0]
        return next((name for name in names if Path(name).suffix == self.target.suffix), names[0])

    def found(self) -> Path | None:
        """Return the weights where they belong, None where they are not there or not whole."""
        if self.target is not None and not self.is_folder:
            return self.target if self.target.is_file() else None
        for name in (*self.checkpoint.files, INDEX):
            if (path := self._there(name)) and (name != INDEX or all(map(self._there, shards_of(path)))):
                return path
        return None

    def unlabelled(self) -> bool:
        """Whether a config.json that must lie beside the weights does not."""
        if self.target is not None and not self.is_folder:
            return self.labelled and not self.target.with_name(CONFIG).is_file()
        return self.labelled and self._there(CONFIG) is None

    def _there(self, name: str) -> Path | None:
        if self.target is not None:
            return self.target / name if (self.target / name).is_file() else None
        cached = try_to_load_from_cache(self.checkpoint.address, name)
        return Path(cached) if isinstance(cached, str) and Path(cached).is_file() else None


def needs(run: Params) -> list[Need]:
    """Return what the two streams and the baselines of a run load; nothing for what comes with the package.

    Raises ValueError for a name that nothing is published for, or a checkpoint of a kind that is not.
    """
    found = [need_of(run, role) for role in ("semantic", "motion")]
    return [need for need in found if need is not None] + baseline_needs(run)


def baseline_needs(run: Params) -> list[Need]:
    """Return what the baselines of a run load; nothing for one of random weights. Raises as `needs` does."""
    settings = run.baselines
    if not settings.baselines:
        return []
    from tcar.models.baselines import find_baseline  # seconds to import, and few runs have any

    stated, found = settings.baseline_checkpoints, []
    for baseline in map(find_baseline, settings.baselines):
        if baseline.random and not stated.keys() & baseline.published.keys():
            continue
        for key, address in baseline.published.items():
            given = stated.get(key, "")
            need = _need(f"baseline {key}", [find(address)], given, f"baseline_checkpoints, {key}", run.root)
            advice = "" if given else f"set baseline_checkpoints: {{{key}: {address}}}"
            found.append(replace(need, advice=advice, labelled=baseline.labelled))
    return found


def need_of(run: Params, role: str) -> Need | None:
    """Return what the stream of a role loads, None where it comes with the package; raises as `needs` does."""
    stream, stated = getattr(run.streams, role), getattr(run.streams, f"{role}_checkpoint")
    published = checkpoints_for(stream)
    return _need(f"{role} stream {stream}", published, stated, f"{role}_checkpoint", run.root) if published else None


def _need(purpose: str, published: list[Checkpoint], stated: str, key: str, root: Path) -> Need:
    if not stated:
        checkpoint, target = published[0], usual_place(published[0], root)
        return Need(purpose, checkpoint, target, f"set {key}: {results.relative(target, root)}" if target else "")
    named = [checkpoint for checkpoint in CHECKPOINTS.values() if stated == checkpoint.address]
    if named or _is_hub_name(stated, root):
        own = Checkpoint(stated, (), "hub", stated, WEIGHTS, "", "transformers")
        return Need(purpose, named[0] if named else own, None)
    target = root / Path(stated).expanduser()
    if target.suffix not in SUFFIXES:
        fitting = [checkpoint for checkpoint in published if checkpoint.kind == "hub"]
    else:
        named = [checkpoint for checkpoint in published if target.name in checkpoint.files]
        kinds = {checkpoint.name: {Path(file).suffix for file in checkpoint.files} for checkpoint in published}
        fitting = named or [checkpoint for checkpoint in published if target.suffix in kinds[checkpoint.name]]
    if not fitting and not target.exists():
        known = ", ".join(file for checkpoint in published for file in checkpoint.files)
        raise ValueError(f"{key}: {stated} is none of what is published for the {purpose}: {known}")
    return Need(purpose, (fitting or published)[0], target)


def _is_hub_name(stated: str, root: Path) -> bool:
    """Whether owner/name means the Hub: a folder of the project may have a name of the same form."""
    owner, _, name = stated.partition("/")
    here = owner == FOLDER or (root / owner).is_dir() or Path(name).suffix in SUFFIXES
    return re.fullmatch(r"[\w.-]+/[\w.-]+", stated) is not None and not here


def usual_place(checkpoint: Checkpoint, root: Path) -> Path | None:
    """Return where a checkpoint goes that no parameter names a place for; None is the local cache of the Hub."""
    return None if checkpoint.kind == "hub" else root / FOLDER / checkpoint.files[0]


def shards_of(index: Path) -> list[str]:
    """Return the names of the files that weights were cut into, as their index lists them."""
    return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))


def state(need: Need, verify: bool = False) -> tuple[bool, str]:
    """Return whether a checkpoint is there as published, and that in words.

    Sizes are compared where the published one is exact; with `verify`, digests too, which reads the whole file.
    """
    path = need.found()
    if path is None:
        return False, "missing"
    count, wanted = path.stat().st_size, need.checkpoint.bytes
    if wanted is not None and count != wanted:
        return False, f"there, but it has {count:,} bytes and the published file {wanted:,}"
    if need.unlabelled():
        return False, f"there, but the {CONFIG} that numbers its classes is not beside it"
    if not verify:
        return True, "there"
    blob, known = path.resolve().name, need.checkpoint.sha256
    if re.fullmatch(r"[0-9a-f]{64}", blob):  # in its cache, the Hub names a file by its digest
        known = blob
    elif path.suffix != Path(need.checkpoint.files[0]).suffix:
        known = None
    found = digest(path)
    if known is None:
        return True, f"there, SHA-256 {found}; none is published"
    return found.startswith(known), "there, SHA-256 as published" if found.startswith(known) else (
        f"there, but its SHA-256 is {found}, the published one {known}"
    )
