"""Motion generators: from the client's command of one millisecond to the robot's set point.

Each generator answers with the errors that its command raises. `lost` goes on without a command,
at constant acceleration; `rest` judges the standstill that a finished motion must have come to.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hardware.franka.fci import MotionCommand
from hardware.franka.virtual.enforcement import Enforcement
from hardware.franka.virtual.servo import PoseFollower, orientation_error
from hardware.franka.virtual.settings import Settings

__all__ = [
    "AsynchronousPosition",
    "JointPosition",
    "JointVelocity",
    "MotionGenerator",
    "Pose",
    "Setpoint",
    "TorqueOnly",
    "Twist",
]

Array = NDArray[np.float64]
Errors = tuple[str, ...]

STEP_S = 0.001
# The robot's own interpolation keeps clear of the limits that it enforces.
ASYNC_SHARE = 0.5


class Setpoint:
    """Where the robot means its joints to be: `q` rad, `dq` rad/s and `ddq` rad/s^2, (7,) each."""

    def __init__(self, q: ArrayLike) -> None:
        self.q: Array = np.array(q, dtype=np.float64)
        self.dq: Array = np.zeros(7)
        self.ddq: Array = np.zeros(7)

    def move_to(self, q: Array) -> None:
        """The set point of the next millisecond."""
        dq = (q - self.q) / STEP_S
        self.ddq = (dq - self.dq) / STEP_S
        self.q, self.dq = q, dq

    def follow(self, q: Array, dq: Array) -> None:
        """Nothing is meant: the set point goes where the joints are."""
        self.q, self.dq, self.ddq = q, dq, np.zeros(7)

    def brake(self, deceleration: Array) -> None:
        """One millisecond of coming to rest."""
        slower = np.maximum(np.abs(self.dq) - deceleration * STEP_S, 0.0)
        dq = np.sign(self.dq) * slower
        self.ddq = (dq - self.dq) / STEP_S
        self.q, self.dq = self.q + dq * STEP_S, dq

    @property
    def at_rest(self) -> bool:
        return not self.dq.any()


class MotionGenerator(Protocol):
    """One kind of motion command."""

    def use(self, command: MotionCommand) -> Errors:
        """Take the client's command of this millisecond."""

    def lost(self) -> Errors:
        """None came: go on at constant acceleration."""

    def rest(self) -> Errors:
        """The client calls the motion finished: the millisecond after it stands still."""


class JointPosition:
    """Joint positions as they come, rad."""

    def __init__(self, setpoint: Setpoint, enforcement: Enforcement) -> None:
        self._setpoint, self._enforcement = setpoint, enforcement

    def use(self, command: MotionCommand) -> Errors:
        return self._advance(np.array(command.q))

    def lost(self) -> Errors:
        point = self._setpoint
        return self._advance(point.q + point.dq * STEP_S + point.ddq * STEP_S**2)

    def rest(self) -> Errors:
        return self._advance(self._setpoint.q)

    def _advance(self, q: Array) -> Errors:
        errors = self._enforcement.joint_positions(q)
        if not errors:
            self._setpoint.move_to(q)
        return errors


class JointVelocity:
    """Joint velocities, rad/s, that the robot integrates."""

    def __init__(self, setpoint: Setpoint, enforcement: Enforcement) -> None:
        self._setpoint, self._enforcement = setpoint, enforcement

    def use(self, command: MotionCommand) -> Errors:
        return self._advance(np.array(command.dq))

    def lost(self) -> Errors:
        return self._advance(self._setpoint.dq + self._setpoint.ddq * STEP_S)

    def rest(self) -> Errors:
        return self._advance(np.zeros(7))

    def _advance(self, dq: Array) -> Errors:
        errors = self._enforcement.joint_velocities(dq)
        if not errors:
            self._setpoint.move_to(self._setpoint.q + dq * STEP_S)
        return errors


class _Cartesian:
    """What poses and twists have in common: kinematics at the set point, and the elbow."""

    def __init__(
        self,
        setpoint: Setpoint,
        enforcement: Enforcement,
        kinematics: PoseFollower,
        settings: Settings,
    ) -> None:
        self._setpoint, self._enforcement = setpoint, enforcement
        self._kinematics, self._settings = kinematics, settings
        self.pose: Array = kinematics.pose(setpoint.q, settings.F_T_EE)
        self.twist: Array = np.zeros(6)
        self._change: Array = np.zeros(6)
        self._elbow: float | None = None
        self._sign: float | None = None

    @property
    def acceleration(self) -> Array:
        """Change of the commanded twist (6,), m/s^2 and rad/s^2."""
        return self._change / STEP_S

    def _take_elbow(self, command: MotionCommand) -> None:
        self._elbow, self._sign = command.elbow if command.valid_elbow else (None, None)

    def _move_to(self, q: Array) -> Errors:
        errors = self._enforcement.cartesian_joints(q)
        if not errors:
            self._setpoint.move_to(q)
        return errors


