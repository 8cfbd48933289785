"""A kept model: a folder with config.json, model.safetensors and, where there is one, its card README.md."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from tcar.ground import files
from tcar.streams.weights import CheckpointError

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"


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


def _config(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
