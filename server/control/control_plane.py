"""The control plane's requests: leases, arming, poses, stop, reset and torque.

Each request is a generator: it yields while robots are still on their way and returns the answer's
body, so that one loop serves many requests at once. Errors become answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any, Literal

from robot_stack import registry
from robot_stack.config import Station
from robot_stack.errors import ControlPlaneError, RobotStackError
from robot_stack.interfaces import Robot
from robot_stack.records import OrderKind, ring_path
from robot_stack.shared_memory import Flag
from robot_stack.types import Lifecycle, Source, StopCategory

from .lease import LeaseTable
from .motion import move_group
from .stop_devices import PRESSED, trouble
from .view import ArmView

__all__ = ["ControlPlane", "Task"]

START_TIMEOUT_S = 30.0
STOP_SEEN_S = 1.0

Task = Generator[None, None, "dict[str, Any] | None"]


class ControlPlane:
    """Leases, stop flags and arm processes of one station, and what may be asked of them."""

    def __init__(self, station: Station) -> None:
        name = station.station
        self.station = station
        self.robots: dict[str, Robot] = {
            key: registry.load("robot", config.driver).from_config(config, station)
            for key, config in station.robots.items()
        }
        self.stops = {group: Flag(ring_path(name, "stop", group)) for group in station.groups}
        self.leases = LeaseTable(name, list(station.groups))
        self.arms = {
            key: ArmView(name, config, self.robots[key].spec)
            for key, config in station.robots.items()
        }
        self.handlers: dict[str, Callable[[dict[str, Any]], Task]] = {
            "lease.acquire": self._acquire,
            "lease.renew": self._renew,
            "lease.release": self._release,
            "arm": self._arm,
            "disarm": self._disarm,
            "home": self._home,
            "sleep": self._sleep,
            "stop": self._stop,
            "reset": self._reset,
            "torque": self._torque,
        }

    def close(self) -> None:
        """End the leases and let go of the rings; arms go on holding."""
        self.leases.close()
        for arm in self.arms.values():
            arm.close()

    def dof(self, group: str) -> int:
        """Degrees of freedom of a group's robots together."""
        return sum(self.robots[robot].spec.dof for robot in self.station.groups[group].robots)

    def watch_stop_devices(self) -> None:
        """A required stop device that is missing or silent is a fault: every group stops."""
        for name, config in self.station.stop_devices.items():
            if not config.required:
                continue
            reason = trouble(self.station.station, name)
            if reason is None:
                continue
            for group, flag in self.stops.items():
                armed = any(
                    tick is not None and tick["lifecycle"] == Lifecycle.ARMED
                    for tick in (self.arms[r].newest() for r in self.station.groups[group].robots)
                )
                if armed and not flag.value:
                    flag.set(config.category + 1, reason)

    def lower(self) -> Generator[None, None, list[str]]:
        """Move robots that would fall to their sleep pose and take torque away where they rest;
        returns in words which keep their torque, and why."""
        kept = []
        for group in self.station.groups:
            powered = [
                arm
                for arm in self.members(group)
                if arm.config.falls and (t := arm.newest()) is not None and t["torque"].any()
            ]
            if not powered:
                continue
            try:
                yield from self.to_pose(group, "sleep")
                for arm in powered:
                    if arm.at_rest():
                        yield from arm.order(OrderKind.TORQUE, [True] * arm.spec.dof, 0)
                    if arm.tick()["torque"].any():
                        kept.append(f"{arm.name} is not at rest and keeps its torque")
            except RobotStackError as error:
                kept.append(f"{group} was not lowered and keeps its torque: {error}")
        return kept

    def groups(self, body: dict[str, Any]) -> list[str]:
        """The groups that a request names; all of them when it names none."""
        wanted = body.get("group")
        if wanted is None:
            return list(self.station.groups)
        if wanted not in self.station.groups:
            known = ", ".join(self.station.groups)
            raise ControlPlaneError(f"no group {wanted!r} in this station (groups: {known})")
        return [str(wanted)]

    def members(self, group: str) -> list[ArmView]:
        return [self.arms[robot] for robot in self.station.groups[group].robots]

    def _acquire(self, body: dict[str, Any]) -> Task:
        yield from ()
        group = self.groups({"group": body["group"]})[0]
        source = Source(body.get("source", int(Source.HUMAN)))
        lease = self.leases.acquire(group, str(body["holder"]), source, float(body["ttl_s"]))
        return {"token": lease.token, "dof": self.dof(group), "ttl_s": lease.ttl_s}

    def _renew(self, body: dict[str, Any]) -> Task:
        yield from ()
        self.leases.renew(str(body["group"]), int(body["token"]))
        return None

    def _release(self, body: dict[str, Any]) -> Task:
        yield from ()
        self.leases.release(str(body["group"]), int(body["token"]))
        return None

    def _arm(self, body: dict[str, Any]) -> Task:
        """With ``torque`` false, joints that hang free stay free: only the others follow."""
        for group in self.groups(body):
            yield from self._arm_group(group, torque=bool(body.get("torque", True)))
        return None

    def _arm_group(self, group: str, *, torque: bool = True) -> Generator[None, None, None]:
        """Torque on (goal = present, so nothing moves), then follow commands."""
        flag = self.stops[group]
        if flag.value:
            raise ControlPlaneError(
                f"group {group!r} is stopped ({flag.reason}); mend that, then "
                f"`robot-stack reset {self.station.station}`"
            )
        for name in self.station.stop_devices:
            reason = trouble(self.station.station, name)
            if reason is not None and self.station.stop_devices[name].required:
                raise ControlPlaneError(f"group {group!r} may not be armed: {reason}")
        deadline = time.monotonic() + START_TIMEOUT_S
        for arm in self.members(group):
            while not arm.ready():
                if time.monotonic() > deadline:
                    raise ControlPlaneError(f"{arm.name} has not started; see its log")
                yield
            if torque and not arm.tick()["torque"].all():
                yield from arm.order(OrderKind.TORQUE, [True] * arm.spec.dof, 1)
        for arm in self.members(group):
            yield from arm.order(OrderKind.ARM)
        for arm in self.members(group):
            tick = arm.tick()
            if tick["lifecycle"] != Lifecycle.ARMED:
                raise ControlPlaneError(f"{arm.name} could not be armed: {arm.trouble(tick)}")

    def _disarm(self, body: dict[str, Any]) -> Task:
        for group in self.groups(body):
            for arm in self.members(group):
                yield from arm.order(OrderKind.DISARM)
        return None

    def _home(self, body: dict[str, Any]) -> Task:
        for group in self.groups(body):
            yield from self.to_pose(group, "home")
        return None

    def _sleep(self, body: dict[str, Any]) -> Task:
        for group in self.groups(body):
            yield from self.to_pose(group, "sleep")
        return None

    def to_pose(self, group: str, pose: Literal["home", "sleep"]) -> Generator[None, None, float]:
        yield from self._arm_group(group)
        robots = [self.robots[name] for name in self.station.groups[group].robots]
        return (yield from move_group(self.leases, group, self.members(group), robots, pose))

    def _stop(self, body: dict[str, Any]) -> Task:
        """Category 2, or 1 where it is named. Another one is refused, but not before the groups
        were stopped: 0 would do no more than 2 and hide a button's 1."""
        yield from ()
        wanted = body.get("category", int(StopCategory.HOLD))
        known = wanted in (StopCategory.STOP_THEN_OFF, StopCategory.HOLD)
        category = int(wanted if known else StopCategory.HOLD)
        reason = str(body.get("reason", "stop requested"))
        for group in self.groups(body):
            self.stops[group].set(category + 1, reason, asked=True)
        if not known:
            raise ControlPlaneError(
                f"stopped, with category 2: there is no category {wanted!r} here, only 1 (brake, "
                "then torque off on robots that do not fall) and 2 (brake and hold). Power is cut "
                "by the power switch"
            )
        return None

    def _reset(self, body: dict[str, Any]) -> Task:
        """Clear stops and faults; what cannot be cleared is named. Leaves the groups disarmed.

        ``automatic``: nobody asks for it, so a stop that somebody asked for stays.
        """
        for name in self.station.stop_devices:
            reason = trouble(self.station.station, name)
            if reason is not None and reason.endswith(PRESSED):
                raise ControlPlaneError(f"not reset: {reason}; release it first")
        left = []
        groups = self.groups(body)
        yield from self._stop_seen(groups)
        asked = [group for group in groups if self.stops[group].asked]
        if asked and body.get("automatic"):
            raise ControlPlaneError(
                f"not reset: somebody has stopped {', '.join(asked)}; "
                f"`robot-stack reset {self.station.station}` when it is safe"
            )
        for group in groups:  # all of them first: a stop that comes from here on stays
            self.stops[group].clear()
        for group in groups:
            for arm in self.members(group):
                yield from arm.order(OrderKind.RESET)
            left += [
                f"{arm.name}: {arm.trouble(tick)}"
                for arm in self.members(group)
                if (tick := arm.tick())["lifecycle"] in (Lifecycle.FAULT, Lifecycle.STOPPED)
            ]
            if self.stops[group].value:
                left.append(f"{group} was stopped again: {self.stops[group].reason}")
        if left:
            raise ControlPlaneError("still faulty after reset: " + "; ".join(left))
        return None

    def _stop_seen(self, groups: list[str]) -> Generator[None, None, None]:
        """Until every arm of a stopped group has seen the stop: clearing it sooner would leave one
        arm following commands beside another in fault."""
        deadline = time.monotonic() + STOP_SEEN_S
        for group in groups:
            for arm in self.members(group):
                while self.stops[group].value and time.monotonic() < deadline:
                    tick = arm.newest()
                    if tick is None or tick["lifecycle"] != Lifecycle.ARMED:
                        break
                    yield

    def _torque(self, body: dict[str, Any]) -> Task:
        name, on = str(body["robot"]), bool(body["on"])
        if name not in self.arms:
            raise ControlPlaneError(f"no robot {name!r} (robots: {', '.join(self.arms)})")
        arm = self.arms[name]
        joints = [bool(joint) for joint in body["joints"]]
        if len(joints) != arm.spec.dof:
            raise ControlPlaneError(f"{name} has {arm.spec.dof} joints, {len(joints)} were named")
        self._must_not_fall(arm, on)
        yield from arm.order(OrderKind.TORQUE, joints, int(on))
        tick = arm.tick()
        if any(
            bool(is_on) != on for is_on, named in zip(tick["torque"], joints, strict=True) if named
        ):
            self._must_not_fall(arm, on)  # it may have been moved while the order waited
            raise ControlPlaneError(f"{name} did not switch its torque: {arm.trouble(tick)}")
        return None

    def _must_not_fall(self, arm: ArmView, on: bool) -> None:
        if not on and arm.config.falls and not arm.at_rest():
            raise ControlPlaneError(
                f"{arm.name} would fall: torque is only taken away at the sleep pose; run "
                f"`robot-stack sleep {self.station.station}` first"
            )
