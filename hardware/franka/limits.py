"""Limits of the Franka FER (Panda) and FR3 as data, and the limits that a station gives its arm.

Sources: FCI documentation, "Robot and interface specifications" (joint, Cartesian and torque
limits of both robots; for the FR3 the system image 5.9 and later). The FR3's joint velocity bound
shrinks towards the position limits: `Limits.velocity_bounds` is the documentation's formula.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["ELBOW_FLIP", "FER", "FR3", "Limits", "Model", "Space", "joint_limits", "limits_of"]

Model = Literal["fr3", "fer"]
Array = NDArray[np.float64]
Seven = tuple[float, float, float, float, float, float, float]


# Joint 4 (rad) where the arm is stretched out: it tells the sides of the elbow apart.
ELBOW_FLIP = -0.467002423653011


@dataclass(frozen=True, slots=True)
class Space:
    """Velocity, acceleration and jerk of one Cartesian quantity (m or rad and seconds)."""

    velocity: float
    acceleration: float
    jerk: float


@dataclass(frozen=True, slots=True)
class Limits:
    """Hard limits of one model; crossing one raises a reflex. Tuples have one entry a joint.

    ``q_lower`` and ``q_upper`` rad; ``velocity`` rad/s; ``acceleration`` rad/s^2; ``jerk``
    rad/s^3; ``torque`` Nm; ``torque_rate`` Nm/s. ``velocity_offset`` (rad/s) and ``deceleration``
    (rad/s^2) are the FR3's position-dependent velocity bound, None on a robot without one.
    ``translation``, ``rotation`` and ``elbow`` hold for the end effector and the redundancy.
    """

    model: Model
    q_lower: Seven
    q_upper: Seven
    velocity: Seven
    acceleration: Seven
    jerk: Seven
    torque: Seven
    torque_rate: Seven
    velocity_offset: Seven | None
    deceleration: Seven | None
    translation: Space
    rotation: Space
    elbow: Space

    def velocity_bounds(self, joint: int, q: float) -> tuple[float, float]:
        """Lowest and highest velocity (rad/s) of ``joint`` (0 to 6) at position ``q`` (rad)."""
        top = self.velocity[joint]
        if self.velocity_offset is None or self.deceleration is None:
            return -top, top
        offset, twice = self.velocity_offset[joint], 2.0 * self.deceleration[joint]
        above = sqrt(max(0.0, twice * (self.q_upper[joint] - q))) - offset
        below = sqrt(max(0.0, twice * (q - self.q_lower[joint]))) - offset
        return -min(top, max(0.0, below)), min(top, max(0.0, above))


FER = Limits(
    model="fer",
    q_lower=(-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973),
    q_upper=(2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973),
    velocity=(2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61),
    acceleration=(15.0, 7.5, 10.0, 12.5, 15.0, 20.0, 20.0),
    jerk=(7500.0, 3750.0, 5000.0, 6250.0, 7500.0, 10000.0, 10000.0),
    torque=(87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0),
    torque_rate=(1000.0,) * 7,
    velocity_offset=None,
    deceleration=None,
    translation=Space(1.7, 13.0, 6500.0),
    rotation=Space(2.5, 25.0, 12500.0),
    elbow=Space(2.175, 10.0, 5000.0),
)

FR3 = Limits(
    model="fr3",
    q_lower=(-2.9007, -1.8361, -2.9007, -3.0770, -2.8763, 0.4398, -3.0508),
    q_upper=(2.9007, 1.8361, 2.9007, -0.1169, 2.8763, 4.6216, 3.0508),
    velocity=(2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26),
    acceleration=(10.0,) * 7,
    jerk=(5000.0,) * 7,
    torque=(87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0),
    torque_rate=(1000.0,) * 7,
    velocity_offset=(0.6599, 0.2517, 0.2000, 0.3533, 0.5757, 0.4878, 0.4628),
    deceleration=(6.0, 2.585, 3.5, 4.0, 17.0, 5.5, 17.0),
    translation=Space(3.0, 9.0, 4500.0),
    rotation=Space(2.5, 17.0, 8500.0),
    elbow=Space(2.62, 10.0, 5000.0),
)

_LIMITS: dict[str, Limits] = {"fer": FER, "fr3": FR3}


def limits_of(model: str) -> Limits:
    """The hard limits of "fr3" or "fer"; ValueError for any other name."""
    if model not in _LIMITS:
        raise ValueError(f"no Franka is called {model!r}: 'fr3' (Research 3) or 'fer' (Panda)")
    return _LIMITS[model]


def joint_limits(model: str, velocity: ArrayLike) -> tuple[Array, Array, Array, Array]:
    """Limits for a filter that brakes at constant deceleration: lower, upper, velocity, and
    acceleration, each (7,), rad and seconds.

    ``velocity`` (rad/s, scalar or (7,)) is the speed that the station allows. A filter that keeps
    v <= min(velocity, sqrt(2 a d)) at distance d from these position limits also stays within the
    FR3's bound v <= -offset + sqrt(2 deceleration D), D being the distance from the hard limit:
    with a <= deceleration this needs D - d >= offset (2 v + offset) / (2 deceleration). The FER
    has no such bound and keeps its position limits. ValueError for a speed that the robot has not.
    """
    limits = limits_of(model)
    speed = np.broadcast_to(np.asarray(velocity, dtype=np.float64), (7,)).copy()
    allowed = np.array(limits.velocity)
    if not ((speed > 0.0) & (speed <= allowed)).all():
        raise ValueError(
            f"velocity {speed.tolist()} rad/s: a {model} allows more than 0 and at most "
            f"{list(limits.velocity)} rad/s"
        )
    lower, upper = np.array(limits.q_lower), np.array(limits.q_upper)
    acceleration = np.array(limits.acceleration)
    if limits.velocity_offset is None or limits.deceleration is None:
        return lower, upper, speed, acceleration
    offset, deceleration = np.array(limits.velocity_offset), np.array(limits.deceleration)
    inset = offset * (2.0 * speed + offset) / (2.0 * deceleration)
    return lower + inset, upper - inset, speed, np.minimum(acceleration, deceleration)
