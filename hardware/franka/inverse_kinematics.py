"""Joints for a pose of a Franka's end effector, solved anew in every tick of the control loop.

Damped least squares (Wampler 1986; Levenberg-Marquardt with a damping that follows the error,
Sugihara 2011), from where the arm is commanded to be, so that the solution moves on without a jump:

- damping grows as manipulability falls (Nakamura and Hanafusa 1986): near a singularity the arm
  gives up exactness, not its speed;
- joints at a limit are taken out of the problem and the others solve it without them (saturation in
  the null space: Flacco, De Luca and Khatib 2012);
- the seventh joint's freedom draws the arm to its posture and away from its limits, slowly;
- a pose out of reach is brought to the nearest one that the arm gets to, and held there.

Chosen by `robot-stack bench ik`. A closed solution is exact and as fast, but changes branch in the
midst of a stream and has no answer out of reach; mink takes three times as long and swings there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hardware.franka.kinematics import HOME, Kinematics
from robot_stack import rotation

__all__ = ["FrankaInverseKinematics"]

Array = NDArray[np.float64]

# What a radian of turn is worth beside a metre of way: the arm's own lever, so that neither rules.
LEVER_M = 0.3
# Moving a joint by a radian is worth leaving this much of the way (m or lever metres) for the next
# tick. Without it the elbow swings at any speed for a tenth of a millimetre.
EASE = 0.007
# Directions in which the arm moves less than this per radian are damped beyond that, up to the
# largest. At home the least is 0.17; one pose in six that the joint limits allow has one below.
MANIPULABLE = 0.02
DAMPING = 0.03
# After a step this short (rad in every joint) the rest is its square: 2 um. At 0.4 rad/s and 200 Hz
# one step is enough.
SHORT_STEP = 2e-3
MET = 2e-5  # m, or lever metres: a short step that leaves less than this is the last
LAST_STEP = 1e-4
STEPS = 3  # of a solution; what they leave is the next tick's to do
PASSES = 3  # of a step, each without the joints that the last one drove into a limit
LONGEST_STEP = 0.4  # rad in one joint and evaluation: beyond it the Jacobian means little
# The posture draws with this much of its distance a second, at most so fast (rad/s): a person who
# keeps the hand still sees the elbow settle, not swing.
POSTURE_GAIN = 0.5
POSTURE_SPEED = 0.25
LIMIT_SHARE = 0.8  # of the way from the middle to a limit is free of the limit's own push
LIMIT_SPEED = 0.5  # that push at the limit itself
FARTHEST_M = 100.0  # no arm reaches there, and squares of it stay finite


class FrankaInverseKinematics:
    """A ``robot_stack.interfaces.InverseKinematics`` for seven joints within limits (7,).

    ``lower`` and ``upper`` are rad, ``velocity`` rad/s and ``acceleration`` rad/s^2: those of the
    SafetyFilter that the solutions go through. ``posture`` (7,) is where the arm likes to be.
    """

    def __init__(
        self,
        kinematics: Kinematics,
        *,
        lower: ArrayLike,
        upper: ArrayLike,
        velocity: ArrayLike,
        acceleration: ArrayLike,
        posture: ArrayLike = HOME,
    ) -> None:
        self.kinematics = kinematics
        self.lower = _seven("lower", lower)
        self.upper = _seven("upper", upper)
        self.velocity = _seven("velocity", velocity)
        self.acceleration = _seven("acceleration", acceleration)
        self.posture = _seven("posture", posture)
        if not (self.lower < self.upper).all():
            raise ValueError(f"lower limits {self.lower} must be below the upper {self.upper}")
        if not (self.velocity > 0).all() or not (self.acceleration > 0).all():
            raise ValueError("velocity and acceleration limits must be positive")
        self._middle = 0.5 * (self.lower + self.upper)
        self._half = 0.5 * (self.upper - self.lower)
        self._braking = self.velocity**2 / (2.0 * self.acceleration)
        self.residual = (math.nan, math.nan)

    def pose(self, q: Array) -> Array:
        """The end effector's pose (7,) x y z (m) w x y z at joints ``q``."""
        return self.kinematics.pose(q)

    def solve(self, pose: Array, q_ref: Array, dt_s: float) -> Array:
        """Joints (7,) within the limits that bring the end effector to ``pose`` (7,), or as near
        as it gets from ``q_ref`` (7,), what the arm was sent ``dt_s`` ago.

        No joint is farther from ``q_ref`` than it needs to brake from full speed, so that a filter
        with the same limits that chases the solution can always stop at it. ``residual`` is then
        what is left: metres and radians (NaN after a pose that is none: the answer is ``q_ref``).
        A ``q_ref`` outside the limits is brought back no faster than that.
        """
        goal = _goal(pose)
        if goal is None or not np.isfinite(q_ref).all():
            self.residual = (math.nan, math.nan)
            return np.array(q_ref, dtype=np.float64)
        position, quaternion = goal
        low, high = self._box(q_ref, dt_s)
        q = np.minimum(np.maximum(q_ref, low), high)
        easiest = q + self._pull(q) * dt_s
        at, jacobian = self._evaluate(q)
        error = _error(position, quaternion, at)
        cost = _cost(error, easiest - q)
        doubt = float(error @ error)
        for _ in range(STEPS):
            step = _step(jacobian, error, easiest - q, low - q, high - q, doubt)
            ahead = q + step
            length = np.abs(step).max()
            if length < SHORT_STEP:
                remains = error - jacobian @ step
                if length < LAST_STEP or remains @ remains < MET**2:
                    q, error = ahead, remains
                    break
            at, following = self._evaluate(ahead)
            remains = _error(position, quaternion, at)
            cost_ahead = _cost(remains, easiest - ahead)
            if cost_ahead > cost:
                doubt = 8.0 * (doubt + EASE**2)
                continue
            q, jacobian, error, cost = ahead, following, remains, cost_ahead
            doubt = min(doubt, 0.25 * float(error @ error))
        self.residual = (
            math.hypot(error[0], error[1], error[2]),
            math.hypot(error[3], error[4], error[5]) / LEVER_M,
        )
        return q

    def _evaluate(self, q: Array) -> tuple[list[float], Array]:
        at, jacobian = self.kinematics.pose_and_jacobian(q.tolist())
        jacobian[3:] *= LEVER_M
        return at, jacobian

    def _box(self, q_ref: Array, dt_s: float) -> tuple[Array, Array]:
        """Where the joints may go: within limits and within reach of ``q_ref``."""
        reach = self._braking + 2.0 * self.velocity * dt_s
        low = np.maximum(self.lower, q_ref - reach)
        high = np.minimum(self.upper, q_ref + reach)
        outside = low > high
        if outside.any():
            nearest = np.where(q_ref > self.upper, q_ref - reach, q_ref + reach)
            low, high = np.where(outside, nearest, low), np.where(outside, nearest, high)
        return low, high

    def _pull(self, q: Array) -> Array:
        """The velocity (7,) that posture and limits would like."""
        pull = POSTURE_GAIN * (self.posture - q)
        pull = np.minimum(np.maximum(pull, -POSTURE_SPEED), POSTURE_SPEED)
        place = (q - self._middle) / self._half
        beyond = np.abs(place) - LIMIT_SHARE
        if beyond.max() > 0.0:
            push = np.maximum(beyond, 0.0) * (LIMIT_SPEED / (1.0 - LIMIT_SHARE))
            pull -= np.copysign(np.minimum(push, LIMIT_SPEED), place)
        return pull


