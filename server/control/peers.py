"""The other robots of a group, as one arm process sees them: where they go and their health."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from robot_stack.errors import SharedMemoryError
from robot_stack.records import ring_path
from robot_stack.shared_memory import Ring
from robot_stack.types import Lifecycle

__all__ = ["Peers"]


class Peers:
    """Follows the tick rings of a group's other robots."""

    def __init__(self, station: str, names: list[str], timeout_s: float) -> None:
        self.station = station
        self.names = names
        self.timeout_ns = int(timeout_s * 1e9)
        self._rings: dict[str, Ring] = {}
        self._rest: dict[str, NDArray[np.float64]] = {}

    def poll(self, now_ns: int) -> str | None:
        """Read every peer's newest tick; a text when one is in fault, silent or gone."""
        trouble = None
        for name in self.names:
            reason = self._poll_one(name, now_ns)
            trouble = trouble or reason
        return trouble

    def _poll_one(self, name: str, now_ns: int) -> str | None:
        try:
            ring = self._rings.get(name)
            if ring is None:
                ring = self._rings[name] = Ring(ring_path(self.station, "arm", name))
            elif ring.closed:
                ring.reopen()
            latest = ring.latest()
        except SharedMemoryError:
            return f"{name} is not running"
        if latest is None:
            return f"{name} is not running"
        tick = latest[1]
        self._rest[name] = tick["rest"]
        if tick["lifecycle"] == Lifecycle.FAULT:
            return f"{name} is in fault: {tick['fault'].decode(errors='replace')}"
        age_ns = now_ns - int(tick["t_ns"])
        if age_ns > self.timeout_ns:
            return f"{name} has been silent for {age_ns / 1e9:.2f} s"
        return None

    def goals(self) -> NDArray[np.float64] | None:
        """Where each peer would come to rest, in group order; None until all have been heard of."""
        if not self.names or any(name not in self._rest for name in self.names):
            return None
        return np.concatenate([self._rest[name] for name in self.names])
