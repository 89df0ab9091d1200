"""What a robot shows of whoever drives it: home, squeezed, table touched, leaders at rest.

`RobotView` reads the arms' own state from shared memory; `Tutorial` judges the four steps of
RoboCrowd's tutorial (arXiv 2411.01915) by it, each when the one before is done: wait for the home
pose; squeeze both grippers; touch the table with each arm; rest the leaders. Nobody presses "next".
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from collect.crowd.agent_messages import TUTORIAL_STEPS
from collect.crowd.evidence_metrics import tips
from robot_stack import registry
from robot_stack.client import StationClient
from robot_stack.config import Station
from robot_stack.errors import ConfigError, SharedMemoryError
from robot_stack.safety.limits import ForwardKinematics
from robot_stack.spec import RobotSpec
from robot_stack.types import Difference, Lifecycle

__all__ = ["RobotView", "Seen", "Tutorial"]

LEADERS = "leader_arms"
HOME_RAD = 0.2  # a leader's weight hangs on soft gains
REST_RAD = 0.35  # the stop that a leader rests on is where a workshop has put it
REST_JOINTS = ("shoulder", "elbow")  # what a stop holds; wrists hang as they like
STILL_RAD_PER_S = 0.3
REST_S = 1.0
# The fingertips above the table that the arm stands on. The guard lets fingers touch it, and a cube
# of 4 cm is gripped at 1 to 2 cm.
TOUCH_M = 0.03
SILENCE_S = 0.5
HELD_S = 0.5  # a warning that is there for one tick is shown for so long


@dataclass(frozen=True, slots=True)
class Seen:
    """The robot now. ``trouble``: why it can't be driven, None when it can.

    ``led``: leaders under torque, driven by the ritual; ``free``: none of them has torque.
    ``level``: 0 nothing is near, 1 slowed down, 2 held back; ``near`` which arm, ``distance_m``.
    """

    trouble: str | None = None
    led: bool = False
    free: bool = False
    home: bool = False
    touching: frozenset[str] = frozenset()
    resting: bool = False
    level: int = 0
    near: str = ""
    distance_m: float | None = None


@dataclass
class Tutorial:
    """The steps of one try; ``see`` advances it. ``step`` is what is to be done now."""

    arms: frozenset[str]
    done: list[str] = field(default_factory=list)
    touched: set[str] = field(default_factory=set)

    @property
    def step(self) -> str:
        return "done" if self.passed else TUTORIAL_STEPS[len(self.done)]

    @property
    def passed(self) -> bool:
        return len(self.done) == len(TUTORIAL_STEPS)

    def see(self, seen: Seen, *, following: bool) -> None:
        """Judge what the robot shows; ``following``: the followers follow the leaders now."""
        if self.step == "touch":
            self.touched |= seen.touching & self.arms
        shown = {
            "home": seen.home or following,
            "squeeze": following,  # the ritual frees the leaders when both grippers are closed
            "touch": self.touched >= self.arms,
            "rest": seen.resting,
        }
        if not self.passed and shown[self.step]:
            self.done.append(self.step)


class RobotView:
    """The leaders and followers of one ALOHA station, looked at from outside.

    ConfigError for a station that is not teleoperated by leader arms.
    """

    def __init__(self, station: Station, client: StationClient) -> None:
        if station.teleop is None or station.teleop.driver != LEADERS:
            raise ConfigError(
                f"{station.path}: the public drives by leader arms; this station's teleop section "
                f"has {station.teleop.driver if station.teleop else 'no device'}"
            )
        pairs: Mapping[str, str] = dict(station.teleop.options.get("pairs", {}))
        self._client = client
        self.leaders = tuple(sorted(pairs))
        self.followers = tuple(sorted(set(pairs.values())))
        self._tips: dict[str, ForwardKinematics] = tips(station)
        self._specs: dict[str, RobotSpec] = {}
        for name in (*self.leaders, *self.followers):
            config = station.robots[name]
            self._specs[name] = (
                registry.load("robot", config.driver).from_config(config, station).spec
            )
        self._still_since: float | None = None
        self._held_until = 0.0
        self._held: tuple[str, float | None] = ("", None)

    def look(self) -> Seen:
        """The robot now; never blocks."""
        now = time.monotonic()
        try:
            ticks = {name: self._client.tick(name) for name in (*self.leaders, *self.followers)}
        except SharedMemoryError:
            return Seen(trouble="the robot's programs do not run (`robot-stack serve`)")
        trouble = next(
            (text for name, tick in ticks.items() if (text := self._trouble(name, tick))), None
        )
        torque = [np.asarray(ticks[name]["torque"], dtype=bool) for name in self.leaders]
        level, near, distance = self._warning(ticks, now)
        return Seen(
            trouble=trouble,
            led=any(on.any() for on in torque),
            free=not any(on.any() for on in torque),
            home=all(self._at_home(name, tick) for name, tick in ticks.items()),
            touching=frozenset(
                name
                for name in self.followers
                if float(self._tips[name](np.asarray(ticks[name]["q"]))[2]) < TOUCH_M
            ),
            resting=self._rests(ticks, now),
            level=level,
            near=near,
            distance_m=distance,
        )

    def _trouble(self, name: str, tick: np.void) -> str | None:
        if time.monotonic_ns() - int(tick["t_ns"]) > SILENCE_S * 1e9:
            return f"{name} is silent"
        lifecycle = Lifecycle(int(tick["lifecycle"]))
        if lifecycle is Lifecycle.FAULT:
            return f"{name}: {tick['fault'].decode(errors='replace') or 'fault'}"
        if lifecycle is Lifecycle.STOPPED:
            return f"{name} is stopped"
        if lifecycle in (Lifecycle.STARTING, Lifecycle.ENDED):
            return f"{name} is {lifecycle.name.lower()}"
        return None

    def _at_home(self, name: str, tick: np.void) -> bool:
        """Arm joints at the start pose and under torque; where the gripper is doesn't matter."""
        spec = self._specs[name]
        away = np.abs(np.asarray(tick["q"]) - np.asarray(spec.home))[:-1]
        return bool(away.max() < HOME_RAD and np.asarray(tick["torque"], dtype=bool)[:-1].all())

    def _rests(self, ticks: Mapping[str, np.void], now: float) -> bool:
        """Every leader has been on its rest, still and free, for a second."""
        for name in self.leaders:
            tick, spec = ticks[name], self._specs[name]
            joints = [spec.names.index(joint) for joint in REST_JOINTS]
            away = np.abs(np.asarray(tick["q"]) - np.asarray(spec.sleep))[joints]
            speed = np.abs(np.asarray(tick["dq"]))[joints]
            led = np.asarray(tick["torque"], dtype=bool)[joints].any()
            if led or not (away.max() < REST_RAD and speed.max() < STILL_RAD_PER_S):
                self._still_since = None
                return False
        if self._still_since is None:
            self._still_since = now
        return now - self._still_since >= REST_S

    def _warning(self, ticks: Mapping[str, np.void], now: float) -> tuple[int, str, float | None]:
        near, nearest, held = "", math.inf, False
        for name in self.followers:
            distance = float(ticks[name]["distance"])
            blocked = bool(int(ticks[name]["difference"]) & Difference.COLLISION)
            if blocked or distance < nearest:
                near = name
                nearest = min(nearest, distance) if math.isfinite(distance) else nearest
            held = held or blocked
        shown = nearest if math.isfinite(nearest) else None
        if held:
            self._held_until, self._held = now + HELD_S, (near, shown)
        if now < self._held_until:
            return 2, *self._held
        return (1, near, shown) if shown is not None else (0, "", None)
