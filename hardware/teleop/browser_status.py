"""What the teleoperation page says about the robots: lifecycle, faults, the stop, and why they do
not move."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

from hardware.teleop.browser_records import state_path
from robot_stack.client import StationClient
from robot_stack.config import Station
from robot_stack.errors import SharedMemoryError
from robot_stack.records import ring_path
from robot_stack.shared_memory import Flag, Ring
from robot_stack.types import Difference, Lifecycle

__all__ = ["RobotsView", "TeleopWord"]

SILENT_S = 0.3
ABSENT_S = 1.0
OLD_COMMAND_S = 1.0
# What an operator can do something about; the rest follows from what is said anyway.
WORDS = {
    Difference.POSITION: "joint limit",
    Difference.WORKSPACE: "workspace wall",
    Difference.COLLISION: "collision ahead",
    Difference.REENGAGE: "target too far away",
    Difference.INVALID: "target refused",
}


@dataclass(frozen=True, slots=True)
class TeleopWord:
    """What the Teleoperator last said; ``gripper`` is the opening it asks for, NaN unknown."""

    following: bool
    waiting: str
    gripper: float


class RobotsView:
    """Reads the rings and stop flag of the group that teleoperation moves; writes to none."""

    def __init__(self, station: Station, group: str) -> None:
        self._station = station.station
        self._group = group
        self._robots = station.groups[group].robots
        self._client = StationClient(station.station)
        self._state: Ring | None = None
        self._flag: Flag | None = None

    def close(self) -> None:
        self._client.close()
        if self._state is not None:
            self._state.close()
        self._drop_flag()

    def describe(self) -> dict[str, Any]:
        """JSON: ``station``; ``robots``; ``stop``, ``trouble`` and ``waiting``: why nothing moves,
        the first of them that is not None; ``following``; ``gripper``, the opening asked for."""
        robots = [self._robot(name) for name in self._robots]
        word = self._teleop()
        trouble = next((f"{r['name']}: {r['trouble']}" for r in robots if r["trouble"]), None)
        if word is None:
            trouble = trouble or "robot-stack teleop does not run, or is busy"
        return {
            "station": self._station,
            "robots": robots,
            "stop": self._stop(),
            "trouble": trouble,
            "waiting": None if word is None else word.waiting or None,
            "following": word is not None and word.following,
            "gripper": None if word is None or math.isnan(word.gripper) else word.gripper,
        }

    def _robot(self, name: str) -> dict[str, Any]:
        try:
            tick = self._client.tick(name)
        except SharedMemoryError:
            tick = None
        if tick is None:
            row = {"lifecycle": "absent", "trouble": "its arm process is not running"}
            return {"name": name, "limits": [], "command_age_ms": None, **row}
        lifecycle = Lifecycle(int(tick["lifecycle"]))
        fault = tick["fault"].decode(errors="replace")
        trouble = None
        if time.monotonic_ns() - int(tick["t_ns"]) > SILENT_S * 1e9:
            trouble = "its arm process is silent"
        elif fault:
            trouble = fault
        elif lifecycle is not Lifecycle.ARMED:
            trouble = f"it is {lifecycle.name.lower()}"
        age_s = (int(tick["sent_t_ns"]) - int(tick["command_t_ns"])) / 1e9
        recent = int(tick["command_t_ns"]) > 0 and 0 <= age_s < OLD_COMMAND_S
        bits = Difference(int(tick["difference"]))
        return {
            "name": name,
            "lifecycle": lifecycle.name.lower(),
            "trouble": trouble,
            "limits": [text for bit, text in WORDS.items() if bits & bit],
            "command_age_ms": age_s * 1e3 if recent else None,
        }

    def _stop(self) -> str | None:
        """The reason of the stop that holds the group, None when none does."""
        path = ring_path(self._station, "stop", self._group)
        if self._flag is not None and not self._flag.present():
            self._drop_flag()
        if self._flag is None and path.exists():  # opening it would make it
            self._flag = Flag(path)
        if self._flag is None or not self._flag.value:
            return None
        return self._flag.reason or "no reason given"

    def _drop_flag(self) -> None:
        if self._flag is not None:
            self._flag.close()
            self._flag = None

    def _teleop(self) -> TeleopWord | None:
        """What the Teleoperator says, None when it is not there."""
        try:
            if self._state is None:
                self._state = Ring(state_path(self._station))
            elif self._state.closed:
                self._state.reopen()
            latest = self._state.latest()
        except SharedMemoryError:
            return None
        if latest is None or time.monotonic_ns() - int(latest[1]["t_ns"]) > ABSENT_S * 1e9:
            return None
        record = latest[1]
        waiting = record["waiting"].decode(errors="replace")
        return TeleopWord(bool(record["following"]), waiting, float(record["gripper"]))
