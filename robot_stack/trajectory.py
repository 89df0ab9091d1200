"""Minimum-jerk moves between two poses (Flash and Hogan, 1985): from rest to rest, smoothly.

Velocity and acceleration are zero at both ends. The peak velocity is 15/8 of distance over time,
the peak acceleration 10/sqrt(3) of distance over time squared.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["PEAK_ACCELERATION", "PEAK_VELOCITY", "minimum_jerk", "shortest_seconds"]

Array = NDArray[np.float64]

PEAK_VELOCITY = 15.0 / 8.0
PEAK_ACCELERATION = 10.0 / math.sqrt(3.0)


def minimum_jerk(start: Array, goal: Array, duration_s: float, dt_s: float) -> Array:
    """Targets (H, D) at dt, 2 dt, ... from ``start`` (not included) to ``goal`` (the last row)."""
    start, goal = np.asarray(start, dtype=np.float64), np.asarray(goal, dtype=np.float64)
    if start.shape != goal.shape or not (np.isfinite(start).all() and np.isfinite(goal).all()):
        raise ValueError(f"minimum_jerk: start {start} and goal {goal} must be finite and alike")
    if not (dt_s > 0 and math.isfinite(duration_s)):
        raise ValueError(f"minimum_jerk: duration {duration_s} s in steps of {dt_s} s")
    steps = max(1, math.ceil(duration_s / dt_s - 1e-9))
    s = np.arange(1, steps + 1) / steps
    blend = s**3 * (10.0 - 15.0 * s + 6.0 * s**2)
    path: Array = start + blend[:, None] * (goal - start)
    path[-1] = goal
    return path


def shortest_seconds(start: Array, goal: Array, velocity: Array, acceleration: Array) -> float:
    """The least time in which a minimum-jerk move (D,) keeps every entry's velocity and
    acceleration limit (D,)."""
    distance = np.abs(np.asarray(goal) - np.asarray(start))
    by_velocity = PEAK_VELOCITY * distance / velocity
    by_acceleration = np.sqrt(PEAK_ACCELERATION * distance / acceleration)
    return float(max(by_velocity.max(), by_acceleration.max()))
