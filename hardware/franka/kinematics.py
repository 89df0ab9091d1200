"""Where a Franka arm's end effector is: forward kinematics and Jacobian of FR3 and FER, in floats.

Both arms have the same geometry, given by the FCI documentation as modified Denavit-Hartenberg
parameters (Craig): frame i is frame i-1, moved by a along its x axis and turned about it, then
turned by the joint's angle about the new z axis and moved by d along it. All turns are quarters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robot_stack.rotation import from_matrix

__all__ = ["HAND_TCP", "HOME", "Kinematics"]

Array = NDArray[np.float64]
Frame = list[float]
"""x, y and z axis and origin, three numbers each, in the base frame."""

# (quarter turns about x, a in m, d in m) of joints 1 to 7.
JOINTS = (
    (0, 0.0, 0.333),
    (-1, 0.0, 0.0),
    (1, 0.0, 0.316),
    (1, 0.0825, 0.0),
    (-1, -0.0825, 0.384),
    (1, 0.0, 0.0),
    (1, 0.088, 0.0),
)
FLANGE_M = 0.107

# From the flange to between the fingertips of a Franka hand, which is mounted 45 degrees back.
HAND_TCP = np.array(
    [
        [math.sqrt(0.5), math.sqrt(0.5), 0.0, 0.0],
        [-math.sqrt(0.5), math.sqrt(0.5), 0.0, 0.0],
        [0.0, 0.0, 1.0, 0.1034],
        [0.0, 0.0, 0.0, 1.0],
    ]
)

# Upright before the base, the hand pointing down: far from all joint limits and singularities.
HOME = (0.0, -math.pi / 4, 0.0, -3 * math.pi / 4, 0.0, math.pi / 2, math.pi / 4)


class Kinematics:
    """An arm whose end effector sits at ``F_T_EE`` (4, 4) from the flange.

    Joints ``q`` are seven angles in rad; further values (a gripper) are ignored. Positions are
    metres in the base frame, quaternions (w, x, y, z) with w >= 0. One call takes 10 to 20 us.
    """

    def __init__(self, F_T_EE: ArrayLike = HAND_TCP) -> None:
        transform = np.array(F_T_EE, dtype=np.float64)
        if transform.shape != (4, 4) or not np.allclose(transform[3], (0.0, 0.0, 0.0, 1.0)):
            raise ValueError(
                "F_T_EE is a homogeneous transform (4, 4) whose last row is 0 0 0 1, not\n"
                f"{transform}"
            )
        turn = transform[:3, :3]
        if not (np.allclose(turn @ turn.T, np.eye(3), atol=1e-6) and np.linalg.det(turn) > 0):
            raise ValueError(f"F_T_EE must turn without stretching or mirroring, not by\n{turn}")
        transform.setflags(write=False)
        self.F_T_EE: Array = transform
        self._turn: list[list[float]] = turn.tolist()
        x, y, z = transform[:3, 3].tolist()
        self._offset = (x, y, z + FLANGE_M)

    def position(self, q: Array) -> Array:
        """The end effector's position (3,): a ``robot_stack.safety.limits.ForwardKinematics``."""
        return np.array(self._tip(_chain(q.tolist())[-1]))

    def pose(self, q: Array) -> Array:
        """The end effector's pose (7,): x y z and the quaternion w x y z."""
        wrist = _chain(q.tolist())[-1]
        return np.array([*self._tip(wrist), *from_matrix(self._rows(wrist))])

    def transform(self, q: Array) -> Array:
        """O_T_EE, the end effector's pose as a homogeneous transform (4, 4)."""
        wrist = _chain(q.tolist())[-1]
        transform = np.eye(4)
        transform[:3, :3] = self._rows(wrist)
        transform[:3, 3] = self._tip(wrist)
        return transform

    def jacobian(self, q: Array) -> Array:
        """The geometric Jacobian (6, 7): linear (m) over angular (rad) velocity of the end
        effector, in the base frame, a column a joint."""
        return self.pose_and_jacobian(q.tolist())[1]

    def pose_and_jacobian(self, q: Sequence[float]) -> tuple[list[float], Array]:
        """Pose [x, y, z, w, x, y, z] and Jacobian (6, 7) of joints as floats, in one go."""
        frames = _chain(q)
        tip = self._tip(frames[-1])
        x, y, z = tip
        rows: list[list[float]] = [[], [], [], [], [], []]
        linear_x, linear_y, linear_z, angular_x, angular_y, angular_z = rows
        for frame in frames:
            _, _, _, _, _, _, zx, zy, zz, ox, oy, oz = frame
            dx, dy, dz = x - ox, y - oy, z - oz
            linear_x.append(zy * dz - zz * dy)
            linear_y.append(zz * dx - zx * dz)
            linear_z.append(zx * dy - zy * dx)
            angular_x.append(zx)
            angular_y.append(zy)
            angular_z.append(zz)
        return [*tip, *from_matrix(self._rows(frames[-1]))], np.array(rows)

    def _tip(self, wrist: Frame) -> tuple[float, float, float]:
        xx, xy, xz, yx, yy, yz, zx, zy, zz, ox, oy, oz = wrist
        a, b, c = self._offset
        return (
            ox + a * xx + b * yx + c * zx,
            oy + a * xy + b * yy + c * zy,
            oz + a * xz + b * yz + c * zz,
        )

    def _rows(self, wrist: Frame) -> list[list[float]]:
        """The end effector's rotation matrix."""
        (a, b, c), (d, e, f), (g, h, i) = self._turn
        rows = []
        for j in range(3):
            x, y, z = wrist[j], wrist[3 + j], wrist[6 + j]
            rows.append([x * a + y * d + z * g, x * b + y * e + z * h, x * c + y * f + z * i])
        return rows


def _chain(q: Sequence[float]) -> list[Frame]:
    """The frames of joints 1 to 7 at angles ``q``."""
    xx, xy, xz, yx, yy, yz, zx, zy, zz = 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0
    ox = oy = oz = 0.0
    frames = []
    # Not strict: a gripper's value may follow the arm's seven.
    for (quarters, a, d), angle in zip(JOINTS, q, strict=False):
        cosine, sine = math.cos(angle), math.sin(angle)
        if a:
            ox, oy, oz = ox + a * xx, oy + a * xy, oz + a * xz
        if quarters > 0:
            yx, yy, yz, zx, zy, zz = zx, zy, zz, -yx, -yy, -yz
        elif quarters < 0:
            yx, yy, yz, zx, zy, zz = -zx, -zy, -zz, yx, yy, yz
        xx, xy, xz, yx, yy, yz = (
            cosine * xx + sine * yx,
            cosine * xy + sine * yy,
            cosine * xz + sine * yz,
            cosine * yx - sine * xx,
            cosine * yy - sine * xy,
            cosine * yz - sine * xz,
        )
        if d:
            ox, oy, oz = ox + d * zx, oy + d * zy, oz + d * zz
        frames.append([xx, xy, xz, yx, yy, yz, zx, zy, zz, ox, oy, oz])
    return frames
