"""The scripted operator: a person who transfers the cube by moving the two leader arms by hand.

It knows where the cube lies, as a person sees it, plans fingertip paths in the follower arms'
kinematics, and moves the leaders' joints along them at human speed; the followers follow through
the same bus, driver, control server and filter as with a person.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hardware.worlds.aloha import LEFT, RIGHT, START
from hardware.worlds.inverse_kinematics import ArmKinematics, both_arms, rotation
from robot_stack.errors import RobotStackError

__all__ = ["Hands", "Phase", "ScriptedOperator", "TransferPlan", "plan_transfer"]

Array = NDArray[np.float64]

KNOTS = 8  # inverse-kinematics solutions along one straight segment
UNREACHABLE = 0.01
OPEN, CLOSED, SQUEEZE = 0.95, 0.12, 0.0
SQUEEZE_S = 0.7
REACTION_S = 0.4


class Phase(StrEnum):
    """What the operator is doing."""

    PLANNING = "planning"
    WAITING_FOR_HOME = "waiting_for_home"
    SQUEEZING = "squeezing"
    WAITING_FOR_START = "waiting_for_start"
    MOVING = "moving"
    DONE = "done"
    INTERRUPTED = "interrupted"


class Hands(Protocol):
    """The two leader arms as the person feels them; arm 0 is left."""

    def joints(self, arm: int) -> Array:
        """(7,): six joints in rad and the gripper's opening fraction."""

    def torque(self, arm: int) -> tuple[bool, bool]:
        """Whether (any arm joint, the gripper) holds under torque."""

    def move(self, arm: int, joints: Array | None, gripper: float | None) -> None:
        """Hold the arm's joints (6,) in rad and the gripper's opening fraction, where given."""

    def release(self, arm: int) -> None:
        """Let go."""


@dataclass(frozen=True, slots=True)
class _Segment:
    name: str
    duration_s: float
    knots: Array  # (2, K, 7): arm, knot, joints and gripper fraction


class TransferPlan:
    """A timed path of both leaders; ``at`` samples it."""

    def __init__(self, segments: list[_Segment]) -> None:
        self._segments = segments
        self._ends = np.cumsum([segment.duration_s for segment in segments])

    @property
    def duration_s(self) -> float:
        return float(self._ends[-1])

    def starting_at(self, joints: Array) -> TransferPlan:
        """The same plan from where the leaders (2, 7) really are."""
        first = self._segments[0]
        knots = np.stack([joints, first.knots[:, -1]], axis=1)
        return TransferPlan([_Segment(first.name, first.duration_s, knots), *self._segments[1:]])

    def _locate(self, t_s: float) -> tuple[_Segment, float]:
        i = min(int(np.searchsorted(self._ends, t_s, side="right")), len(self._segments) - 1)
        segment = self._segments[i]
        begin = float(self._ends[i]) - segment.duration_s
        return segment, min(1.0, max(0.0, (t_s - begin) / segment.duration_s))

    def name(self, t_s: float) -> str:
        """What is being done at ``t_s``."""
        return self._locate(t_s)[0].name

    def at(self, t_s: float) -> Array:
        """Leader joints (2, 7) at ``t_s``: six joints in rad and the gripper's opening fraction.

        Each segment starts and ends at rest with the minimum-jerk time course of human reaching
        (Flash and Hogan 1985).
        """
        segment, u = self._locate(t_s)
        s = u**3 * (10.0 + u * (6.0 * u - 15.0))
        last = segment.knots.shape[1] - 1
        k = min(int(s * last), last - 1)
        f = s * last - k
        slopes = np.gradient(segment.knots, axis=1) if last > 1 else None
        a, b = segment.knots[:, k], segment.knots[:, k + 1]
        if slopes is None:
            return np.asarray(a + f * (b - a))
        ma, mb = slopes[:, k], slopes[:, k + 1]
        cubic = (2 * f**3 - 3 * f**2 + 1) * a + (f**3 - 2 * f**2 + f) * ma
        return np.asarray(cubic + (3 * f**2 - 2 * f**3) * b + (f**3 - f**2) * mb)


@dataclass(frozen=True, slots=True)
class _Pose:
    position: Array
    pitch: float
    roll: float

    def orientation(self, arm: int) -> Array:
        return rotation(arm, self.pitch, self.roll)

    def back(self, arm: int, distance: float) -> _Pose:
        """The same pose, ``distance`` metres back along the gripper's own axis."""
        return _Pose(self.position - distance * self.orientation(arm)[:, 0], self.pitch, self.roll)


