"""A reader for worker processes, which import it: nothing heavy here."""

import os

from tcar.data.batches import ClipReader


class DeadlyReader(ClipReader):
    """A reader that one file takes down with its process, and another one trips."""

    def __call__(self, path):
        if path.name == "3.webm":
            os._exit(1)
        if path.name == "5.webm":
            raise RuntimeError("a bug")
        return super().__call__(path)
