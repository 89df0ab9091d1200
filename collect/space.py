"""Disk space for a recording: a floor that ends it cleanly, and blocks reserved ahead of it.

HDF5 does not survive a full disk (h5py leaves bad rows and crashes at exit), so it must never
meet one: the blocks of the next seconds are reserved before they are written.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

__all__ = ["SpaceGuard", "free_bytes"]

AHEAD_BYTES = 128 << 20
STEP_BYTES = AHEAD_BYTES // 8  # between looks; half of what is reserved is left at any look
FALLOC_FL_KEEP_SIZE = 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def free_bytes(directory: Path) -> int:
    """What this user may still write to the file system of ``directory``."""
    space = os.statvfs(directory)
    return space.f_bavail * space.f_frsize


class SpaceGuard:
    """Watches one growing file. ``floor_bytes`` of the file system stay free."""

    def __init__(self, directory: Path, floor_bytes: int) -> None:
        self._directory = directory
        self._floor = floor_bytes
        self._reserved = 0
        self._looked_bytes = 0
        self._can_reserve = True

    def due(self, size: int) -> bool:
        """Whether a file of ``size`` bytes has grown so much that ``shortage`` must look before
        more is written: after a stall there is more to write than is reserved ahead."""
        return size - self._looked_bytes > STEP_BYTES

    def shortage(self, fd: int) -> str | None:
        """Reserve ahead of the file ``fd``; why recording must end now, None when it need not."""
        size = self._looked_bytes = os.fstat(fd).st_size
        free = free_bytes(self._directory)
        if free < self._floor:
            return (
                f"{free / 1e9:.2f} GB free in {self._directory}, the floor is "
                f"{self._floor / 1e9:.2f} GB"
            )
        if self._can_reserve and size + AHEAD_BYTES // 2 > self._reserved:
            if _libc.fallocate(fd, FALLOC_FL_KEEP_SIZE, size, AHEAD_BYTES) == 0:
                self._reserved = size + AHEAD_BYTES
            else:
                error = ctypes.get_errno()
                if error in (errno.EOPNOTSUPP, errno.ENOSYS):  # NFS before 4.2: the floor must do
                    self._can_reserve = False
                elif error != errno.EINTR:  # interrupted: the next call tries again
                    return f"no space to reserve in {self._directory}: {os.strerror(error)}"
        return None

    def release(self, path: Path) -> None:
        """Give back what was reserved beyond the end of the finished file."""
        if self._reserved:
            os.truncate(path, path.stat().st_size)
