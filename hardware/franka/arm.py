"""The Franka driver: an FR3 or a Panda as eight joints, seven in rad and the hand as a fraction.

The client library's C++ thread runs the robot's 1 kHz loop and tracks what ``write`` last gave it
(``backend_franky``, ``backend_panda``); this class lives in the arm process's loop and never waits
for the robot. Torque here means: the robot can be moved now. Without it the robot holds itself, or
a person guides it, or it is stopped; it never falls.

The library begins to track when a target first leaves the place where the robot stands, and ends
when torque is switched off or targets stop coming: the arm then decelerates and the robot holds.

Reflexes are named. The recovery policy of the station file frees the robot of some of them by
itself (``recovery``), and then the arm process starts anew from where the arm stands. User stops,
and what the policy has had enough of, are faults until somebody resets them.
"""

from __future__ import annotations

import math
import socket
import sys
import time
from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from hardware.franka.backend import Backend, Mode, Reading, connection_error
from hardware.franka.configuration import ARM_JOINTS, FrankaConfig
from hardware.franka.fci import ROBOT_PORT
from hardware.franka.gripper import Gripper
from hardware.franka.inverse_kinematics import FrankaInverseKinematics
from hardware.franka.kinematics import Kinematics
from hardware.franka.recovery import RecoveryPolicy
from robot_stack import registry
from robot_stack.config import RobotConfig, Station
from robot_stack.errors import DeviceError, MissingDependencyError
from robot_stack.safety.limits import ForwardKinematics
from robot_stack.spec import RobotSpec
from robot_stack.trajectory import minimum_jerk, shortest_seconds
from robot_stack.types import RobotState

__all__ = ["FrankaArm"]

Array = NDArray[np.float64]

RATE_HZ = 200.0
REACH_S = 2.0
# Before the C++ thread's own 0.1 s, so that what it does then is never met half-way.
STALL_S = 0.08
SILENT_S = 0.2
LOST_S = 1.2  # the library itself gives up after 1 s
STANDING_RAD = 2e-3  # a target this near to where the robot holds itself moves nothing
STANDING_RAD_S = 0.02
PATH_SPEED = 0.8  # rad/s at the peak of a move to a named pose
PATH_SHORTEST_S = 1.0
PATH_SHARE = 0.95  # of the limits: the SafetyFilter then never has to bend the path
FREED_S = 3.0
NOTICE_S = 2.0


