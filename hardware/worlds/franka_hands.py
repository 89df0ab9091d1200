"""What the scripted operator of a Franka arm has in its hand: a SpaceMouse, or a GELLO arm."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hardware.franka.kinematics import HOME, Kinematics
from hardware.teleop.mapper import Stick
from hardware.worlds.franka_plan import Wish, apart, turn_between

__all__ = ["JointHand", "TwistHand", "joints_nearer"]

Array = NDArray[np.float64]

# How eagerly a person corrects what the eye sees, 1/s.
EYE_GAIN = 2.5
# A robot that does not answer a held switch: let go, and press again.
UNANSWERED_S, LET_GO_S = 1.5, 0.3
ANSWER = 0.0005  # m
# Less than a GELLO may be away from the robot to be followed.
LEAD_RAD = 0.12
# A trigger that is not where the robot's gripper is keeps it from following: it is looked for.
PUZZLED_S, SEARCH_S = 3.0, 2.0
STILL_HELD = 0.5  # of the gripper's opening: less than the cube
DAMPING = 0.02
POSTURE = 0.02  # of the way home a step, where the fingertips leave the joints free
MAX_STEP_RAD = 0.05

_KINEMATICS = Kinematics()
_HOME = np.array(HOME)


class TwistHand:
    """Pushes a SpaceMouse: ``push`` is called with what it says at each moment.

    Full deflection is ``linear_m_s`` and ``angular_rad_s``. The dead-man switch is pressed again
    when the robot does not answer, as one that is held while the robot is engaged does not count.
    """

    def __init__(
        self, push: Callable[[Stick], None], linear_m_s: float, angular_rad_s: float
    ) -> None:
        self._push = push
        self._full = np.repeat([linear_m_s, angular_rad_s], 3)
        self._pressed_s = -LET_GO_S
        self._before: Array | None = None

    def take(self) -> None:
        self._pressed_s, self._before = -LET_GO_S, None

    def guide(self, wish: Wish, seen: Array, waited_s: float, dt: float) -> None:
        error = np.concatenate([wish.pose[:3] - seen[:3], turn_between(seen, wish.pose)])
        twist = np.clip((wish.rate + EYE_GAIN * error) / self._full, -1.0, 1.0)
        self._pressed_s += dt
        if self._before is None or apart(self._before, seen)[0] > ANSWER:
            self._before = seen
            self._pressed_s = min(self._pressed_s, 0.0)
        elif self._pressed_s > UNANSWERED_S and np.abs(error[:3]).max() > 0.01:
            self._pressed_s = -LET_GO_S
        held = self._pressed_s >= 0.0
        self._push(Stick(tuple(twist.tolist()), held, gripper_goal=wish.opening))

    def release(self) -> None:
        self._push(Stick())


class JointHand:
    """Moves an arm of the robot's shape: ``move`` takes joints (7,) in the robot's rad and the
    opening, ``robot`` tells the robot's own joints.

    No joint is pulled farther ahead of the robot than ``LEAD_RAD``: that is how a person brings a
    leader to a robot which does not follow, or no more, and it begins from there.
    """

    def __init__(
        self,
        move: Callable[[Array, float], None],
        release: Callable[[], None],
        robot: Callable[[], Array],
    ) -> None:
        self._move = move
        self._release = release
        self._robot = robot
        self._q = np.full(7, np.nan)

    def take(self) -> None:
        self._q = self._robot()

    def guide(self, wish: Wish, seen: Array, waited_s: float, dt: float) -> None:
        self._q = joints_nearer(self._q, wish.pose)
        robot = self._robot()
        opening = _searching(wish.opening, waited_s - PUZZLED_S)
        self._move(robot + np.clip(self._q - robot, -LEAD_RAD, LEAD_RAD), opening)

    def release(self) -> None:
        self._release()


def _searching(opening: float, puzzled_s: float) -> float:
    """Where the trigger is: at ``opening``; by a person who is puzzled, on its way to the other end
    and back, until the robot takes it where its own gripper is. At first what may be held is not
    let go."""
    if puzzled_s <= 0.0:
        return opening
    way = 1.0 - abs(1.0 - math.fmod(puzzled_s / SEARCH_S, 2.0))
    most = STILL_HELD if puzzled_s < 2.0 * SEARCH_S else 1.0
    other = 0.0 if opening > 0.5 else most
    return opening + way * (other - opening)


def joints_nearer(q: Array, pose: Array) -> Array:
    """Joints (7,) whose fingertips are nearer to ``pose`` (7,) than those of ``q``: one damped
    Gauss-Newton step, leaning homewards in what the pose leaves free."""
    here, jacobian = _KINEMATICS.pose_and_jacobian(q.tolist())
    at = np.array(here)
    error = np.concatenate([pose[:3] - at[:3], turn_between(at, pose)])
    gram = jacobian @ jacobian.T + DAMPING**2 * np.eye(6)
    lean = POSTURE * (_HOME - q)
    step = lean + jacobian.T @ np.linalg.solve(gram, error - jacobian @ lean)
    return np.asarray(q + step * min(1.0, MAX_STEP_RAD / float(np.abs(step).max() + 1e-12)))
