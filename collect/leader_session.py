"""A teleoperation session of leader arms: the start ritual, and the way back to following.

Leaders are arms of the station, with torque of their own: they are driven to where the followers
are and freed when a hand is there to hold them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from collect.teleop_session import TeleopSession
from hardware.aloha.ritual import ArmView, Phase, Ritual, RitualArm, RitualStep
from robot_stack.client import StationClient
from robot_stack.config import Station, TeleopConfig
from robot_stack.errors import ControlPlaneError
from robot_stack.trajectory import minimum_jerk
from robot_stack.types import Lifecycle, Source

__all__ = ["LeaderSession"]

GRIP_MOVED = 0.1  # of a leader gripper's way: a hand is on it
DRIVE_SPEED = 0.5  # mean rad/s of a leader that is driven to its follower
RITUAL_PERIOD_S = 0.02
REQUEST_PAUSE_S = 0.5
LOOK_S = (
    0.005  # between two looks whether the followers are armed: to be reset and armed takes more
)


class LeaderSession(TeleopSession):
    """Holds the leases of followers and leaders; ``engage`` performs the ritual."""

    poll_ns = 250_000  # a hand's motion shall not wait

    def __init__(
        self,
        station: Station,
        client: StationClient,
        teleop: TeleopConfig | None = None,
        *,
        source: Source = Source.DEMO,
        say: Callable[[str], None] = print,
    ) -> None:
        super().__init__(station, client, teleop, source=source, say=say)
        self.pairs: dict[str, str] = dict(self.teleop.options.get("pairs", {}))
        self.leaders = sorted(self.pairs)
        self.leader_groups = sorted({station.group_of(leader).name for leader in self.leaders})
        self.start_fractions: dict[str, float] = {}
        self._looked_s = 0.0
        for name in self.leaders:
            robot = self._robot(name)
            self.specs[name] = robot.spec
            self.start_fractions[name] = robot.start_fraction

    @property
    def lease_groups(self) -> list[str]:
        # The followers' last: a policy that moves them is not disturbed if a leader is refused.
        return [*self.leader_groups, self.follower_group]

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
                self._halted = self._asked = False
                return
            self._send_ritual(step, groups)
            self._request_ritual(step, asked_at)
            time.sleep(RITUAL_PERIOD_S)

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
                self.client.post("reset", {"group": group, "automatic": True})
                self.client.post("arm", {"group": group})

    # -- re-engaging -------------------------------------------------------------------------

    def meet(self, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Drive the leaders to where the followers are and free them for the operator: how a
        person takes over from a policy, without the start ritual.

        The leaders' arms are freed only when the operator has moved every leader gripper, which
        shows that a hand is there to hold it.
        """
        for group in self.leases:
            self._ask("arm", {"group": group})
        self._halted = self._asked = False
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
            self._look(LOOK_S)
            self._renew()
            time.sleep(RITUAL_PERIOD_S)
        if cancelled():
            return
        self._free({name: [True] * self.specs[name].dof for name in self.leaders})
        self.tell("the leaders are free")

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
            self._look(LOOK_S)
            self._renew()
            time.sleep(RITUAL_PERIOD_S)

    # -- following ---------------------------------------------------------------------------

    def step(self) -> bool:
        """Pass on the operator's newest motion; True when there was one. Never blocks.

        A follower that is not armed ends the following until ``engage`` or ``meet``, whoever arms
        it again: the leaders have been moved meanwhile, or have sagged. LeaseError when somebody
        took over.
        """
        reading = self.device.read()
        # A hand's motion does not wait for the look, as long as there are moments without one.
        self._look(LOOK_S if reading is None else 2.0 * LOOK_S)
        if self._halted or reading is None:
            self._renew()
            return False
        t_ns, target = reading
        self.leases[self.follower_group].send(target, t_ns)
        self.sent += 1
        if self.sent % 256 == 0:
            self._renew()
        return True

    def _look(self, period_s: float) -> None:
        """Note a follower that is not armed, if the last look is ``period_s`` ago."""
        now = time.monotonic()
        if now - self._looked_s > period_s:
            self._looked_s = now
            armed, _ = self._standing()
            self._halted = self._halted or not armed

    def trouble(self) -> str | None:
        """Why the followers don't follow (a stop, a fault of an arm on either side, a leader far
        away, a stop that somebody has reset), None when they do."""
        for name in [*self.followers, *self.leaders]:
            # A leader is read, whatever holds it, unless it is in fault.
            trouble = self._trouble_of(name, needs_arming=name not in self.pairs)
            if trouble is not None:
                return trouble
        return "they were stopped meanwhile" if self._halted else None

    def _too_far(self, name: str) -> str:
        return f"the leader of {name} is too far from it to be followed"
