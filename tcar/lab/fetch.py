"""Fetch the published checkpoints that a parameter file needs, each to where the file looks for it."""

import os
import re
import shutil
from pathlib import Path

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from tcar.ground import files
from tcar.lab import params, results
from tcar.lab.needs import CONFIG, FOLDER, INDEX, Need, needs, shards_of, state, usual_place
from tcar.streams.download import FetchError, check_disk, digest, download
from tcar.streams.published import CHECKPOINTS, checkpoints_for, find


def fetch(need: Need, local_files_only: bool = False) -> Path:
    """Fetch a checkpoint to where it belongs and return the path of its weights.

    Files of the Hub are fetched by its library (resumed, sizes checked) and their digests compared with those that it
    names them by. Raises FetchError where one cannot be had, and with `local_files_only` or HF_HUB_OFFLINE where it is
    not there already.
    """
    # Weights that lie where a parameter says may be the user's own: no published config.json is put beside them.
    if (path := need.found()) and not (need.target is None and need.unlabelled()):
        return path
    if need.checkpoint.kind == "page":
        raise FetchError("no download")
    if local_files_only or constants.is_offline_mode():
        raise FetchError("no network is used: HF_HUB_OFFLINE is set, or only local files are wanted")
    if need.checkpoint.kind == "file":
        about = {"size": need.checkpoint.bytes, "sha256": need.checkpoint.sha256}
        return download(need.checkpoint.address, need.target, **about)
    size = int(1e6 * (need.checkpoint.size() or 0))
    check_disk(Path(constants.HF_HUB_CACHE), size)
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
    if not need.is_folder:
        if need.unlabelled() and paths[0].name == CONFIG:
            _place(paths[0], need.target.with_name(CONFIG))
        return _place(paths[-1], need.target)
    return [_place(path, need.target / path.name) for path in paths][-1]


def _from_hub(need: Need) -> list[Path]:
    """Bring the wanted files into the local cache of the Hub; the last one is that of the weights."""
    address, whole, paths = need.checkpoint.address, need.target is None or need.is_folder, []
    if whole or need.labelled:
        try:
            paths.append(Path(hf_hub_download(address, CONFIG)))
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):  # no connection, which is no answer
                raise
    safe, *others = need.checkpoint.files
    for name in (safe, INDEX, *others) if whole else (need.file,):
        try:
            path = Path(hf_hub_download(address, name))
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):
                raise
            continue
        shards = [Path(hf_hub_download(address, shard)) for shard in shards_of(path)] if name == INDEX else []
        return [*paths, *shards, path]
    missing = need.file if not whole else " or ".join(need.checkpoint.files)
    raise FetchError(f"{need.checkpoint.page}: has no {missing}; give a folder or the name on the Hub instead")


def _check_blob(path: Path) -> None:
    """Compare a file in the cache with the digest that the Hub names it by; raises FetchError and removes it."""
    blob = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name) and digest(blob) != blob.name:
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
    """Return the line that says what to fetch from where, how large it is, and where to put it."""
    checkpoint, size = need.checkpoint, need.checkpoint.size()
    large = f"{size / 1000:.2f} GB" if size and size >= 1000 else f"{size:.0f} MB" if size else "size not known"
    if need.target is None:
        place, source = f"{FOLDER}/{checkpoint.address.partition('/')[2]}/", checkpoint.page
        place += f" ({' or '.join(checkpoint.files)}, and config.json; name this folder as the checkpoint)"
    else:
        place, source = results.relative(need.target, root), checkpoint.page
        if checkpoint.kind == "hub":
            source = checkpoint.page if need.is_folder else checkpoint.url(need.file)
            place += "/ (config.json and its weights)" if need.is_folder else ""
            place += ", and its config.json beside it" if need.labelled and not need.is_folder else ""
    note = f" [{checkpoint.note}]" if checkpoint.note and checkpoint.kind != "file" else ""
    return f"{checkpoint.name}: {source} ({large}) -> {place}{note}"



def wanted(name: str, root: Path) -> list[Need]:
    """What a parameter file, or a stream or checkpoint of this name, needs; raises ValueError for an unknown one."""
    if Path(name).suffix in (".yaml", ".yml"):
        return needs(params.load(name))
    if name in CHECKPOINTS or ("/" in name and not name.startswith("timm:")):
        return [Need("checkpoint", find(name), usual_place(find(name), root))]
    return [Need(f"stream {name}", c, usual_place(c, root)) for c in checkpoints_for(name)[:1]]


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
    served, words = state(need, verify)
    place = "the cache of the Hub" if need.target is None else results.relative(need.target, root)
    print(f"{need.purpose}: {need.checkpoint.name} in {place}: {words}{problem}", flush=True)
    if served and need.advice:
        print(f"  -> {need.advice}")
    return served
