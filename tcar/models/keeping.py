"""A kept model: a folder with config.json, model.safetensors and, where there is one, its card README.md."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors.torch import save_file
from torch import Tensor

from tcar.ground import files
from tcar.streams import pretrained
from tcar.streams.weights import CheckpointError

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"
AGAIN = "save the model again, or fetch both files of it again"


def keep(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor], card: str = "") -> None:
    """Write a model, each file in one step; config.json, which says under `model` whose the folder is, is whole last.

    Raises CheckpointError, before anything is written, where the folder has a file of these names that is of something
    else, or a card that was edited since it was written.
    """
    about, path = {"model": config["model"]}, folder / CONFIG_FILE
    written = (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE) if card else (CONFIG_FILE, WEIGHTS_FILE)
    there, before = [name for name in written if (folder / name).exists()], _config(path)
    if there and before.get("model") != config["model"]:
        raise CheckpointError(
            f"{folder}: holds {', '.join(there)} of something else than {config['model']}, which would be overwritten; "
            "give another folder"
        )
    if CARD_FILE in there and before.get("card", digest := _digest(folder / CARD_FILE)) != digest:
        raise CheckpointError(
            f"{folder / CARD_FILE}: was edited since it was written and would be overwritten; move it away"
        )
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps(about) + "\n")  # no model from here on, until the last file is there
    with files.drafted(folder / WEIGHTS_FILE) as draft:
        save_file({key: value.contiguous() for key, value in state.items()}, draft, metadata={"format": "pt"})
    if card:
        files.write_text(folder / CARD_FILE, card)
        about["card"] = _digest(folder / CARD_FILE)
    files.write_text(path, json.dumps({**config, **about}, indent=2) + "\n")


def kept_folder(name: str | Path, *, local_files_only: bool = False, revision: str | None = None) -> Path:
    """Return the folder of a kept model: the folder itself, or the copy of owner/name that the Hub's library keeps.

    Raises CheckpointError where the Hub has to be asked and cannot be, with what to fetch and where to put it.
    """
    owner = str(name).partition("/")[0]
    if not pretrained.is_hub_name(name) or Path(owner).is_dir():
        return Path(name)
    wanted = ["*.json", "*.safetensors", CARD_FILE]
    try:
        found = snapshot_download(
            str(name), revision=revision, local_files_only=local_files_only, allow_patterns=wanted
        )
    except Exception as error:  # it raises errors of its own, of the system and of an HTTP client
        reason = str(error).strip().partition("\n")[0]
        version = f" --revision {revision}" if revision else ""
        raise CheckpointError(
            f"{name}: no such folder, and not to be had from the Hub by this name ({reason}). With a network: "
            f"hf download {name}{version}. Without: put its {CONFIG_FILE} and {WEIGHTS_FILE} into a folder, "
            "and give that"
        ) from error
    return Path(found)


@contextmanager
def config_errors(path: Path, kind: str) -> Iterator[None]:
    """Make of what goes wrong with the config.json of a kept model a CheckpointError that says what to do."""
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: not found; give the folder that save_pretrained wrote") from error
    except KeyError as error:
        raise CheckpointError(f"{path}: not a {kind} configuration: it has no {error}; {AGAIN}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a {kind} configuration: {error}; {AGAIN}") from error


def _config(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
