"""Memory for batches of tokens that is used again when a batch is gone."""

from collections import deque
from math import prod

import numpy as np
from jaxtyping import Shaped

# Below a megabyte the allocator of C keeps memory itself; above a quarter of a gigabyte it is no batch but a split.
SMALLEST, LARGEST = 2**20, 2**28
KEPT = 4  # as many batches as are on their way at once


class Buffers:
    """Lends arrays and takes their memory back with the last reference to them, views and tensors included.

    The system hands out large memory page by page and zeroed, which costs as much as reading a batch of tokens into
    it. At most `KEPT` pieces of up to `LARGEST` bytes lie idle, and only as many as were lent at the same time. Threads
    may share one; a pickled one arrives empty.
    """

    def __init__(self):
        self._idle: deque[np.ndarray] = deque(maxlen=KEPT)

    def __reduce__(self):
        return Buffers, ()

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Shaped[np.ndarray, "..."]:
        """An array with arbitrary content, as numpy.empty gives it."""
        size = prod(shape) * dtype.itemsize
        if not SMALLEST <= size <= LARGEST:
            return np.empty(shape, dtype)
        try:
            memory = self._idle.pop()
        except IndexError:
            memory = None
        if memory is None or memory.nbytes < size:
            memory = np.empty(size, np.uint8)
        return np.asarray(_Loan(self._idle, memory, shape, dtype))


class _Loan:
    """What an array that is lent refers to as the owner of its memory."""

    def __init__(self, idle: deque, memory: np.ndarray, shape: tuple[int, ...], dtype: np.dtype):
        self.idle, self.memory = idle, memory
        place = memory.__array_interface__["data"]
        self.__array_interface__ = {"version": 3, "data": place, "shape": shape, "typestr": dtype.str}

    def __del__(self):
        self.idle.append(self.memory)
