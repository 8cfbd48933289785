"""The published checkpoints that a run needs: where each belongs, whether it is there, and fetching it to there."""

import json
import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from tcar.ground import files
from tcar.lab import params, results
from tcar.lab.params import Params
from tcar.streams.download import FetchError, check_disk, digest, download
from tcar.streams.published import CHECKPOINTS, WEIGHTS, Checkpoint, checkpoints_for, find

FOLDER = "checkpoints"  # where files go that no parameter names a place for
CONFIG = "config.json"
INDEX = "model.safetensors.index.json"  # on the Hub, in place of weights that were cut into several files
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".pyth", ".pkl")
SHA256 = re.compile(r"[0-9a-f]{64}")  # in its cache, the Hub names a file by its digest


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
    def is_file(self) -> bool:
        """Whether its weights go into one file, with no folder of their own as the Hub has it."""
        return self.target is not None and self.target.suffix in SUFFIXES

    @property
    def wanted(self) -> list[str]:
        """The files of the repository that may be its weights, the first that is there counts."""
        names = self.checkpoint.files
        if self.is_file:
            return [name for name in names if Path(name).suffix == self.target.suffix][:1] or [names[0]]
        return [names[0], INDEX, *names[1:]]

    def found(self) -> Path | None:
        """The weights where they belong, None where they are not there or not whole."""
        for name in (*self.checkpoint.files, INDEX):
            path = self._there(name)
            if path and (path.name != INDEX or all(map(self._there, shards_of(path)))):
                return path
        return None

    def unlabelled(self) -> bool:
        """Whether a config.json that must lie beside the weights does not."""
        return self.labelled and self._there(CONFIG) is None

    def place(self, root: Path) -> str:
        """Where it belongs, in words."""
        return "the cache of the Hub" if self.target is None else results.relative(self.target, root)

    def _there(self, name: str) -> Path | None:
        if self.target is None:
            cached = try_to_load_from_cache(self.checkpoint.address, name)
            path = Path(cached) if isinstance(cached, str) else None
        elif self.is_file:
            path = self.target.with_name(CONFIG) if name == CONFIG else self.target
        else:
            path = self.target / name
        return path if path and path.is_file() else None


def needs(run: Params) -> list[Need]:
    """What the two streams and the baselines of a run load; nothing for what comes with the package.

    Raises ValueError for a name that nothing is published for, or a checkpoint of a kind that is not.
    """
    found = [stream_need(run, role) for role in ("semantic", "motion")]
    return [need for need in found if need is not None] + baseline_needs(run)


def stream_need(run: Params, role: str) -> Need | None:
    """What the stream of a role loads, None where it comes with the package; raises as `needs` does."""
    stream, stated = getattr(run.streams, role), getattr(run.streams, f"{role}_checkpoint")
    published = checkpoints_for(stream)
    return _need(f"{role} stream {stream}", published, stated, f"{role}_checkpoint", run.root) if published else None


def baseline_needs(run: Params) -> list[Need]:
    """What the baselines of a run load; nothing for one whose weights come with the package. Raises as `needs` does."""
    settings = run.baselines
    if not settings.baselines:
        return []
    from tcar.models.baselines import find_baseline  # seconds to import, and few runs have any

    stated, found = settings.baseline_checkpoints, []
    for baseline in map(find_baseline, settings.baselines):
        for key, address in baseline.published.items():
            given = stated.get(key, "")
            need = _need(f"baseline {key}", [find(address)], given, f"baseline_checkpoints, {key}", run.root)
            advice = "" if given else f"set baseline_checkpoints: {{{key}: {address}}}"
            found.append(replace(need, advice=advice, labelled=baseline.labelled))
    return found


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
        fitting = [checkpoint for checkpoint in published if target.name in checkpoint.files] or [
            checkpoint for checkpoint in published if any(name.endswith(target.suffix) for name in checkpoint.files)
        ]
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
    """Where a checkpoint goes that no parameter names a place for; None is the local cache of the Hub."""
    return None if checkpoint.kind == "hub" else root / FOLDER / checkpoint.files[0]


def named(name: str, root: Path) -> list[Need]:
    """What a parameter file, or a stream or checkpoint of this name, needs; raises ValueError for an unknown one."""
    if Path(name).suffix in (".yaml", ".yml"):
        return needs(params.load(name))
    if name in CHECKPOINTS or ("/" in name and not name.startswith("timm:")):
        return [Need("checkpoint", find(name), usual_place(find(name), root))]
    return [Need(f"stream {name}", c, usual_place(c, root)) for c in checkpoints_for(name)[:1]]


def shards_of(index: Path) -> list[str]:
    """The names of the files that weights were cut into, as their index lists them."""
    return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))


