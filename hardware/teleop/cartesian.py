"""What Cartesian devices share: clutch, mapper, and the arm of a group that they move.

A device derives from :class:`CartesianTeleoperator`, opens itself in ``_open``, and says in
``_poll`` what the hands ask for (a :class:`~hardware.teleop.mapper.Stick`).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from hardware.teleop.mapper import WIDTH, CartesianMapper, MotionConfig, Stick
from robot_stack import registry
from robot_stack.config import Station, TeleopConfig
from robot_stack.errors import ConfigError, SharedMemoryError
from robot_stack.interfaces import PoseRobot
from robot_stack.records import ring_path
from robot_stack.shared_memory import Ring
from robot_stack.spec import RobotSpec
from robot_stack.types import CommandMode

__all__ = ["CartesianTeleoperator", "Clutch", "Grasp", "grasp"]

Array = NDArray[np.float64]

PERIOD_NS = 10_000_000  # targets at 100 Hz; the arm process interpolates between them
SILENCE_NS = 200_000_000  # an arm whose newest pose is older is not led any further
START_S = 10.0  # arms may still be starting


@dataclass(frozen=True, slots=True)
class Grasp:
    """Which arm of a group a device moves: its station, its name and its columns of the target."""

    station: str
    robot: str
    columns: slice


def grasp(config: TeleopConfig, station: Station, robot: str = "") -> Grasp:
    """The arm ``robot`` of the group that follows, its only one where it is not named.

    ConfigError when there is none, or more than one to choose from, or it takes no poses.
    """
    followers = station.groups[config.group].robots
    known = ", ".join(followers)
    if robot and robot not in followers:
        raise ConfigError(
            f"teleop.options.robot: {robot!r} is not in group {config.group!r} (it has {known})"
        )
    if not robot and len(followers) > 1:
        raise ConfigError(
            f"teleop.options.robot is missing: {config.driver} moves one arm, and group "
            f"{config.group!r} has {known}"
        )
    chosen = robot or followers[0]
    start = 0
    for name in followers:
        section = station.robots[name]
        arm = registry.load("robot", section.driver).from_config(section, station)
        spec: RobotSpec = arm.spec
        if name == chosen:
            if not isinstance(arm, PoseRobot):
                raise ConfigError(
                    f"{config.driver} moves an end effector, and robot {name!r} "
                    f"({spec.embodiment}) cannot be told where to have it: its driver takes only "
                    "joints; use leader_arms or gello"
                )
            break
        start += spec.dof
    return Grasp(station.station, chosen, slice(start, start + spec.dof))


class Clutch:
    """Whether the operator wants the robot to move: while a switch is ``hold`` down, or after it
    was pressed (``toggle``) until it is pressed again. A switch that is down when the robot is
    engaged does not count before it is let go of."""

    def __init__(self, kind: Literal["hold", "toggle"]) -> None:
        self.kind = kind
        self.live = False
        self.down = True  # unknown: as if held since ever

    def update(self, down: bool) -> bool:
        """What the switch does now; returns ``live``."""
        pressed, self.down = down and not self.down, down
        if self.kind == "toggle":
            self.live ^= pressed
        else:
            self.live = down and (self.live or pressed)
        return self.live

    def release(self) -> None:
        """Not live before the next press."""
        self.live = False

    def lose(self) -> None:
        """The switch cannot be seen: a fresh press is needed once it can."""
        self.live, self.down = False, True


class CartesianTeleoperator:
    """Moves one arm's end effector; other arms of its group stay where they were when it engaged.

    ``invitation`` says how the clutch is worked ("hold the right bumper").
    """

    mode = CommandMode.EE_POSE

    def __init__(
        self, grasp: Grasp, motion: MotionConfig, clutch: Clutch, *, invitation: str
    ) -> None:
        self.grasp = grasp
        self.motion = motion
        self.trouble = ""
        """Why the device gives nothing, in words; empty when it does."""
        self._mapper = CartesianMapper(motion)
        self._clutch = clutch
        self.invitation = invitation
        self._arm: Ring | None = None
        self._blind = ""
        self._held: Array | None = None
        self._moving = False
        self._due_ns = 0

    @property
    def gripper(self) -> float:
        """How far the gripper is asked to be open, or holds (fraction); NaN before it engaged."""
        if self._moving:
            return float(self._mapper.target[-1])
        held = np.empty(0) if self._held is None else self._held[self.grasp.columns]
        return float(held[-1]) if len(held) == WIDTH else math.nan

    # -- of the device -----------------------------------------------------------------------

    def _open(self) -> None:
        """Open the device; DeviceError when it can never be one. One that is unplugged may come."""

    def _close(self) -> None:
        """Close it; safe to call twice."""

    def _poll(self, now_ns: int) -> Stick | None:
        """What the hands ask for now; None while the device is away, ``trouble`` then says why."""
        raise NotImplementedError

    # -- Teleoperator ------------------------------------------------------------------------

    def connect(self) -> None:
        path = ring_path(self.grasp.station, "arm", self.grasp.robot)
        self._arm = Ring(path, timeout_s=START_S)
        try:
            self._open()
        except BaseException:
            self.disconnect()
            raise

    def disconnect(self) -> None:
        self._close()
        if self._arm is not None:
            self._arm.close()
            self._arm = None

    def engage(self, held: Array, t_ns: int) -> None:
        """``held`` (D,): what all arms of the group hold; t_ns is not needed here."""
        self._held = np.array(held, dtype=np.float64)
        self._moving = False
        self._clutch.release()

    def waiting(self) -> str | None:
        if self._moving:
            return None
        if self.trouble or self._blind:
            return self.trouble or self._blind
        if self._clutch.down and self._clutch.kind == "hold":
            return f"let go, then {self.invitation}"
        return self.invitation

    def read(self) -> tuple[int, Array] | None:
        """The target of this moment, at 100 Hz."""
        now_ns = time.monotonic_ns()
        if now_ns < self._due_ns:
            return None
        self._due_ns = max(self._due_ns + PERIOD_NS, now_ns)
        stick = self._poll(now_ns)
        measured = self._measured(now_ns)
        if stick is None or measured is None:
            self._clutch.lose()
            self._rest()
            return None
        if not self._clutch.update(stick.held):
            self._rest()
            return None
        if self._held is None:  # held from before the last motion is not held any more
            self._clutch.release()
            return None
        if not self._moving:
            held = self._held[self.grasp.columns]
            self._mapper.engage(held if len(held) == WIDTH else np.append(held, 0.0))
            self._moving = True
        target = self._held.copy()
        mine = self._mapper.step(stick, now_ns, measured)
        target[self.grasp.columns] = mine[: len(target[self.grasp.columns])]
        return now_ns, target

    def _rest(self) -> None:
        """The motion ends; the next one needs to know anew what the robots hold."""
        if self._moving:
            self._moving, self._held = False, None

    def _measured(self, now_ns: int) -> Array | None:
        """Where the end effector is, (7,); None, and why in ``_blind``, when nobody knows."""
        assert self._arm is not None
        self._blind = f"{self.grasp.robot} is silent"
        try:
            if self._arm.closed:
                self._arm.reopen()
            latest = self._arm.latest()
        except SharedMemoryError:
            return None
        if latest is None or now_ns - int(latest[1]["t_ns"]) > SILENCE_NS:
            return None
        pose: Array = latest[1]["ee_pose"]
        if not np.isfinite(pose).all():
            self._blind = f"{self.grasp.robot} does not say where its end effector is"
            return None
        self._blind = ""
        return pose

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()
