"""Picking the cube up and putting it on the square, as a path of the fingertips.

Movements begin and end at rest, with the minimum-jerk time course of human reaching (Flash and
Hogan 1985), by a hand that is not quite steady and never does it twice the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardware.worlds.franka import CUBE_SIDE
from robot_stack.rotation import between, from_vector, multiply

__all__ = ["PickPlacePlan", "Wish", "apart", "plan_pick_place", "turn_between"]

Array = NDArray[np.float64]

OPEN, CLOSED = 1.0, 0.0
HOVER = 0.12  # m above what is to be taken or left
SPEED, TURN = 0.13, 0.5  # mean speed of a hand that takes care, m/s and rad/s
SHORTEST_S = 0.8
# Near the table as much longer: joint 2 of an FR3 brakes slowly, and who comes down faster than it
# can brake sets the cube down with a blow that is a reflex.
CARE = 2.2
TREMOR = 0.0006  # m


@dataclass(frozen=True, slots=True)
class Wish:
    """Where the fingertips should be now: pose (7,) xyz and wxyz, its rate (6,) in m/s and rad/s,
    base frame, and the gripper's opening, 0 to 1."""

    pose: Array
    rate: Array
    opening: float


@dataclass(frozen=True, slots=True)
class _Move:
    name: str
    seconds: float
    start: Array
    goal: Array
    opening: float
    fingers: bool = False  # they move, and nothing else


class PickPlacePlan:
    """A path of the fingertips in movements that each begin and end at rest."""

    def __init__(self, moves: list[_Move], tremor: Array) -> None:
        self._moves = moves
        self._ends = np.cumsum([move.seconds for move in moves])
        self._tremor = tremor  # (3 axes, harmonics, amplitude and phase)

    @property
    def duration_s(self) -> float:
        return float(self._ends[-1])

    def end_of(self, t_s: float) -> float:
        """When the movement ends that is being made at ``t_s``."""
        return float(self._ends[self._index(t_s)])

    def name(self, t_s: float) -> str:
        """What is being done at ``t_s``."""
        return self._moves[self._index(t_s)].name

    def fingers(self, t_s: float) -> bool:
        """Whether that moves the fingers only."""
        return self._moves[self._index(t_s)].fingers

    def _index(self, t_s: float) -> int:
        return min(int(np.searchsorted(self._ends, t_s, side="left")), len(self._moves) - 1)

    def at(self, t_s: float, shake_s: float) -> Wish:
        """What is wished at ``t_s`` of the plan; the hand's tremor goes on by ``shake_s``."""
        i = self._index(t_s)
        move = self._moves[i]
        u = min(1.0, max(0.0, 1.0 - (float(self._ends[i]) - t_s) / move.seconds))
        s = u**3 * (10.0 + u * (6.0 * u - 15.0))
        speed = 30.0 * u * u * (1.0 - u) ** 2 / move.seconds
        way = move.goal[:3] - move.start[:3]
        turn = turn_between(move.start, move.goal)
        quaternion = multiply(from_vector((s * turn).tolist()), move.start[3:].tolist())
        pose = np.array([*(move.start[:3] + s * way + self._shake(shake_s)), *quaternion])
        return Wish(pose, speed * np.concatenate([way, turn]), move.opening)

    def _shake(self, t_s: float) -> Array:
        hertz = np.array([0.9, 2.3, 4.1])
        amplitude, phase = self._tremor
        return np.asarray((amplitude * np.sin(2.0 * math.pi * hertz * t_s + phase)).sum(axis=1))


def plan_pick_place(
    start: Array, env_state: Array, seed: int = 0, noise: float = 1.0
) -> PickPlacePlan:
    """A plan from fingertips at ``start`` (7,) for a cube and square as ``env_state`` (9,) has
    them. ``noise`` scales the seeded variation of speed and path between repetitions."""
    random = np.random.default_rng(seed)

    def vary(scale: float, size: int = 1) -> Array:
        return noise * np.clip(random.normal(0.0, scale, size), -2 * scale, 2 * scale)

    pace = float(np.exp(vary(0.1)[0]))
    cube, square = env_state[:7], env_state[7:9]
    # The cube looks the same every quarter turn: the hand turns the short way.
    turn = math.remainder(2.0 * math.atan2(cube[6], cube[3]), math.pi / 2)
    grip = _down(turn + float(vary(0.02)[0]))
    take = np.array([*(cube[:2] + vary(0.002, 2)), CUBE_SIDE / 2 + vary(0.0015)[0], *grip])
    rest = _down(float(vary(0.05)[0]))
    leave = np.array([*(square + vary(0.004, 2)), CUBE_SIDE / 2 + 0.003, *rest])

    def above(pose: Array) -> Array:
        return np.array([*pose[:2], pose[2] + HOVER + vary(0.01)[0], *pose[3:]])

    moves: list[_Move] = []
    here = start

    def move(name: str, goal: Array, opening: float, care: float = 1.0) -> None:
        nonlocal here
        way = float(np.linalg.norm(goal[:3] - here[:3])) / SPEED
        turn = float(np.linalg.norm(turn_between(here, goal))) / TURN
        seconds = max(SHORTEST_S, way, turn) * care * pace * float(np.exp(vary(0.05)[0]))
        moves.append(_Move(name, seconds, here, goal, opening))
        here = goal

    def fingers(name: str, opening: float) -> None:
        moves.append(_Move(name, 0.5 * pace, here, here, opening, fingers=True))

    move("reach", above(take), OPEN)
    move("descend", take, OPEN, care=CARE)
    fingers("grasp", CLOSED)
    move("lift", above(take), CLOSED)
    move("carry", above(leave), CLOSED)
    move("lower", leave, CLOSED, care=CARE)
    fingers("let go", OPEN)
    move("retreat", above(leave), OPEN)
    moves.append(_Move("look", 1.0, here, here, OPEN))
    tremor = np.array([
        noise * TREMOR * random.normal(0.0, (1.0, 0.5, 0.25), (3, 3)),
        random.uniform(0.0, 2.0 * math.pi, (3, 3)),
    ])  # fmt: skip
    return PickPlacePlan(moves, tremor)


def _down(yaw: float) -> tuple[float, float, float, float]:
    """Fingers pointing straight down, turned by ``yaw`` about the vertical."""
    return multiply(from_vector((0.0, 0.0, yaw)), (0.0, 1.0, 0.0, 0.0))


def turn_between(a: Array, b: Array) -> Array:
    """Axis times angle (3,), rad, that turns pose ``a`` (7,) into ``b``."""
    return np.array(between(a[3:].tolist(), b[3:].tolist()))


def apart(a: Array, b: Array) -> tuple[float, float]:
    """Distance (m) and angle (rad) between two poses (7,)."""
    return float(np.linalg.norm(a[:3] - b[:3])), float(np.linalg.norm(turn_between(a, b)))