def _step(
    jacobian: Array, error: Array, ease: Array, low: Array, high: Array, doubt: float
) -> Array:
    """A change of joints (7,) within [low, high] that takes ``error`` (6,) away, and is ``ease``
    (7,) as far as that does not matter. ``doubt`` is added to the squared damping."""
    damping = EASE**2 + doubt
    moved = ease * (EASE**2 / damping)
    free = np.ones(7)
    for _ in range(PASSES):
        loose = jacobian * free
        squares, directions = np.linalg.eigh(loose @ loose.T)
        poor = np.maximum(1.0 - squares / MANIPULABLE**2, 0.0)
        wanted = (error - jacobian @ moved) @ directions
        step = moved + loose.T @ (directions @ (wanted / (squares + poor * DAMPING**2 + damping)))
        longest = float(np.abs(step).max())
        if longest > LONGEST_STEP:
            step *= LONGEST_STEP / longest
        within: Array = np.minimum(np.maximum(step, low), high)
        stopped = (within != step) & (free > 0.0)
        if not stopped.any():
            break
        moved = np.where(stopped, within, moved)
        free[stopped] = 0.0
    return within


def _cost(error: Array, uneasy: Array) -> float:
    """What a solution is judged by: what is left to the pose, and a little by its effort."""
    return float(error @ error + EASE**2 * (uneasy @ uneasy))


def _goal(pose: Array) -> tuple[list[float], rotation.Quaternion] | None:
    """Position and unit quaternion of a pose, None when it is none."""
    values: list[float] = pose.tolist()
    if not math.isfinite(sum(values)):
        return None
    try:
        quaternion = rotation.normalized(values[3:])
    except ValueError:
        return None
    return [min(max(value, -FARTHEST_M), FARTHEST_M) for value in values[:3]], quaternion


def _error(
    position: Sequence[float], quaternion: rotation.Quaternion, at: Sequence[float]
) -> Array:
    """What is missing (6,) in m and lever metres, the short way round."""
    turn = rotation.between(at[3:], quaternion)
    return np.array(
        [
            position[0] - at[0],
            position[1] - at[1],
            position[2] - at[2],
            LEVER_M * turn[0],
            LEVER_M * turn[1],
            LEVER_M * turn[2],
        ]
    )


def _seven(name: str, values: ArrayLike) -> Array:
    array = np.array(values, dtype=np.float64)
    if array.shape != (7,) or not np.isfinite(array).all():
        raise ValueError(f"{name} has seven finite values, one a joint, not {array}")
    array.setflags(write=False)
    return array
