"""Processes that outlive whoever started them: pid files that survive pid re-use."""

from __future__ import annotations

from pathlib import Path

__all__ = ["living_pid", "started_at"]


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
