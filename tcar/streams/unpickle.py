"""Read pickled checkpoints without running any code of theirs.

A pickle is a program: it names functions and has them called. Here the names decide. `load_arrays` reads the plain
pickles of Caffe2 and refuses every name that no array needs. `Unpickler` and `load` make this module a `pickle_module`
for `torch.load`: they know what rebuilds a tensor, and put a `Placeholder` where a file names anything else, so the
classes that a training framework leaves beside its weights need not be installed.
"""

import pickle
from collections import OrderedDict
from typing import BinaryIO

import numpy as np
import torch

__all__ = ["Placeholder", "Unpickler", "load", "load_arrays"]


class Placeholder:
    """Stands where a file names an unknown class or function: it takes whatever it is given, and keeps none."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __call__(self, *args, **kwargs) -> "Placeholder":
        return Placeholder()

    def __setitem__(self, key, value):
        pass

    def __setstate__(self, state):
        pass

    def append(self, item):
        """Drop an item of a foreign list."""


# Storages are found by torch.load itself; a plain tensor or parameter needs nothing further.
TENSOR_NAMES = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
}


class Unpickler(pickle.Unpickler):
    """Unpickler for `torch.load(pickle_module=...)` that rebuilds tensors and leaves a `Placeholder` for all else."""

    def find_class(self, module: str, name: str):
        """Return what a name stands for; nothing is imported."""
        return TENSOR_NAMES.get(f"{module}.{name}", Placeholder)


def load(file: BinaryIO, **options) -> object:
    """Read the next pickle of a file as `Unpickler` does; the name and the options are those of `pickle.load`."""
    return Unpickler(file, **options).load()


def _encode(text: str, encoding: str) -> bytes:
    # How Python 3 writes bytes at protocol 2. Other codecs than this one would be code that the file chooses.
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes written as {encoding!r}, expected 'latin1'")
    return text.encode(encoding)


ARRAY_NAMES = {
    "_codecs.encode": _encode,
    "collections.OrderedDict": OrderedDict,
    "numpy.dtype": np.dtype,
    "numpy.ndarray": np.ndarray,
}
# What numpy pickles arrays and scalars with has moved between its versions; the functions are the same.
for home in ("numpy.core", "numpy._core"):
    ARRAY_NAMES[f"{home}.multiarray._reconstruct"] = np.empty(0).__reduce__()[0]
    ARRAY_NAMES[f"{home}.multiarray.scalar"] = np.float32(0).__reduce__()[0]


class ArrayUnpickler(pickle.Unpickler):
    """Unpickler of containers, numbers, text and numpy arrays; any other name is an UnpicklingError that names it."""

    def find_class(self, module: str, name: str):
        """Return what a name stands for, if arrays need it; nothing is imported."""
        try:
            return ARRAY_NAMES[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no array needs") from None


def load_arrays(file: BinaryIO) -> object:
    """Read a plain pickle of numpy arrays, one that Python 2 wrote included.

    Raises pickle.UnpicklingError naming the first class or function in it that no array needs; that is never called.
    """
    # latin1 maps the 256 characters of a Python 2 string one to one, so the bytes of its arrays survive.
    return ArrayUnpickler(file, encoding="latin1").load()
