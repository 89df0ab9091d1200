"""`robot-stack teleop`: the start ritual, then followers follow what the operator moves."""

from __future__ import annotations

import argparse
import json
import select
import signal
import sys
import termios
import time
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hardware.aloha.ritual import ArmView, Phase, Ritual, RitualArm, RitualStep
from robot_stack import registry
from robot_stack.client import Lease, StationClient
from robot_stack.config import Station, load_station
from robot_stack.errors import ControlPlaneError, LeaseError, RobotStackError, SharedMemoryError
from robot_stack.interfaces import Teleoperator
from robot_stack.realtime import setup, sleep_until
from robot_stack.trajectory import minimum_jerk
from robot_stack.types import Difference, Lifecycle, Source

__all__ = ["TeleopSession", "add_arguments", "run"]

GRIP_MOVED = 0.1  # of a leader gripper's way: a hand is on it
SILENCE_S = 0.3
ANSWER_S = 40.0  # arms may still be starting
DRIVE_SPEED = 0.5  # mean rad/s of a leader that is driven to its follower
POLL_NS = 250_000  # how often the operator's device is looked at
RITUAL_PERIOD_S = 0.02
REST_S = 3.0  # a stop from full speed takes 0.04 s
REST_LOOK_S = 0.1
REQUEST_PAUSE_S = 0.5
PRIORITY = 40  # below the arm processes'


