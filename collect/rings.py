"""Follows a ring through restarts of its writer, and says what was missed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_stack.errors import SharedMemoryError
from robot_stack.shared_memory import Ring

__all__ = ["FrameRef", "RingFollower"]

RETRY_NS = 100_000_000


@dataclass(frozen=True, slots=True)
class FrameRef:
    """A frame that still lies in its ring: look at ``ring.view(index)``, then ``intact``."""

    ring: Ring
    index: int
    t_ns: int
    seq: int


class RingFollower:
    """Reads each record of a ring once, also after its writer was restarted.

    The ring need not exist yet. A replaced ring is read to its end before the new one is opened;
    it stays mapped for whoever still holds a ``FrameRef`` into it. ``lost`` counts records that
    were overwritten before they were read, ``restarts`` new incarnations of the writer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = 0
        self.restarts = 0
        self.last_t_ns = -1  # of the newest record seen
        self._ring: Ring | None = None
        self._inode = -1
        self._next = 0
        self._looked_ns = 0

    @property
    def ring(self) -> Ring | None:
        """The ring that is read now, None before it exists."""
        return self._ring

    @property
    def count(self) -> int:
        """Records that the present incarnation of the writer has published."""
        return self._ring.count if self._ring is not None else 0

    def newest_t_ns(self) -> int:
        """Capture time of the newest record in the ring, -1 when there is none."""
        ring = self._ring
        if ring is None or (ring.closed and self._next >= ring.count):
            self._look()
            ring = self._ring
        if ring is None or not ring.count:
            return -1
        view = ring.view(ring.count - 1)
        return int(view["t_ns"]) if view is not None else self.last_t_ns

    def seek(self, back: int) -> None:
        """Go on with the newest ``back`` records; what was missed before counts as nothing."""
        self._look()
        self.lost = self.restarts = 0
        self.last_t_ns = -1
        if self._ring is not None:
            self._next = max(self._ring.count - back, 0)

    def _look(self) -> bool:
        """Attach the ring or its replacement when there is a new one; True if so."""
        try:
            inode = self.path.stat().st_ino  # a replaced ring is another file
            if inode == self._inode:
                return False
            fresh = Ring(self.path)
        except (FileNotFoundError, SharedMemoryError):
            return False
        self._inode = inode
        if self._ring is not None and fresh.generation == self._ring.generation:
            fresh.close()  # it was replaced between looking and opening, the last time
            return False
        self.restarts += self._ring is not None
        self._ring, self._next = fresh, 0
        return True

    def _rings(self) -> Iterator[Ring]:
        """The present ring, and its replacement once the present one is read to its end."""
        ring = self._ring
        if ring is not None:
            closed = ring.closed  # before its count is read: nothing can be added afterwards
            yield ring
            if not closed:
                return
        now = time.monotonic_ns()
        if now - self._looked_ns >= RETRY_NS:
            self._looked_ns = now
            if self._look() and self._ring is not None:
                yield self._ring

    def _range(self, ring: Ring) -> range:
        count = ring.count
        first = max(self._next, count - ring.slots + 1, 0)
        self.lost += first - self._next
        self._next = count
        return range(first, count)

    def records(self) -> NDArray[Any] | None:
        """Copies of all new records (N,), oldest first; None when there is none."""
        pieces = []
        for ring in self._rings():
            indices = self._range(ring)
            if not indices:
                continue
            out = np.empty(len(indices), ring.dtype)
            kept = [
                j for j, index in enumerate(indices) if ring.read(index, out[j : j + 1]) is not None
            ]
            self.lost += len(indices) - len(kept)
            if kept:
                pieces.append(out if len(kept) == len(indices) else out[kept])
        if not pieces:
            return None
        self.last_t_ns = int(pieces[-1]["t_ns"][-1])
        if len(pieces) == 1 or any(piece.dtype != pieces[0].dtype for piece in pieces):
            return pieces[-1]
        return np.concatenate(pieces)

    def frames(self) -> list[FrameRef]:
        """All new frames, oldest first, left where they are."""
        found = []
        for ring in self._rings():
            for index in self._range(ring):
                view = ring.view(index)
                t_ns, seq = (int(view["t_ns"]), int(view["seq"])) if view is not None else (0, 0)
                if view is None or not ring.intact(index):
                    self.lost += 1
                    continue
                found.append(FrameRef(ring, index, t_ns, seq))
        if found:
            self.last_t_ns = found[-1].t_ns
        return found