class _Planner:
    """Builds segments; every inverse-kinematics solution is one step of a generator, so that a
    single-threaded world can plan between two physics steps (0.4 ms each)."""

    def __init__(self, start: Array, kinematics: tuple[ArmKinematics, ArmKinematics]) -> None:
        self.kinematics = kinematics
        # Solutions without the compensation of sag, and what the hands do.
        self.solution = start[:, :6].copy()
        self.command = start.copy()
        self.pose: list[_Pose | None] = [None, None]
        self.segments: list[_Segment] = []

    def _solve(self, arm: int, pose: _Pose) -> Array:
        kinematics = self.kinematics[arm]
        q, error = kinematics.solve(pose.position, pose.orientation(arm), self.solution[arm])
        if error > UNREACHABLE:
            where = ", ".join(f"{x:.3f}" for x in pose.position)
            raise RobotStackError(
                f"the {('left', 'right')[arm]} arm cannot reach ({where}) m at pitch "
                f"{pose.pitch:.2f} rad (error {error:.3f}); reset the world with another seed"
            )
        self.solution[arm] = q
        # The person sees the follower sag and holds the leader that much higher.
        return np.asarray(q + kinematics.sag(q))

    def segment(
        self,
        name: str,
        duration_s: float,
        targets: dict[int, _Pose] | None = None,
        grippers: dict[int, float] | None = None,
    ) -> Iterator[None]:
        """Move fingertips on straight lines (the first motion of an arm: in joint space)."""
        knots = np.repeat(self.command[:, None, :], KNOTS + 1, axis=1)
        for arm, target in (targets or {}).items():
            begin = self.pose[arm]
            for k in range(1, KNOTS + 1):
                if begin is None and k < KNOTS:
                    continue
                f = k / KNOTS
                pose = target
                if begin is not None and k < KNOTS:
                    pose = _Pose(
                        begin.position + f * (target.position - begin.position),
                        begin.pitch + f * (target.pitch - begin.pitch),
                        begin.roll + f * (target.roll - begin.roll),
                    )
                knots[arm, k, :6] = self._solve(arm, pose)
                yield
            if begin is None:
                knots[arm, :, :6] = np.linspace(knots[arm, 0, :6], knots[arm, -1, :6], KNOTS + 1)
            self.pose[arm] = target
        for arm, opening in (grippers or {}).items():
            knots[arm, :, 6] = np.linspace(knots[arm, 0, 6], opening, KNOTS + 1)
        self.command = knots[:, -1].copy()
        self.segments.append(_Segment(name, duration_s, knots))


def plan_transfer(
    cube: Array,
    seed: int = 0,
    noise: float = 1.0,
    kinematics: tuple[ArmKinematics, ArmKinematics] | None = None,
) -> Generator[None, None, TransferPlan]:
    """Plan a transfer of the cube at pose ``cube`` (7,); a generator that returns the plan.

    ``noise`` scales the seeded variation of speed and path between repetitions (0: none).
    ``kinematics`` saves the loading of the model when it is at hand. The plan begins at the start
    pose with closed grippers. RobotStackError when the cube lies where an arm cannot take it.
    """
    random = np.random.default_rng(seed)

    def vary(scale: float, size: int = 1) -> Array:
        return noise * np.clip(random.normal(0.0, scale, size), -2 * scale, 2 * scale)

    pace = float(np.exp(vary(0.07)[0]))
    home = np.tile([*START[:6], SQUEEZE], (2, 1))
    planner = _Planner(home, kinematics or both_arms())

    pick = _Pose(
        np.array([*cube[:2] + vary(0.002, 2), 0.020 + vary(0.0015)[0]]),
        np.radians(60.0) + vary(0.04)[0],
        0.0,
    )
    above = pick.back(RIGHT, 0.10 + vary(0.01)[0])
    meeting = np.array([0.0, 0.5, 0.25]) + vary(0.012, 3)
    carry = _Pose(meeting, pick.pitch, 0.0)
    take = _Pose(meeting + np.array([0.004, 0.0, -0.004]), 0.0, np.pi / 2)
    wait = take.back(LEFT, 0.11 + vary(0.01)[0])

    def segment(
        name: str,
        duration_s: float,
        targets: dict[int, _Pose] | None = None,
        grippers: dict[int, float] | None = None,
    ) -> Iterator[None]:
        duration = duration_s * pace * float(np.exp(vary(0.05)[0]))
        return planner.segment(name, duration, targets, grippers)

    yield from segment("reach", 1.6, {RIGHT: above}, {RIGHT: OPEN, LEFT: OPEN})
    yield from segment("descend", 1.0, {RIGHT: pick})
    yield from segment("grasp", 0.6, None, {RIGHT: CLOSED})
    lifted = _Pose(pick.position + np.array([0.0, 0.0, 0.10]), pick.pitch, 0.0)
    yield from segment("lift", 0.8, {RIGHT: lifted})
    yield from segment("carry", 1.6, {RIGHT: carry, LEFT: wait})
    yield from segment("approach", 1.0, {LEFT: take})
    yield from segment("take", 0.7, None, {LEFT: CLOSED})
    yield from segment("let go", 0.6, None, {RIGHT: OPEN})
    yield from segment("retreat", 1.0, {RIGHT: carry.back(RIGHT, 0.12)})
    yield from segment("hold", 1.0)
    return TransferPlan(planner.segments)


