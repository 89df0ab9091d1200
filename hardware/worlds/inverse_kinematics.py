"""Inverse kinematics of the vx300s arms in the ALOHA scene, and how far the arms sag."""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import NDArray

from hardware.worlds.aloha import ARM_JOINTS, LEFT, RIGHT, SIDES, load_model

__all__ = ["ArmKinematics", "both_arms", "rotation", "tool_rotation"]

Array = NDArray[np.float64]

DAMPING = 0.02
MAX_STEP_RAD = 0.2
# The shoulder's range leaves a little to the servo's own limits.
LIMIT_MARGIN_RAD = 0.01


def tool_rotation(pitch: float, roll: float) -> Array:
    """The turn (3, 3) of a gripper in its own frame: tipped down by ``pitch`` about y, then rolled
    about its own axis (rad)."""
    cy, sy = np.cos(pitch), np.sin(pitch)
    cx, sx = np.cos(roll), np.sin(roll)
    about_y = np.array([[cy, 0.0, sy], [0.0, 1.0, 0.0], [-sy, 0.0, cy]])
    about_x = np.array([[1.0, 0.0, 0.0], [0.0, cx, -sx], [0.0, sx, cx]])
    return np.asarray(about_y @ about_x)


def rotation(arm: int, pitch: float, roll: float = 0.0) -> Array:
    """World orientation (3, 3) of a gripper that points at the other arm, tipped down by ``pitch``
    and rolled about its own axis (rad)."""
    facing = np.diag([1.0, 1.0, 1.0]) if arm == LEFT else np.diag([-1.0, -1.0, 1.0])
    return np.asarray(facing @ tool_rotation(pitch, roll))


class ArmKinematics:
    """One arm of the cell: fingertip pose from joints, and joints from fingertip pose.

    Joints have shape (6,) in rad. The fingertip frame sits 14 cm before the wrist-rotate joint,
    x forward between the fingers, y the direction in which they open.
    """

    def __init__(self, arm: int, model: mujoco.MjModel) -> None:
        self.model = model
        self.data = mujoco.MjData(self.model)
        side = SIDES[arm]
        joints = [self.model.joint(f"vx300s_{side}/{name}") for name in ARM_JOINTS]
        self._q = [int(joint.qposadr[0]) for joint in joints]
        self._v = [int(joint.dofadr[0]) for joint in joints]
        self._site = self.model.site(f"{side}_grasp").id
        limits = np.array([joint.range for joint in joints])
        self.lower: Array = limits[:, 0] + LIMIT_MARGIN_RAD
        self.upper: Array = limits[:, 1] - LIMIT_MARGIN_RAD
        self._stiffness = self.model.actuator_gainprm[8 * arm : 8 * arm + 6, 0].copy()
        self._jacobian = np.zeros((6, self.model.nv))

    def forward(self, q: Array) -> tuple[Array, Array]:
        """World position (3,) in m and orientation (3, 3) of the fingertips."""
        self.data.qpos[self._q] = q
        mujoco.mj_kinematics(self.model, self.data)
        return (
            self.data.site_xpos[self._site].copy(),
            self.data.site_xmat[self._site].reshape(3, 3).copy(),
        )

    def solve(
        self, position: Array, orientation: Array, start: Array, *, iterations: int = 60
    ) -> tuple[Array, float]:
        """Joints (6,) that bring the fingertips to the pose, and the error left there.

        Damped least squares (Wampler 1986) from ``start``, clamped to the joint limits. The error
        is metres plus radians / 10; it is above 0.01 where the pose is out of reach.
        """
        q = np.clip(start, self.lower, self.upper)
        best, best_error = q, np.inf
        for _ in range(iterations):
            at, frame = self.forward(q)
            twist = np.zeros(6)
            twist[:3] = position - at
            relative = orientation @ frame.T
            twist[3:] = _rotation_vector(relative)
            error = float(np.linalg.norm(twist[:3]) + 0.1 * np.linalg.norm(twist[3:]))
            if error < best_error:
                best, best_error = q, error
            if error < 1e-4:
                break
            mujoco.mj_comPos(self.model, self.data)
            mujoco.mj_jacSite(
                self.model, self.data, self._jacobian[:3], self._jacobian[3:], self._site
            )
            jacobian = self._jacobian[:, self._v]
            step = jacobian.T @ np.linalg.solve(
                jacobian @ jacobian.T + DAMPING**2 * np.eye(6), twist
            )
            largest = float(np.abs(step).max())
            q = np.clip(q + step * min(1.0, MAX_STEP_RAD / largest), self.lower, self.upper)
        return best, best_error

    def sag(self, q: Array) -> Array:
        """How far (6,) rad the servos give way under the arm's weight when they aim at ``q``."""
        self.forward(q)
        mujoco.mj_comPos(self.model, self.data)
        force = np.zeros(self.model.nv)
        mujoco.mj_rne(self.model, self.data, 0, force)
        return np.asarray(force[self._v] / self._stiffness)


def both_arms() -> tuple[ArmKinematics, ArmKinematics]:
    """The left and the right arm of one cell."""
    model = load_model()
    return ArmKinematics(LEFT, model), ArmKinematics(RIGHT, model)


def _rotation_vector(matrix: Array) -> Array:
    quaternion, vector = np.zeros(4), np.zeros(3)
    mujoco.mju_mat2Quat(quaternion, matrix.ravel())
    mujoco.mju_quat2Vel(vector, quaternion, 1.0)
    return vector
