"""The hands on the virtual leader arms: they move joints from the far side of the servo bus."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hardware.aloha.gripper import GripperCalibration
from hardware.aloha.rig import GRIPPER, ArmModel
from hardware.dynamixel.control_table import CENTER_TICKS, RAD_PER_TICK
from hardware.dynamixel.virtual import VirtualBus
from hardware.worlds.servo_hand import ServoHand

__all__ = ["LeaderHands"]

Array = NDArray[np.float64]


class _Leader(ServoHand):
    """One leader arm: seven joints, two of them moved by two servos each."""

    def __init__(self, bus: VirtualBus, model: ArmModel, gripper: GripperCalibration) -> None:
        lower = np.array([(s.min_ticks - CENTER_TICKS) * RAD_PER_TICK for s in model.masters])
        upper = np.array([(s.max_ticks - CENTER_TICKS) * RAD_PER_TICK for s in model.masters])
        lower[GRIPPER], upper[GRIPPER] = gripper.joint_closed, gripper.joint_open
        super().__init__(
            bus,
            np.array([servo.joint for servo in model.servos]),
            np.array([bus.ids.index(servo.id) for servo in model.masters]),
            lower,
            upper,
        )
        self.gripper = gripper


class LeaderHands:
    """A person's two hands; arm 0 is left. Implements ``operator.Hands``.

    Hands stop at the joints' own ends (see ``ServoHand``).
    """

    def __init__(self, arms: Sequence[tuple[VirtualBus, ArmModel, GripperCalibration]]) -> None:
        self._hands = [_Leader(*arm) for arm in arms]

    def __len__(self) -> int:
        return len(self._hands)

    def joints(self, arm: int) -> Array:
        """(7,): six joints in rad and the gripper's opening fraction, 0 closed."""
        hand = self._hands[arm]
        joints = hand.positions()
        span = hand.gripper.joint_open - hand.gripper.joint_closed
        joints[GRIPPER] = (joints[GRIPPER] - hand.gripper.joint_closed) / span
        return joints

    def torque(self, arm: int) -> tuple[bool, bool]:
        """Whether (any arm joint, the gripper) is under torque."""
        active = self._hands[arm].active()
        return bool(active[:GRIPPER].any()), bool(active[GRIPPER])

    def move(
        self, arm: int, joints: Array | None, gripper: float | None, *, at_once: bool = False
    ) -> None:
        """Hold the arm joints (6,) in rad and the gripper's opening fraction, where given.

        The hand gets there at human speed, or ``at_once``.
        """
        hand = self._hands[arm]
        target = np.full(7, np.nan)
        if joints is not None:
            target[:GRIPPER] = joints
        if gripper is not None:
            closed = hand.gripper.joint_closed
            target[GRIPPER] = closed + gripper * (hand.gripper.joint_open - closed)
        hand.want(target, at_once=at_once)

    def held(self, arm: int) -> bool:
        """Whether the hand holds any joint."""
        return self._hands[arm].held()

    def release(self, arm: int) -> None:
        """Let go: the joints stay where they are, or go where their servos drive them."""
        self._hands[arm].release()

    def step(self, dt: float) -> None:
        """Move both hands on by ``dt`` seconds."""
        for hand in self._hands:
            hand.step(dt)