class ScriptedOperator:
    """Goes through the start ritual and one transfer; ``update`` is called at every world step.

    The ritual, from the person's side: the leaders drive home under torque; when the grippers go
    limp, squeeze both; when the arms go limp too, the episode has begun. Without ``ritual`` the
    person begins as soon as both leaders are limp. Torque that comes back takes the leaders out
    of the person's hands: the transfer ends there.
    """

    def __init__(
        self,
        hands: Hands,
        cube: Array,
        kinematics: tuple[ArmKinematics, ArmKinematics],
        *,
        seed: int = 0,
        noise: float = 1.0,
        ritual: bool = True,
    ) -> None:
        self._hands = hands
        self._planning = plan_transfer(cube, seed, noise, kinematics)
        self._plan: TransferPlan | None = None
        self._ritual = ritual
        self._since_s = 0.0
        self.phase = Phase.PLANNING
        self.action = ""

    @property
    def done(self) -> bool:
        return self.phase in (Phase.DONE, Phase.INTERRUPTED)

    def cancel(self) -> None:
        """Let go of both leaders and stop."""
        self._end(Phase.INTERRUPTED)

    def _enter(self, phase: Phase, now_s: float) -> None:
        self.phase = phase
        self._since_s = now_s

    def _end(self, phase: Phase) -> None:
        self.phase = phase
        for arm in (LEFT, RIGHT):
            self._hands.release(arm)

    def update(self, now_s: float) -> None:
        """Do the next bit. ``now_s`` is any clock that grows with the world's time.

        RobotStackError when the cube turns out to lie where an arm cannot take it.
        """
        torque = [self._hands.torque(arm) for arm in (LEFT, RIGHT)]
        arms = [arm for arm, _ in torque]
        grippers = [gripper for _, gripper in torque]
        elapsed = now_s - self._since_s
        match self.phase:
            case Phase.PLANNING:
                try:
                    next(self._planning)
                except StopIteration as finished:
                    self._plan = finished.value
                    wait = Phase.WAITING_FOR_HOME if self._ritual else Phase.WAITING_FOR_START
                    self._enter(wait, now_s)
            case Phase.WAITING_FOR_HOME:
                if not all(arms) or any(grippers):
                    self._since_s = now_s
                elif elapsed > REACTION_S:
                    self._enter(Phase.SQUEEZING, now_s)
            case Phase.SQUEEZING:
                self._squeeze(min(1.0, elapsed / SQUEEZE_S))
                if elapsed > SQUEEZE_S:
                    self._enter(Phase.WAITING_FOR_START, now_s)
            case Phase.WAITING_FOR_START:
                if any(arms) or any(grippers):
                    self._since_s = now_s
                elif elapsed > REACTION_S:
                    self._begin(now_s)
            case Phase.MOVING:
                if any(arms) or any(grippers):
                    self._end(Phase.INTERRUPTED)
                else:
                    self._follow_plan(elapsed)
            case Phase.DONE | Phase.INTERRUPTED:
                pass

    def _squeeze(self, progress: float) -> None:
        for arm in (LEFT, RIGHT):
            opening = float(self._hands.joints(arm)[6])
            self._hands.move(arm, None, opening + progress * (SQUEEZE - opening))

    def _begin(self, now_s: float) -> None:
        assert self._plan is not None
        joints = np.stack([self._hands.joints(arm) for arm in (LEFT, RIGHT)])
        self._plan = self._plan.starting_at(joints)
        self._enter(Phase.MOVING, now_s)

    def _follow_plan(self, elapsed: float) -> None:
        assert self._plan is not None
        target = self._plan.at(elapsed)
        self.action = self._plan.name(elapsed)
        for arm in (LEFT, RIGHT):
            self._hands.move(arm, target[arm, :6], float(target[arm, 6]))
        if elapsed >= self._plan.duration_s:
            self._end(Phase.DONE)
