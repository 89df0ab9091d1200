"""Servo counts of one calibrated arm to the units of its spec, and back."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardware.aloha.configuration import AlohaArmConfig
from hardware.aloha.rig import GRIPPER, JOINTS
from hardware.dynamixel.bus import UNKNOWN_TICKS
from hardware.dynamixel.control_table import (
    CENTER_TICKS,
    CURRENT_UNIT_MA,
    RAD_PER_TICK,
    TICKS_PER_REV,
    VELOCITY_UNIT_RAD_S,
    model_by_name,
)

__all__ = ["Scale"]

Array = NDArray[np.float64]
Ticks = NDArray[np.int32]


class Scale:
    """Vectors of nine servos (in id order) to seven joints, and seven targets to goal ticks.

    ``turns`` (7,) int32 are whole turns in ticks that a servo's count lacks: a servo forgets its
    turns at power-up, and counts on beyond 4095 while a hand turns it without torque.
    """

    def __init__(self, config: AlohaArmConfig) -> None:
        arm = config.arm
        ids = [servo.id for servo in arm.servos]
        self.masters = np.array([ids.index(servo.id) for servo in arm.masters])
        self.gripper = config.gripper
        by_role = "finger" if config.role == "follower" else "joint"
        self._finger = (config.gripper_state or by_role) == "finger"
        self._offset = np.array([config.offsets.get(name, 0) for name in JOINTS], dtype=np.int32)
        self.lower = np.array([servo.min_ticks for servo in arm.masters], dtype=np.int32)
        self.upper = np.array([servo.max_ticks for servo in arm.masters], dtype=np.int32)
        # Where a count belongs, give or take half a turn: a gripper around the middle of its
        # stroke, an arm joint around the middle of its range.
        self._center = (self.lower + self.upper) / 2.0
        middle = self.gripper.joint_of_fraction(0.5)
        self._center[GRIPPER] = CENTER_TICKS + middle / RAD_PER_TICK
        self.turns = np.zeros(len(JOINTS), dtype=np.int32)
        # One row a joint: which of the nine servos' currents add up to it.
        self._adds = np.zeros((len(JOINTS), len(arm.servos)))
        for row, servo in enumerate(arm.servos):
            measures = model_by_name(config.servo_model(servo)).has_current
            amperes = CURRENT_UNIT_MA / 1000.0 if measures else np.nan
            self._adds[servo.joint, row] = amperes
        self._measures_current = ~np.isnan(self._adds).any(axis=1)
        self._adds = np.nan_to_num(self._adds)

    def find_turns(self, ticks: Ticks) -> None:
        """Set ``turns`` from counts (9,) so that every joint lies where it can be."""
        counts = ticks[self.masters]
        turns = np.rint((self._center - counts) / TICKS_PER_REV) * TICKS_PER_REV
        self.turns = np.where(counts == UNKNOWN_TICKS, 0, turns).astype(np.int32)

    def angles(self, ticks: Ticks) -> Array:
        """Joint angles (7,) in rad of counts (9,); NaN for a servo that has never answered."""
        counts = ticks[self.masters]
        angles: Array = (counts + self.turns - self._offset - CENTER_TICKS) * RAD_PER_TICK
        angles[counts == UNKNOWN_TICKS] = np.nan
        return angles

    def measured(self, ticks: Ticks, velocity: Ticks) -> tuple[Array, Array]:
        """(q, dq), each (7,): rad and rad/s; the gripper as ALOHA records it and per second:
        a follower's as a fraction of finger position, a leader's of joint angle (unless the
        station says otherwise: ``gripper_state``)."""
        q = self.angles(ticks)
        dq: Array = velocity[self.masters] * VELOCITY_UNIT_RAD_S
        dq[np.isnan(q)] = np.nan
        joint = float(q[GRIPPER])
        if self._finger:
            dq[GRIPPER] *= self.gripper.position_rate(joint)
            q[GRIPPER] = self.gripper.position_fraction(joint)
        else:
            dq[GRIPPER] /= self.gripper.joint_span
            q[GRIPPER] = self.gripper.fraction_of_joint(joint)
        return q, dq

    def current(self, counts: NDArray[np.int16]) -> Array:
        """Current (7,) in A, a pair of servos added up; NaN where a servo measures only load."""
        total: Array = self._adds @ counts
        total[~self._measures_current] = np.nan
        return total

    def targets_of(self, goals: Ticks) -> Array:
        """Targets (7,) that goal counts (7,) of the masters stand for."""
        counts = (goals + self.turns - self._offset - CENTER_TICKS).astype(np.float64)
        q = counts * RAD_PER_TICK
        q[goals == UNKNOWN_TICKS] = np.nan
        q[GRIPPER] = self.gripper.fraction_of_joint(float(q[GRIPPER]))
        return q

    def goals(self, target: Array) -> Ticks:
        """Goal counts (7,) of targets (7,), inside the servos' own position limits: a servo
        refuses a goal beyond them silently, and then does not move at all."""
        angle = np.array(target, dtype=np.float64)
        angle[GRIPPER] = self.gripper.joint_of_fraction(float(angle[GRIPPER]))
        counts = np.rint(angle / RAD_PER_TICK).astype(np.int32) + CENTER_TICKS + self._offset
        counts[:GRIPPER] = np.clip(counts, self.lower, self.upper)[:GRIPPER]
        goals: Ticks = (counts - self.turns).astype(np.int32)
        return goals
