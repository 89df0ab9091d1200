"""A Panda (FER) through panda-python (libfranka 0.9.2, server version 5), and its controllers.

Every controller is panda-python's own torque controller, in its C++ thread at 1 kHz:

``joint_impedance``      ``JointPosition``: tau = K (q_ref - q) - D dq + Coriolis
``cartesian_impedance``  ``CartesianImpedance`` at the end effector's pose of the reference, with
                         the reference's joints as its null space

**References that grow old.** These controllers have no watchdog and keep what they were given. No
reference velocity is ever given to them: if this process stops, the point that is tracked stands
still, so the arm decelerates onto it and holds. The price is a lag of D/K behind a moving
reference. (panda-python's torques and velocities would go on for ever: they are not offered.)
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import panda_py
from numpy.typing import NDArray
from panda_py import controllers, libfranka

from hardware.franka.backend import Mode, Reading, connection_error
from hardware.franka.configuration import FrankaConfig
from hardware.franka.fci import ERROR_NAMES
from hardware.franka.kinematics import Kinematics
from robot_stack.errors import DeviceError
from robot_stack.rotation import from_matrix

__all__ = ["PandaBackend"]

Array = NDArray[np.float64]

REST_RAD_S = 0.02
NULL_SPACE_STIFFNESS = 15.0
MODES = {
    libfranka.RobotMode.kOther: Mode.OTHER,
    libfranka.RobotMode.kIdle: Mode.IDLE,
    libfranka.RobotMode.kMove: Mode.MOVE,
    libfranka.RobotMode.kGuiding: Mode.GUIDING,
    libfranka.RobotMode.kReflex: Mode.REFLEX,
    libfranka.RobotMode.kUserStopped: Mode.USER_STOPPED,
    libfranka.RobotMode.kAutomaticErrorRecovery: Mode.RECOVERY,
}


class PandaBackend:
    """``backend.Backend`` on panda-python; see the module for what stands behind each call."""

    def __init__(self, config: FrankaConfig) -> None:
        self.config = config
        self._panda: Any = None
        self._controller: Any = None
        self._kinematics = Kinematics(config.F_T_EE)
        self._stiffness = np.array(config.gains)
        if config.damping is not None:
            self._damping = np.array(config.damping)
        else:
            self._damping = 2.0 * np.sqrt(self._stiffness)
        self._reference: Array | None = None
        self._resting = False
        self._ended_by: tuple[str, ...] = ()
        self._configured = False

    # -- connection --------------------------------------------------------------------------

    def open(self) -> None:
        enforce = self.config.realtime == "enforce"
        realtime = (
            libfranka.RealtimeConfig.kEnforce if enforce else libfranka.RealtimeConfig.kIgnore
        )
        try:
            self._panda = panda_py.Panda(self.config.address, realtime_config=realtime)
        except RuntimeError as error:
            raise connection_error(self.config.address, error) from error
        try:
            self._configured = False
            state = self._panda.get_state()
            if MODES[state.robot_mode] in (Mode.IDLE, Mode.MOVE):
                self._apply_settings()
        except RuntimeError as error:
            self.close()
            raise DeviceError(
                f"the robot at {self.config.address} refused a setting: {error}"
            ) from error

    def _apply_settings(self) -> None:
        """In a robot that is guided, locked or stopped they wait until it is idle (``read``)."""
        self._configured = True
        robot, config = self._panda.get_robot(), self.config
        limits = config.collision
        robot.set_collision_behavior(
            list(limits.lower_torque),
            list(limits.upper_torque),
            list(limits.lower_force),
            list(limits.upper_force),
        )
        robot.set_load(config.load.mass, list(config.load.com), list(config.load.inertia))
        # Where Desk's hand ends is not told by panda-python; with nothing beyond it, F_T_EE is it.
        robot.set_ee(np.eye(4).ravel().tolist())
        self._panda.refresh_state()
        nominal = np.reshape(self._panda.get_state().F_T_EE, (4, 4)).T
        robot.set_ee((np.linalg.inv(nominal) @ config.F_T_EE).T.ravel().tolist())

    def close(self) -> None:
        panda, self._panda = self._panda, None
        moving, self._controller = self._controller is not None, None
        self._reference = None
        self._resting = False
        if panda is None:
            return
        try:
            if moving:
                panda.stop_controller()
            panda.refresh_state()
        except RuntimeError:
            # Its destructor asks for a state, and ends the process when none comes: let it be.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(panda))

    # -- state -------------------------------------------------------------------------------

    @property
    def tracking(self) -> bool:
        return self._controller is not None

    @property
    def reference(self) -> Array | None:
        return self._reference

    def read(self) -> Reading:
        panda = self._panda
        if panda is None:
            raise DeviceError(f"not connected to the robot at {self.config.address}")
        try:
            if self._controller is not None:
                self._notice_end()
            state = panda.get_state()
            mode = MODES[state.robot_mode]
            if mode is Mode.IDLE and not self._configured:
                self._apply_settings()
        except RuntimeError as error:
            raise DeviceError(f"robot at {self.config.address}: {error}") from error
        errors = _names(state.current_errors)
        if not errors and mode is Mode.REFLEX:
            errors = _names(state.last_motion_errors) or self._ended_by or ("without a name",)
        errors = errors or self._ended_by
        dq = np.array(state.dq)
        if self._resting and self._controller is not None and np.abs(dq).max() < REST_RAD_S:
            self._stop()
        pose = np.reshape(state.O_T_EE, (4, 4)).T
        moving = self._controller is not None
        return Reading(
            robot_ms=int(state.time.to_msec()),
            q=np.array(state.q),
            dq=dq,
            tau=np.array(state.tau_J),
            q_d=np.array(state.q_d),
            pose=np.array([*pose[:3, 3].tolist(), *from_matrix(pose[:3, :3].tolist())]),
            mode=mode,
            errors=errors,
            success_rate=float(state.control_command_success_rate) if moving else math.nan,
        )

    def _notice_end(self) -> None:
        """A controller that an error has ended still counts as running: only the error tells."""
        try:
            self._panda.raise_error()
        except RuntimeError as error:
            self._stop()  # from here on states are read again
            text = str(error)
            if "UDP" in text or "TCP" in text:
                raise
            named = tuple(name for name in ERROR_NAMES if name in text)
            self._ended_by = named or (f"motion ended: {text}",)

    # -- motion ------------------------------------------------------------------------------

    def start(self, reading: Reading) -> None:
        self._ended_by = ()
        self._controller = self._make()
        try:
            self._panda.start_controller(self._controller)
        except RuntimeError as error:
            self._controller = None
            raise DeviceError(f"robot at {self.config.address}: {error}") from error
        self._resting = False
        self.follow(reading.q, np.zeros(7), reading)

    def _make(self) -> Any:
        if self.config.controller == "cartesian_impedance":
            ratio = np.mean(self._damping / (2.0 * np.sqrt(self._stiffness)))
            return controllers.CartesianImpedance(
                np.diag(self._stiffness), float(ratio), NULL_SPACE_STIFFNESS, 1.0
            )
        return controllers.JointPosition(self._stiffness, self._damping, 1.0)

    def follow(self, q: Array, dq: Array, reading: Reading) -> None:
        controller = self._controller
        self._reference = np.array(q)
        if isinstance(controller, controllers.CartesianImpedance):
            x, y, z, qw, qx, qy, qz = self._kinematics.pose(q)
            controller.set_control(np.array([x, y, z]), np.array([qx, qy, qz, qw]), q)
        else:
            controller.set_control(q, np.zeros(7))

    def come_to_rest(self) -> None:
        """The point that is tracked stands already; the controller ends when the arm does."""
        self._resting = True

    def _stop(self) -> None:
        self._controller = self._reference = None
        self._resting = False
        try:
            self._panda.stop_controller()
        except RuntimeError as error:
            raise DeviceError(f"robot at {self.config.address}: {error}") from error

    def recover(self) -> None:
        panda = self._panda
        try:
            panda.refresh_state()
            state = panda.get_state()
            if MODES[state.robot_mode] is Mode.REFLEX:
                panda.recover()
                panda.refresh_state()
                state = panda.get_state()
            if MODES[state.robot_mode] is Mode.IDLE:
                self._apply_settings()
        except RuntimeError as error:
            raise DeviceError(f"automatic error recovery: {error}") from error
        self._ended_by = ()
        if left := _names(state.current_errors):
            raise DeviceError(f"automatic error recovery left {', '.join(left)}")


def _names(errors: Any) -> tuple[str, ...]:
    """The names of the errors that are set, by libfranka's order."""
    return tuple(name for name in ERROR_NAMES if getattr(errors, name, False))
