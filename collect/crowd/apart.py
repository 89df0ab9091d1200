"""Opens what stations bring in a process of its own, which may die of it.

libhdf5 is a large parser written in C, and a file that was made to crash it, or to keep it busy,
would do so to a worker of the site. So nothing of the site opens an episode itself: it has it done
here, by `collect.crowd.apart_process`, with so much memory, time and disk and no more. What comes
back is text or files; never pickle. A command that reads one file after another has each read by a
copy of itself first (`rehearse`), which takes milliseconds where a new process takes imports.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from robot_stack.errors import RobotStackError
from robot_stack.processes import end_with

__all__ = [
    "IS_DAMAGED",
    "SAYS",
    "VIDEOS",
    "VIEW",
    "Job",
    "Limits",
    "UnreadableError",
    "Why",
    "rehearse",
    "run",
    "take",
]

PROGRAM = (sys.executable, "-m", "collect.crowd.apart_process")
IS_DAMAGED = 3  # exit status of a process that says why on stderr
POLL_S = 0.2
MOST_SAID = 4 << 20
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # else numpy reserves address space for a thread a core
    "OPENBLAS_NUM_THREADS": "1",
    "HDF5_PLUGIN_PRELOAD": "::",  # a file names its filters; nothing is loaded for that
}
Why = Literal["damaged", "crashed", "too_long"]
SAYS: Mapping[Why, str] = {
    "damaged": "the episode's file is damaged",
    "crashed": "the episode's file can't be read: the process that opened it crashed",
    "too_long": "the episode's file can't be read: it took too long and was stopped",
}


class UnreadableError(RobotStackError):
    """It is the file's fault. ``why``: it is damaged; what opened it crashed or took too long.
    ``said``: what that process wrote last, for the log."""

    def __init__(self, why: Why, said: str = "") -> None:
        super().__init__(SAYS[why])
        self.why = why
        self.said = said or SAYS[why]


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a process may take: address space besides what its code has, bytes a file, CPU
    seconds and so many more for each MiB of the episode, seconds by the clock. ``idle``: only when
    nobody else wants to."""

    memory: int
    written: int
    cpu_s: int
    cpu_s_per_mib: float
    wall_s: float
    idle: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """What is done with an episode (see `apart_process.JOBS`)."""

    name: str
    limits: Limits


# Measured for three minutes of two cameras, 70 MB: 0.06 s of CPU beside 0.35 s of imports. By the
# clock it is for a computer that is very busy; a file can't have anybody sleep.
VIEW = Job("view", Limits(1 << 30, MOST_SAID, 10, 0.0, 60.0))
VIDEOS = Job("videos", Limits(4 << 30, 4 << 30, 120, 4.0, 1200.0, idle=True))


def run(
    job: Job,
    episode: Path,
    folder: Path | None = None,
    *,
    least_s: float = 0.0,
    stopping: threading.Event | None = None,
) -> bytes | None:
    """What ``job`` says of ``episode``; files that it makes are in ``folder``. None when
    ``stopping`` was set meanwhile.

    UnreadableError when it is the file's fault, OSError when there is no process to be had or the
    process failed of itself (no disk left, a library that is missing).
    """
    command = [*PROGRAM, job.name, str(episode), str(folder or ""), str(os.getpid())]
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as errors:
        # Files, not pipes: nobody waits for who writes much, and `written` bounds them.
        with subprocess.Popen(
            [*command, json.dumps({**asdict(job.limits), "least_s": least_s})],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=errors,
            env={**os.environ, **ENVIRONMENT},
        ) as process:
            try:
                status = _wait(process, job.limits.wall_s, stopping)
            finally:
                process.kill()
        if status is None:
            return None
        if status != 0:
            raise _why(status, _last_line(errors.fileno()))
        return os.pread(said.fileno(), MOST_SAID, 0)


def rehearse(reading: Callable[[], object], episode: Path, limits: Limits = VIEW.limits) -> None:
    """Have a copy of this process do ``reading`` of ``episode`` first, so that it is the copy that
    dies of it. UnreadableError if it does, or finds the file damaged.

    For commands: a copy of a process with threads has their locks and not them.
    """
    parent = os.getpid()
    copy = os.fork()
    if copy == 0:
        status = IS_DAMAGED
        try:
            if end_with(parent, signal.SIGKILL):
                take(limits, episode)
                reading()
                status = 0
        finally:
            os._exit(status)  # whatever it was: nobody above in the copy is to hear of it
    handle = os.pidfd_open(copy)
    try:
        ended = select.select([handle], [], [], limits.wall_s)[0]
    finally:
        os.close(handle)
        os.kill(copy, signal.SIGKILL)
        _, status = os.waitpid(copy, 0)
    if not ended:
        raise UnreadableError("too_long")
    if status != 0:
        raise _why(os.waitstatus_to_exitcode(status), "")


def take(limits: Limits, episode: Path) -> None:
    """Have this process no more than that from now on; it leaves no core, which would have pictures
    in it."""
    if limits.idle:
        os.nice(19)
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    cpu_s = limits.cpu_s + int(limits.cpu_s_per_mib * episode.stat().st_size / (1 << 20))
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    memory = taken + limits.memory
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.written, limits.written))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 5))  # SIGXCPU first, then SIGKILL


def _wait(
    process: subprocess.Popen[bytes], wall_s: float, stopping: threading.Event | None
) -> int | None:
    """Exit status; None when the site stops first."""
    deadline = time.monotonic() + wall_s
    while True:
        try:
            return process.wait(POLL_S)
        except subprocess.TimeoutExpired:
            if stopping is not None and stopping.is_set():
                return None
            if time.monotonic() > deadline:
                raise UnreadableError("too_long") from None


def _why(status: int, said: str) -> UnreadableError | OSError:
    if status == IS_DAMAGED:
        return UnreadableError("damaged", said)
    if status == -signal.SIGXCPU:
        return UnreadableError("too_long", said)
    if status < 0:
        return UnreadableError("crashed", said or signal.Signals(-status).name)
    return OSError(said or f"a process that reads an episode ended with {status}")


def _last_line(file: int) -> str:
    """What an exception says last, or a library."""
    size = os.fstat(file).st_size
    lines = os.pread(file, 4096, max(0, size - 4096)).decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
