"""What moves a vx300s: its Dynamixel servos as MuJoCo drives, and the fingers' gearing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import cos, pi, sin, sqrt

from hardware.aloha.rig import ARMS

__all__ = [
    "ARM_DRIVES",
    "FINGER_RANGE",
    "GRIPPER_DRIVE",
    "VX300S_GRIPPER",
    "Drive",
    "finger_slope",
]


VX300S_GRIPPER = ARMS["vx300s"].linkage
# The rod's range on the rig: .01844 m closed, .0580 m open, with a hair of play at both ends.
FINGER_RANGE = (0.0180, 0.0580)
# Near the open dead centre the crank would turn any torque into infinite force.
MIN_SLOPE = 0.004


def finger_slope(joint: float) -> float:
    """d finger / d joint of a vx300s gripper in m/rad, kept away from the dead centres."""
    horn, rod = VX300S_GRIPPER.horn_m, VX300S_GRIPPER.rod_m
    across = horn * cos(joint)
    return max(MIN_SLOPE, across * (1.0 + horn * sin(joint) / sqrt(rod**2 - across**2)))


@dataclass(frozen=True, slots=True)
class Drive:
    """One servo (or a servo and its shadow) at 12 V, from ROBOTIS' data sheets.

    ``stall`` Nm, ``no_load`` rad/s and ``stall_current`` A. ``friction`` (Nm, unpowered) and
    ``armature`` (kg m2, rotor times gear ratio squared) are estimates: they are not published.
    """

    stall: float
    no_load: float
    stall_current: float
    friction: float
    armature: float
    servos: int = 1

    # P gain register 800 is 800/128 PWM units of 0.113 % a tick of 2 pi/4096 rad.
    FULL_PWM_PER_RAD = 800 / 128 / 885 * 4096 / (2 * pi)

    @property
    def stiffness(self) -> float:
        """Nm/rad at the factory's P gain."""
        return self.servos * self.stall * self.FULL_PWM_PER_RAD

    @property
    def damping(self) -> float:
        """Nm s/rad of back-EMF while under torque."""
        return self.servos * self.stall / self.no_load

    @property
    def torque_per_ampere(self) -> float:
        """Nm of the joint for 1 A in each servo."""
        return self.servos * self.stall / self.stall_current


_XM540 = Drive(stall=10.6, no_load=3.14, stall_current=4.4, friction=0.2, armature=0.03)
_XM430 = Drive(stall=4.1, no_load=4.82, stall_current=2.3, friction=0.08, armature=0.012)
_XM540_PAIR = replace(_XM540, servos=2)
# Waist, shoulder, elbow, forearm roll, wrist angle, wrist rotate.
ARM_DRIVES = (_XM540, _XM540_PAIR, _XM540_PAIR, _XM540, _XM540, _XM430)
GRIPPER_DRIVE = _XM430
