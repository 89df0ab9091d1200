"""Maps a device's own clock to monotonic time, from nothing but when frames arrived."""

from __future__ import annotations

from collections import deque

__all__ = ["ClockMap"]


class ClockMap:
    """Offset between two clocks by a sliding minimum (the idea of NTP's clock filter, RFC 5905).

    A frame taken at device time ``d`` arrives at ``a = d + offset + delay`` with ``delay > 0``.
    The smallest ``a - d`` of the last ``window_s`` is the offset plus the smallest delay, so the
    jitter of USB and scheduling does not reach the result; what remains is a constant lateness of
    that smallest delay (readout and transfer, 5-20 ms for a USB camera), and the drift of the two
    clocks over the window (0.5 ms for 50 ppm over 10 s). A device clock that jumps backwards, as
    after a reset, starts a new estimate.
    """

    def __init__(self, window_s: float = 10.0) -> None:
        self._window_ns = round(window_s * 1e9)
        self._candidates: deque[tuple[int, int]] = deque()  # (arrival, offset), offsets rising
        self._last_device_ns: int | None = None
        self._last_ns: int | None = None

    def to_monotonic(self, device_ns: int, arrival_ns: int) -> int:
        """Monotonic time of ``device_ns`` for a frame that arrived at ``arrival_ns``.

        Never after the arrival, and always after the result before, as long as arrivals rise.
        """
        if self._last_device_ns is not None and device_ns < self._last_device_ns:
            self._candidates.clear()
        self._last_device_ns = device_ns
        offset = arrival_ns - device_ns
        while self._candidates and self._candidates[-1][1] >= offset:
            self._candidates.pop()
        self._candidates.append((arrival_ns, offset))
        while self._candidates[0][0] < arrival_ns - self._window_ns:
            self._candidates.popleft()
        t_ns = device_ns + self._candidates[0][1]
        if self._last_ns is not None and t_ns <= self._last_ns:
            t_ns = min(self._last_ns + 1, arrival_ns)
        self._last_ns = t_ns
        return t_ns
