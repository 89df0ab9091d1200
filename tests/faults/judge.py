"""Judges a follower from the goal registers on its wire, against limits restated here by hand."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from benchmarks.virtual_station import VirtualStation
from hardware.dynamixel.log import LogKind
from robot_stack.realtime import Rate

# vx300s, per servo, from what the rig may do: 3.14 rad/s on arm joints; a gripper turns 2.11 rad
# from closed to open and may do 2.0 of that a second.
TICKS_PER_RAD = 4096 / (2 * np.pi)
ARM_SPEED = 3.14 * TICKS_PER_RAD
GRIPPER_SPEED = 2.0 * 2.1123 * TICKS_PER_RAD
ARM_STOP_S = 3.14 / 80.0
SERVOS = (1, 2, 4, 6, 7, 8, 9)

# A packet's time on the wire jitters against the tick that made it; the filter lets a tick that
# comes late move on for at most five periods.
JITTER_S = 0.03

STANDING_ROWS = 5  # unchanged goals of a servo in a row: it has come to rest
SILENT_S = 0.3  # so has one whose arm process writes no goals at all


def speed_limit(servo: int) -> float:
    """Ticks a second."""
    return GRIPPER_SPEED if servo == 9 else ARM_SPEED


def assert_continuous(t_ns, servos, ticks, *, since_ns: int = 0) -> int:
    """No packet jumps, and over any 50 ms no joint is faster than its limit; returns packets."""
    judged = 0
    for servo in SERVOS:
        mine = (servos == servo) & (t_ns >= since_ns)
        t, x = t_ns[mine] / 1e9, ticks[mine].astype(float)
        judged += len(x)
        if len(x) < 2:
            continue
        limit = speed_limit(servo)
        dt, dx = np.diff(t), np.abs(np.diff(x))
        worst = int(np.argmax(dx - limit * (dt + JITTER_S)))
        assert dx[worst] <= limit * (dt[worst] + JITTER_S) + 2, (
            f"servo {servo}: {dx[worst]:.0f} ticks in {dt[worst] * 1e3:.1f} ms"
        )
        later = np.searchsorted(t, t + 0.05)
        inside = later < len(t)
        span = t[later[inside]] - t[inside]
        moved = np.abs(x[later[inside]] - x[inside])
        assert (moved <= limit * (span + JITTER_S) + 2).all(), f"servo {servo} too fast"
    return judged


def last_motion_ns(t_ns, servos, ticks) -> int:
    """Time of the last packet that changed a goal, -1 when none did."""
    last = -1
    for servo in SERVOS:
        mine = servos == servo
        t, x = t_ns[mine], ticks[mine]
        changed = np.flatnonzero(np.diff(x))
        if len(changed):
            last = max(last, int(t[changed[-1] + 1]))
    return last


def goals_written(station: VirtualStation, robot: str) -> int:
    """How many goals a robot's bus has logged: a mark for ``station.goals(robot, mark)``."""
    return int(station.buses.control.call("counters", robot)["goals"])


def nothing_moves_for(
    station: VirtualStation,
    seconds: float,
    robots: Sequence[str] = ("follower_left", "follower_right"),
    *,
    at_rest_within_s: float = 2.0,
    counts: int = 0,
) -> None:
    """The robots' goals come to rest soon and stay for ``seconds``; fails at once when one moves.

    Coming to rest is a servo's goal unchanged in five packets, or no packets at all. ``counts``
    are forgiven.
    """
    logs = [_Standing(station, robot) for robot in robots]
    rate = Rate(50.0, spin_ns=0)
    deadline = time.monotonic() + at_rest_within_s
    while not all(log.rests() for log in logs):
        assert time.monotonic() < deadline, f"no rest within {at_rest_within_s:g} s"
        rate.wait()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        rate.wait()
        for log in logs:
            log.read()
            moved, servo = log.farthest()
            assert moved <= counts, f"{log.robot}: servo {servo} moved {moved} counts at rest"


class _Standing:
    """The newest goals of one robot, and how far each went since it came to rest."""

    def __init__(self, station: VirtualStation, robot: str) -> None:
        self.station = station
        self.robot = robot
        self._mark = goals_written(station, robot)
        self._heard_s = time.monotonic()
        self._since: dict[int, tuple[int, int]] = {}  # servo -> goal at rest, packets since
        self._moved: dict[int, int] = {}
        self._resting = False

    def read(self) -> None:
        rows = self.station.buses.control.goal_log(self._mark, self.robot)
        if not len(rows.seq):
            return
        self._mark = int(rows.seq[-1]) + 1
        self._heard_s = time.monotonic()
        positions = rows.kind == LogKind.GOAL_POSITION
        for servo, goal in zip(
            rows.servo_id[positions].tolist(), rows.value[positions].tolist(), strict=True
        ):
            rest, packets = self._since.setdefault(servo, (goal, 0))
            if goal != rest and not self._resting:
                rest, packets = goal, 0
            self._since[servo] = (rest, packets + 1)
            self._moved[servo] = max(self._moved.get(servo, 0), abs(goal - rest))

    def rests(self) -> bool:
        if not self._resting:
            self.read()
            silent = time.monotonic() - self._heard_s > SILENT_S
            packets = [count for _, count in self._since.values()]
            self._resting = silent or min(packets, default=0) >= STANDING_ROWS
            if self._resting:
                self._moved.clear()
        return self._resting

    def farthest(self) -> tuple[int, int]:
        """(counts, servo) of the goal that has gone farthest from its rest."""
        return max(((far, servo) for servo, far in self._moved.items()), default=(0, -1))
