"""A closed solution of the Franka arm's inverse kinematics, for comparison: up to eight for one q7.

The way of He and Liu (2021, "Analytical Inverse Kinematics for Franka Emika Panda"), worked out
anew: with q7 given, the wrist's place and the axes of joint 6 are known. The distance from shoulder
to wrist gives q4, the elbow's plane q6, and the rest follows. The seventh freedom is a
scan over q7.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["nearest", "solutions"]

Array = NDArray[np.float64]
Vector = tuple[float, float, float]

SHOULDER_M, UPPER_M, LOWER_M, ELBOW_M, WRIST_M, FLANGE_M = 0.333, 0.316, 0.384, 0.0825, 0.088, 0.107
UPPER_ARM = math.hypot(UPPER_M, ELBOW_M)
LOWER_ARM = math.hypot(LOWER_M, ELBOW_M)
# The angle at the elbow when q4 is zero.
STRAIGHT = math.atan2(UPPER_M, ELBOW_M) + math.atan2(LOWER_M, ELBOW_M)
TINY = 1e-9


def solutions(flange: Array, q7: float) -> Iterator[list[float]]:
    """Joints (7) in (-pi, 2 pi) that bring the flange (4, 4) there with ``q7``, limits ignored."""
    rows = flange.tolist()
    x7, y7, z7, p = (tuple(row[i] for row in rows[:3]) for i in range(4))
    cosine, sine = math.cos(q7), math.sin(q7)
    x6 = _sum(cosine, x7, -sine, y7)
    y6 = (-z7[0], -z7[1], -z7[2])
    z6 = _sum(sine, x7, cosine, y7)
    wx, wy, wz = _sum(1.0, _sum(1.0, p, -FLANGE_M, z7), -WRIST_M, x6)
    way = (wx, wy, wz - SHOULDER_M)
    square = _dot(way, way)
    cos_elbow = (UPPER_ARM**2 + LOWER_ARM**2 - square) / (2.0 * UPPER_ARM * LOWER_ARM)
    if not -1.0 <= cos_elbow <= 1.0:
        return
    angle = math.acos(cos_elbow)
    for q4 in (angle + STRAIGHT - 2.0 * math.pi, STRAIGHT - angle):
        c4, s4 = math.cos(q4), math.sin(q4)
        along_x = UPPER_M * s4 + ELBOW_M * c4 - ELBOW_M
        along_y = UPPER_M * c4 - ELBOW_M * s4 + LOWER_M
        a, b = _dot(way, x6), _dot(way, y6)
        reach = math.hypot(a, b)
        if reach < TINY or abs(along_y) > reach or abs(along_x) < TINY:
            continue
        middle, half = math.atan2(a, b), math.acos(along_y / reach)
        for q6 in (middle + half, middle - half):
            c6, s6 = math.cos(q6), math.sin(q6)
            y4 = _sum(s6, x6, c6, y6)
            x4 = _sum(1.0 / along_x, way, -along_y / along_x, y4)
            z4 = _cross(x4, y4)
            q5 = math.atan2(-_dot(z4, _sum(c6, x6, -s6, y6)), _dot(z4, z6))
            x3 = _sum(c4, x4, -s4, y4)
            z3 = _sum(s4, x4, c4, y4)
            sin2 = math.hypot(z3[0], z3[1])
            for sign in (1.0, -1.0):
                yield [
                    math.atan2(sign * z3[1], sign * z3[0]),
                    math.atan2(sign * sin2, z3[2]),
                    math.atan2(-sign * z4[2], -sign * x3[2]),
                    q4,
                    q5,
                    q6 % (2.0 * math.pi),
                    q7,
                ]


def nearest(
    flange: Array,
    q_ref: Array,
    lower: Sequence[float],
    upper: Sequence[float],
    scan: Sequence[float],
) -> list[float] | None:
    """The solution within the limits that is nearest to ``q_ref``, of those at each q7 of ``scan``;
    None when there is none."""
    reference = q_ref.tolist()
    best, least = None, math.inf
    for q7 in scan:
        for q in solutions(flange, q7):
            if all(low <= v <= high for low, v, high in zip(lower, q, upper, strict=True)):
                away = max(abs(v - r) for v, r in zip(q, reference, strict=True))
                if away < least:
                    best, least = q, away
    return best


def _sum(a: float, u: Sequence[float], b: float, v: Sequence[float]) -> Vector:
    return a * u[0] + b * v[0], a * u[1] + b * v[1], a * u[2] + b * v[2]


def _dot(u: Sequence[float], v: Sequence[float]) -> float:
    return u[0] * v[0] + u[1] * v[1] + u[2] * v[2]


def _cross(u: Sequence[float], v: Sequence[float]) -> Vector:
    return (
        u[1] * v[2] - u[2] * v[1],
        u[2] * v[0] - u[0] * v[2],
        u[0] * v[1] - u[1] * v[0],
    )