def state(need: Need, verify: bool = False) -> tuple[bool, str]:
    """Whether a checkpoint is there as published, and that in words.

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
    known, found = need.checkpoint.sha256, digest(path)
    if SHA256.fullmatch(path.resolve().name):
        known = path.resolve().name
    elif path.suffix != Path(need.checkpoint.files[0]).suffix:
        known = None
    if known is None:
        return True, f"there, SHA-256 {found}; none is published"
    if found.startswith(known):
        return True, "there, SHA-256 as published"
    return False, f"there, but its SHA-256 is {found}, the published one {known}"


def fetch(need: Need) -> Path:
    """Fetch a checkpoint to where it belongs and return the path of its weights.

    Files of the Hub are fetched by its library (resumed, sizes checked) and their digests compared with those that it
    names them by. Raises FetchError where one cannot be had, and with HF_HUB_OFFLINE where it is not there already.
    """
    # Weights that lie where a parameter says may be the user's own: no published config.json is put beside them.
    if (path := need.found()) and not (need.target is None and need.unlabelled()):
        return path
    if need.checkpoint.kind == "page":
        raise FetchError("no download")
    if constants.is_offline_mode():
        raise FetchError("no network is used: HF_HUB_OFFLINE is set")
    if need.checkpoint.kind == "file":
        about = {"size": need.checkpoint.bytes, "sha256": need.checkpoint.sha256}
        return download(need.checkpoint.address, need.target, **about)
    check_disk(Path(constants.HF_HUB_CACHE), int(1e6 * (need.checkpoint.size() or 0)))
    try:
        paths = _from_hub(need)
    except FetchError:
        raise
    except Exception as error:  # whatever the library dies of, the user wants to know how else to get the file
        raise FetchError(f"{need.checkpoint.page}: {str(error).strip().splitlines()[0]}") from error
    for path in paths:
        _check_blob(path)
    if need.target is None:
        return paths[-1]
    if not need.is_file:
        return [_place(path, need.target / path.name) for path in paths][-1]
    if need.unlabelled() and paths[0].name == CONFIG:
        _place(paths[0], need.target.with_name(CONFIG))
    return _place(paths[-1], need.target)


def _from_hub(need: Need) -> list[Path]:
    """Bring the wanted files into the local cache of the Hub; the last one is that of the weights."""
    address, paths = need.checkpoint.address, []
    if not need.is_file or need.labelled:
        paths = [path for path in [_cached(address, CONFIG)] if path]
    for name in need.wanted:
        if path := _cached(address, name):
            shards = [Path(hf_hub_download(address, shard)) for shard in shards_of(path)] if name == INDEX else []
            return [*paths, *shards, path]
    missing = " or ".join(name for name in need.wanted if name != INDEX)
    raise FetchError(f"{need.checkpoint.page}: has no {missing}; give a folder or the name on the Hub instead")


def _cached(address: str, name: str) -> Path | None:
    """Bring a file of a repository into the cache; None where the repository has none of this name."""
    try:
        return Path(hf_hub_download(address, name))
    except LocalEntryNotFoundError:  # no connection, which is no answer
        raise
    except EntryNotFoundError:
        return None


def _check_blob(path: Path) -> None:
    """Compare a file in the cache with the digest that the Hub names it by; raises FetchError and removes it."""
    blob = path.resolve()
    if SHA256.fullmatch(blob.name) and digest(blob) != blob.name:
        blob.unlink()
        path.unlink()
        raise FetchError(f"{path}: it was damaged on its way and is removed; run the same command again")


def _place(path: Path, target: Path) -> Path:
    """Give a file of the cache a second name; on another disk, copy it. Raises FetchError for another file there."""
    if target.exists():
        if digest(target) != digest(path):
            raise FetchError(f"{target}: is there, and is not the published file; move it away")
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    blob = path.resolve()
    with files.drafted(target) as draft:
        draft.unlink(missing_ok=True)
        try:
            os.link(blob, draft)
        except OSError:
            check_disk(target.parent, blob.stat().st_size)
            shutil.copyfile(blob, draft)
    return target


def by_hand(need: Need, root: Path) -> str:
    """The line that says what to fetch from where, how large it is, and where to put it."""
    checkpoint, size = need.checkpoint, need.checkpoint.size()
    large = f"{size / 1000:.2f} GB" if size and size >= 1000 else f"{size:.0f} MB" if size else "size not known"
    place, source = need.place(root), checkpoint.page
    if need.target is None:
        place = f"{FOLDER}/{checkpoint.address.partition('/')[2]}/"
        place += f" ({' or '.join(checkpoint.files)}, and config.json; name this folder as the checkpoint)"
    elif checkpoint.kind == "hub" and not need.is_file:
        place += "/ (config.json and its weights)"
    elif checkpoint.kind == "hub":
        source = checkpoint.url(need.wanted[0])
        place += ", and its config.json beside it" if need.labelled else ""
    note = f" [{checkpoint.note}]" if checkpoint.note and checkpoint.kind != "file" else ""
    return f"{checkpoint.name}: {source} ({large}) -> {place}{note}"


def served(need: Need, root: Path, *, only_list: bool = False, verify: bool = False) -> bool:
    """Fetch one checkpoint unless it is there or only a list is wanted, and print what became of it.

    Gives whether it is there; `verify` compares its digest too.
    """
    problem = ""
    if not only_list:
        try:
            fetch(need)
        except FetchError as error:
            problem = f": {error}"
    there, words = state(need, verify)
    print(f"{need.purpose}: {need.checkpoint.name} in {need.place(root)}: {words}{problem}", flush=True)
    if there and need.advice:
        print(f"  -> {need.advice}")
    return there
