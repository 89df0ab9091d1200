"""ALOHA's start ritual as a state machine: torque, start pose, and both grippers closed to begin.

It knows no transport: whoever holds the leases of leaders and followers (the teleoperation
process) feeds it what the arms report and passes on what it asks. The order is ALOHA's own:
clear gripper faults of the followers, torque on, move all arms to the start pose, leader grippers
to the middle and follower grippers closed, leader grippers free, wait until the operator has
closed *every* leader gripper, leaders free, start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hardware.aloha import trajectory
from hardware.aloha.rig import GRIPPER
from robot_stack.spec import RobotSpec
from robot_stack.trajectory import minimum_jerk

__all__ = ["ArmView", "Phase", "Ritual", "RitualArm", "RitualStep", "TorqueRequest"]

Array = NDArray[np.float64]

DT_S = 0.02
RECOVER_S = 10.0
TORQUE_S = 3.0
LEADER_GRIPPER_START = 0.5
FOLLOWER_GRIPPER_START = 0.0
SETTLED_RAD = 0.15


class Phase(Enum):
    """Where the ritual stands; RUNNING and FAILED are its ends."""

    RECOVER = "recover"
    TORQUE = "torque"
    MOVE = "move"
    GRIPPERS = "grippers"
    RELEASE_GRIPPERS = "release grippers"
    WAIT = "wait"
    RELEASE_LEADERS = "release leaders"
    RUNNING = "running"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class RitualArm:
    """One arm of the ritual. ``start_fraction``: a leader's gripper below it counts as closed."""

    role: Literal["leader", "follower"]
    spec: RobotSpec
    start_fraction: float = 0.25


@dataclass(frozen=True, slots=True)
class ArmView:
    """What one arm reports: measured ``q`` and the target it holds, (dof,); torque, (dof,) bool."""

    q: Array
    target: Array
    torque: NDArray[np.bool_]
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class TorqueRequest:
    """Switch the torque of the marked joints of one arm."""

    arm: str
    joints: tuple[bool, ...]
    on: bool


@dataclass(frozen=True, slots=True)
class RitualStep:
    """What to do now: targets to send by arm, torque to switch, arms to recover, words to show."""

    phase: Phase
    message: str
    targets: Mapping[str, Array] = field(default_factory=dict)
    torque: tuple[TorqueRequest, ...] = ()
    recover: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        """True when there is nothing more to do: teleoperation runs, or the ritual has failed."""
        return self.phase in (Phase.RUNNING, Phase.FAILED)