class FrankaArm:
    """One arm with its hand; without a hand (gripper: null) it has seven joints.

    The hand's width is read at 10 Hz and its age told; ``age_s`` of it does not stop the arm. The
    hand moves by itself, so it is told when nobody moves the robot (``halt``).
    """

    def __init__(self, config: FrankaConfig) -> None:
        self.config = config
        self._spec = config.spec
        self._kinematics = Kinematics(config.F_T_EE)
        self._velocity = self._spec.limits("velocity")[:ARM_JOINTS]
        self._policy = RecoveryPolicy(config.recovery)
        self._backend: Backend | None = None
        self._gripper: Gripper | None = None
        self._reading: Reading | None = None
        self._t_ns = -1
        self._off = False
        self._resting = False
        self._tracked = self._ended = False
        self._anchor: Array | None = None
        self._followed: Array | None = None
        self._followed_s = math.nan
        self._stall = ("", -math.inf)

    @classmethod
    def from_config(cls, config: RobotConfig, station: Station) -> FrankaArm:
        """The robot ``config`` of a station file; touches no hardware."""
        return cls(FrankaConfig.from_station(config, station))

    @property
    def spec(self) -> RobotSpec:
        """Joints with the limits of the model at this station's speed, and the home pose."""
        return self._spec

    @property
    def rate_hz(self) -> float:
        """At 200 Hz what is tracked moves every 5 ms; the station file may ask for more."""
        return RATE_HZ

    # -- connection --------------------------------------------------------------------------

    def connect(self) -> None:
        """Connect to robot and hand, compare limits, set thresholds, load and frames.

        Nothing moves. A robot that stands in a reflex or user stop is connected, in fault.
        DeviceError says what to check: network, FCI, versions, limits, the hand.
        """
        self._reach()
        backend = self._make_backend()
        self._backend = backend
        try:
            backend.open()
            if self.config.gripper is not None:
                library: Literal["franky", "panda"] = (
                    "franky" if self.config.model == "fr3" else "panda"
                )
                self._gripper = Gripper(self.config.gripper, self.config.address, library)
                self._gripper.start()
            self._reading = reading = backend.read()
            self._t_ns = time.monotonic_ns()
        except BaseException:
            self.disconnect()
            raise
        self._off = self._resting = self._tracked = self._ended = False
        self._settle(reading)
        if reading.mode is Mode.REFLEX and self._policy.latched is None:
            self._policy.latch(f"{_named(reading)}, from before it was connected")

    def _reach(self) -> None:
        """Whether anything listens there at all: the library would try for a minute."""
        address = self.config.address
        try:
            socket.create_connection((address, ROBOT_PORT), timeout=REACH_S).close()
        except socket.gaierror as error:
            raise DeviceError(
                f"robots.<name>.options.address: {address!r} is not known ({error.strerror}); "
                "give the control box's IP address"
            ) from error
        except OSError as error:
            raise connection_error(address, error) from error

    def _make_backend(self) -> Backend:
        try:
            if self.config.model == "fr3":
                from hardware.franka.backend_franky import FrankyBackend

                return FrankyBackend(self.config)
            from hardware.franka.backend_panda import PandaBackend

            return PandaBackend(self.config)
        except ImportError as error:
            missing = registry.missing_dependency("robot 'franka'", error)
            if missing is None:
                raise
            raise DeviceError(str(missing)) from error
        except MissingDependencyError as error:
            raise DeviceError(str(error)) from error

    def disconnect(self) -> None:
        """Come to rest and close the connection; the robot holds. Safe to call twice."""
        backend, self._backend = self._backend, None
        gripper, self._gripper = self._gripper, None
        if gripper is not None:
            gripper.close()
        if backend is not None:
            backend.close()
        self._anchor = self._followed = None

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()

    def _connected(self) -> tuple[Backend, Reading]:
        if self._backend is None or self._reading is None:
            raise DeviceError(f"not connected to the robot at {self.config.address}")
        return self._backend, self._reading

    # -- the loop ----------------------------------------------------------------------------

    def read(self, deadline_s: float) -> RobotState:
        """The newest state, and what follows from it: recovery, and rest where targets are late.

        While the network is silent the last state is given again and ``age_s`` grows, which is a
        fault from ``SILENT_S`` on; DeviceError when the connection is lost.
        """
        backend, before = self._connected()
        reading = backend.read()
        now_ns = time.monotonic_ns()
        now_s = now_ns / 1e9
        if reading.robot_ms != before.robot_ms:
            self._t_ns = now_ns
        silent_s = (now_ns - self._t_ns) / 1e9
        if silent_s > LOST_S:  # where the robot has closed its half, the library waits for ever
            raise DeviceError(
                f"no state from the robot at {self.config.address} for {silent_s:.1f} s: check "
                "its power and the network"
            )
        if silent_s > SILENT_S:
            self._policy.latch(f"no state from the robot for {1e3 * silent_s:.0f} ms (network)")
        self._reading = reading
        self._judge(backend, reading, now_s)
        if self._gripper is not None:
            self._gripper.poll(now_s)
            if not self._able(reading):  # the hand has no user stop and no reflexes of its own
                self._gripper.halt(now_s)
        return self._state(backend, reading, now_ns)

    def _judge(self, backend: Backend, reading: Reading, now_s: float) -> None:
        if reading.mode is Mode.USER_STOPPED:
            self._policy.latch(
                "the user stop is pressed (the button at the robot): release it, then reset"
            )
        elif not reading.errors:
            self._policy.freed(now_s)
        elif self._policy.stopped(_named(reading), now_s):
            self._recover_by_itself(backend, now_s)
        late_s = now_s - self._followed_s
        if backend.tracking:
            if not self._resting and late_s > STALL_S:
                backend.come_to_rest()
                self._resting = True
                self._tell_stall(late_s, now_s)
            return
        if self._tracked and not self._resting and not reading.errors:
            self._tell_stall(late_s, now_s)  # so long that the library has ended it by itself
        # One turn without torque: the arm process starts anew from where the arm came to stand.
        self._ended, self._tracked = self._tracked, False
        self._resting = False
        self._settle(reading)

    def _tell_stall(self, late_s: float, now_s: float) -> None:
        if not self._off:
            self._stall = (f"no target for {1e3 * late_s:.0f} ms: came to rest", now_s)

    def _recover_by_itself(self, backend: Backend, now_s: float) -> None:
        try:
            backend.recover()
        except DeviceError as error:
            self._policy.latch(str(error))
            return
        self._policy.recovered(now_s)
        print(f"franka: {self._policy.notice(now_s)}", file=sys.stderr, flush=True)

    def _settle(self, reading: Reading) -> None:
        """Where the robot holds itself: as it stood when it came to stand."""
        anchor = self._anchor
        moved = anchor is None or np.abs(reading.q - anchor).max() > STANDING_RAD  # by others
        if moved or not self._able(reading):
            self._anchor = reading.q

    def _able(self, reading: Reading) -> bool:
        return (
            reading.mode in (Mode.IDLE, Mode.MOVE)
            and not reading.errors
            and self._policy.latched is None
            and not self._policy.recovering
            and not self._off
            and not self._resting
            and not self._ended
        )

    def _state(self, backend: Backend, reading: Reading, now_ns: int) -> RobotState:
        gripper = self._gripper
        tracking = backend.tracking
        reference = backend.reference
        applied = reading.q_d if reference is None else reference
        age_s = np.full(self._spec.dof, (now_ns - self._t_ns) / 1e9)
        q, dq, tau = reading.q, reading.dq, reading.tau
        if gripper is not None:
            q = np.append(q, gripper.fraction)
            dq, tau = np.append(dq, gripper.speed), np.append(tau, math.nan)
            applied = np.append(applied, gripper.held)
            age_s[-1] = gripper.age_s(now_ns)
        return RobotState(
            t_ns=self._t_ns,
            q=q,
            dq=dq,
            tau=tau,
            age_s=age_s,
            ee_pose=reading.pose,
            applied=applied,
            success_rate=reading.success_rate,
            target_age_s=now_ns / 1e9 - self._followed_s if tracking else math.nan,
            notice=self._notice(reading, now_ns / 1e9),
        )

    def _notice(self, reading: Reading, now_s: float) -> str:
        """What is not as it should be though the arm goes on, in words."""
        texts = [self._policy.notice(now_s)]
        if reading.mode is Mode.GUIDING:
            texts.append("guided by hand")
        elif reading.mode is Mode.OTHER:
            texts.append("the joints are locked: unlock them in Desk")
        stall, at_s = self._stall
        if stall and now_s - at_s < NOTICE_S:
            texts.append(stall)
        if self._gripper is not None:
            texts.append(self._gripper.notice(now_s))
        return "; ".join(filter(None, texts))

    def request(self) -> None:
        """States come by themselves, every millisecond."""

    def write(self, target: Array) -> Array:
        """Track ``target`` (dof,) from now on; returns it. Skipped, and where the arm is returned,
        while the robot cannot be moved. DeviceError when the connection is lost."""
        backend, reading = self._connected()
        target = np.asarray(target, dtype=np.float64)
        if target.shape != (self._spec.dof,) or not np.isfinite(target).all():
            raise DeviceError(f"franka: a target is {self._spec.dof} finite numbers, not {target}")
        if not self._able(reading):
            return self.held()
        now_s = time.monotonic()
        if self._gripper is not None:
            self._gripper.ask(float(target[-1]), now_s)
        q = target[:ARM_JOINTS]
        if not backend.tracking:
            anchor = reading.q if self._anchor is None else self._anchor
            if np.abs(q - anchor).max() <= STANDING_RAD:
                return target
            backend.start(reading)
            self._tracked = True
            self._followed, self._followed_s = q, now_s
        assert self._followed is not None
        if now_s - self._followed_s > STALL_S:  # held up since `read`: it brakes by itself by now
            backend.come_to_rest()
            self._resting = True
            return self.held()
        passed_s = max(now_s - self._followed_s, 1e-4)
        velocity = np.clip((q - self._followed) / passed_s, -self._velocity, self._velocity)
        backend.follow(q, velocity, reading)
        self._followed, self._followed_s = q, now_s
        self._anchor = None
        return target

    def halt(self) -> Array | None:
        """The hand stops where it is; its fraction last (dof,), after NaN for the arm's joints."""
        if self._gripper is None:
            return None
        self._gripper.halt(time.monotonic())
        return np.append(np.full(ARM_JOINTS, math.nan), self._gripper.held)

    def held(self) -> Array:
        """What is tracked (dof,), or where the robot holds itself."""
        backend, reading = self._connected()
        reference = backend.reference
        if reference is None:
            reference = reading.q if self._anchor is None else self._anchor
        if self._gripper is None:
            return np.array(reference)
        return np.append(reference, self._gripper.held)

    def torque(self) -> NDArray[np.bool_]:
        """Whether the robot can be moved now; all joints (dof,) alike."""
        able = self._reading is not None and self._able(self._reading)
        return np.full(self._spec.dof, able)

    def set_torque(self, joints: Sequence[bool], on: bool) -> None:
        """On: the robot may be moved; off: it comes to rest, holds itself and follows no target.

        All joints go together. DeviceError says why a robot cannot be moved.
        """
        if not any(joints):
            return
        backend, _ = self._connected()
        if not on:
            self._off = True
            if backend.tracking and not self._resting:
                backend.come_to_rest()
                self._resting = True
            return
        self._off = False
        deadline = time.monotonic() + FREED_S
        while not self._able(self._look()):
            reason = self._hindrance()
            if reason is not None or time.monotonic() > deadline:
                raise DeviceError(f"franka at {self.config.address} cannot be moved: {reason}")
            time.sleep(0.005)

    def _look(self) -> Reading:
        backend, _ = self._connected()
        self._reading = reading = backend.read()
        self._judge(backend, reading, time.monotonic())
        return reading

    def _hindrance(self) -> str | None:
        """Why the robot cannot be moved, None when it may well be in a moment."""
        _, reading = self._connected()
        if self._policy.latched is not None:
            return self._policy.latched
        if reading.mode is Mode.OTHER:
            return "its joints are locked: unlock them in Desk"
        if reading.mode is Mode.GUIDING:
            return "it is being guided by hand"
        return None

    # -- faults ------------------------------------------------------------------------------

    def faults(self) -> str | None:
        """The reflexes or user stop that wait for a reset, None when there are none."""
        return self._policy.latched

    def recover(self) -> None:
        """Free the robot of its errors; DeviceError when the user stop is still pressed, the
        joints are locked, or errors stay."""
        backend, _ = self._connected()
        reading = backend.read()
        if reading.mode is Mode.USER_STOPPED:
            raise DeviceError("the user stop is still pressed: release it, then reset again")
        if reading.mode is Mode.OTHER:
            raise DeviceError("the joints are locked: unlock them in Desk, then reset again")
        backend.recover()
        deadline = time.monotonic() + FREED_S
        while (reading := backend.read()).mode not in (Mode.IDLE, Mode.MOVE, Mode.GUIDING):
            if time.monotonic() > deadline:
                names = ", ".join(reading.errors) or reading.mode.name.lower()
                raise DeviceError(f"the robot is still stopped after its recovery: {names}")
            time.sleep(0.005)
        self._policy.clear()
        self._reading = reading
        self._anchor = None
        self._settle(reading)

    # -- where it is, and ways ---------------------------------------------------------------

    def path(self, pose: Literal["home", "sleep"], start: Array, dt_s: float) -> Array:
        """Targets (H, dof), ``dt_s`` apart, from ``start`` to home in joint space, which is the
        sleep pose too: the brakes hold it anywhere. The hand stays as it is."""
        start = np.asarray(start, dtype=np.float64)
        goal = np.array(getattr(self._spec, pose))
        goal[ARM_JOINTS:] = start[ARM_JOINTS:]
        velocity = PATH_SHARE * np.minimum(self._spec.limits("velocity"), PATH_SPEED)
        acceleration = PATH_SHARE * self._spec.limits("acceleration")
        seconds = shortest_seconds(start, goal, velocity, acceleration)
        return minimum_jerk(start, goal, max(seconds, PATH_SHORTEST_S), dt_s)

    def forward_kinematics(self) -> ForwardKinematics:
        """Joints (dof,) to the end effector (3,) in m in the base frame."""
        return self._kinematics.position

    def inverse_kinematics(self) -> FrankaInverseKinematics:
        """End effector poses to joints, within this station's limits."""
        limits = {
            name: self._spec.limits(name)[:ARM_JOINTS]
            for name in ("lower", "upper", "velocity", "acceleration")
        }
        return FrankaInverseKinematics(
            self._kinematics, posture=self._spec.home[:ARM_JOINTS], **limits
        )


def _named(reading: Reading) -> str:
    """What stops the robot, in words."""
    names = ", ".join(reading.errors)
    return f"reflex: {names}" if reading.mode is Mode.REFLEX else names
