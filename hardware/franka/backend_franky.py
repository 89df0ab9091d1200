"""An FR3 through franky-control (libfranka 0.21, server version 10): how each controller is served.

Every controller runs in franky's C++ thread at 1 kHz; the arm process only moves what it tracks.

``joint_impedance``      franky's joint impedance tracker: tau = K (q_ref - q) + D (dq_ref - dq) +
                         Coriolis, torque steps limited to what the robot allows
``cartesian_impedance``  the same tracker with K = K_joint + J^T K_x J (likewise D): stiff at the
                         end effector, soft in the elbow, which still follows the reference. (The
                         library's Cartesian tracker proper holds the elbow where it started)
``joint_position``       the robot's own joint controller; franky's Ruckig plans a jerk-limited way
                         to each target that ends there at rest, and libfranka's rate limiter takes
                         away the steps where one way goes over into the next
``torque``               K (q_ref - q) + D (dq_ref - dq) computed in the arm process at its own
                         rate and sent as torque: soft, for comparisons and for laws of one's own

**References that grow old.** A tracker keeps its last reference for ever. If this process stops
(a stall, a swap-in, a debugger), nothing here can act, so the rule stands in the C++ thread: each
torque motion carries a reaction that fires ``WATCHDOG_S`` after the motion began and ramps its
torque into pure damping, until the arm stands and the robot holds it. Motions are renewed, with
the same gains and without a seam, every ``RENEW_S`` while references come. ``joint_position``
plans every way to an end at rest. After a stall the arm therefore stands or decelerates, and the
driver begins anew where it is.

Reactions need no Python: nothing here runs in the library's thread.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, Protocol

import franky
import numpy as np
from numpy.typing import NDArray

from hardware.franka.backend import Mode, Reading, connection_error
from hardware.franka.configuration import POSTURE_STIFFNESS, TORQUE_DAMPING, FrankaConfig
from hardware.franka.fci import ERROR_NAMES
from hardware.franka.limits import limits_of
from hardware.franka.limits_check import check_limits
from robot_stack.errors import DeviceError

__all__ = ["FrankyBackend"]

Array = NDArray[np.float64]

WATCHDOG_S = 0.1
RENEW_S = 0.025
# Of 1 Nm that the robot allows a millisecond; its own last torque is told in single precision.
TORQUE_STEP = 0.95
STOP_RAMP_S = 0.1
JOIN_S = 2.5  # franky gives up coming to rest after 2 s
# Of the model's jerk limits, for Ruckig: 1.0 would leave no room for a lost packet.
JERK_SHARE = 0.5
LIBRARY_ERRORS = (
    franky.Exception,  # libfranka's own
    franky.InvalidMotionTypeException,
    franky.MotionReuseException,
    franky.ReactionRecursionException,
    RuntimeError,
)
MODES = {
    franky.RobotMode.Other: Mode.OTHER,
    franky.RobotMode.Idle: Mode.IDLE,
    franky.RobotMode.Move: Mode.MOVE,
    franky.RobotMode.Guiding: Mode.GUIDING,
    franky.RobotMode.Reflex: Mode.REFLEX,
    franky.RobotMode.UserStopped: Mode.USER_STOPPED,
    franky.RobotMode.AutomaticErrorRecovery: Mode.RECOVERY,
}


class _Tracker(Protocol):
    """One controller's motions: ``begin`` makes the first, ``follow`` moves what is tracked."""

    def begin(self, robot: Any, reading: Reading) -> None: ...

    def follow(self, robot: Any, q: Array, dq: Array, reading: Reading) -> None: ...

    def rest(self, robot: Any) -> None: ...


class _TorqueTracker:
    """Torque motions that are renewed, each with a reaction that brings the arm to rest."""

    def __init__(self, config: FrankaConfig) -> None:
        self.config = config
        self._motion: Any = None
        self._renew_s = 0.0

    def make(self, q: Array, dq: Array, reading: Reading) -> Any:
        raise NotImplementedError

    def move(self, motion: Any, q: Array, dq: Array, reading: Reading) -> None:
        raise NotImplementedError

    def begin(self, robot: Any, reading: Reading) -> None:
        self._renew(robot, reading.q, np.zeros(7), reading)

    def follow(self, robot: Any, q: Array, dq: Array, reading: Reading) -> None:
        if time.monotonic() >= self._renew_s:
            self._renew(robot, q, dq, reading)
        else:
            self.move(self._motion, q, dq, reading)

    def _renew(self, robot: Any, q: Array, dq: Array, reading: Reading) -> None:
        self._renew_s = time.monotonic() + RENEW_S
        motion = self.make(q, dq, reading)
        self.move(motion, q, dq, reading)
        motion.add_reaction(
            franky.TorqueReaction(franky.Measure.REL_TIME > WATCHDOG_S, _torque_stop())
        )
        robot.move(motion, asynchronous=True)
        self._motion = motion

    def rest(self, robot: Any) -> None:
        robot.move(_torque_stop(), asynchronous=True)


