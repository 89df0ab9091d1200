"""What moves a vx300s: its Dynamixel servos as MuJoCo drives, and the gripper's crank."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import asin, cos, pi, sin, sqrt

__all__ = [
    "ARM_DRIVES",
    "FINGER_RANGE",
    "GRIPPER_DRIVE",
    "VX300S_GRIPPER",
    "Drive",
    "GripperLinkage",
]


@dataclass(frozen=True, slots=True)
class GripperLinkage:
    """The Interbotix crank that turns the gripper servo's angle into the fingers' half opening.

    ``horn`` is the crank's radius and ``arm`` the rod's length, in metres. ``finger`` is one
    finger's distance from the middle (m); ``theta`` the servo's joint angle (rad).
    """

    horn: float
    arm: float

    def finger(self, theta: float) -> float:
        """Half opening in m for a servo angle in rad, monotone within +-pi/2."""
        reach = self.horn * cos(theta)
        return self.horn * sin(theta) + sqrt(self.arm**2 - reach**2)

    def theta(self, finger: float) -> float:
        """Servo angle in rad for a half opening in m; beyond the crank's reach it saturates."""
        s = (finger**2 + self.horn**2 - self.arm**2) / (2.0 * finger * self.horn)
        return asin(min(1.0, max(-1.0, s)))

    def slope(self, theta: float) -> float:
        """d finger / d theta in m/rad; zero at the dead centres (theta = +-pi/2)."""
        reach = self.horn * cos(theta)
        return reach * (1.0 + self.horn * sin(theta) / sqrt(self.arm**2 - reach**2))


VX300S_GRIPPER = GripperLinkage(horn=0.022, arm=0.036)
# The rod's range on the rig: .01844 m closed, .0580 m open, with a hair of play at both ends.
FINGER_RANGE = (0.0180, 0.0580)


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
