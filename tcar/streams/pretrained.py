"""Models of the transformers library with published weights, loaded strictly from a folder, a file or the Hub."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import torch
import transformers
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.utils import logging as transformers_logging

from tcar.streams.catalogue import StreamFacts
from tcar.streams.meta_names import Names, from_meta
from tcar.streams.stream import Family, Source
from tcar.streams.weights import CheckpointError, Mismatch, fitting, read_state

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_name(checkpoint: str | Path) -> bool:
    """Whether a checkpoint is given as owner/name on the Hub and not as something that lies on the disk."""
    return not Path(checkpoint).exists() and HUB_NAME.fullmatch(str(checkpoint)) is not None


def build(model_class: type | str, config: PreTrainedConfig) -> nn.Module:
    """Build a model with random weights, on a configuration of its own: switching attention would edit a shared one.

    `model_class` is a class of transformers or its name: importing one takes seconds, which naming it does not.
    """
    return _named(model_class)(deepcopy(config))


def _named(model_class: type | str) -> type:
    return getattr(transformers, model_class) if isinstance(model_class, str) else model_class


def load(
    model_class: type | str,
    config: PreTrainedConfig,
    checkpoint: str | Path,
    *,
    left_out: tuple[str, ...] = (),
    names: Names | None = None,
    local_files_only: bool = False,
) -> nn.Module:
    """Load a model (`build`) strictly from a checkpoint folder, a weights file, or a Hub name.

    `left_out` are patterns of keys that do not matter: the file may hold them or not, and in any shape (the head of
    another task). `names` are those of the files that Meta publishes itself, which are read too; so are files with the
    name of a wrapper before every key.
    Raises CheckpointError where nothing is found (with what to fetch and where to put it), or naming some of the keys
    that are missing, left over or misshapen.
    """
    path, state = Path(checkpoint), None
    if not path.exists() and not is_hub_name(checkpoint):
        raise CheckpointError(f"{path}: no such checkpoint file or folder")

    def matters(key: str) -> bool:
        return not any(re.match(pattern, key) for pattern in left_out)

    def attempt(name: str | None, given: dict[str, Tensor] | None) -> tuple[Mismatch, nn.Module]:
        # Misshapen keys are reported with the others instead of raising, so that one error can list them all.
        with _silent():
            model, report = _named(model_class).from_pretrained(
                name,
                config=deepcopy(config),
                state_dict=given if given is None or names is None else from_meta(given, names),
                dtype=torch.float32,
                local_files_only=local_files_only,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        shapes = [f"{key} {list(found)}, expected {list(wanted)}" for key, found, wanted in report["mismatched_keys"]]
        faults = (report["missing_keys"], report["unexpected_keys"], shapes)
        return Mismatch(*(tuple(key for key in keys if matters(key)) for keys in faults)), model

    try:
        if not path.is_file():
            faults, model = attempt(str(checkpoint), None)
            if not len(faults):
                return model
            path = locate(Source(checkpoint, 0, local_files_only))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {_fix(path, local_files_only)}") from error
    state = read_state(path)
    faults, model = fitting(state, lambda given: attempt(None, given))
    faults.refuse(checkpoint, state)
    return model


def family(
    stream_class: type,
    model_class: str,
    config_class: type,
    *,
    left_out: tuple[str, ...] = (),
    names: Names | None = None,
    sized: str = "",
    finish: Callable[[nn.Module], nn.Module] = lambda model: model,
) -> Family:
    """Return the family of streams over a model of transformers, whose configuration their `shape` is.

    `left_out` and `names` are those of `load`; `sized` names what the configuration calls the size of an image, where
    the network depends on it; `finish` makes the backbone of the model.
    """

    def config(facts: StreamFacts, input_size: int) -> PreTrainedConfig:
        return config_class(**facts.shape, **({sized: input_size} if sized else {}))

    def load_one(facts: StreamFacts, source: Source) -> tuple[nn.Module, dict]:
        given = {"left_out": left_out, "names": names, "local_files_only": source.local_files_only}
        return finish(load(model_class, config(facts, source.input_size), source.checkpoint, **given)), {}

    return Family(stream_class, lambda facts, size: finish(build(model_class, config(facts, size))), load_one)


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the library from listing every key that does not match, and from a bar: the error names what matters."""
    shown, loggers = transformers_logging.is_progress_bar_enabled(), ("transformers", "transformers.modeling_utils")
    levels = {name: logging.getLogger(name).level for name in loggers}
    transformers_logging.disable_progress_bar()
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if shown:
            transformers_logging.enable_progress_bar()


def locate(source: Source, filename: str = "model.safetensors") -> Path:
    """Return the weights file of a source: the file itself, the one in a folder, or the one that the Hub has.

    Raises CheckpointError where there is none, with what to fetch and where to put it.
    """
    path = Path(source.checkpoint)
    if path.is_dir():
        path /= filename
    elif is_hub_name(source.checkpoint):
        try:
            return Path(hf_hub_download(str(path), filename, local_files_only=source.local_files_only))
        except (OSError, HfHubHTTPError, LocalEntryNotFoundError) as error:
            raise CheckpointError(f"{path}: {_fix(path, source.local_files_only)}") from error
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file or folder")
    return path


def _fix(path: Path, local_files_only: bool) -> str:
    if path.is_dir():
        return "no readable checkpoint; the folder needs an intact model.safetensors"
    where = "not in the local cache of the Hub" if local_files_only else "neither in the local cache nor to be fetched"
    return (
        f"{where}. With a network: hf download {path}. Without: put its config.json and model.safetensors into a "
        f"folder, for example checkpoints/{path.name}, and give that as the checkpoint"
    )
