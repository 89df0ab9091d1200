"""Poses on their way to joints: what is one, how two are joined, and how a stream is followed."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from robot_stack.interfaces import InverseKinematics
from robot_stack.rotation import between
from robot_stack.types import Difference

__all__ = ["POSE", "PoseFollower", "aligned", "are_poses", "normalize"]

Array = NDArray[np.float64]

POSE = 7  # x y z in m, then a quaternion w x y z: the first values of a robot's row
TURN = slice(3, POSE)
# What a network has learnt to say has not quite length one; zeros or degrees have another one.
SHORTEST, LONGEST = 0.5, 2.0
# The longest way between two poses of a stream, and to the first one: the Cartesian ``max_step``.
MAX_STEP_M = 0.10
MAX_STEP_RAD = 0.5
# What may be left to a pose that counts as reached: Franka's repeatability is 0.1 mm.
REACHED_M = 1e-3
REACHED_RAD = 0.01
BLOCKED = int(Difference.COLLISION | Difference.WORKSPACE)


def are_poses(rows: Array) -> bool:
    """Whether finite rows (H, D) begin with poses: their quaternions are rotations."""
    if rows.shape[1] < POSE:
        return False
    return all(SHORTEST <= math.hypot(*turn) <= LONGEST for turn in rows[:, TURN].tolist())


def normalize(row: Array) -> None:
    """Bring the quaternion of a row (D,) to length one, in place."""
    row[TURN] /= math.sqrt(row[TURN] @ row[TURN])


def aligned(row: Array, before: Array | None) -> Array:
    """The same row (D,) with a quaternion of length one, on the side of ``before``'s."""
    row = row.copy()
    normalize(row)
    if before is not None and row[TURN] @ before[TURN] < 0.0:
        row[TURN] = -row[TURN]
    return row


class PoseFollower:
    """Turns the poses that one robot is asked for into joints, tick by tick.

    A pose that jumps is refused, as the SafetyFilter refuses joints that do (REENGAGE): while
    following, more than ``MAX_STEP_M`` or ``MAX_STEP_RAD`` away from the last pose, otherwise from
    where the end effector was last sent. So is one that runs as far away from there while a wall
    or another arm blocks the robot. A pose out of reach is approached as near as it gets (REACH).
    """

    def __init__(self, kinematics: InverseKinematics, period_s: float) -> None:
        self._kinematics = kinematics
        self._period_s = period_s
        self._last: Array | None = None

    def leave(self) -> None:
        """No pose was asked for in this tick."""
        self._last = None

    def joints(
        self, target: Array, sent: Array, *, engaged: bool, last: Difference
    ) -> tuple[Array | None, Difference]:
        """Joints (dof,) for ``target`` (dof,), a pose and what follows it, from what was last
        ``sent`` (dof,); None when it is refused, and why.

        ``engaged`` is whether the last tick's target was followed, ``last`` its difference.
        """
        pose = target[:POSE]
        if not engaged:
            self._last = None
        blocked = bool(int(last) & BLOCKED)
        if self._last is not None and _far(self._last, pose):
            self._last = None
            return None, Difference.REENGAGE
        if (self._last is None or blocked) and _far(self._kinematics.pose(sent), pose):
            self._last = None
            return None, Difference.REENGAGE
        self._last = pose
        joints = target.copy()
        joints[:POSE] = self._kinematics.solve(pose, sent[:POSE], self._period_s)
        way, turn = self._kinematics.residual
        reached = way <= REACHED_M and turn <= REACHED_RAD
        return joints, Difference.NONE if reached else Difference.REACH


def _far(a: Array, b: Array) -> bool:
    """Whether two poses (7,) are more than a step apart."""
    here, there = a.tolist(), b.tolist()
    return (
        math.dist(here[:3], there[:3]) > MAX_STEP_M
        or math.hypot(*between(here[3:], there[3:])) > MAX_STEP_RAD
    )
