"""Names, locks and renames of episode files.

``episode_3.hdf5.new`` is being laid out and holds no row yet; ``episode_3.hdf5.part`` is being
recorded, or was when its recorder died; ``episode_3.hdf5`` is complete. Whoever writes one holds a
lock on it that the kernel drops when the process dies, so a leftover is told from a live recording.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
from pathlib import Path

from robot_stack.errors import EpisodeError

__all__ = ["BROKEN", "NEW", "PART", "next_episode", "sync_directory"]

NEW, PART, BROKEN = ".new", ".part", ".broken"
_NAME = re.compile(r"episode_(\d+)\.hdf5(\.new|\.part|\.broken)?$")


def next_episode(directory: Path) -> Path:
    """The path one after the highest episode number in use, from ``episode_0.hdf5`` on."""
    numbers = [int(m[1]) for path in directory.iterdir() if (m := _NAME.match(path.name))]
    return directory / f"episode_{max(numbers, default=-1) + 1}.hdf5"


def with_suffix(path: Path, suffix: str) -> Path:
    """``episode_3.hdf5`` -> ``episode_3.hdf5.part``."""
    return path.with_name(path.name + suffix)


def lock(fd: int) -> bool:
    """Take the writer's lock of an open file; False when a living process holds it.

    An open-file-description lock: HDF5's own flock does not touch it, and closing another
    descriptor of the same file does not drop it.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True


def claim(path: Path) -> int:
    """Create ``path.new`` for a new episode ``path`` and lock it; returns the descriptor.

    EpisodeError when the episode exists in any form.
    """
    fresh = with_suffix(path, NEW)
    try:
        fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        raise EpisodeError(f"{fresh} exists: another recorder makes this episode") from None
    # In this order: an episode only ever moves from .new to .part to its name.
    taken = next((p for p in (with_suffix(path, PART), path) if p.exists()), None)
    if taken is not None or not lock(fd):
        os.close(fd)
        fresh.unlink()
        raise EpisodeError(f"{taken or path} exists; record under another name or move it away")
    return fd


def sync_directory(directory: Path) -> None:
    """Make renames in ``directory`` survive a power loss."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
