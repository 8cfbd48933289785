"""Faults of the machine, for which no clip is to blame: a full or stalled disk, too many open files."""

import errno
import resource
from contextlib import suppress
from pathlib import Path

import av

from tcar.data.container import VideoError

# Errors of system calls in which the file asked for has no part.
FAULTS = frozenset(
    getattr(errno, name)
    for name in (
        "EDQUOT", "EHOSTDOWN", "EHOSTUNREACH", "EIO", "EMFILE", "ENETUNREACH", "ENFILE", "ENOBUFS", "ENODEV", "ENOLCK",
        "ENOMEM", "ENOSPC", "ENOTCONN", "ENXIO", "EREMOTEIO", "EROFS", "ESHUTDOWN", "ESTALE", "ETIMEDOUT",
    )
    if hasattr(errno, name)
)  # fmt: skip
# Errors that libav also gives for a damaged file.
_OF_LIBAV = {errno.EIO, errno.ENOBUFS, errno.ENODEV, errno.ENOSPC, errno.ENXIO}
_PART = 2**20  # bytes


class MachineError(OSError):
    """A fault of the machine that stays; no clip is marked as broken for it, so the same call can go on afterwards."""


def fault_of(error: BaseException | None) -> OSError | None:
    """Return the fault of the machine among an error and its causes, else None."""
    while error is not None:
        if isinstance(error, MachineError) or (isinstance(error, OSError) and error.errno in _told(error)):
            return error
        error = error.__cause__ or error.__context__
    return None


def _told(error: OSError) -> frozenset[int]:
    """Return the numbers that are faults of the machine in an error of this kind."""
    limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY  # then the clip asks for too much
    told = FAULTS - _OF_LIBAV if isinstance(error, av.FFmpegError) else FAULTS
    return told - {errno.ENOMEM} if limited else told


def refuse_fault(error: BaseException, path: Path) -> None:
    """Raise OSError, naming a file, where it is the machine's fault that it cannot be read."""
    if fault := fault_of(error):
        raise OSError(fault.errno, fault.strerror or str(fault), str(path)) from error


def reason_of(error: VideoError) -> str:
    """Return why a clip has no frames, once it is sure that its file can be read; raises OSError where it cannot.

    libav takes an error of the disk for the end of the file, so the file is read again without it.
    """
    refuse_fault(error, error.path)
    if error.reason == "missing" and not error.path.parent.is_dir():
        raise MachineError(f"{error.path.parent}: there is no such folder of videos; is its disk gone?") from error
    with suppress(FileNotFoundError, PermissionError), error.path.open("rb", buffering=0) as file:
        while file.read(_PART):
            pass
    return error.reason
