"""A watchdog on the age of something: pure, told the time by its caller."""

from __future__ import annotations

__all__ = ["StaleWatchdog"]


class StaleWatchdog:
    """Says when nothing came for longer than ``limit_s``; stale until the first ``feed``.

    Times are monotonic nanoseconds. A time that goes backwards never makes it fresher.
    """

    def __init__(self, limit_s: float) -> None:
        if not limit_s > 0:
            raise ValueError(f"limit_s is {limit_s}; a watchdog needs a positive limit in seconds")
        self._limit_ns = round(limit_s * 1e9)
        self._fed_ns: int | None = None

    def feed(self, t_ns: int) -> None:
        """Something came that was captured at ``t_ns``."""
        if self._fed_ns is None or t_ns > self._fed_ns:
            self._fed_ns = t_ns

    def clear(self) -> None:
        """Forget what came: stale until the next ``feed``."""
        self._fed_ns = None

    def age_s(self, now_ns: int) -> float | None:
        """Seconds since the newest ``feed``; None before the first."""
        return None if self._fed_ns is None else (now_ns - self._fed_ns) * 1e-9

    def stale(self, now_ns: int) -> bool:
        """True when the newest ``feed`` is more than the limit ago, or never was."""
        return self._fed_ns is None or now_ns - self._fed_ns > self._limit_ns
