"""Limits on poses rather than on joints: how much of a motion is free, and a Cartesian box."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Clearance", "ForwardKinematics", "WorkspaceBox", "free_fraction"]

Array = NDArray[np.float64]

Clearance = Callable[[Array, Array], float]
"""``clearance(held, ahead) -> fraction``: how much of a step is free, 0 (brake) to 1 (go).

``held`` (dof,) is what was last sent; ``ahead`` (dof,) is where the step leads: the next pose, or
one on the way from there to rest if the robot then braked as hard as it may. The least fraction
counts. Looking as far as the pose of rest leaves room for braking, whatever the speed.
"""

ForwardKinematics = Callable[[Array], Array]
"""``position(q) -> (3,)``: the end effector in metres in the base frame, of joints ``q`` (dof,)."""


def free_fraction(ahead: float, held: float, stop: float, slow: float) -> float:
    """How much of a step is free, by the distance to an obstacle ahead and now, both in metres.

    All of it beyond ``slow``, none of it nearer than ``stop``, a linear ramp between; and all of
    it when the distance does not shrink, so that a robot that is too near can always get away.
    """
    if ahead >= slow or ahead >= held:
        return 1.0
    return max(0.0, (ahead - stop) / (slow - stop))


class WorkspaceBox:
    """Keeps the end effector in an axis-aligned box: slows within ``slow_m`` of a face, then stops.

    ``lower`` and ``upper`` (3,) are metres in the base frame, infinite where open: a table plane
    is a box whose only finite face is ``lower[2]``. Outside, only motion that does not go farther
    out is free. A :data:`Clearance`.
    """

    def __init__(
        self,
        position: ForwardKinematics,
        lower: Sequence[float],
        upper: Sequence[float],
        slow_m: float = 0.03,
    ) -> None:
        if len(lower) != 3 or len(upper) != 3:
            raise ValueError("a workspace box has three lower and three upper bounds (x, y, z)")
        if not all(low < high for low, high in zip(lower, upper, strict=True)):
            raise ValueError(f"workspace lower {tuple(lower)} must be below upper {tuple(upper)}")
        if not slow_m > 0:
            raise ValueError(f"slow_m is {slow_m}; it must be a positive distance in metres")
        self._position = position
        self._lower = tuple(float(value) for value in lower)
        self._upper = tuple(float(value) for value in upper)
        self._slow_m = float(slow_m)

    def distance(self, joints: Array) -> float:
        """Metres from the end effector to the nearest face: positive inside, negative outside."""
        point: list[float] = self._position(joints).tolist()
        return min(
            min(value - low, high - value)
            for value, low, high in zip(point, self._lower, self._upper, strict=True)
        )

    def __call__(self, held: Array, ahead: Array) -> float:
        distance = self.distance(ahead)
        if distance >= self._slow_m:
            return 1.0
        if math.isnan(distance):
            return 0.0
        return free_fraction(distance, self.distance(held), 0.0, self._slow_m)
