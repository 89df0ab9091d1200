"""The Cartesian mapper: what hands ask for (a twist) to the pose that a robot shall go to.

Every device that says "that way, this fast" goes through this one: SpaceMouse, gamepad, keyboard,
browser, scripts. The target starts where the robot holds and is integrated from there, so there is
no jump whatever happened before; and it never runs farther than a leash ahead of where the robot
is, so that a robot that cannot follow does not catch up later by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from robot_stack.config import within
from robot_stack.rotation import Quaternion, between, from_vector, multiply, normalized, to_matrix

__all__ = ["WIDTH", "CartesianMapper", "MotionConfig", "Stick"]

Array = NDArray[np.float64]
Vector = tuple[float, float, float]

WIDTH = 8  # x y z, quaternion w x y z, gripper
AT_ONCE_S = 1e-3  # a ramp that is shorter is none
LONGEST_S = 0.05  # after a pause the motion goes on, it does not leap
NO_MOTION = (0.0,) * 6


@dataclass(frozen=True, slots=True)
class Stick:
    """What hands ask for at one moment.

    twist         fractions of full speed, -1..1: x forward, y left, z up, and about x, y, z
                  (right-handed), as seen by the operator
    held          the dead-man switch is held (or the clutch toggle is down)
    gripper_rate  -1 closing at full speed .. 1 opening
    gripper_goal  wanted opening, 0 closed .. 1 open; NaN: none. It goes before ``gripper_rate``
    speed         share of full speed, 0..1
    """

    twist: tuple[float, ...] = NO_MOTION
    held: bool = False
    gripper_rate: float = 0.0
    gripper_goal: float = math.nan
    speed: float = 1.0


@dataclass(frozen=True)
class MotionConfig:
    """How twists become motion.

    linear_m_s, angular_rad_s, gripper_per_s   full speed; an angular speed of 0 locks the turning
    fine        share of full speed in fine mode
    dead_zone   of a stick's way about its centre
    expo        0: speed is proportional to deflection; 1: to its cube, gentle about the centre
    ramp_s      from rest to full speed, and back
    frame       whose axes the twist counts along: the robot's base, or the tool as it is turned
    view_deg    where the operator stands about the base's vertical: 0 behind the robot, 180 facing
                it, 90 at its left (frame base only)
    leash_m, leash_rad   how far the target may run ahead of the measured pose
    """

    linear_m_s: float = within(0.001, 2.0, "m/s", default=0.25)
    angular_rad_s: float = within(0.0, 3.0, "rad/s", default=1.0)
    gripper_per_s: float = within(0.01, 10.0, "1/s", default=1.5)
    fine: float = within(0.01, 1.0, default=0.2)
    dead_zone: float = within(0.0, 0.9, default=0.08)
    expo: float = within(0.0, 1.0, default=0.4)
    ramp_s: float = within(0.0, 2.0, "s", default=0.12)
    frame: Literal["base", "tool"] = "base"
    view_deg: float = within(-360.0, 360.0, "degrees", default=0.0)
    leash_m: float = within(0.005, 0.5, "m", default=0.08)
    leash_rad: float = within(0.02, 1.5, "rad", default=0.35)

    def shaped(self, deflection: float) -> float:
        """A stick's deflection (-1..1) with dead zone and expo; 0 for what is no number."""
        if not math.isfinite(deflection):
            return 0.0
        beyond = min(1.0, (abs(deflection) - self.dead_zone) / (1.0 - self.dead_zone))
        if beyond <= 0.0:
            return 0.0
        return math.copysign((1.0 - self.expo) * beyond + self.expo * beyond**3, deflection)


