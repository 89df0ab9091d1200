"""Whose monotonic clock a time was read from, and how far another computer's clock is off."""

from __future__ import annotations

from collections import deque
from pathlib import Path

__all__ = ["ClockOffset", "boot_id", "clock_id"]

SAMPLES = 64
DRIFT = 100e-6  # two quartz clocks drift apart by up to 100 us a second
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
TIME_NAMESPACE = Path("/proc/self/ns/time")


def boot_id() -> str:
    """Which boot of this machine monotonic times belong to; empty where Linux does not say."""
    return BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""


def clock_id() -> str:
    """Two processes with the same text here read the same monotonic clock; empty: unknown.

    Containers on one host share boot and clock, unless they were given a time namespace.
    """
    boot = boot_id()
    if not boot or not TIME_NAMESPACE.is_symlink():
        return boot
    return f"{boot}/{TIME_NAMESPACE.readlink()}"


class ClockOffset:
    """Estimates a server's clock from request times (RFC 5905, section 8), in nanoseconds.

    Of the last samples the one with the shortest time on the wire counts, aged by what clocks
    drift apart: half of that time bounds the error.
    """

    def __init__(self) -> None:
        self.exact = False
        self._samples: deque[tuple[int, int, int]] = deque(maxlen=SAMPLES)

    def same_clock(self) -> None:
        """Both sides read one clock: the offset is 0 from now on."""
        self.exact = True

    def add(self, sent: int, received: int, replied: int, arrived: int) -> None:
        """One exchange: ``sent`` and ``arrived`` by this clock, the others by the server's."""
        wire = (arrived - sent) - (replied - received)
        self._samples.append((arrived, wire, ((received - sent) + (replied - arrived)) // 2))

    def clear(self) -> None:
        """Forget what is known: another server may answer from now on."""
        self.exact = False
        self._samples.clear()

    @property
    def value(self) -> int | None:
        """Server's clock minus this one; None before the first exchange."""
        if self.exact:
            return 0
        if not self._samples:
            return None
        now = self._samples[-1][0]
        best = min(self._samples, key=lambda s: s[1] / 2 + DRIFT * (now - s[0]))
        return best[2]