class Ritual:
    """Call ``step`` at every tick until it is ``done``.

    Requests are repeated at every tick until the arms report them fulfilled, so a lost message
    costs nothing. After ``wait_s`` without both grippers closed the ritual fails, with all arms
    held under torque; None waits for ever.
    """

    def __init__(self, arms: Mapping[str, RitualArm], wait_s: float | None = None) -> None:
        if not any(arm.role == "leader" for arm in arms.values()):
            raise ValueError("the start ritual needs at least one leader arm")
        self.arms = dict(arms)
        self.wait_s = wait_s
        self.phase = Phase.RECOVER
        self._failure = ""
        self._since_ns: int | None = None
        self._paths: dict[str, Array] = {}
        self._targets: dict[str, Array] = {}

    def step(self, t_ns: int, views: Mapping[str, ArmView]) -> RitualStep:
        """Advance to monotonic time ``t_ns`` given every arm's view."""
        if self._since_ns is None:
            self._since_ns = t_ns
        elapsed = (t_ns - self._since_ns) * 1e-9
        faulty = {n: v.fault for n, v in views.items() if n in self.arms and v.fault is not None}
        if faulty and self.phase not in (Phase.RECOVER, Phase.RUNNING, Phase.FAILED):
            self._fail("; ".join(f"{name}: {fault}" for name, fault in faulty.items()))
        before = self.phase
        step = _STEPS[self.phase](self, elapsed, views)
        if self.phase is not before:
            self._since_ns = t_ns
        return step

    def _fail(self, why: str) -> None:
        self.phase = Phase.FAILED
        self._failure = f"{why}; all arms hold. Clear it (`robot-stack reset`) and start again"

    def _of(self, role: str) -> list[str]:
        return [name for name, arm in self.arms.items() if arm.role == role]

    def _recover(self, elapsed: float, views: Mapping[str, ArmView]) -> RitualStep:
        faulty = {name: views[name].fault for name in self.arms if views[name].fault is not None}
        if not faulty:
            self.phase = Phase.TORQUE
            return RitualStep(self.phase, "switching torque on")
        text = "; ".join(f"{name}: {fault}" for name, fault in faulty.items())
        if elapsed > RECOVER_S:
            self._fail(f"not cleared within {RECOVER_S:g} s: {text}")
            return self._failed(elapsed, views)
        return RitualStep(self.phase, f"clearing {text}", recover=tuple(faulty))

    def _torque(self, elapsed: float, views: Mapping[str, ArmView]) -> RitualStep:
        off = [name for name in self.arms if not views[name].torque.all()]
        if not off:
            for name, arm in self.arms.items():
                self._targets[name] = np.array(views[name].target, dtype=np.float64)
                self._paths[name] = trajectory.home(arm.spec, self._targets[name], DT_S)
            self.phase = Phase.MOVE
            return RitualStep(self.phase, "moving to the start pose", targets=dict(self._targets))
        if elapsed > TORQUE_S:
            self._fail(f"no torque within {TORQUE_S:g} s on {', '.join(off)}")
            return self._failed(elapsed, views)
        requests = tuple(
            TorqueRequest(name, tuple(not on for on in views[name].torque), on=True) for name in off
        )
        return RitualStep(self.phase, "switching torque on", torque=requests)

    def _follow(self, elapsed: float) -> bool:
        """Targets at ``elapsed`` along the paths, between their rows; True when all have ended."""
        for name, path in self._paths.items():
            at = min(elapsed / DT_S, len(path) - 1.0)
            row = int(at)
            after = path[min(row + 1, len(path) - 1)]
            self._targets[name] = path[row] + (at - row) * (after - path[row])
        return all(elapsed >= DT_S * (len(path) - 1) for path in self._paths.values())

    def _move(self, elapsed: float, views: Mapping[str, ArmView]) -> RitualStep:
        ended = self._follow(elapsed)
        if ended and self._settled(views):
            for name, arm in self.arms.items():
                goal = self._targets[name].copy()
                leader = arm.role == "leader"
                goal[GRIPPER] = LEADER_GRIPPER_START if leader else FOLLOWER_GRIPPER_START
                goal[GRIPPER] = max(goal[GRIPPER], arm.spec.joints[GRIPPER].lower)
                seconds = trajectory.move_seconds(arm.spec, self._targets[name], goal, 0.5)
                self._paths[name] = minimum_jerk(self._targets[name], goal, seconds, DT_S)
            self.phase = Phase.GRIPPERS
        message = "moving to the start pose"
        if ended and elapsed > DT_S * max(map(len, self._paths.values())) + 2.0:
            message += f"; waiting for {', '.join(self._unsettled(views))} to arrive"
        return RitualStep(self.phase, message, targets=dict(self._targets))

    def _unsettled(self, views: Mapping[str, ArmView]) -> list[str]:
        """Arms that are away from their targets: held by a hand, or slowed by a guard."""
        return [
            name
            for name, target in self._targets.items()
            if not np.abs(views[name].q - target)[:GRIPPER].max() < SETTLED_RAD
        ]

    def _settled(self, views: Mapping[str, ArmView]) -> bool:
        return not self._unsettled(views)

    def _grippers(self, elapsed: float, _: Mapping[str, ArmView]) -> RitualStep:
        if self._follow(elapsed):
            self.phase = Phase.RELEASE_GRIPPERS
        return RitualStep(self.phase, "setting the grippers", targets=dict(self._targets))

    def _release(
        self, views: Mapping[str, ArmView], joints: slice, then: Phase
    ) -> tuple[TorqueRequest, ...]:
        """Free ``joints`` of all leaders; the next phase once they report it."""
        requests = []
        for name in self._of("leader"):
            still_on = np.zeros(len(views[name].torque), dtype=bool)
            still_on[joints] = views[name].torque[joints]
            if still_on.any():
                requests.append(TorqueRequest(name, tuple(map(bool, still_on)), on=False))
        if not requests:
            self.phase = then
        return tuple(requests)

    def _release_grippers(self, _: float, views: Mapping[str, ArmView]) -> RitualStep:
        requests = self._release(views, slice(GRIPPER, GRIPPER + 1), Phase.WAIT)
        return RitualStep(
            self.phase, "freeing the leader grippers", dict(self._targets), torque=requests
        )

    def _wait(self, elapsed: float, views: Mapping[str, ArmView]) -> RitualStep:
        open_ones = [
            name
            for name in self._of("leader")
            # A NaN (a gripper that did not answer) is not closed.
            if not views[name].q[GRIPPER] < self.arms[name].start_fraction
        ]
        if not open_ones:
            self.phase = Phase.RELEASE_LEADERS
            message = "starting"
        elif self.wait_s is not None and elapsed > self.wait_s:
            self._fail(f"{', '.join(open_ones)} not closed within {self.wait_s:g} s")
            return self._failed(elapsed, views)
        else:
            message = f"close both grippers to start (still open: {', '.join(open_ones)})"
        return RitualStep(self.phase, message, targets=dict(self._targets))

    def _release_leaders(self, _: float, views: Mapping[str, ArmView]) -> RitualStep:
        requests = self._release(views, slice(None), Phase.RUNNING)
        message = "the leaders are free" if self.phase is Phase.RUNNING else "freeing the leaders"
        return RitualStep(self.phase, message, dict(self._targets), torque=requests)

    def _running(self, _: float, __: Mapping[str, ArmView]) -> RitualStep:
        return RitualStep(self.phase, "the leaders are free")

    def _failed(self, _: float, __: Mapping[str, ArmView]) -> RitualStep:
        return RitualStep(self.phase, self._failure)


_STEPS = {
    Phase.RECOVER: Ritual._recover,
    Phase.TORQUE: Ritual._torque,
    Phase.MOVE: Ritual._move,
    Phase.GRIPPERS: Ritual._grippers,
    Phase.RELEASE_GRIPPERS: Ritual._release_grippers,
    Phase.WAIT: Ritual._wait,
    Phase.RELEASE_LEADERS: Ritual._release_leaders,
    Phase.RUNNING: Ritual._running,
    Phase.FAILED: Ritual._failed,
}
