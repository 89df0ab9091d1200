"""What a virtual arm's state tells of its body, its set point and its settings."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hardware.franka.fci import StateBuffer
from hardware.franka.limits import ELBOW_FLIP
from hardware.franka.virtual.body import Body
from hardware.franka.virtual.generators import MotionGenerator, Pose, Setpoint, Twist
from hardware.franka.virtual.servo import PoseFollower
from hardware.franka.virtual.settings import Settings

__all__ = ["Measured", "Report"]

Array = NDArray[np.float64]

STEP_S = 0.001
GRAVITY = (0.0, 0.0, -9.81)


class Measured(NamedTuple):
    """The sensors after a millisecond: joints (7,), external torques (7,) and wrench (6,), the
    end effector's pose (4, 4) and where it should be, SI units in the base frame."""

    q: Array
    dq: Array
    tau_ext: Array
    wrench: Array
    pose: Array
    desired: Array


class Report:
    """Fills the numbers of one arm's state in place."""

    def __init__(
        self, state: StateBuffer, body: Body, settings: Settings, kinematics: PoseFollower
    ) -> None:
        self._state, self._body, self._settings = state, body, settings
        self._kinematics = kinematics
        self._tau_J: Array = body.tau_J
        state["O_ddP_O"][:] = GRAVITY

    def configure(self) -> None:
        """Settings have changed: show them, and tell the body its load."""
        settings, state, body = self._settings, self._state, self._body
        for name in ("F_T_EE", "F_T_NE", "NE_T_EE", "EE_T_K"):
            state[name][:] = getattr(settings, name).T.ravel()
        state["m_ee"][:] = settings.hand_mass
        state["F_x_Cee"][:] = settings.hand_com
        state["I_ee"][:] = settings.hand_inertia.T.ravel()
        state["m_load"][:] = settings.load_mass
        state["F_x_Cload"][:] = settings.load_com
        state["I_load"][:] = settings.load_inertia.T.ravel()
        body.set_load(settings.load_mass, settings.load_com, settings.load_inertia)
        body.F_T_K = settings.F_T_EE @ settings.EE_T_K

    def measure(self, point: Setpoint) -> Measured:
        """Read the sensors."""
        body, frame = self._body, self._settings.F_T_EE
        return Measured(
            body.q, body.dq, body.tau_ext, body.O_F_ext,
            body.forward(frame), self._kinematics.pose(point.q, frame),
        )  # fmt: skip

    def fill(
        self,
        seen: Measured,
        point: Setpoint,
        torque: Array,
        generator: MotionGenerator | None,
    ) -> None:
        """Numbers of the state, with the torques (7,) Nm that were asked of the joints and the
        motion's generator."""
        state, settings = self._state, self._settings
        state["O_T_EE"][:] = seen.pose.T.ravel()
        state["O_T_EE_d"][:] = seen.desired.T.ravel()
        state["q"][:] = state["theta"][:] = seen.q
        state["dq"][:] = state["dtheta"][:] = seen.dq
        state["q_d"][:], state["dq_d"][:], state["ddq_d"][:] = point.q, point.dq, point.ddq
        tau_J = self._body.tau_J
        state["dtau_J"][:] = (tau_J - self._tau_J) / STEP_S
        state["tau_J"][:] = self._tau_J = tau_J
        state["tau_J_d"][:] = torque
        state["tau_ext_hat_filtered"][:] = seen.tau_ext
        state["O_F_ext_hat_K"][:] = seen.wrench
        turn = seen.pose[:3, :3] @ settings.EE_T_K[:3, :3]
        state["K_F_ext_hat_K"][:3] = seen.wrench[:3] @ turn
        state["K_F_ext_hat_K"][3:] = seen.wrench[3:] @ turn
        force, push = np.abs(seen.tau_ext), np.abs(seen.wrench)
        state["joint_contact"][:] = force > settings.torque[2]
        state["joint_collision"][:] = force > settings.torque[3]
        state["cartesian_contact"][:] = push > settings.force[2]
        state["cartesian_collision"][:] = push > settings.force[3]
        state["elbow"][:] = _elbow(seen.q)
        state["elbow_d"][:] = state["elbow_c"][:] = _elbow(point.q)
        if isinstance(generator, Pose | Twist):
            state["O_T_EE_c"][:] = generator.pose.T.ravel()
            state["O_dP_EE_d"][:] = state["O_dP_EE_c"][:] = generator.twist
            state["O_ddP_EE_c"][:] = generator.acceleration
            state["delbow_c"][0] = point.dq[2]
            state["ddelbow_c"][0] = point.ddq[2]
        else:
            state["O_T_EE_c"][:] = state["O_T_EE_d"]
            state["O_dP_EE_d"][:] = state["O_dP_EE_c"][:] = state["O_ddP_EE_c"][:] = 0.0
            state["delbow_c"][0] = state["ddelbow_c"][0] = 0.0


def _elbow(q: Array) -> tuple[float, float]:
    """Joint 3 (rad), and on which side of the stretched arm joint 4 is."""
    return float(q[2]), 1.0 if q[3] > ELBOW_FLIP else -1.0
