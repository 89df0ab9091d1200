"""Turns changes in the rings into the events of an episode: faults, stops, takeovers, losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_stack.types import Lifecycle, Source

__all__ = ["Announce", "CameraWatch", "RobotWatch", "fault_reason"]

Announce = Callable[[int, str, str], None]  # t_ns, kind, text
SILENT_NS = 1_000_000_000
WATCHED = ("lifecycle", "source", "token", "stop", "fault", "notice", "torque")


def fault_reason(record: Any) -> str | None:
    """Why a tick is a fault, None for a healthy one: its fault text, or that it is stopped."""
    text = bytes(record["fault"]).rstrip(b"\0").decode(errors="replace")
    state = Lifecycle(int(record["lifecycle"]))
    if text:
        return text
    if state in (Lifecycle.FAULT, Lifecycle.STOPPED):
        return state.name.lower()
    return None


class RobotWatch:
    """Compares each tick of one robot with the one before it."""

    def __init__(self, name: str, joints: Sequence[str], announce: Announce) -> None:
        self._name = name
        self._joints = joints
        self._announce = announce
        self._before: Any | None = None
        self._silent = False
        self._restarts = 0

    def see(self, records: NDArray[Any], restarts: int) -> None:
        """Announce what changes within ``records`` (N,) of ``records.tick_record``.

        ``restarts`` is how often the arm process was replaced so far.
        """
        if restarts != self._restarts:
            self._restarts = restarts
            self._say(records[0], "robot_restarted", "a new arm process took over")
        if self._silent:
            self._silent = False
            self._say(records[0], "robot_back", "ticks again")
        changed = np.zeros(len(records), bool)
        changed[0] = True  # compare with the last tick of the previous batch
        for field in WATCHED:
            values = records[field]
            differs = values[1:] != values[:-1]
            changed[1:] |= differs.any(axis=1) if differs.ndim == 2 else differs
        for index in np.flatnonzero(changed):
            before = records[index - 1] if index else self._before
            if before is not None:
                self._compare(before, records[index])
        self._before = records[-1].copy()

    def look(self, now_ns: int, last_t_ns: int) -> None:
        """Announce once when ticks stop coming."""
        if not self._silent and last_t_ns >= 0 and now_ns - last_t_ns > SILENT_NS:
            self._silent = True
            self._announce(now_ns, "robot_silent", f"{self._name}: no tick for 1 s")

    def _compare(self, before: Any, now: Any) -> None:
        old, new = Lifecycle(int(before["lifecycle"])), Lifecycle(int(now["lifecycle"]))
        if old != new:
            self._say(now, "lifecycle", f"{old.name.lower()} -> {new.name.lower()}")
        if now["fault"] != before["fault"]:
            text = bytes(now["fault"]).decode(errors="replace")
            self._say(now, "fault" if text else "fault_cleared", text)
        if now["notice"] != before["notice"] and now["notice"]:
            self._say(now, "notice", bytes(now["notice"]).decode(errors="replace"))
        if now["stop"] != before["stop"]:
            category = int(now["stop"]) - 1
            self._say(now, "stop", f"category {category}" if category >= 0 else "released")
        if now["token"] != before["token"]:
            sources = [Source(int(tick["source"])).name.lower() for tick in (before, now)]
            text = f"token {int(before['token'])} -> {int(now['token'])}, {' -> '.join(sources)}"
            self._say(now, "lease", text)
        for joint in np.flatnonzero(now["torque"] != before["torque"]):
            kind = "torque_on" if now["torque"][joint] else "torque_off"
            self._say(now, kind, self._joints[int(joint)])

    def _say(self, tick: Any, kind: str, text: str) -> None:
        self._announce(int(tick["t_ns"]), kind, f"{self._name}: {text}")


class CameraWatch:
    """Announces a camera that stops sending, comes back or is restarted."""

    def __init__(self, name: str, fps: float, announce: Announce) -> None:
        self._name = name
        self._limit_ns = max(SILENT_NS, int(5e9 / fps))
        self._announce = announce
        self._lost = False
        self._restarts = 0

    def look(self, now_ns: int, since_ns: int, last_t_ns: int, restarts: int) -> None:
        """``since_ns``: when watching began, for a camera that has sent nothing at all."""
        if restarts != self._restarts:
            self._restarts = restarts
            self._announce(now_ns, "camera_restarted", self._name)
        lost = now_ns - max(last_t_ns, since_ns) > self._limit_ns
        if lost != self._lost:
            self._lost = lost
            if lost:
                text = f"{self._name}: no frame for {self._limit_ns / 1e9:g} s; rows repeat"
                self._announce(now_ns, "camera_lost", text)
            else:
                self._announce(last_t_ns, "camera_back", self._name)
