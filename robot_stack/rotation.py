"""Rotations as unit quaternions (w, x, y, z), in plain floats: for loops that have microseconds.

``q`` and ``-q`` are the same rotation. Where two are compared or joined, the sign is chosen so
that the way between them is the short one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "IDENTITY",
    "Quaternion",
    "between",
    "from_matrix",
    "from_vector",
    "multiply",
    "normalized",
    "pose_of",
    "to_matrix",
    "to_vector",
]

Quaternion = tuple[float, float, float, float]
Vector = tuple[float, float, float]

IDENTITY: Quaternion = (1.0, 0.0, 0.0, 0.0)
# Below this half angle (rad), sin(x) / x is 1 to the last bit.
TINY = 1e-9


def normalized(q: Sequence[float]) -> Quaternion:
    """``q`` at length one; ValueError when it has none to speak of, or is not finite."""
    w, x, y, z = q
    length = math.hypot(w, x, y, z)
    if not 1e-9 < length < math.inf:
        raise ValueError(f"({w:g}, {x:g}, {y:g}, {z:g}) is no rotation: a quaternion has length 1")
    return w / length, x / length, y / length, z / length


def multiply(a: Sequence[float], b: Sequence[float]) -> Quaternion:
    """The rotation ``b`` followed by ``a``."""
    aw, ax, ay, az = a
    bw, bx, by, bz = b
    return (
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    )


def to_vector(q: Sequence[float]) -> Vector:
    """Axis times angle (rad, up to pi: the short way round) of a unit quaternion."""
    w, x, y, z = q
    if w < 0.0:
        w, x, y, z = -w, -x, -y, -z
    sine = math.sqrt(x * x + y * y + z * z)
    scale = 2.0 if sine < TINY else 2.0 * math.atan2(sine, w) / sine
    return x * scale, y * scale, z * scale


def from_vector(vector: Sequence[float]) -> Quaternion:
    """The unit quaternion of axis times angle (rad)."""
    x, y, z = vector
    half = 0.5 * math.sqrt(x * x + y * y + z * z)
    scale = 0.5 if half < TINY else 0.5 * math.sin(half) / half
    return math.cos(half), x * scale, y * scale, z * scale


def between(a: Sequence[float], b: Sequence[float]) -> Vector:
    """Axis times angle (rad), in the frame that both are told in, that turns ``a`` into ``b`` the
    short way round."""
    w, x, y, z = a
    return to_vector(multiply(b, (w, -x, -y, -z)))


def from_matrix(matrix: Sequence[Sequence[float]]) -> Quaternion:
    """The unit quaternion, w >= 0, of a rotation matrix (rows); numerically sound for all angles
    (Shepperd 1978)."""
    (a, b, c), (d, e, f), (g, h, i) = matrix
    trace = a + e + i
    if trace >= a and trace >= e and trace >= i:
        w, x, y, z = 1.0 + trace, h - f, c - g, d - b
    elif a >= e and a >= i:
        w, x, y, z = h - f, 1.0 + a - e - i, b + d, c + g
    elif e >= i:
        w, x, y, z = c - g, b + d, 1.0 - a + e - i, f + h
    else:
        w, x, y, z = d - b, c + g, f + h, 1.0 - a - e + i
    scale = math.copysign(1.0, w) / math.sqrt(w * w + x * x + y * y + z * z)
    return w * scale, x * scale, y * scale, z * scale


def to_matrix(q: Sequence[float]) -> tuple[Vector, Vector, Vector]:
    """The rows of the rotation matrix of a unit quaternion."""
    w, x, y, z = q
    return (
        (1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y)),
        (2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x)),
        (2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y)),
    )


def pose_of(transform: NDArray[np.float64]) -> NDArray[np.float64]:
    """Position and quaternion (7,) x y z w x y z of a homogeneous transform (4, 4)."""
    rows = transform.tolist()
    quaternion = from_matrix([row[:3] for row in rows[:3]])
    return np.array([rows[0][3], rows[1][3], rows[2][3], *quaternion])
