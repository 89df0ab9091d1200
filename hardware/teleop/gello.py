"""A GELLO leader as a teleoperator: a small arm of Dynamixel servos, jointed like the robot.

(Wu et al. 2023, github.com/wuphilipp/gello_software.) The servos hold no torque; their angles are
read over ``hardware.dynamixel``. The robot follows only from where it is: an ``absolute`` leader
must first be brought to the robot's pose, and what little is then missing is made up for slowly; a
``relative`` one hands on its motions. A servo that lost its turns with the power (4096 ticks more
or less) is no matter: a joint counts as the angle that is nearest to the robot's.
"""

from __future__ import annotations

import math
import time
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hardware.dynamixel.bus import UNKNOWN_TICKS, DynamixelBus
from hardware.dynamixel.control_table import ticks_to_rad
from hardware.input.evdev import InputDevice
from hardware.input.keys import key_code, key_name
from hardware.teleop.cartesian import Clutch
from hardware.teleop.gello_config import (
    GelloCalibration,
    GelloConfig,
    gello_config,
    load_calibration,
)
from robot_stack import registry
from robot_stack.config import Station, TeleopConfig
from robot_stack.errors import ConfigError, DeviceError
from robot_stack.spec import RobotSpec
from robot_stack.types import CommandMode

__all__ = ["Gello", "followed_arm"]

Array = NDArray[np.float64]

TURN = 2 * math.pi
FASTEST_NS = 8_000_000
LATENCY_S = 0.002  # of a USB adapter, and of the servos' own delay
RETRY_NS = 500_000_000
DEADLINE_S = 0.008
GRIPPER_CATCH_UP = 1.5  # of the gripper's way a second
SHORTEST_S = 0.001


def followed_arm(
    config: TeleopConfig, options: GelloConfig, station: Station
) -> tuple[str, RobotSpec, slice]:
    """(name, spec, columns of the group's target) of the robot that a GELLO moves; ConfigError
    when it is not clear which, or the servos are not as many as its joints."""
    followers = station.groups[config.group].robots
    name = options.robot or followers[0]
    known = ", ".join(followers)
    if name not in followers or (not options.robot and len(followers) > 1):
        raise ConfigError(
            f"teleop.options.robot: say which robot of group {config.group!r} the GELLO moves "
            f"(it has {known}){f', {name!r} is not one' if name not in followers else ''}"
        )
    start = 0
    for follower in followers:
        section = station.robots[follower]
        spec: RobotSpec = registry.load("robot", section.driver).from_config(section, station).spec
        if follower == name:
            break
        start += spec.dof
    joints = sum(joint.unit != "fraction" for joint in spec.joints)
    if joints != len(options.ids) or spec.dof - joints > 1:
        raise ConfigError(
            f"teleop.options.ids: robot {name!r} has {joints} joints and the GELLO "
            f"{len(options.ids)} servos for them ({list(options.ids)})"
        )
    return name, spec, slice(start, start + spec.dof)