def _torque_stop() -> Any:
    return franky.TorqueStopMotion(ramp_duration=STOP_RAMP_S, max_delta_tau=TORQUE_STEP)


class _JointImpedance(_TorqueTracker):
    def make(self, q: Array, dq: Array, reading: Reading) -> Any:
        return franky.JointImpedanceTrackingMotion(
            stiffness=np.array(self.config.gains),
            damping=_array(self.config.damping),
            max_delta_tau=TORQUE_STEP,
        )

    def move(self, motion: Any, q: Array, dq: Array, reading: Reading) -> None:
        motion.set_reference(franky.JointReference(q=q, dq=dq))


class _CartesianImpedance(_JointImpedance):
    def make(self, q: Array, dq: Array, reading: Reading) -> Any:
        return franky.JointImpedanceTrackingMotion(
            stiffness=np.array(POSTURE_STIFFNESS),
            cartesian_stiffness=np.array(self.config.gains),
            cartesian_damping=_array(self.config.damping),
            max_delta_tau=TORQUE_STEP,
        )


class _DirectTorque(_TorqueTracker):
    def __init__(self, config: FrankaConfig) -> None:
        super().__init__(config)
        self._stiffness = np.array(config.gains)
        self._damping = np.array(TORQUE_DAMPING if config.damping is None else config.damping)

    def make(self, q: Array, dq: Array, reading: Reading) -> Any:
        return franky.SimpleTorqueMotion(
            initial_torque=self._torque(q, dq, reading),
            signal_timeout=None,  # the reaction comes first
            compensate_coriolis=True,
            max_delta_tau=TORQUE_STEP,
        )

    def move(self, motion: Any, q: Array, dq: Array, reading: Reading) -> None:
        motion.set_torque(self._torque(q, dq, reading))

    def _torque(self, q: Array, dq: Array, reading: Reading) -> Array:
        return self._stiffness * (q - reading.q) + self._damping * (dq - reading.dq)


class _JointPosition:
    """A new way to each target, planned by Ruckig from the command of that millisecond."""

    def __init__(self) -> None:
        self._target: Array | None = None

    def begin(self, robot: Any, reading: Reading) -> None:
        self._target = None
        self.follow(robot, reading.q_d, np.zeros(7), reading)

    def follow(self, robot: Any, q: Array, dq: Array, reading: Reading) -> None:
        if self._target is not None and np.array_equal(q, self._target):
            return
        self._target = np.array(q)
        robot.move(
            franky.JointMotion(q, return_when_finished=False), asynchronous=True, limit_rate=True
        )

    def rest(self, robot: Any) -> None:
        robot.move(franky.JointStopMotion(), asynchronous=True)


def _array(values: tuple[float, ...] | None) -> Array | None:
    return None if values is None else np.array(values)


def _tracker(config: FrankaConfig) -> _Tracker:
    if config.controller == "joint_position":
        return _JointPosition()
    return {
        "joint_impedance": _JointImpedance,
        "cartesian_impedance": _CartesianImpedance,
        "torque": _DirectTorque,
    }[config.controller](config)


