"""The robot's own controllers: joint and Cartesian impedance, and desired poses as joints.

Gains follow the FCI's defaults (`setJointImpedance`, `setCartesianImpedance`); damping is critical
for the arm's inertia in the middle of its workspace, rotors included. Torques are limited to what
the motors have; gravity is the Body's business.
"""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import ArrayLike, NDArray

from hardware.franka.kinematics import HAND_TCP
from hardware.franka.limits import Model, limits_of
from hardware.franka.virtual.body import Body
from hardware.franka.virtual.scene import STEP_S, arm_scene

__all__ = [
    "CARTESIAN_STIFFNESS",
    "JOINT_STIFFNESS",
    "PoseFollower",
    "cartesian_impedance",
    "joint_impedance",
    "orientation_error",
]

Array = NDArray[np.float64]

JOINT_STIFFNESS = (3000.0, 3000.0, 3000.0, 2500.0, 2500.0, 2000.0, 2000.0)  # Nm/rad
CARTESIAN_STIFFNESS = (3000.0, 3000.0, 3000.0, 300.0, 300.0, 300.0)  # N/m, Nm/rad

_TORQUE = np.array(limits_of("fr3").torque)  # the FER's motors are as strong
# What a joint, or the end effector, feels of the arm's inertia near the home pose.
_JOINT_INERTIA = np.array([1.1, 1.2, 0.9, 0.7, 0.25, 0.2, 0.11])  # kg m2
_EE_INERTIA = np.array([5.0, 5.0, 5.0, 0.3, 0.3, 0.3])  # kg, kg m2
_NULL_STIFFNESS = 30.0  # Nm/rad, of the elbow's posture
_EYE7 = np.eye(7)
_DAMPING6 = 1e-6 * np.eye(6)


def joint_impedance(
    q_d: Array, dq_d: Array, body: Body, stiffness: ArrayLike = JOINT_STIFFNESS
) -> Array:
    """Torques (7,) Nm that pull towards ``q_d`` (7,) rad moving at ``dq_d`` (7,) rad/s, with
    ``stiffness`` (7,) Nm/rad."""
    gain = np.asarray(stiffness, dtype=np.float64)
    tau = gain * (q_d - body.q)
    tau += 2.0 * np.sqrt(gain * _JOINT_INERTIA) * (dq_d - body.dq)
    tau += body.coriolis()
    return _limited(tau)


def cartesian_impedance(
    O_T_EE_d: Array,
    twist_d: Array,
    q_null: Array,
    body: Body,
    stiffness: ArrayLike = CARTESIAN_STIFFNESS,
    F_T_EE: Array = HAND_TCP,
) -> Array:
    """Torques (7,) Nm that pull the end effector towards ``O_T_EE_d`` (4, 4) moving at
    ``twist_d`` (6,), with ``stiffness`` (6,) in the base frame; what is left free leans towards
    the posture ``q_null`` (7,)."""
    gain = np.asarray(stiffness, dtype=np.float64)
    here, jacobian, dq = body.forward(F_T_EE), body.jacobian(F_T_EE), body.dq
    error = np.empty(6)
    error[:3] = O_T_EE_d[:3, 3] - here[:3, 3]
    error[3:] = orientation_error(O_T_EE_d, here)
    wrench = gain * error
    wrench += 2.0 * np.sqrt(gain * _EE_INERTIA) * (twist_d - jacobian @ dq)
    posture = _NULL_STIFFNESS * (q_null - body.q) - 2.0 * np.sqrt(_NULL_STIFFNESS) * dq
    blocked = np.linalg.solve(jacobian @ jacobian.T + _DAMPING6, jacobian @ posture)
    tau: Array = jacobian.T @ (wrench - blocked) + posture + body.coriolis()
    return _limited(tau)


def orientation_error(desired: Array, actual: Array) -> Array:
    """Rotation vector (3,), rad in the base frame, from ``actual`` to ``desired`` (4, 4); exact
    for small angles, half a turn has none."""
    a, d = actual[:3, :3], desired[:3, :3]
    m = d @ a.T
    return 0.5 * np.array([m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]])


def _limited(tau: Array) -> Array:
    np.minimum(tau, _TORQUE, out=tau)
    np.maximum(tau, -_TORQUE, out=tau)
    return tau


class PoseFollower:
    """Desired joints for desired poses, by the Jacobian at the desired joints.

    Has kinematics of its own: the Body's stand at the measured joints, these at the desired.
    """

    def __init__(self, model: Model) -> None:
        compiled = arm_scene(model, visual=False).compile()
        self._body = Body(compiled, mujoco.MjData(compiled))
        self._at: Array | None = None

    def _place(self, q: ArrayLike) -> None:
        body = self._body
        joints = np.asarray(q, dtype=np.float64)
        if self._at is None or not np.array_equal(joints, self._at):
            self._at = joints.copy()
            body.data.qpos[:7] = joints
            mujoco.mj_kinematics(body.model, body.data)
            mujoco.mj_comPos(body.model, body.data)

    def pose(self, q: ArrayLike, F_T_EE: Array = HAND_TCP) -> Array:
        """O_T_EE (4, 4) at joints ``q`` (7,)."""
        self._place(q)
        return self._body.forward(F_T_EE)

    def jacobian(self, q: ArrayLike, F_T_EE: Array = HAND_TCP) -> Array:
        """(6, 7) at joints ``q``, base frame."""
        self._place(q)
        return self._body.jacobian(F_T_EE)

    def follow(
        self, q: Array, O_T_EE: Array, elbow: float | None = None, F_T_EE: Array = HAND_TCP
    ) -> Array:
        """Joints (7,) next to ``q`` that reach the pose ``O_T_EE`` (4, 4) of 1 ms later, and
        joint 3 at ``elbow`` rad where that is asked for. One Gauss-Newton step: the error of a
        pose 1 mm away is below 1e-6 m."""
        here = self.pose(q, F_T_EE)
        jacobian = self._body.jacobian(F_T_EE)
        change = np.empty(6)
        change[:3] = O_T_EE[:3, 3] - here[:3, 3]
        change[3:] = orientation_error(O_T_EE, here)
        there: Array = q + self.solve(jacobian, change, None if elbow is None else elbow - q[2])
        return there

    def follow_twist(
        self, q: Array, twist: ArrayLike, elbow: float | None = None, F_T_EE: Array = HAND_TCP
    ) -> Array:
        """Joints (7,) after 1 ms at the end effector's ``twist`` (6,), base frame."""
        jacobian = self.jacobian(q, F_T_EE)
        change = np.multiply(twist, STEP_S)
        there: Array = q + self.solve(jacobian, change, None if elbow is None else elbow - q[2])
        return there

    def solve(self, jacobian: Array, change: Array, elbow: float | None) -> Array:
        """Joint change (7,) for a change (6,) of the pose; the smallest one, or the one that
        turns joint 3 by ``elbow``."""
        gram = jacobian @ jacobian.T + _DAMPING6
        turn: Array = jacobian.T @ np.linalg.solve(gram, change)
        if elbow is None:
            return turn
        # The null space has one dimension: the projection of joint 3 on it.
        null = _EYE7[2] - jacobian.T @ np.linalg.solve(gram, jacobian[:, 2])
        if null[2] < 1e-6:
            return turn
        turn += null * ((elbow - turn[2]) / null[2])
        return turn