class Gello:
    """Reads the leader's servos; it never moves them and never gives them torque."""

    mode = CommandMode.JOINT_POSITION

    def __init__(
        self,
        config: GelloConfig,
        calibration: GelloCalibration,
        spec: RobotSpec,
        columns: slice,
        port: str,
    ) -> None:
        self.config = config
        self.calibration = calibration
        self._spec = spec
        self._columns = columns
        self._joint = np.array([joint.unit != "fraction" for joint in spec.joints])
        self._bus = DynamixelBus(port, config.servos, config.baud)
        n = len(config.servos)
        wire_s = (14 + n + 8 + 14 * n) * 10.0 / config.baud  # a fast sync read and its answer
        self._wire_ns = round(1e9 * (wire_s + LATENCY_S))
        self._period_ns = max(FASTEST_NS, round(1.2 * self._wire_ns))
        self._near = np.append(
            np.full(len(config.ids), config.align_rad), np.full(spec.dof, config.align_gripper)
        )[: spec.dof]
        self._pedal: InputDevice | None = None
        self._clutch = Clutch("hold")
        if config.deadman is not None:
            code = key_code(config.deadman.key)
            self._pedal = InputDevice(config.deadman.device, frozenset({code}))
        self._connected = False
        self._trouble = "reading the GELLO"
        self._due_ns = self._retry_ns = 0
        self._asked_ns = -1  # when the reading that is on its way was asked for
        self._heard_ns = self._sampled_ns = self._followed_ns = -1
        self._held: Array | None = None
        self._mine: Array = np.full(spec.dof, math.nan)  # the leader, as the robot's joints
        self._missing: Array = np.zeros(spec.dof)  # robot minus leader, yet to be made up for
        self._live = False

    @classmethod
    def from_config(cls, config: TeleopConfig, station: Station) -> Gello:
        options = gello_config(config)
        name, spec, columns = followed_arm(config, options, station)
        calibration = load_calibration(options, station, name)
        return cls(options, calibration, spec, columns, str(options.path(station.station)))

    # -- Teleoperator ------------------------------------------------------------------------

    def connect(self) -> None:
        self._bus.connect()
        missing = [servo for servo in self._bus.ids if servo not in self._bus.found]
        if missing:
            self._bus.close()
            raise DeviceError(
                f"the GELLO on {self._bus.port_name}: servos {missing} do not answer at "
                f"{self.config.baud} baud (those that do: {sorted(self._bus.found)}); check cable "
                "and power, and ids, gripper_id and baud in teleop.options"
            )
        self._connected, self._asked_ns = True, -1
        self._heard_ns = time.monotonic_ns()

    def disconnect(self) -> None:
        self._connected = False
        self._bus.close()
        if self._pedal is not None:
            self._pedal.close()

    def engage(self, held: Array, t_ns: int) -> None:
        self._held = np.array(held, dtype=np.float64)
        self._clutch.release()
        self._live = False
        robot, mine = self._held[self._columns], self._mine
        self._mine = mine + np.where(self._joint, TURN * np.rint((robot - mine) / TURN), 0.0)

    def waiting(self) -> str | None:
        if self._live:
            return None
        trouble = self._trouble or ("" if self._pedal is None else self._pedal.trouble)
        if trouble:
            return trouble
        if self._held is not None and (text := self._unaligned()):
            return text
        if self.config.deadman is not None:
            key = key_name(key_code(self.config.deadman.key))
            again = "let go, then " if self._clutch.down else ""
            return f"{again}hold {key} of {self.config.deadman.device} to move"
        return "not engaged"

    def read(self) -> tuple[int, Array] | None:
        """The newest target, at the rate that the servos' baud rate affords."""
        now_ns = time.monotonic_ns()
        angles = self._sample(now_ns)
        if self._trouble:
            self._clutch.lose()
            self._end()
        if angles is None:
            return None
        held = self._deadman_held()
        if not held:
            self._end()
        if self._held is None:
            return None
        robot = self._held[self._columns]
        before_ns, self._followed_ns = self._followed_ns, self._sampled_ns
        self._follow_turns(angles, robot)
        if not held:
            return None
        if not self._live:
            if self._unaligned():
                self._clutch.release()  # a pedal that was held before does not count
                return None
            self._live = True
            self._missing = robot - self._mine
        else:
            self._make_up((self._sampled_ns - before_ns) / 1e9)
        target = self._held.copy()
        target[self._columns] = self._mine + self._missing
        return self._sampled_ns, target

    # -- the leader --------------------------------------------------------------------------

    def _deadman_held(self) -> bool:
        if self._pedal is None:
            return True
        self._pedal.read()
        if not self._pedal.connected:
            self._clutch.lose()
            return False
        return self._clutch.update(bool(self._pedal.down))

    def _end(self) -> None:
        """The motion ends; the next one needs to know anew what the robots hold."""
        if self._live:
            self._live, self._held = False, None

    def _sample(self, now_ns: int) -> Array | None:
        """The servos' angles (rad) of a new reading, taken at ``_sampled_ns``. None with
        ``_trouble`` when there is none to be had; None without, when it is still on its way."""
        try:
            if not self._connected:
                if now_ns >= self._retry_ns:
                    self._retry_ns = now_ns + RETRY_NS
                    self.connect()
                return None
            if self._asked_ns < 0:
                if now_ns >= self._due_ns:
                    self._due_ns = max(self._due_ns + self._period_ns, now_ns)
                    self._bus.request_state()
                    self._asked_ns = now_ns
                return None
            if now_ns - self._asked_ns < self._wire_ns:
                return None
            self._asked_ns = -1
            state = self._bus.read_state(DEADLINE_S)
        except DeviceError as error:
            self._asked_ns = -1
            if now_ns - self._heard_ns > self.config.max_age_s * 1e9:
                self._trouble = f"GELLO: {error}"
                self._connected = False
                self._bus.close()
            return None
        oldest_s = (now_ns - state.t_ns) / 1e9 + float(state.age_s.max())
        if (state.position_ticks == UNKNOWN_TICKS).any() or oldest_s > self.config.max_age_s:
            silent = list(state.missing or self._bus.ids)
            self._trouble = f"servos {silent} of the GELLO do not answer: check its cables"
            return None
        self._trouble = ""
        if state.t_ns == self._sampled_ns:
            return None
        self._sampled_ns = self._heard_ns = state.t_ns
        return ticks_to_rad(state.position_ticks)

    def _follow_turns(self, angles: Array, robot: Array) -> None:
        """The leader as the robot's joints: the whole turns are those nearest to where it was, at
        first to where the robot is."""
        joints = self.calibration.joints(angles[: len(self.config.ids)])
        before = np.where(np.isfinite(self._mine), self._mine, robot)[self._joint]
        self._mine[self._joint] = joints - TURN * np.rint((joints - before) / TURN)
        if not self._joint.all():
            rest = robot[~self._joint][0]
            trigger = self.config.gripper_id is not None
            self._mine[~self._joint] = self.calibration.fraction(angles[-1]) if trigger else rest

    def _unaligned(self) -> str:
        """What is to be brought where before the robot may follow; empty when nothing is."""
        assert self._held is not None
        away = self._held[self._columns] - self._mine
        if not np.isfinite(away).all():
            return "reading the GELLO"
        checked = ~self._joint if self.config.clutch == "relative" else np.full_like(away, True)
        far = np.flatnonzero((np.abs(away) > self._near) & checked.astype(bool))
        if not len(far):
            return ""
        words = []
        for index in sorted(far, key=lambda i: -abs(away[i]) / self._near[i]):
            joint = self._spec.joints[index]
            if joint.unit == "fraction":
                verb = "let go of the trigger" if away[index] > 0 else "squeeze the trigger"
                words.append(f"{verb} (it is at {self._mine[index]:.2f}, "
                             f"the gripper at {self._mine[index] + away[index]:.2f})")  # fmt: skip
            else:
                words.append(f"bring {joint.name} by {away[index]:+.2f} rad")
        more = f" (and {len(words) - 3} more)" if len(words) > 3 else ""
        return f"the GELLO is not where the robot is: {', '.join(words[:3])}{more}"

    def _make_up(self, dt_s: float) -> None:
        """Some of what was missing when it engaged; a relative leader's joints keep it."""
        dt_s = min(max(dt_s, SHORTEST_S), 0.1)
        most = np.where(self._joint, self.config.catch_up_rad_s, GRIPPER_CATCH_UP) * dt_s
        if self.config.clutch == "relative":
            most = np.where(self._joint, 0.0, most)
        self._missing -= np.clip(self._missing, -most, most)

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()
