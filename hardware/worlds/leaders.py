"""The hands on the virtual leader arms: they move joints from the far side of the servo bus."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hardware.aloha.gripper import GripperCalibration
from hardware.aloha.rig import GRIPPER, ArmModel
from hardware.dynamixel.control_table import CENTER_TICKS, RAD_PER_TICK
from hardware.dynamixel.virtual import VirtualBus

__all__ = ["LeaderHands"]

Array = NDArray[np.float64]

# A hand follows where it is wanted with the lag and the top speed of an unhurried person.
HAND_LAG_S = 0.03
HAND_SPEED_RAD_S = 3.0


class _Hand:
    """One leader arm and the hand that holds some of its seven joints."""

    def __init__(self, bus: VirtualBus, model: ArmModel, gripper: GripperCalibration) -> None:
        self.bus = bus
        self.gripper = gripper
        self.joint_of_row = np.array([servo.joint for servo in model.servos])
        self.master_rows = np.array([bus.ids.index(servo.id) for servo in model.masters])
        self.lower = np.array([(s.min_ticks - CENTER_TICKS) * RAD_PER_TICK for s in model.masters])
        self.upper = np.array([(s.max_ticks - CENTER_TICKS) * RAD_PER_TICK for s in model.masters])
        self.lower[GRIPPER], self.upper[GRIPPER] = gripper.joint_closed, gripper.joint_open
        self.target = np.full(7, np.nan)  # rad, NaN where the hand does not hold
        self.at = np.full(7, np.nan)
        self.active = np.zeros(7, dtype=np.bool_)

    def positions(self) -> Array:
        return np.asarray(self.bus.positions_rad()[self.master_rows])

    def want(self, target: Array, *, at_once: bool) -> None:
        held = ~np.isnan(target)
        target = np.clip(target, self.lower, self.upper)
        fresh = held & np.isnan(self.at)
        self.at[fresh] = self.positions()[fresh]
        self.target[held] = target[held]
        if at_once:
            self.at[held] = target[held]

    def release(self) -> None:
        self.target[:] = np.nan
        self.at[:] = np.nan
        self._push()

    def step(self, dt: float) -> None:
        held = ~np.isnan(self.target)
        active = self.bus.bank.active[self.master_rows]
        taken = held & active & ~self.active
        self.active = active
        if taken.any():
            self.target[taken] = self.at[taken] = np.nan
            self._push()
        if not held.any():
            return
        way = (self.target - self.at) * min(1.0, dt / HAND_LAG_S)
        self.at += np.clip(way, -HAND_SPEED_RAD_S * dt, HAND_SPEED_RAD_S * dt)
        self._push()

    def _push(self) -> None:
        # All rows at once: VirtualBus.hand would look the bank over nine times a step.
        bank = self.bus.bank
        bank.hand[:] = self.at[self.joint_of_row] / RAD_PER_TICK + CENTER_TICKS
        bank.refresh()


class LeaderHands:
    """A person's two hands; arm 0 is left. Implements ``operator.Hands``.

    A joint without torque goes where the hand is; a joint under torque is pushed against. A joint
    that comes under torque is taken out of the hand: the station drives it now. Hands stop at the
    joints' own ends.
    """

    def __init__(self, arms: Sequence[tuple[VirtualBus, ArmModel, GripperCalibration]]) -> None:
        self._hands = [_Hand(*arm) for arm in arms]

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
        hand = self._hands[arm]
        active = hand.bus.bank.active[hand.master_rows]
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
        return not bool(np.isnan(self._hands[arm].target).all())

    def release(self, arm: int) -> None:
        """Let go: the joints stay where they are, or go where their servos drive them."""
        self._hands[arm].release()

    def step(self, dt: float) -> None:
        """Move both hands on by ``dt`` seconds."""
        for hand in self._hands:
            hand.step(dt)
