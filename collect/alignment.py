"""Which frame, state and action belong to a row: pure rules, no clocks and no files.

Rows stand on an even grid, T_k = start + k * period; cameras and arms run on clocks of their own.
A row holds the last state measured at or before T_k, and as action what was asked at the first
tick at or after T_k: the observation precedes its action.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_stack.types import Source

__all__ = ["FrameAssigner", "TakeoverCounter", "Track"]


class FrameAssigner:
    """Deals the frames of one camera to rows, each frame to one row at most, in order.

    A frame goes to the first row that has none yet, unless it was captured more than ``early``
    after it (then the row repeats the previous frame and the next row is tried).

    A camera as fast as the rows has ``early`` of one period: a frame that came late, or a camera
    clock that drifts, then costs no frame. A frame captured more than one period before its row
    is dropped, since the camera must be faster than the rows. So no fresh frame is farther than
    one period from its row, and none is dropped while the camera isn't faster. Of the two rows
    that the first frame could go to it takes the one that leaves room on both sides for what
    follows: it is at most a fifth of a period ahead of its row.

    A slower camera has ``early`` 0: its rows must repeat anyway and should not see the future. Its
    frames are never dropped, however late they come: even so they are newer than a repeat.
    """

    def __init__(self, start_ns: int, period_ns: int, *, fps: float) -> None:
        self._start = start_ns
        self._period = period_ns
        self.slow = fps * period_ns < 0.95e9
        self._early = 0 if self.slow else period_ns
        self._first = True
        self.row = 0  # the first row that is not decided

    def offer(self, t_ns: int) -> int | None:
        """The row that this frame goes to, None when it is dropped. Frames come in order.

        Rows between the last answer and this one repeat the frame before.
        """
        early, oldest = self._early, self._period
        if self._first:
            early = min(early, self._period // 5)
            oldest -= early
        row = max(self.row, -(-(t_ns - early - self._start) // self._period))
        if not self.slow and self._start + row * self._period - t_ns > oldest:
            return None
        self._first = False
        self.row = row + 1
        return row

    def close(self, row: int) -> None:
        """Stop waiting for a frame for ``row``: it and undecided rows before it repeat."""
        self.row = max(self.row, row + 1)


class Track:
    """Recent records of one ring, oldest first, to be looked up by time."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._records = np.empty(0, dtype)

    def add(self, records: NDArray[Any]) -> None:
        """Append records (N,) whose ``t_ns`` do not decrease."""
        if len(records):
            if records.dtype != self._records.dtype:  # the writer came back with another layout
                self._records = records
            else:
                self._records = np.concatenate([self._records, records])

    def last_until(self, t_ns: int) -> Any | None:
        """The last record with ``t_ns`` at or before the given time."""
        index = int(np.searchsorted(self._records["t_ns"], t_ns, side="right"))
        return self._records[index - 1] if index else None

    def first_from(self, t_ns: int) -> Any | None:
        """The first record with ``t_ns`` at or after the given time."""
        index = int(np.searchsorted(self._records["t_ns"], t_ns, side="left"))
        return self._records[index] if index < len(self._records) else None

    def forget_before(self, t_ns: int) -> None:
        """Drop what no row from ``t_ns`` on will ask for: all but the last record before it."""
        index = int(np.searchsorted(self._records["t_ns"], t_ns, side="right")) - 1
        if index > 0:
            self._records = self._records[index:].copy()

    def __len__(self) -> int:
        return len(self._records)


class TakeoverCounter:
    """Numbers the stretches in which a person moves the robot after something else did."""

    def __init__(self) -> None:
        self.takeovers = 0
        self._before = Source.NONE
        self._inside = False

    def row(self, source: Source) -> int:
        """The takeover id of the next row, -1 outside takeovers."""
        automatic = self._before in (Source.POLICY, Source.RESIDUAL, Source.SCRIPTED, Source.REPLAY)
        if source == Source.HUMAN and automatic:
            self._inside = True
            self.takeovers += 1
        elif source not in (Source.HUMAN, Source.NONE):
            self._inside = False
        if source != Source.NONE:
            self._before = source
        return self.takeovers - 1 if self._inside and source == Source.HUMAN else -1
