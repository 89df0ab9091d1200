"""What a live panel shows of a recorder: rates, ages, losses, disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["RateMeter", "RecorderStats"]

WINDOW_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class RecorderStats:
    """For a live panel. ``hz`` over the last second and ``age_ms`` of the newest record are by
    ``robot NAME``, ``camera NAME`` and ``world``, NaN before there are any; ``frames`` by camera,
    as in ``channels.FrameCounts``. ``row_delay_ms`` is how far the file lags behind now.
    """

    recording: bool
    path: Path | None
    rows: int
    seconds: float
    hz: Mapping[str, float]
    age_ms: Mapping[str, float]
    frames: Mapping[str, Mapping[str, float]]
    encoder_backlog: int
    row_delay_ms: float
    file_bytes: int
    mb_per_s: float
    free_bytes: int


class RateMeter:
    """Rates of counters over the last second, by name; NaN until there is a second."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, int, float]] = {}

    def of(self, name: str, count: int, now_ns: int) -> float:
        """Events a second; a counter that went back (a restart) keeps its last rate."""
        since, before, rate = self._last.get(name, (0, 0, math.nan))
        if now_ns - since >= WINDOW_NS:
            if since and count >= before:
                rate = (count - before) / (now_ns - since) * 1e9
            self._last[name] = (now_ns, count, rate)
        return rate