class CartesianMapper:
    """Integrates twists into targets (8,): position (m) and orientation of one arm's end effector
    in its base frame, and its gripper. ``engage`` first; then ``step`` at any rate."""

    def __init__(self, config: MotionConfig) -> None:
        self.config = config
        self._position: Vector = (math.nan, math.nan, math.nan)
        self._turn: Quaternion = (1.0, 0.0, 0.0, 0.0)
        self._gripper = math.nan
        self._linear: Vector = (0.0, 0.0, 0.0)
        self._angular: Vector = (0.0, 0.0, 0.0)
        self._last_ns: int | None = None
        self._view: Quaternion = from_vector((0.0, 0.0, math.radians(config.view_deg)))

    def engage(self, held: Array) -> None:
        """Start at ``held`` (8,), at rest. ValueError for what is no pose."""
        values = [float(value) for value in held]
        if len(values) != WIDTH or not all(math.isfinite(value) for value in values):
            raise ValueError(f"a pose and a gripper are {WIDTH} finite numbers, not {held}")
        self._position = (values[0], values[1], values[2])
        self._turn = normalized(values[3:7])
        self._gripper = values[7]
        self._linear = self._angular = (0.0, 0.0, 0.0)
        self._last_ns = None

    @property
    def target(self) -> Array:
        """What was asked last, (8,)."""
        return np.array([*self._position, *self._turn, self._gripper])

    def step(self, stick: Stick, now_ns: int, measured: Array) -> Array:
        """The target (8,) at ``now_ns``; the first after ``engage`` is what was held.

        ``measured`` (7,) is where the end effector is; while that is not known (NaN) the arm's
        target stays. A stick with a number that is not finite counts as let go.
        """
        dt = 0.0 if self._last_ns is None else min((now_ns - self._last_ns) / 1e9, LONGEST_S)
        self._last_ns = now_ns
        if dt <= 0.0:
            return self.target
        linear, angular = self._wanted(stick)
        self._linear = _approach(self._linear, linear, self._change(self.config.linear_m_s, dt))
        self._angular = _approach(
            self._angular, angular, self._change(self.config.angular_rad_s, dt)
        )
        if all(math.isfinite(value) for value in measured):
            self._move(dt, measured)
        self._grip(stick, dt)
        return self.target

    def _change(self, full: float, dt: float) -> float:
        """By how much a velocity may change in ``dt``."""
        return full * dt / self.config.ramp_s if self.config.ramp_s >= AT_ONCE_S else math.inf

    def _wanted(self, stick: Stick) -> tuple[Vector, Vector]:
        """The velocity in m/s and rad/s, in the base frame."""
        twist = stick.twist
        known = len(twist) == len(NO_MOTION) and all(math.isfinite(value) for value in twist)
        speed = min(1.0, max(0.0, stick.speed)) if math.isfinite(stick.speed) else 0.0
        x, y, z, a, b, c = (self.config.shaped(value) for value in (twist if known else NO_MOTION))
        linear = _bounded((x, y, z), speed * self.config.linear_m_s)
        angular = _bounded((a, b, c), speed * self.config.angular_rad_s)
        frame = self._turn if self.config.frame == "tool" else self._view
        rows = to_matrix(frame)
        return _rotated(rows, linear), _rotated(rows, angular)

    def _move(self, dt: float, measured: Array) -> None:
        px, py, pz, *quaternion = (float(value) for value in measured)
        x, y, z = self._position
        step = tuple(value * dt for value in self._linear)
        share = _leashed((x - px, y - py, z - pz), step, self.config.leash_m)
        self._position = (x + share * step[0], y + share * step[1], z + share * step[2])
        a, b, c = self._angular
        there = normalized(multiply(from_vector((a * dt, b * dt, c * dt)), self._turn))
        arm = normalized(quaternion)
        limit = max(self.config.leash_rad, math.hypot(*between(arm, self._turn)))
        if math.hypot(*between(arm, there)) <= limit:
            self._turn = there

    def _grip(self, stick: Stick, dt: float) -> None:
        most = self.config.gripper_per_s * dt
        if math.isfinite(stick.gripper_goal):
            change = min(max(stick.gripper_goal - self._gripper, -most), most)
        elif math.isfinite(stick.gripper_rate):
            change = min(max(stick.gripper_rate, -1.0), 1.0) * most
        else:
            return
        before = self._gripper  # may stand a little outside: then it only comes back
        self._gripper = min(max(before + change, min(0.0, before)), max(1.0, before))


def _rotated(rows: tuple[Vector, Vector, Vector], vector: Vector) -> Vector:
    x, y, z = (sum(a * b for a, b in zip(row, vector, strict=True)) for row in rows)
    return x, y, z


def _bounded(vector: Vector, scale: float) -> Vector:
    """``vector`` with its length cut to 1, times ``scale``: a stick in its corner is not faster."""
    length = math.sqrt(sum(value * value for value in vector))
    scale /= max(1.0, length)
    return vector[0] * scale, vector[1] * scale, vector[2] * scale


def _approach(now: Vector, wanted: Vector, most: float) -> Vector:
    """From ``now`` towards ``wanted`` by at most ``most``."""
    away = [w - n for w, n in zip(wanted, now, strict=True)]
    length = math.sqrt(sum(value * value for value in away))
    if length <= most:
        return wanted
    share = most / length
    return now[0] + share * away[0], now[1] + share * away[1], now[2] + share * away[2]


def _leashed(ahead: Vector, step: tuple[float, ...], leash: float) -> float:
    """How much of ``step`` may be made, 0..1, when the target is ``ahead`` of the robot already:
    all that ends within ``leash``, or not farther than it is now."""
    a = sum(value * value for value in step)
    if a == 0.0:
        return 0.0
    b = sum(d * s for d, s in zip(ahead, step, strict=True))
    now = sum(value * value for value in ahead)
    c = min(0.0, now - leash * leash)
    return min(1.0, max(0.0, (math.sqrt(max(0.0, b * b - a * c)) - b) / a))
