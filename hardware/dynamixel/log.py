"""Bounded logs of what servos were told and when they were looked at, for judging from outside."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

__all__ = ["Log", "LogKind", "LogRows"]


class LogKind(IntEnum):
    """What a row records."""

    GOAL_POSITION = 0
    GOAL_CURRENT = 1
    SAMPLE = 2  # a present position was read


@dataclass(frozen=True, slots=True)
class LogRows:
    """Rows in the order they happened; int64 arrays (n,).

    `seq` counts from 0 without gaps: a first `seq` above the one asked for means that the ring
    has dropped rows. `t_ns` is monotonic: for a write, when the last byte of its packet has
    arrived on the wire; for a sample, when the last byte of the read instruction has.
    """

    seq: npt.NDArray[np.int64]
    t_ns: npt.NDArray[np.int64]
    servo_id: npt.NDArray[np.int64]
    value: npt.NDArray[np.int64]
    kind: npt.NDArray[np.int64]


class Log:
    """A ring of the last `capacity` rows."""

    def __init__(self, capacity: int = 1 << 16) -> None:
        self._rows = np.zeros((capacity, 4), dtype=np.int64)
        self._capacity = capacity
        self.count = 0

    def add(self, t_ns: int, servo_id: int, value: int, kind: LogKind) -> None:
        """One row."""
        self._rows[self.count % self._capacity] = (t_ns, servo_id, value, kind)
        self.count += 1

    def add_many(
        self,
        t_ns: int,
        ids: npt.NDArray[np.int64],
        values: npt.NDArray[np.signedinteger],
        kind: LogKind,
    ) -> None:
        """Rows that happened together; `ids` and `values` are (n,)."""
        n = len(ids)
        start = self.count % self._capacity
        rows = self._rows
        if start + n <= self._capacity:
            block = rows[start : start + n]
        else:
            block = np.empty((n, 4), dtype=np.int64)
        block[:, 0] = t_ns
        block[:, 1] = ids
        block[:, 2] = values
        block[:, 3] = kind
        if start + n > self._capacity:
            rows[(start + np.arange(n)) % self._capacity] = block
        self.count += n

    def since(self, seq: int = 0) -> LogRows:
        """A copy of the rows from number `seq` on that are still there."""
        first = max(seq, self.count - self._capacity, 0)
        numbers = np.arange(first, max(first, self.count), dtype=np.int64)
        rows = self._rows[numbers % self._capacity]
        return LogRows(numbers, rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3])
