"""What a device is, readable before it is connected: names, order, units and limits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["CameraSpec", "JointSpec", "RobotSpec"]

Unit = Literal["rad", "m", "fraction"]


@dataclass(frozen=True, slots=True)
class JointSpec:
    """One actuated degree of freedom, in its command units.

    ``unit`` is ``rad``, ``m`` or ``fraction`` (a gripper: 0 closed, 1 open); the limits are in
    that unit, per second and per second squared. ``max_step`` is the largest distance between a
    new target and what was last sent that is followed; a farther target asks for re-engagement.
    A value that has not been read for ``silence_s`` is a fault; infinite where the driver itself
    judges how late it may be (a gripper behind a slow link of its own).
    """

    name: str
    unit: Unit
    lower: float
    upper: float
    velocity: float
    acceleration: float
    max_step: float
    silence_s: float = 0.2

    def __post_init__(self) -> None:
        if not self.lower < self.upper:
            raise ValueError(f"joint {self.name}: lower {self.lower} must be below {self.upper}")
        for field in ("velocity", "acceleration", "max_step", "silence_s"):
            if not getattr(self, field) > 0:
                raise ValueError(f"joint {self.name}: {field} must be positive")


@dataclass(frozen=True, slots=True)
class RobotSpec:
    """A robot as commands see it: joints in command order, and its named poses (one per joint).

    ``tracks``: the device closes a control loop of its own and tells what it tracks, so its
    episodes also say what it applied, how old its target was and how many of its cycles had a
    command in time.
    """

    embodiment: str
    joints: tuple[JointSpec, ...]
    home: tuple[float, ...]
    sleep: tuple[float, ...]
    tracks: bool = False

    def __post_init__(self) -> None:
        for pose in ("home", "sleep"):
            values = getattr(self, pose)
            if len(values) != len(self.joints):
                raise ValueError(
                    f"{self.embodiment}: pose {pose} has {len(values)} values for "
                    f"{len(self.joints)} joints"
                )

    @property
    def dof(self) -> int:
        return len(self.joints)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(joint.name for joint in self.joints)

    def limits(self, field: str) -> NDArray[np.float64]:
        """One numeric field of every joint, shape (dof,), in joint order."""
        return np.array([getattr(joint, field) for joint in self.joints], dtype=np.float64)

    def scaled(self, speed: float) -> RobotSpec:
        """The same robot with velocity and acceleration limits multiplied by ``speed``."""
        joints = tuple(
            replace(j, velocity=j.velocity * speed, acceleration=j.acceleration * speed)
            for j in self.joints
        )
        return replace(self, joints=joints)


@dataclass(frozen=True, slots=True)
class CameraSpec:
    """A colour camera, uint8 RGB (height, width, 3); ``depth`` adds uint16 millimetres (H, W)."""

    name: str
    width: int
    height: int
    fps: float
    depth: bool = False
