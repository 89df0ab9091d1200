"""Processes that outlive whoever started them, by pid files that survive pid re-use; and those that
must not."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

__all__ = ["end_with", "living_pid", "started_at"]

PR_SET_PDEATHSIG = 1  # prctl(2)


def end_with(parent: int, by: signal.Signals) -> bool:
    """Have the kernel send this process ``by`` when the thread that started it ends, however that
    ends. False when ``parent``, its process, had ended before."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, by, 0, 0, 0)
    return os.getppid() == parent


def started_at(pid: int) -> str | None:
    """The kernel's start time of a process (field 22 of /proc/pid/stat), None when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


def living_pid(path: Path) -> int | None:
    """The process that a pid file (``pid start-time``) names, None when it no longer runs."""
    try:
        pid, started = path.read_text().split()
    except (OSError, ValueError):
        return None
    return int(pid) if started_at(int(pid)) == started else None
