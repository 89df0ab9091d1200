"""Real-time set-up of a device process, and a loop rate with absolute monotonic deadlines.

Both do what the machine permits and say what they could not get: a loop without SCHED_FIFO still
runs, later. Figures that led to the choices (1 kHz beside a busy process, p50/p99 lateness):
``time.sleep`` 93/4288 us, FIFO and ``time.sleep`` 34/53 us, FIFO and a sleep that ends 150 us
early followed by a spin 0/24 us. A spin that fills the period is worse than none: the kernel
stops SCHED_FIFO threads for 50 ms when they have used 95 % of a second.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import resource
import time
from dataclasses import dataclass

from robot_stack.errors import ConfigError

__all__ = ["MAX_SPIN_NS", "Missing", "Rate", "RealtimeReport", "setup", "sleep_until"]

MAX_SPIN_NS = 150_000
MAX_SPIN_SHARE = 0.8
LIMITS_FILE = "/etc/security/limits.d/robot-stack.conf"

CLOCK_MONOTONIC = 1
TIMER_ABSTIME = 1
MCL_CURRENT = 1
MCL_FUTURE = 2
PR_SET_TIMERSLACK = 29

_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


_clock_nanosleep = _libc.clock_nanosleep
_clock_nanosleep.argtypes = (
    ctypes.c_int,
    ctypes.c_int,
    ctypes.POINTER(_Timespec),
    ctypes.POINTER(_Timespec),
)
_clock_nanosleep.restype = ctypes.c_int


@dataclass(frozen=True, slots=True)
class Missing:
    """One right that was not granted: ``what`` in words and the shell command that grants it."""

    what: str
    mend: str


@dataclass(frozen=True, slots=True)
class RealtimeReport:
    """What ``setup`` got. ``scheduler`` is ``FIFO`` or ``OTHER``; ``cpu`` None when not pinned."""

    scheduler: str
    priority: int
    cpu: int | None
    memory_locked: bool
    missing: tuple[Missing, ...]

    def __str__(self) -> str:
        got = f"scheduler {self.scheduler}"
        got += f" {self.priority}" if self.scheduler == "FIFO" else ""
        got += f", cpu {self.cpu}" if self.cpu is not None else ", any cpu"
        got += ", memory locked" if self.memory_locked else ", memory not locked"
        return "; ".join([got, *(f"no {m.what}: {m.mend}" for m in self.missing)])


def setup(priority: int, cpu: int | None = None) -> RealtimeReport:
    """Make the calling thread real-time: call once, after imports and allocation, before the loop.

    SCHED_FIFO at ``priority`` (1-99; not inherited by children), pinned to ``cpu``, memory locked,
    1 ns timer slack, everything allocated so far frozen out of garbage collection and the
    collector switched off (a full collection beside a large library takes over 100 ms).
    """
    missing: list[Missing] = []
    gc.collect()
    gc.freeze()
    gc.disable()
    _libc.prctl(PR_SET_TIMERSLACK, ctypes.c_ulong(1), 0, 0, 0)
    pinned = _pin(cpu, missing)
    locked = _lock_memory(missing)
    scheduler = _fifo(priority, missing)
    return RealtimeReport(
        scheduler=scheduler,
        priority=priority if scheduler == "FIFO" else 0,
        cpu=pinned,
        memory_locked=locked,
        missing=tuple(missing),
    )


def _pin(cpu: int | None, missing: list[Missing]) -> int | None:
    if cpu is None:
        return None
    try:
        os.sched_setaffinity(0, {cpu})
    except OSError:
        allowed = ",".join(str(c) for c in sorted(os.sched_getaffinity(0)))
        missing.append(
            Missing(f"pinning to cpu {cpu}", f"set `cpu` in the station file to one of {allowed}")
        )
        return None
    return cpu


def _lock_memory(missing: list[Missing]) -> bool:
    # With a finite limit MCL_FUTURE makes later mappings fail instead of merely swap.
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    unlimited = soft == resource.RLIM_INFINITY or os.geteuid() == 0
    flags = MCL_CURRENT | (MCL_FUTURE if unlimited else 0)
    if _libc.mlockall(flags) == 0:
        return True
    missing.append(
        Missing(
            f"locked memory ({os.strerror(ctypes.get_errno())})",
            f'echo "$USER - memlock unlimited" | sudo tee -a {LIMITS_FILE}; then log in again',
        )
    )
    return False


def _fifo(priority: int, missing: list[Missing]) -> str:
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise ConfigError(
                f"real-time priority {priority} is not one of the kernel's: use 1 to 99"
            ) from None
        missing.append(
            Missing(
                f"SCHED_FIFO ({error.strerror})",
                f'echo "$USER - rtprio {priority}" | sudo tee -a {LIMITS_FILE}; then log in again',
            )
        )
        return "OTHER"
    return "FIFO"


def sleep_until(t_ns: int) -> None:
    """Sleep until monotonic ``t_ns``; returns at once when it has passed.

    An absolute sleep: being preempted between reading the clock and sleeping costs nothing.
    """
    at = _Timespec(t_ns // 1_000_000_000, t_ns % 1_000_000_000)
    while _clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, at, None) == errno.EINTR:
        pass


class Rate:
    """Deadlines ``period_ns`` apart on the monotonic clock: ``wait()`` ends each turn of a loop.

    The first deadline is one period after construction. ``spin_ns`` (0 to 150 us) is the part
    before each deadline that is spun instead of slept; ConfigError when that would be over 80 %
    of the period. Deadlines stay on one grid whatever the turns take: a turn that ends late
    starts the next at once, and deadlines that are a whole period old are skipped, so that no
    burst follows a stall.
    """

    __slots__ = ("_deadline", "overruns", "period_ns", "skipped", "spin_ns")

    def __init__(self, hz: float, *, spin_ns: int = MAX_SPIN_NS) -> None:
        if not 0 < hz <= 1e6:
            raise ConfigError(f"a loop rate of {hz} Hz is impossible: use more than 0, up to 1e6")
        self.period_ns = round(1e9 / hz)
        if not 0 <= spin_ns <= MAX_SPIN_NS:
            raise ConfigError(f"spin_ns is {spin_ns}: allowed are 0 to {MAX_SPIN_NS}")
        if spin_ns > MAX_SPIN_SHARE * self.period_ns:
            raise ConfigError(
                f"spinning {spin_ns / 1e3:g} us of a period of {self.period_ns / 1e3:g} us would "
                "be stopped by the kernel's real-time throttle for 50 ms of every second: use "
                f"spin_ns <= {int(MAX_SPIN_SHARE * self.period_ns)} or a lower rate"
            )
        self.spin_ns = spin_ns
        self.overruns = 0
        """Turns that ended after their deadline."""
        self.skipped = 0
        """Deadlines that were left out because they had passed by a whole period or more."""
        self._deadline = time.monotonic_ns() + self.period_ns

    @property
    def deadline_ns(self) -> int:
        """The deadline that the next ``wait`` waits for."""
        return self._deadline

    def shift(self, offset_ns: int) -> None:
        """Move the grid of deadlines by ``offset_ns``, to set the phase against another clock."""
        self._deadline += offset_ns

    def restart(self) -> None:
        """Start the grid anew, one period from now: after a pause that is not an overrun."""
        self._deadline = time.monotonic_ns() + self.period_ns

    def wait(self) -> int:
        """Block until the deadline; how late this wake-up is in nanoseconds."""
        deadline = self._deadline
        now = time.monotonic_ns()
        if now >= deadline:
            late = now - deadline
            behind = late // self.period_ns
            self.overruns += 1
            self.skipped += behind
            self._deadline = deadline + (behind + 1) * self.period_ns
            return late
        self._deadline = deadline + self.period_ns
        sleep_until(deadline - self.spin_ns)
        while (now := time.monotonic_ns()) < deadline:
            pass
        return now - deadline
