"""Minimum-jerk moves of an ALOHA arm, and the order of joints that keeps it off the table.

The order: shoulder back to home's level, elbow up to home's level, then home, then sleep. Straight
lines in joint space swing a low gripper through the table in one of six moves from random poses
with the hand within 8 cm of the table; in this order none of 250 came closer to the table than
where it started, and none touched itself (gym-aloha's geometry).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hardware.aloha.rig import GRIPPER
from robot_stack.spec import RobotSpec
from robot_stack.trajectory import minimum_jerk, shortest_seconds

__all__ = ["home", "move_seconds", "sleep", "through"]

Array = NDArray[np.float64]

ARM_SPEED = 0.95  # rad/s at the peak of a move, below the 1 rad/s that people beside it expect
GRIPPER_SPEED = 4.0  # 1/s: a full stroke in 0.5 s
SHOULDER, ELBOW = 1, 2
SAME_RAD = 1e-3


def move_seconds(spec: RobotSpec, start: Array, goal: Array, minimum_s: float = 0.0) -> float:
    """How long a minimum-jerk move must take: at most 0.95 rad/s (a gripper's stroke in 0.5 s),
    and inside the spec's own velocity and acceleration limits, whichever is slower."""
    units = np.array([j.unit == "rad" for j in spec.joints])
    # 5 % under the limits: a SafetyFilter at the same limits then never has to bend the path.
    speed = np.minimum(np.where(units, ARM_SPEED, GRIPPER_SPEED), 0.95 * spec.limits("velocity"))
    acceleration = 0.95 * spec.limits("acceleration")
    return max(minimum_s, shortest_seconds(start, goal, speed, acceleration))


def through(
    spec: RobotSpec, waypoints: list[Array], dt_s: float, last_minimum_s: float = 0.0
) -> Array:
    """Targets (H, D) that stop at every waypoint after the first; empty legs are left out."""
    legs = []
    for i, (a, b) in enumerate(pairwise(waypoints)):
        last = i == len(waypoints) - 2
        if last or float(np.abs(b - a).max()) > SAME_RAD:
            seconds = move_seconds(spec, a, b, last_minimum_s if last else 0.0)
            legs.append(minimum_jerk(a, b, seconds, dt_s))
    return np.concatenate(legs)


def home(spec: RobotSpec, start: Array, dt_s: float, last_minimum_s: float = 1.5) -> Array:
    """Targets (H, dof) from ``start`` to the home pose; the gripper stays where it is."""
    return through(spec, _retreat(spec, start), dt_s, last_minimum_s)


def sleep(spec: RobotSpec, start: Array, dt_s: float) -> Array:
    """Targets (H, dof) from ``start`` by way of home to the sleep pose; gripper as it is."""
    goal = np.array(spec.sleep)
    goal[GRIPPER] = start[GRIPPER]
    start = np.asarray(start, dtype=np.float64)
    if float(np.abs(goal - start).max()) <= SAME_RAD:
        return goal[None, :]
    return through(spec, [*_retreat(spec, start), goal], dt_s)


def _retreat(spec: RobotSpec, start: Array) -> list[Array]:
    start = np.asarray(start, dtype=np.float64)
    goal = np.array(spec.home)
    goal[GRIPPER] = start[GRIPPER]
    back = start.copy()
    back[SHOULDER] = min(start[SHOULDER], goal[SHOULDER])
    up = back.copy()
    up[ELBOW] = min(back[ELBOW], goal[ELBOW])
    return [start, back, up, goal]