class TeleopSession:
    """Holds the leases of followers and leaders; ``engage`` performs the ritual, ``step`` follows.

    ``say`` gets one line whenever the operator should know something new.
    """

    def __init__(
        self,
        station: Station,
        client: StationClient,
        *,
        source: Source = Source.DEMO,
        say: Callable[[str], None] = print,
    ) -> None:
        if station.teleop is None:
            raise ControlPlaneError(
                f"{station.path} has no `teleop` section: say which device moves which group"
            )
        self.station = station
        self.client = client
        self.source = source
        self.say = say
        self.device: Teleoperator = registry.load("teleop", station.teleop.driver).from_config(
            station.teleop, station
        )
        self.follower_group = station.teleop.group
        self.followers = station.groups[self.follower_group].robots
        self.pairs: dict[str, str] = dict(station.teleop.options.get("pairs", {}))
        self.leaders = sorted(self.pairs)
        self.leader_groups = sorted({station.group_of(leader).name for leader in self.leaders})
        robots = {
            name: registry.load("robot", config.driver).from_config(config, station)
            for name, config in station.robots.items()
        }
        self.specs = {name: robot.spec for name, robot in robots.items()}
        self.start_fractions = {name: robots[name].start_fraction for name in self.leaders}
        self.leases: dict[str, Lease] = {}
        self.sent = 0
        self._said = ""

    def __enter__(self) -> Self:
        self.device.connect()
        try:
            # The followers' last: a policy that moves them is not disturbed if a leader is refused.
            for group in [*self.leader_groups, self.follower_group]:
                self.leases[group] = self.client.lease(group, "teleop", source=self.source)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the leases back: every arm decelerates and holds; free leaders stay free."""
        for lease in self.leases.values():
            lease.release()
        self.leases.clear()
        self.device.disconnect()

    def tell(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self.say(text)

    # -- the ritual --------------------------------------------------------------------------

    def engage(
        self, *, wait_s: float | None = None, cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        """Arm everything and perform the start ritual; returns when the leaders are free.

        ControlPlaneError when an arm does not come along, or nobody closes the grippers in
        ``wait_s``.
        """
        for group in self.leases:
            self._ask("arm", {"group": group})
        groups = {group: self.station.groups[group].robots for group in self.leases}
        arms = {name: RitualArm("follower", self.specs[name]) for name in self.followers}
        for name in self.leaders:
            arms[name] = RitualArm("leader", self.specs[name], self.start_fractions[name])
        ritual = Ritual(arms, wait_s)
        asked_at: dict[str, float] = {}
        while not cancelled():
            step = ritual.step(time.monotonic_ns(), self._views())
            self.tell(step.message)
            if step.phase is Phase.FAILED:
                raise ControlPlaneError(step.message)
            if step.done:
                return
            self._send_ritual(step, groups)
            self._request_ritual(step, asked_at)
            time.sleep(RITUAL_PERIOD_S)

    def _ask(self, kind: str, body: dict[str, Any]) -> None:
        """A request of the supervisor that keeps the leases meanwhile."""
        self.client.request(kind, body, timeout_s=ANSWER_S, keep=self._renew)

    def _renew(self) -> None:
        for lease in self.leases.values():
            lease.renew()
            if lease.lost is not None:
                raise LeaseError(f"group {lease.group!r}: {lease.lost}")

    def _views(self) -> dict[str, ArmView]:
        views = {}
        for group in self.leases:
            for name in self.station.groups[group].robots:
                tick = self.client.tick(name)
                fault = tick["fault"].decode(errors="replace") or None
                if fault is None and tick["lifecycle"] != Lifecycle.ARMED:
                    state = Lifecycle(int(tick["lifecycle"])).name.lower()
                    fault = f"it is {state}"
                views[name] = ArmView(tick["q"], tick["sent"], tick["torque"].astype(bool), fault)
        return views

    def _send_ritual(self, step: RitualStep, groups: dict[str, tuple[str, ...]]) -> None:
        if not step.targets:
            self._renew()
            return
        for group, robots in groups.items():
            self.leases[group].send(np.concatenate([step.targets[name] for name in robots]))

    def _request_ritual(self, step: RitualStep, asked_at: dict[str, float]) -> None:
        """Pass on torque and recovery requests; the ritual repeats them until they are done."""
        now = time.monotonic()
        for request in step.torque:
            if now - asked_at.get(request.arm, 0.0) > REQUEST_PAUSE_S:
                asked_at[request.arm] = now
                joints = [bool(joint) for joint in request.joints]
                body = {"robot": request.arm, "joints": joints, "on": request.on}
                self.client.post("torque", body)
        faulty = any(
            self.client.tick(name)["lifecycle"] == Lifecycle.FAULT for name in step.recover
        )  # a stop that somebody asked for is not ours to reset
        if faulty and now - asked_at.get("", 0.0) > REQUEST_PAUSE_S:
            asked_at[""] = now
            for group in self.leases:
                self.client.post("reset", {"group": group})
                self.client.post("arm", {"group": group})

    # -- re-engaging -------------------------------------------------------------------------

    def reengage(self, cancelled: Callable[[], bool] = lambda: False) -> None:
        """After a stop or fault: reset, drive the leaders to the followers, free them, go on.

        The followers stay where they are, so an episode in progress is not lost. The leaders'
        arms are freed only when the operator has moved every leader gripper, which shows that a
        hand is there to hold it.
        """
        for group in self.leases:
            self._ask("reset", {"group": group})
        self.meet(cancelled)

    def meet(self, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Drive the leaders to where the followers are and free them for the operator: how a
        person takes over from a policy, without the start ritual."""
        for group in self.leases:
            self._ask("arm", {"group": group})
        self.tell("driving the leaders to the followers; let go of them")
        wanted = self._at_rest()
        for group in self.leader_groups:
            robots = self.station.groups[group].robots
            start = np.concatenate([self.client.tick(name)["sent"] for name in robots])
            goal = np.concatenate([wanted[self._columns_of(name)] for name in robots])
            self._drive(group, start, goal, cancelled)
        gripper_of = {
            name: [j.unit == "fraction" for j in self.specs[name].joints] for name in self.leaders
        }
        self._free(gripper_of)
        held = {name: self.client.tick(name)["q"].copy() for name in self.leaders}
        self.tell("hold the leaders and move both grippers to go on")
        waiting = set(self.leaders)
        while waiting and not cancelled():
            for name in list(waiting):
                moved = np.abs(self.client.tick(name)["q"] - held[name])[gripper_of[name]]
                if moved.max(initial=0.0) > GRIP_MOVED:
                    waiting.remove(name)
            self._renew()
            time.sleep(RITUAL_PERIOD_S)
        if cancelled():
            return
        self._free({name: [True] * self.specs[name].dof for name in self.leaders})
        self.tell("the leaders are free")

    def _at_rest(self) -> NDArray[np.float64]:
        """Where the followers stand, once those that were moving have braked."""
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

    def _free(self, joints: dict[str, list[bool]]) -> None:
        """Take the torque of some joints of the leaders."""
        for name, marked in joints.items():
            body = {"robot": name, "joints": marked, "on": False}
            self._ask("torque", body)

    def _columns_of(self, leader: str) -> slice:
        """Where the follower of ``leader`` stands in the followers' target."""
        position = 0
        for name in self.followers:
            width = self.specs[name].dof
            if self.pairs[leader] == name:
                return slice(position, position + width)
            position += width
        raise ControlPlaneError(f"{leader} leads no robot of group {self.follower_group}")

    def _drive(
        self,
        group: str,
        start: NDArray[np.float64],
        goal: NDArray[np.float64],
        cancelled: Callable[[], bool],
    ) -> None:
        """Move a group of leaders to ``goal`` (D,) along a minimum-jerk path."""
        seconds = max(0.5, float(np.abs(goal - start).max()) / DRIVE_SPEED)
        for target in minimum_jerk(start, goal, seconds, RITUAL_PERIOD_S):
            if cancelled():
                return
            self.leases[group].send(target)
            self._renew()
            time.sleep(RITUAL_PERIOD_S)

    # -- following ---------------------------------------------------------------------------

    def step(self) -> bool:
        """Pass on the operator's newest motion; True when there was one. Never blocks.

        LeaseError when somebody took over.
        """
        reading = self.device.read()
        lease = self.leases[self.follower_group]
        if reading is None:
            self._renew()
            return False
        t_ns, target = reading
        lease.send(target, t_ns)
        self.sent += 1
        if self.sent % 256 == 0:
            self._renew()
        return True

    def trouble(self) -> str | None:
        """Why the followers don't follow (a stop, a fault of an arm on either side, a leader far
        away), None when they do."""
        now_ns = time.monotonic_ns()
        for name in [*self.followers, *self.leaders]:
            try:
                tick = self.client.tick(name)
            except SharedMemoryError:
                return f"{name} is being started again"
            if now_ns - int(tick["t_ns"]) > SILENCE_S * 1e9:
                return f"{name} is silent"
            lifecycle = Lifecycle(int(tick["lifecycle"]))
            leads = name in self.pairs  # it is read, whatever holds it, unless it is in fault
            if lifecycle is Lifecycle.FAULT or not (leads or lifecycle is Lifecycle.ARMED):
                group = self.station.group_of(name).name
                stop = self.client.status()["groups"][group]["stop"]
                return str(stop or lifecycle.name.lower())
            if not leads and int(tick["difference"]) & Difference.REENGAGE:
                return f"the leader of {name} is too far from it to be followed"
        return None

    def faulted(self) -> bool:
        """Whether some arm is in fault, rather than stopped by somebody."""
        robots = [robot for group in self.leases for robot in self.station.groups[group].robots]
        try:
            return any(self.client.tick(r)["lifecycle"] == Lifecycle.FAULT for r in robots)
        except SharedMemoryError:  # being started again; it comes back in fault
            return False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Teleoperate: performs the start ritual (all arms move to the start pose; close every "
        "leader gripper to begin), then the followers follow the leaders until Ctrl-C. After a "
        "stop or fault press r and enter: the followers stay where they are and the leaders are "
        "driven to them. The station must be served already."
    )
    parser.epilog = (
        "examples:\n"
        "  robot-stack teleop configs/aloha_virtual.yaml\n"
        "  robot-stack teleop configs/aloha_virtual.yaml --takeover     while a policy runs"
    )
    parser.add_argument("station", help="station file (YAML)")
    parser.add_argument(
        "--wait", type=float, metavar="S", help="give up when no gripper closes for S seconds"
    )
    parser.add_argument("--seconds", type=float, metavar="S", help="end after S seconds of motion")
    parser.add_argument(
        "--takeover",
        action="store_true",
        help="take over from a running policy: no ritual, the leaders come to the followers",
    )
    parser.add_argument(
        "--auto-recover", action="store_true", help="after a fault, re-engage without being asked"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    station = load_station(args.station)
    ended = False

    def on_signal(*_: object) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    out = sys.stderr if args.json else sys.stdout

    def say(text: str) -> None:
        print(f"teleop: {text}", file=out, flush=True)

    source = Source.HUMAN if args.takeover else Source.DEMO
    summary: dict[str, Any] = {"ok": True, "commands": 0, "recoveries": 0}
    with (
        StationClient(station.station) as client,
        TeleopSession(station, client, source=source, say=say) as teleop,
    ):
        setup(PRIORITY)
        if args.takeover:
            teleop.meet(lambda: ended)
        else:
            teleop.engage(wait_s=args.wait, cancelled=lambda: ended)
        began = looked = time.monotonic()
        told = False
        say("following; r resets after a fault, Ctrl-C ends")
        while not ended and (args.seconds is None or time.monotonic() - began < args.seconds):
            teleop.step()
            sleep_until(time.monotonic_ns() + POLL_NS)
            if time.monotonic() - looked < 0.25:
                continue
            looked = time.monotonic()
            trouble = teleop.trouble()
            if trouble is None:
                told = False
                continue
            if not told:  # an answer from before the question does not count
                _forget_typed()
                told = True
            teleop.tell(f"not following: {trouble}; press r and enter to re-engage")
            # A stop that somebody asked for is never undone without being asked.
            if (args.auto_recover and teleop.faulted()) or _pressed("r"):
                try:
                    teleop.reengage(cancelled=lambda: ended)
                    summary["recoveries"] += 1
                except LeaseError:
                    raise
                except RobotStackError as error:
                    teleop.tell(str(error))
        summary["commands"] = teleop.sent
    if args.json:
        print(json.dumps(summary))
    else:
        say(f"ended after {summary['commands']} commands; all arms hold")
    return 0


def _forget_typed() -> None:
    """Throw away what was typed so far."""
    if sys.stdin.isatty():
        termios.tcflush(sys.stdin, termios.TCIFLUSH)


def _pressed(key: str) -> bool:
    """Whether a line starting with ``key`` waits on a terminal's standard input."""
    if not sys.stdin.isatty() or not select.select([sys.stdin], [], [], 0)[0]:
        return False
    return sys.stdin.readline().strip().lower().startswith(key)
