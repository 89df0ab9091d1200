"""Unit quaternions (w, x, y, z) as plain tuples: a handful of products, too small for numpy."""

from __future__ import annotations

import math

__all__ = ["Quaternion", "Vector", "angle_between", "normalised", "product", "rotate", "turned"]

Quaternion = tuple[float, float, float, float]
Vector = tuple[float, float, float]


def normalised(q: Quaternion) -> Quaternion:
    """``q`` with length 1, its sign as it was; ValueError when it has no direction."""
    length = math.sqrt(sum(value * value for value in q))
    if not 1e-6 < length < math.inf:
        raise ValueError(f"{q} is no rotation")
    w, x, y, z = (value / length for value in q)
    return w, x, y, z


def product(a: Quaternion, b: Quaternion) -> Quaternion:
    """First turn by ``b``, then by ``a`` (about fixed axes)."""
    aw, ax, ay, az = a
    bw, bx, by, bz = b
    return (
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    )


def rotate(q: Quaternion, v: Vector) -> Vector:
    """``v`` turned by the unit quaternion ``q``."""
    w, x, y, z = q
    _, rx, ry, rz = product(product(q, (0.0, *v)), (w, -x, -y, -z))
    return rx, ry, rz


def turned(q: Quaternion, turn: Vector) -> Quaternion:
    """``q`` after a turn about fixed axes: direction and angle (rad) of the vector ``turn``."""
    angle = math.sqrt(sum(value * value for value in turn))
    if angle < 1e-12:
        return q
    share = math.sin(angle / 2) / angle
    x, y, z = turn
    return normalised(product((math.cos(angle / 2), x * share, y * share, z * share), q))


def angle_between(a: Quaternion, b: Quaternion) -> float:
    """The angle (rad, 0..pi) of the turn from ``a`` to ``b``."""
    w, x, y, z = product(a, (b[0], -b[1], -b[2], -b[3]))
    return 2.0 * math.atan2(math.sqrt(x * x + y * y + z * z), abs(w))