class FrankyBackend:
    """``backend.Backend`` on franky-control; see the module for what stands behind each call."""

    def __init__(self, config: FrankaConfig) -> None:
        self.config = config
        self._robot: Any = None
        self._tracker = _tracker(config)
        self._tracking = False
        self._resting = False
        self._reference: Array | None = None
        self._ended_by: tuple[str, ...] = ()
        self._configured = False

    # -- connection --------------------------------------------------------------------------

    def open(self) -> None:
        enforce = self.config.realtime == "enforce"
        realtime = franky.RealtimeConfig.Enforce if enforce else franky.RealtimeConfig.Ignore
        try:
            self._robot = franky.Robot(self.config.address, realtime_config=realtime)
        except LIBRARY_ERRORS as error:
            raise connection_error(self.config.address, error) from error
        try:
            self._configured = False
            check_limits(self._robot.model_urdf, self.config.model)
            self._set_up()
        except LIBRARY_ERRORS as error:
            self.close()
            raise DeviceError(
                f"the robot at {self.config.address} refused a setting: {error}"
            ) from error
        except BaseException:
            self.close()
            raise

    def _set_up(self) -> None:
        robot, config = self._robot, self.config
        state = robot.state
        if MODES[state.robot_mode] in (Mode.IDLE, Mode.MOVE):
            self._apply_settings(state)
        spec, jerk = config.spec, JERK_SHARE * np.array(limits_of(config.model).jerk)
        for limit, value in (
            (robot.joint_velocity_limit, spec.limits("velocity")[:7]),
            (robot.joint_acceleration_limit, spec.limits("acceleration")[:7]),
            (robot.joint_jerk_limit, jerk),
        ):
            limit.set(np.minimum(value, limit.max))  # franky 2.0 caps an FR3 at some of a FER's

    def _apply_settings(self, state: Any) -> None:
        """In a robot that is guided, locked or stopped they wait until it is idle (``read``)."""
        self._configured = True
        robot, config = self._robot, self.config
        limits = config.collision
        robot.set_collision_behavior(
            list(limits.lower_torque),
            list(limits.upper_torque),
            list(limits.lower_force),
            list(limits.upper_force),
        )
        robot.set_load(config.load.mass, list(config.load.com), list(config.load.inertia))
        nominal = np.asarray(state.F_T_NE.matrix)
        from_nominal = np.linalg.inv(nominal) @ config.F_T_EE
        robot.set_ee(from_nominal.T.ravel().tolist())
        if config.controller == "joint_position":
            robot.set_joint_impedance(list(config.gains))

    def close(self) -> None:
        robot, self._robot = self._robot, None
        if robot is None:
            return
        with contextlib.suppress(*LIBRARY_ERRORS):
            if self._tracking and robot.is_in_control:
                self._tracker.rest(robot)
                robot.join_motion(JOIN_S)
        self._tracking = self._resting = False
        self._reference = None

    # -- state -------------------------------------------------------------------------------

    @property
    def tracking(self) -> bool:
        return self._tracking

    @property
    def reference(self) -> Array | None:
        return self._reference

    def read(self) -> Reading:
        robot = self._robot
        if robot is None:
            raise DeviceError(f"not connected to the robot at {self.config.address}")
        if self._tracking and not robot.is_in_control:
            self._ended()
        try:
            state = robot.state
            mode = MODES[state.robot_mode]
            if mode is Mode.IDLE and not self._configured:
                self._apply_settings(state)
        except LIBRARY_ERRORS as error:
            raise DeviceError(f"robot at {self.config.address}: {error}") from error
        errors = _names(state.current_errors)
        if not errors and mode is Mode.REFLEX:
            errors = _names(state.last_motion_errors) or self._ended_by or ("without a name",)
        errors = errors or self._ended_by
        if self.config.controller == "joint_position" and self._tracking:
            self._reference = np.array(state.q_d)
        pose = state.O_T_EE
        x, y, z, w = np.asarray(pose.quaternion).tolist()
        rate = float(state.control_command_success_rate)
        return Reading(
            robot_ms=state.time.to_msec(),
            q=np.array(state.q),
            dq=np.array(state.dq),
            tau=np.array(state.tau_J),
            q_d=np.array(state.q_d),
            pose=np.array([*np.asarray(pose.translation).ravel().tolist(), w, x, y, z]),
            mode=mode,
            errors=errors,
            success_rate=rate if self._tracking else float("nan"),
        )

    def _ended(self) -> None:
        """A motion has ended: because it came to rest, or by an error that is told here."""
        self._tracking = self._resting = False
        self._reference = None
        try:
            self._robot.join_motion(0.0)
        except franky.NetworkException as error:
            raise DeviceError(f"robot at {self.config.address}: {error}") from error
        except franky.ControlException as error:
            self._ended_by = _in_words(error)
        except LIBRARY_ERRORS as error:
            raise DeviceError(f"robot at {self.config.address}: {error}") from error

    # -- motion ------------------------------------------------------------------------------

    def start(self, reading: Reading) -> None:
        self._ended_by = ()
        self._reference = reading.q
        self._command(self._tracker.begin, reading)
        self._tracking, self._resting = True, False

    def follow(self, q: Array, dq: Array, reading: Reading) -> None:
        self._command(self._tracker.follow, q, dq, reading)
        if self.config.controller != "joint_position":
            self._reference = np.array(q)

    def come_to_rest(self) -> None:
        if self._tracking and not self._resting:
            self._command(self._tracker.rest)
            self._resting = True
            self._reference = None

    def _command(self, order: Any, *arguments: Any) -> None:
        try:
            order(self._robot, *arguments)
        except LIBRARY_ERRORS as error:
            # A reflex between two readings ends up here too: the next reading names it.
            if isinstance(error, franky.ControlException):
                self._ended_by = _in_words(error)
                return
            raise DeviceError(f"robot at {self.config.address}: {error}") from error

    def recover(self) -> None:
        robot = self._robot
        try:
            state = robot.state
            if MODES[state.robot_mode] is Mode.REFLEX:
                robot.recover_from_errors()
                state = robot.state
            if MODES[state.robot_mode] is Mode.IDLE:
                self._apply_settings(state)
        except LIBRARY_ERRORS as error:
            raise DeviceError(f"automatic error recovery: {error}") from error
        self._ended_by = ()
        if left := _names(state.current_errors):
            raise DeviceError(f"automatic error recovery left {', '.join(left)}")


def _in_words(error: Exception) -> tuple[str, ...]:
    """What ended a motion: the errors that the library names, or else its own words."""
    text = str(error)
    return tuple(name for name in ERROR_NAMES if name in text) or (f"motion ended: {text}",)


def _names(errors: Any) -> tuple[str, ...]:
    """The names of the errors that are set, by libfranka's order."""
    if not any(errors.__getstate__()):  # one call; 41 only where there is something to name
        return ()
    return tuple(name for name in ERROR_NAMES if getattr(errors, name))
