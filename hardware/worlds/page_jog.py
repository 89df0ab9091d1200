"""What the world's page does with a person's input: jogs fingertips, joints and grippers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hardware.worlds.aloha import SIDES
from hardware.worlds.inverse_kinematics import both_arms, tool_rotation
from robot_stack.config import parse, within
from robot_stack.errors import ConfigError

__all__ = ["HandRequest", "LeaderJog"]

Array = NDArray[np.float64]
Side = Literal["left", "right"]

SPEED_M_S, SPEED_RAD_S, SPEED_GRIPPER = 0.16, 1.0, 1.6
# A browser that stops sending (closed, asleep, unplugged) lets go of the stick.
DEADMAN_S = 0.3
# How long after the last input the arm's own position counts again.
FORGET_S = 0.5
REACHED = 0.02
IK_STEPS = 8


@dataclass(frozen=True)
class _Jog:
    """Speeds as fractions of full: fingertips along world x, y, z, pitch, roll, and opening."""

    arm: Side
    twist: tuple[float, ...]
    gripper: float = within(-1.0, 1.0, default=0.0)

    def __post_init__(self) -> None:
        if len(self.twist) != 5 or any(abs(value) > 1.0 for value in self.twist):
            raise ValueError("twist is 5 numbers in -1..1: x, y, z, pitch, roll")


@dataclass(frozen=True)
class _Joint:
    arm: Side
    joint: int = within(0, 5)
    value: float = within(-3.2, 3.2, "rad", default=0.0)


@dataclass(frozen=True)
class _Gripper:
    arm: Side
    value: float = within(0.0, 1.0)


@dataclass(frozen=True, slots=True)
class HandRequest:
    """Arguments of the world's ``hand`` operation."""

    robot: str
    joints: list[float] | None
    gripper: float | None


@dataclass(slots=True)
class _Arm:
    robot: str = ""
    q: Array = field(default_factory=lambda: np.zeros(6))
    gripper: float = 0.0
    arm_torque: bool = True
    gripper_torque: bool = True
    twist: Array = field(default_factory=lambda: np.zeros(5))
    gripper_rate: float = 0.0
    touched_s: float = -1e9
    at_end: bool = False
    moved: bool = False
    gripped: bool = False


class LeaderJog:
    """Both leaders. ``observe`` what the world says, feed ``message`` and call ``step`` often.

    Joints under torque are left alone: the station is driving them, in its start ritual.
    """

    def __init__(self) -> None:
        self._kinematics = both_arms()
        self._arms = {side: _Arm() for side in SIDES}

    def observe(self, robots: Mapping[str, Any]) -> None:
        """Take over the leaders' positions and torque from a world's ``status``."""
        for name, robot in robots.items():
            if robot["role"] != "leader":
                continue
            arm = self._arms[robot["side"]]
            arm.robot = name
            *arm_torque, arm.gripper_torque = robot["torque"]
            arm.arm_torque = any(arm_torque)
            # What the person asks for leads the arm; when nobody asks, the arm is where it is.
            idle = time.monotonic() - arm.touched_s > FORGET_S
            if idle or arm.arm_torque:
                arm.q = np.array(robot["joints"][:6])
            if idle or arm.gripper_torque:
                arm.gripper = min(1.0, max(0.0, float(robot["gripper"])))

    def message(self, kind: str, values: Mapping[str, Any]) -> None:
        """One input of the person; ConfigError for one that is not understood."""
        now = time.monotonic()
        if kind == "jog":
            jog = parse(_Jog, values, kind)
            arm = self._arms[jog.arm]
            arm.twist, arm.gripper_rate = np.array(jog.twist), jog.gripper
            if arm.twist.any() or arm.gripper_rate:
                arm.touched_s = now
        elif kind == "joint":
            joint = parse(_Joint, values, kind)
            arm = self._arms[joint.arm]
            kinematics = self._kinematics[SIDES.index(joint.arm)]
            arm.q = arm.q.copy()
            arm.q[joint.joint] = joint.value
            arm.q = np.clip(arm.q, kinematics.lower, kinematics.upper)
            arm.moved, arm.touched_s = True, now
        elif kind == "gripper":
            gripper = parse(_Gripper, values, kind)
            arm = self._arms[gripper.arm]
            arm.gripper, arm.gripped, arm.touched_s = gripper.value, True, now
        elif kind == "squeeze":
            for arm in self._arms.values():
                arm.gripper, arm.gripped, arm.touched_s = 0.0, True, now
        else:
            raise ConfigError(f"no input is called {kind!r} (known: jog, joint, gripper, squeeze)")

    def step(self, dt: float) -> list[HandRequest]:
        """Move on by ``dt`` seconds; what the hands are to do now."""
        requests = []
        now = time.monotonic()
        for index, arm in enumerate(self._arms.values()):
            if now - arm.touched_s > DEADMAN_S:
                arm.twist, arm.gripper_rate = np.zeros(5), 0.0
            if arm.twist.any() and not arm.arm_torque:
                self._drive(index, arm, dt)
            if arm.gripper_rate:
                arm.gripper += SPEED_GRIPPER * arm.gripper_rate * dt
                arm.gripper = min(1.0, max(0.0, arm.gripper))
                arm.gripped = True
            joints = arm.q.tolist() if arm.moved and not arm.arm_torque else None
            gripper = arm.gripper if arm.gripped and not arm.gripper_torque else None
            arm.moved = arm.gripped = False
            if arm.robot and (joints is not None or gripper is not None):
                requests.append(HandRequest(arm.robot, joints, gripper))
        return requests

    def _drive(self, index: int, arm: _Arm, dt: float) -> None:
        kinematics = self._kinematics[index]
        position, orientation = kinematics.forward(arm.q)
        position = position + SPEED_M_S * dt * arm.twist[:3]
        pitch, roll = SPEED_RAD_S * dt * arm.twist[3:]
        orientation = orientation @ tool_rotation(float(pitch), float(roll))
        q, error = kinematics.solve(position, orientation, arm.q, iterations=IK_STEPS)
        arm.at_end = error > REACHED
        # Near the end of reach the arm gives what it can.
        arm.q, arm.moved = q, True

    def leaders(self) -> Array:
        """Both leaders' joints (2, 6) in rad, for drawing."""
        return np.array([arm.q for arm in self._arms.values()])

    def state(self) -> dict[str, Any]:
        """For the page: whether each arm is at the end of its reach."""
        return {side: {"at_end": arm.at_end} for side, arm in self._arms.items()}
