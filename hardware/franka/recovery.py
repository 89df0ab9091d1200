"""When a reflex is recovered from without being asked, and when it waits for somebody's reset."""

from __future__ import annotations

from collections import deque

from hardware.franka.configuration import RecoveryConfig

__all__ = ["RecoveryPolicy"]


class RecoveryPolicy:
    """Counts reflexes: the first ``count`` within ``window_s`` are recovered from after
    ``backoff_s`` each, the next one is latched.

    ``stopped`` is called over and over while the robot is stopped by errors; times are seconds of
    any monotonic clock. ``latched`` is the fault in words, None while there is none; ``notice``
    what is being recovered from, or was within the window.
    """

    def __init__(self, config: RecoveryConfig) -> None:
        self._config = config
        self._recovered: deque[float] = deque()
        self._due_s: float | None = None
        self._errors = ""
        self.latched: str | None = None

    @property
    def recovering(self) -> bool:
        """Whether a recovery is waited for."""
        return self._due_s is not None

    def stopped(self, errors: str, now_s: float) -> bool:
        """The robot is stopped by ``errors``; True when its recovery is due now."""
        if self.latched is not None:
            return False
        if self._due_s is None:
            self._forget(now_s)
            self._errors = errors
            if len(self._recovered) >= self._config.count:
                self.latch(errors + self._why())
                return False
            self._due_s = now_s + self._config.backoff_s
        return now_s >= self._due_s

    def _why(self) -> str:
        if not self._config.count:
            return ""
        return (
            f", after {len(self._recovered)} automatic recoveries within "
            f"{self._config.window_s:g} s"
        )

    def recovered(self, now_s: float) -> None:
        """The robot has been freed of its errors by the recovery that was due."""
        self._due_s = None
        self._recovered.append(now_s)

    def freed(self, now_s: float) -> None:
        """The robot has no errors: if a recovery was waited for, somebody else was first."""
        if self._due_s is not None:
            self.recovered(now_s)

    def latch(self, why: str) -> None:
        """Nothing is tried any more until ``clear``; the first reason stays."""
        self._due_s = None
        if self.latched is None:
            self.latched = why

    def clear(self) -> None:
        """Somebody has reset the fault: count from the beginning."""
        self.latched = None
        self._due_s = None
        self._recovered.clear()

    def notice(self, now_s: float) -> str:
        """What is being recovered from or was of late, in words; empty when nothing."""
        self._forget(now_s)
        if self._due_s is not None:
            number = len(self._recovered) + 1
            return f"{self._errors}; recovering ({number} of {self._config.count})"
        if self._recovered and now_s - self._recovered[-1] < self._config.backoff_s:
            return f"{self._errors}; recovered ({len(self._recovered)} of {self._config.count})"
        return ""

    def _forget(self, now_s: float) -> None:
        while self._recovered and now_s - self._recovered[0] > self._config.window_s:
            self._recovered.popleft()
