"""Reading weights: every container, and no code of a file."""

import codecs
import collections
import hashlib
import os
import pickle
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch
from i3d_files import Python2Pickler
from safetensors.torch import save_file
from torch import nn

from tcar.streams import unpickle
from tcar.streams.weights import CheckpointError, load_strict, read_checkpoint, read_state, state_digest


class Harmful:
    """Unpickled by anything that trusts it, calls a function with an argument."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


HARMS = {
    "print": lambda mark: Harmful(print, mark),
    "shell": lambda mark: Harmful(os.system, f"echo > {mark}"),
    "file": lambda mark: Harmful(open, mark, "w"),
    "eval": lambda mark: Harmful(eval, f"open({mark!r}, 'w')"),
    "nested": lambda mark: Harmful(list, Harmful(map, os.mkdir, [mark])),
    "torch": lambda mark: Harmful(torch.save, 1, mark),
    "numpy": lambda mark: Harmful(np.ndarray.tofile, np.zeros(1), mark),
}
STATE = OrderedDict(weight=torch.arange(6.0).view(2, 3), bias=torch.tensor([1, 2]), half=torch.ones(2).bfloat16())


def write(path, content, container):
    if container == "plain":
        path.write_bytes(pickle.dumps(content, 2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=container == "zip")


def equal(found, expected) -> bool:
    return found.keys() == expected.keys() and all(
        found[key].dtype == value.dtype and torch.equal(found[key], value) for key, value in expected.items()
    )


@pytest.mark.parametrize("harm", HARMS)
def test_harm_would_be_done(harm, tmp_path, capsys):
    mark = tmp_path / "ran"
    pickle.loads(pickle.dumps(HARMS[harm](str(mark)), 2))
    assert mark.exists() or "ran" in capsys.readouterr().out


@pytest.mark.parametrize("container", ["zip", "legacy", "plain"])
@pytest.mark.parametrize("harm", HARMS)
def test_no_code_of_a_file_is_run(harm, container, tmp_path, capsys):
    mark, path = tmp_path / "ran", tmp_path / "weights.pth"
    for content in (HARMS[harm](str(mark)), {"state_dict": {"weight": HARMS[harm](str(mark))}}):
        write(path, content, container)
        with pytest.raises(CheckpointError, match=r"weights.pth: (not a readable checkpoint|holds no plain)"):
            read_state(path)
    assert not mark.exists() and "ran" not in capsys.readouterr().out


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("harm", HARMS)
def test_harm_beside_the_weights_is_not_done(harm, container, tmp_path, capsys):
    mark, path = tmp_path / "ran", tmp_path / "weights.pth"
    write(path, {"meta": {"hook": HARMS[harm](str(mark))}, "state_dict": STATE}, container)
    assert equal(read_state(path), STATE)
    assert not mark.exists() and "ran" not in capsys.readouterr().out


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_foreign_classes_become_inert(container, tmp_path, monkeypatch):
    module = types.ModuleType("framework_of_another_machine")
    source = "class Config(dict): pass\nclass Log(list): pass\nclass Buffer:\n    def mean(self): pass\n"
    exec(source, module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    buffer = module.Buffer()
    buffer.values, buffer.method = np.arange(3.0), module.Buffer.mean
    meta = {
        "config": module.Config(depth=50, inner=module.Config()),
        "log": module.Log([1, 2]),
        "buffer": buffer,
        "counts": collections.defaultdict(list, a=[np.float32(1)]),
        "epoch": 3,
    }
    path = tmp_path / "weights.pth"
    write(path, {"meta": meta, "state_dict": STATE}, container)
    monkeypatch.delitem(sys.modules, module.__name__)
    held = read_checkpoint(path)
    assert equal(held["state_dict"], STATE)
    assert held["meta"].pop("epoch") == 3
    assert all(type(value) is unpickle.Placeholder and not vars(value) for value in held["meta"].values())


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("inner", ["model_state", "state_dict", "blobs", ""])
def test_weights_are_found_in_the_containers(inner, container, tmp_path):
    write(tmp_path / "weights.pth", {inner: STATE, "epoch": 3} if inner else STATE, container)
    assert equal(read_state(tmp_path / "weights.pth"), STATE)


def test_parameters_and_safetensors_are_read(tmp_path):
    parameters = {key: nn.Parameter(value, requires_grad=False) for key, value in STATE.items()}
    for container in ("zip", "legacy"):
        write(tmp_path / "weights.pth", {"state_dict": parameters, "meta": Harmful(print, "ran")}, container)
        assert equal(read_state(tmp_path / "weights.pth"), STATE)
    save_file(STATE, tmp_path / "weights.safetensors")
    assert equal(read_state(tmp_path / "weights.safetensors"), STATE)


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="asks Linux what is mapped")
def test_zip_is_mapped_and_not_read(tmp_path):
    weights = torch.arange(1_000_000.0)
    for meta in (3, collections.defaultdict(list, a=[1])):  # what torch allows, and what it does not
        path = tmp_path / "weights.pth"
        torch.save({"state_dict": {"weight": weights}, "meta": meta}, path)
        found = read_state(path)["weight"]
        assert torch.equal(found, weights)
        with open("/proc/self/maps") as maps:
            spans = [line.split()[0].split("-") for line in maps if str(path) in line]
        assert any(int(low, 16) <= found.data_ptr() < int(high, 16) for low, high in spans)
        path.unlink()


ARRAYS = {
    "float": np.linspace(-3, 3, 5, dtype=np.float32).reshape(1, 5),
    "whole": np.arange(3, dtype=np.int64),
    "foreign order": np.arange(4, dtype=">f4"),
    "column-major": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "scalar": np.float32(0.25),
    "large": np.zeros((300, 300)),
    "number": 400_000,
    "zero-dimensional": np.array(2.5),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("version", [2, 3])
def test_arrays_as_two_versions_of_python_pickle_them(version, tmp_path):
    path = tmp_path / "weights.pkl"
    with path.open("wb") as file:
        (Python2Pickler if version == 2 else pickle.Pickler)(file, 2).dump({"blobs": OrderedDict(ARRAYS), "note": "é"})
    found = read_state(path)
    assert found.keys() == ARRAYS.keys()
    for key, value in ARRAYS.items():
        assert found[key].shape == np.shape(value)
        np.testing.assert_array_equal(found[key].numpy(), value)
        found[key].add_(1)  # an array that only borrows the file's bytes would not be writable


@pytest.mark.parametrize("name", ["os.system", "numpy.load", "numpy.core.multiarray.fromfile", "builtins.set"])
def test_plain_pickle_names_what_it_refuses(name, tmp_path):
    module, function = name.rsplit(".", 1)
    (tmp_path / "weights.pkl").write_bytes(f"c{module}\n{function}\n.".encode())
    with pytest.raises(CheckpointError, match=rf"it names {name}, which no array needs"):
        read_state(tmp_path / "weights.pkl")


def test_plain_pickle_chooses_no_codec(tmp_path):
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps({"a": Harmful(codecs.encode, "text", "rot13")}, 2))
    with pytest.raises(CheckpointError, match="bytes written as 'rot13', expected 'latin1'"):
        read_state(tmp_path / "weights.pkl")


@pytest.mark.parametrize(
    "content", [[STATE], {"state_dict": {"weight": "text"}}, {"weight": [1, 2]}, {3: STATE["weight"]}, 7]
)
def test_what_is_no_state_dict_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"weights.pth: holds no plain dictionary of tensors"):
        read_state(tmp_path / "weights.pth")


def test_arrays_of_objects_are_refused(tmp_path):
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps({"blobs": {"a": np.array([None, {}]), "b": np.array("text")}}))
    with pytest.raises(CheckpointError, match=r"not one: a, b"):
        read_state(tmp_path / "weights.pkl")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02", b"PK\x03\x04", b"x" * 600])
def test_what_is_no_checkpoint_is_refused(content, tmp_path):
    for name in ("weights.pth", "weights.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{name}: not a readable checkpoint"):
            read_checkpoint(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"absent.pth: no such checkpoint file"):
        read_checkpoint(tmp_path / "absent.pth")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript_is_refused(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"weights.pt: not a readable checkpoint.*TorchScript"):
        read_checkpoint(tmp_path / "weights.pt")


def test_names_of_the_file_are_listed_and_the_rest_is_kept():
    module = nn.BatchNorm1d(3)
    names = {key: f"their_{key}" for key in module.state_dict() if key != "num_batches_tracked"}
    module.num_batches_tracked.fill_(5)
    state = {name: torch.full((3,), 2.0) for name in names.values()}
    load_strict(module, state, "here", names)
    assert module.num_batches_tracked == 5
    assert all(value.eq(2).all() for key, value in module.state_dict().items() if key in names)
    state["surplus"] = state.pop("their_bias")
    state["their_weight"] = torch.zeros(4)
    with pytest.raises(CheckpointError) as error:
        load_strict(module, state, "here", names)
    assert str(error.value).split("\n") == [
        "here: does not match the network it is loaded into",
        "  missing (1): their_bias",
        "  unexpected (1): surplus",
        "  misshapen (1): their_weight [4], expected [3]",
    ]


def test_a_digest_is_of_the_name_and_of_every_key_type_shape_and_byte():
    """Digests are kept beside trained models: they must stay what they are."""
    first, second = nn.Linear(2, 3), nn.BatchNorm1d(3)
    by_hand = hashlib.sha256(b"both")
    for module in (first, second):
        for key, value in sorted(module.state_dict().items()):
            by_hand.update(f"{key} {value.dtype} {list(value.shape)}".encode() + value.numpy().tobytes())
    assert state_digest("both", first, second) == by_hand.hexdigest()
    others = [("other", first, second), ("both", second, first), ("both", first.double(), second)]
    assert by_hand.hexdigest() not in [state_digest(*other) for other in others]
