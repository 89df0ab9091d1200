"""A teleoperation session: holds the lease, engages the operator's device, passes on its motion.

Works for every Teleoperator of the registry that stands beside the robot and says itself when it is
live (SpaceMouse, gamepad, keyboard, browser, GELLO, scripts). Leader arms, which the station drives
itself, have a session of their own: ``collect.leader_session``.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from robot_stack import registry
from robot_stack.client import Lease, StationClient, stop_asked
from robot_stack.config import Station, TeleopConfig
from robot_stack.errors import ConfigError, ControlPlaneError, LeaseError, SharedMemoryError
from robot_stack.interfaces import InverseKinematics, PoseRobot, Teleoperator
from robot_stack.spec import RobotSpec
from robot_stack.types import CommandMode, Difference, Lifecycle, Source

__all__ = ["TeleopSession"]

Array = NDArray[np.float64]

POSE = 7  # values of a pose, and joints of an arm that takes one
SILENCE_S = 0.3
ANSWER_S = 40.0  # arms may still be starting
REST_S = 3.0  # a stop from full speed takes 0.04 s
REST_LOOK_S = 0.1
ENGAGE_S = 0.02  # how old what the robots hold may be when the operator takes hold
TELL_S = 1.0  # between two lines that say what a device waits for


class TeleopSession:
    """Holds the lease of the followers; ``engage`` waits for the operator, ``step`` follows.

    ``teleop`` says which device moves which group (default: the station's). ``say`` gets one line
    whenever the operator should know something new.
    """

    poll_ns = 2_000_000  # how often the operator's device is looked at

    def __init__(
        self,
        station: Station,
        client: StationClient,
        teleop: TeleopConfig | None = None,
        *,
        source: Source = Source.DEMO,
        say: Callable[[str], None] = print,
    ) -> None:
        teleop = station.teleop if teleop is None else teleop
        if teleop is None:
            raise ControlPlaneError(
                f"{station.path} has no `teleop` section: say which device moves which group, or "
                "name one with --device"
            )
        self.station = station
        self.client = client
        self.teleop = teleop
        self.source = source
        self.say = say
        self.device: Teleoperator = registry.load("teleop", teleop.driver).from_config(
            teleop, station
        )
        self.follower_group = teleop.group
        self.followers = station.groups[self.follower_group].robots
        self.specs: dict[str, RobotSpec] = {}
        self._kinematics: dict[str, InverseKinematics] = {}
        for name in self.followers:
            robot = self._robot(name)
            self.specs[name] = robot.spec
            if self.device.mode is CommandMode.EE_POSE:
                # The device has made sure that its arm takes poses; others of the group must, too.
                if not isinstance(robot, PoseRobot):
                    raise ConfigError(
                        f"group {self.follower_group!r}: {teleop.driver} sends poses, and robot "
                        f"{name!r} ({robot.spec.embodiment}) takes only joints"
                    )
                self._kinematics[name] = robot.inverse_kinematics()
        self.leases: dict[str, Lease] = {}
        self.sent = 0
        self._said = ""
        self._halted = self._limp = self._asked = False
        self._engaged_s = self._told_s = 0.0

    def _robot(self, name: str) -> Any:
        """The driver of a robot, not connected: what it says of itself."""
        config = self.station.robots[name]
        return registry.load("robot", config.driver).from_config(config, self.station)

    @property
    def lease_groups(self) -> list[str]:
        """The groups whose leases the session needs, in the order in which it asks for them."""
        return [self.follower_group]

    def __enter__(self) -> Self:
        self.device.connect()
        try:
            for group in self.lease_groups:
                self.leases[group] = self.client.lease(group, "teleop", source=self.source)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the leases back: every robot decelerates and holds."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.device.disconnect)
            for lease in self.leases.values():
                stack.callback(lease.release)
            self.leases.clear()

    def tell(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self.say(text)

    def _ask(self, kind: str, body: dict[str, Any]) -> None:
        """A request of the supervisor that keeps the leases meanwhile."""
        self.client.request(kind, body, timeout_s=ANSWER_S, keep=self._renew)

    def _renew(self) -> None:
        for lease in self.leases.values():
            lease.renew()
            if lease.lost is not None:
                raise LeaseError(f"group {lease.group!r}: {lease.lost}")

    # -- engaging ----------------------------------------------------------------------------

    def engage(
        self, *, wait_s: float | None = None, cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        """Arm the followers where they stand; returns when the operator has taken hold of them.

        ControlPlaneError when a robot does not come along, or nobody takes hold in ``wait_s``.
        """
        self._arm_here()
        deadline = None if wait_s is None else time.monotonic() + wait_s
        while not cancelled() and not self.step():
            trouble = self.trouble()
            if trouble is not None:
                raise ControlPlaneError(f"the robots do not follow: {trouble}")
            if deadline is not None and time.monotonic() > deadline:
                waits = self.device.waiting() or "it gives nothing"
                raise ControlPlaneError(f"nobody took hold within {wait_s:g} s: {waits}")
            time.sleep(self.poll_ns / 1e9)

    def meet(self, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Take the robots over where they come to rest: how a person takes over from a policy."""
        self.engage(cancelled=cancelled)

    def reengage(
        self, cancelled: Callable[[], bool] = lambda: False, *, automatic: bool = False
    ) -> None:
        """After a stop or fault: reset and go on from where the followers stand, once the operator
        takes hold again; an episode in progress is not lost.

        ``automatic``: after a fault and unasked; ControlPlaneError if somebody has stopped it too.
        """
        for group in self.leases:
            self._ask("reset", {"group": group, "automatic": automatic})
        self.meet(cancelled)

    def _arm_here(self) -> None:
        for group in self.leases:
            self._ask("arm", {"group": group})
        self._at_rest()
        self._halted = self._limp = self._asked = False
        self.device.engage(self.held(), time.monotonic_ns())

    def held(self) -> Array:
        """What the followers are asked to hold, (D,), in the device's mode."""
        parts = []
        for name in self.followers:
            sent = self.client.tick(name)["sent"]
            kinematics = self._kinematics.get(name)
            parts.append(sent if kinematics is None else [*kinematics.pose(sent), *sent[POSE:]])
        return np.concatenate(parts)

    def _at_rest(self) -> Array:
        """What the followers hold, once those that were moving have braked."""
        deadline = time.monotonic() + REST_S
        before = None
        while True:
            sent = np.concatenate([self.client.tick(name)["sent"] for name in self.followers])
            if before is not None and np.array_equal(sent, before):
                return sent
            if time.monotonic() > deadline:
                raise ControlPlaneError(f"the followers did not come to rest within {REST_S:g} s")
            before = sent
            self._renew()
            time.sleep(REST_LOOK_S)

    # -- following ---------------------------------------------------------------------------

    def step(self) -> bool:
        """Pass on the operator's newest motion; True when there was one. Never blocks.

        While the device waits for the operator it is engaged anew, where the robots then stand; so
        it is after a robot has lost its torque and got it back by itself (a reflex), for whoever
        holds the switch would go on into what was hit. A robot that is not armed ends the following
        until ``reengage``, whoever arms it again. LeaseError when somebody took over.
        """
        reading = self.device.read()
        armed, torque = self._standing()
        self._halted = self._halted or not armed
        limp = not self._halted and not torque
        if self._limp and not limp and not self._halted:
            self.device.engage(self.held(), time.monotonic_ns())
            reading = None
        self._limp = limp
        if self._halted or limp or reading is None:
            if not self._halted:
                self._wait_for_operator()
            self._renew()
            return False
        t_ns, target = reading
        self.leases[self.follower_group].send(target, t_ns, mode=self.device.mode)
        self.tell("following")
        self._told_s = 0.0
        self.sent += 1
        if self.sent % 256 == 0:
            self._renew()
        return True

    def _standing(self) -> tuple[bool, bool]:
        """Whether all followers are armed, and whether they have torque."""
        try:
            ticks = [self.client.tick(name) for name in self.followers]
        except SharedMemoryError:  # being started again
            return False, False
        armed = all(tick["lifecycle"] == Lifecycle.ARMED for tick in ticks)
        return armed, all(tick["torque"].all() for tick in ticks)

    def _wait_for_operator(self) -> None:
        """Engage the device where the robots are now, and say what it waits for."""
        waits = self.device.waiting()
        now = time.monotonic()
        if waits is None:
            return
        if now - self._engaged_s > ENGAGE_S:
            self._engaged_s = now
            self.device.engage(self.held(), time.monotonic_ns())
        if now - self._told_s > TELL_S:
            self._told_s = now
            self.tell(waits)

    def trouble(self) -> str | None:
        """Why the followers don't follow (a stop, a fault, a target far away), None when they do
        or only wait for the operator."""
        for name in self.followers:
            trouble = self._trouble_of(name, needs_arming=True)
            if trouble is not None:
                return trouble
        return "they were stopped meanwhile" if self._halted else None

    def _trouble_of(self, name: str, *, needs_arming: bool) -> str | None:
        """Why a robot does not do its part."""
        try:
            tick = self.client.tick(name)
        except SharedMemoryError:
            return f"{name} is being started again"
        if time.monotonic_ns() - int(tick["t_ns"]) > SILENCE_S * 1e9:
            return f"{name} is silent"
        lifecycle = Lifecycle(int(tick["lifecycle"]))
        if lifecycle is Lifecycle.FAULT or (needs_arming and lifecycle is not Lifecycle.ARMED):
            group = self.station.group_of(name).name
            stop = self.client.status()["groups"][group]["stop"]
            return str(stop or lifecycle.name.lower())
        difference = Difference(int(tick["difference"]))
        if needs_arming and difference & Difference.REENGAGE:
            return self._too_far(name)
        if needs_arming and difference & Difference.INVALID:
            return f"{name} refuses its targets as no valid ones"
        return None

    def _too_far(self, name: str) -> str:
        return f"the target is too far from {name} to be followed"

    @property
    def halted(self) -> bool:
        """Whether the followers were stopped, so that nothing is followed until ``reengage``."""
        return self._halted

    def faulted(self) -> bool:
        """Whether some arm is in fault, rather than stopped by somebody (also at the robot).

        A stop that was seen here counts until the robots are engaged again: whoever resets it finds
        the arms still in fault for a moment, and has not asked for motion.
        """
        robots = [robot for group in self.leases for robot in self.station.groups[group].robots]
        try:
            ticks = [self.client.tick(robot) for robot in robots]
            if any(b"user stop" in tick["fault"] for tick in ticks):
                return False
            asked = any(stop_asked(self.station.station, group) for group in self.leases)
            self._asked = self._asked or asked
            return not self._asked and any(tick["lifecycle"] == Lifecycle.FAULT for tick in ticks)
        except SharedMemoryError:  # being started again; it comes back in fault
            return False