class Pose(_Cartesian):
    """End-effector poses O_T_EE as they come."""

    def use(self, command: MotionCommand) -> Errors:
        self._take_elbow(command)
        return self._advance(np.array(command.pose).reshape(4, 4).T)

    def lost(self) -> Errors:
        return self._advance(_moved(self.pose, (self.twist + self._change) * STEP_S))

    def rest(self) -> Errors:
        return self._advance(self.pose)

    def _advance(self, pose: Array) -> Errors:
        errors = self._enforcement.pose(pose, self._elbow, self._sign)
        if errors:
            return errors
        twist = np.empty(6)
        twist[:3] = (pose[:3, 3] - self.pose[:3, 3]) / STEP_S
        twist[3:] = orientation_error(pose, self.pose) / STEP_S
        self._change, self.twist, self.pose = twist - self.twist, twist, pose
        frame = self._settings.F_T_EE
        return self._move_to(self._kinematics.follow(self._setpoint.q, pose, self._elbow, frame))


class Twist(_Cartesian):
    """End-effector twists O_dP_EE, m/s and rad/s, that the robot integrates."""

    def use(self, command: MotionCommand) -> Errors:
        self._take_elbow(command)
        return self._advance(np.array(command.twist))

    def lost(self) -> Errors:
        return self._advance(self.twist + self._change)

    def rest(self) -> Errors:
        return self._advance(np.zeros(6))

    def _advance(self, twist: Array) -> Errors:
        errors = self._enforcement.twist(twist, self._elbow, self._sign)
        if errors:
            return errors
        self._change, self.twist = twist - self.twist, twist
        frame = self._settings.F_T_EE
        q = self._kinematics.follow_twist(self._setpoint.q, twist, self._elbow, frame)
        self.pose = self._kinematics.pose(q, frame)
        return self._move_to(q)


def _moved(pose: Array, change: Array) -> Array:
    """`pose` (4, 4) moved by a small change (6,): metres, then radians, base frame."""
    angle = float(np.linalg.norm(change[3:]))
    moved = pose.copy()
    moved[:3, 3] += change[:3]
    if angle > 0.0:
        x, y, z = change[3:] / angle
        cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
        turn = np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * cross @ cross
        moved[:3, :3] = turn @ pose[:3, :3]
    return moved


class AsynchronousPosition:
    """Joint targets at any rate; the robot itself interpolates to the last one.

    Each joint goes at no more than its own `max_velocity` (7,) rad/s, and accelerates and brakes
    with a share of what the robot can. Nothing is lost here: the target stays.
    """

    def __init__(
        self, setpoint: Setpoint, enforcement: Enforcement, max_velocity: Array, acceleration: Array
    ) -> None:
        self._setpoint, self._enforcement = setpoint, enforcement
        self._speed = max_velocity
        self._reach = ASYNC_SHARE * acceleration * STEP_S
        self._acceleration = ASYNC_SHARE * acceleration
        self._target: Array = setpoint.q.copy()

    def use(self, command: MotionCommand) -> Errors:
        if command.motion_finished:  # libfranka sends no target with it
            return ()
        target = np.array(command.q)
        errors = self._enforcement.target(target)
        if errors:
            return errors
        self._target = target
        return self.lost()

    def lost(self) -> Errors:
        point = self._setpoint
        left = self._target - point.q
        # The speed from which the joint still stops at the target, one step of it rounded off.
        stopping = np.sqrt(2.0 * self._acceleration * np.abs(left) + 0.25 * self._reach**2)
        speed = np.minimum(np.maximum(stopping - 0.5 * self._reach, 0.0), self._speed)
        speed = np.minimum(speed, np.abs(left) / STEP_S)
        dq = np.sign(left) * speed
        dq = np.minimum(np.maximum(dq, point.dq - self._reach), point.dq + self._reach)
        point.move_to(point.q + dq * STEP_S)
        return ()

    def rest(self) -> Errors:
        return ()


class TorqueOnly:
    """No motion generator: torques alone, the set point goes where the joints are."""

    def use(self, command: MotionCommand) -> Errors:
        return ()

    def lost(self) -> Errors:
        return ()

    def rest(self) -> Errors:
        return ()
