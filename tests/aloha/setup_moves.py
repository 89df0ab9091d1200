"""Judges set-up moves from the goal registers on the wire; fingers that end somewhere."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from hardware.dynamixel.control import ControlClient

TICKS_PER_RAD = 4096 / (2 * np.pi)
WRIST, GRIPPER = 8, 9
# Restated by hand, in rad/s and rad/s^2: what the two motions may do.
WIGGLE_SPEED, WIGGLE_ACCELERATION = 0.2, 2.0
GRIPPER_SPEED, GRIPPER_ACCELERATION = 0.6, 3.0
# A packet's time on the wire jitters against the turn that made it.
JITTER_S = 0.05


def goals(bench: Any, name: str, servo_id: int) -> tuple[Any, Any]:
    """(seconds on the monotonic clock, ticks) of the goals that a servo accepted."""
    log = bench.control.goal_log(bus=name)
    mine = (log.servo_id == servo_id) & (log.kind == 0)
    return log.t_ns[mine] / 1e9, log.value[mine].astype(float)


def assert_within(t: Any, ticks: Any, speed: float, acceleration: float) -> None:
    """No goal is farther from any earlier one than the joint may have gone in the time between,
    and within half a second of standing still no faster than its acceleration allows."""
    for first in range(len(t)):
        span = t[first:] - t[first] + JITTER_S
        allowed = speed * span * TICKS_PER_RAD + 1
        assert (np.abs(ticks[first:] - ticks[first]) <= allowed).all()
    stood = np.flatnonzero(np.diff(ticks) != 0)
    assert len(stood), "it never moved"
    # The first move begins from rest: s <= a t^2 / 2.
    span = t[stood[0] :] - t[stood[0]] + JITTER_S
    allowed = 0.5 * acceleration * span**2 * TICKS_PER_RAD + 1
    assert (np.abs(ticks[stood[0] :] - ticks[stood[0]]) <= np.maximum(allowed, 2))[span < 0.5].all()


def last_change_s(t: Any, ticks: Any) -> float:
    changed = np.flatnonzero(np.diff(ticks))
    return float(t[changed[-1] + 1])


class Fingers:
    """Fingers that end at two angles: a hand that stops the shaft there, from a thread."""

    def __init__(self, bench: Any, name: str, ends: tuple[float, float]) -> None:
        self.bench, self.name, self.ends = bench, name, ends
        # A client of its own: each serves one thread.
        self._control = ControlClient(bench.control.path)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        call = self._control.call
        held: float | None = None
        while not self._ended.wait(0.005):
            angle = call("positions_rad", self.name)[8]
            goal = call("get", self.name, servo_id=GRIPPER, name="goal_position")
            goal_rad = (goal - 2048) / TICKS_PER_RAD
            end = None
            if angle <= self.ends[0] + 0.005 and goal_rad < self.ends[0]:
                end = self.ends[0]
            elif angle >= self.ends[1] - 0.005 and goal_rad > self.ends[1]:
                end = self.ends[1]
            if end != held:
                call("hand", self.name, servo_id=GRIPPER, position_rad=end)
                held = end

    def __enter__(self) -> Fingers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(20)
        self._control.close()
