"""What a Franka refuses: each step of a stream against the limits, by the names of libfranka.

Velocity, acceleration and jerk are finite differences of consecutive used commands at 1 kHz, as
the FCI documentation defines its necessary conditions: too much acceleration is a "velocity
discontinuity", too much jerk an "acceleration discontinuity". Lists of floats on purpose: seven
of them are cheaper in Python than NumPy's smallest array.

The tolerances beyond the limits are those that single-precision states make necessary: a client
that limits its own rates continues from q_d and ddq_d as float32, which is 1e-7 rad off and
thereby, over 1 ms, 240 rad/s^3. How much slack the real robot has is not published.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import atan2, pi, sqrt

import numpy as np
from numpy.typing import NDArray

from hardware.franka.limits import ELBOW_FLIP, Model, Space, limits_of
from hardware.franka.virtual.scene import STEP_S

__all__ = ["Enforcement"]

Array = NDArray[np.float64]
Names = tuple[str, ...]

# Tolerances, see above: rad/s (libfranka's own), rad/s^2, rad/s^3; m and rad of Cartesian space.
_VELOCITY, _ACCELERATION, _JERK = 1e-3, 0.25, 300.0
_SPACE = Space(1e-3, 0.15, 200.0)
# libfranka's limiter follows a bound that shrinks at a rad/s^2 with a lag of a times the FR3's
# acceleration limit over its jerk limit; more than 10 rad/s^2 it does not brake.
_LAG = 10.0 * 10.0 / 5000.0 + _VELOCITY  # rad/s
_TORQUE_RATE = 0.1  # Nm/s
_POSITION = 1e-6  # rad

_START = 0.05  # rad, m: how far a first command may be from where the robot is
_ORTHONORMAL = 1e-5  # as libfranka checks a transform before it sends it
# What is measured overshoots what was commanded; the thresholds of the robot are not published.
_MEASURED_POSITION = 0.01  # rad beyond the limit
_MEASURED_VELOCITY = 1.1  # times the limit
_AT_REST = 1e-6  # rad/s^2: below it a motion has constant velocity

_NONE: Names = ()


class _Chain:
    """The last command of a stream of ``n`` numbers, with its velocity and acceleration."""

    __slots__ = ("acceleration", "n", "position", "velocity")

    def __init__(self, n: int) -> None:
        self.n = n
        self.position = self.velocity = self.acceleration = [0.0] * n

    def start(self, position: list[float], velocity: list[float]) -> None:
        self.position, self.velocity = position, velocity
        self.acceleration = [0.0] * self.n

    def advance(self, velocity: list[float]) -> tuple[list[float], list[float]]:
        """Take over the next velocity; returns acceleration and jerk."""
        acceleration = [(v - w) / STEP_S for v, w in zip(velocity, self.velocity, strict=True)]
        jerk = [(a - b) / STEP_S for a, b in zip(acceleration, self.acceleration, strict=True)]
        self.velocity, self.acceleration = velocity, acceleration
        return acceleration, jerk


class Enforcement:
    """The rules of one arm. Every check takes over its step's command, whether it raised or not,
    and returns the names of what it violates, none as a rule.

    `begin` at the start of each motion. Vectors may be arrays or sequences; a value that is not
    finite is never within a limit.
    """

    def __init__(self, model: Model) -> None:
        self.limits = limits_of(model)
        self._joints, self._torques = _Chain(7), _Chain(7)
        self._translation, self._rotation, self._elbow = _Chain(3), _Chain(3), _Chain(1)
        self._ik = _Chain(7)
        self._turn: list[list[float]] = np.eye(3).tolist()
        self._first, self._first_elbow = True, True
        self._sign = -1.0
        self._q: list[float] = [0.0] * 7

    def begin(
        self,
        q: Sequence[float] | Array,
        dq: Sequence[float] | Array,
        O_T_EE: Array,
        tau: Sequence[float] | Array = (0.0,) * 7,
    ) -> None:
        """A motion starts at the desired joints ``q`` (7,) rad moving at ``dq`` (7,), with the end
        effector at ``O_T_EE`` (4, 4) and joint torques ``tau`` (7,) Nm beside gravity."""
        joints, rates = _floats(q), _floats(dq)
        self._joints.start(joints, rates)
        self._ik.start(joints, rates)
        self._torques.start(_floats(tau), [0.0] * 7)
        rows = O_T_EE.tolist()
        self._translation.start([row[3] for row in rows[:3]], [0.0] * 3)
        self._rotation.start([0.0] * 3, [0.0] * 3)
        self._turn = [row[:3] for row in rows[:3]]
        self._elbow.start([joints[2]], [rates[2]])
        self._sign = 1.0 if joints[3] > ELBOW_FLIP else -1.0
        self._first = self._first_elbow = True

    # -- joint motion generators -----------------------------------------------------------------

    def joint_positions(self, q_c: Sequence[float] | Array) -> Names:
        """Commanded positions (7,), rad."""
        chain, q = self._joints, _floats(q_c)
        if self._first:
            self._first = False
            if not all(abs(a - b) <= _START for a, b in zip(q, chain.position, strict=True)):
                return ("joint_position_motion_generator_start_pose_invalid",)
        velocity = [(a - b) / STEP_S for a, b in zip(q, chain.position, strict=True)]
        return self._joint_step(q, velocity, chain, "joint_motion_generator_", "")

    def joint_velocities(self, dq_c: Sequence[float] | Array) -> Names:
        """Commanded velocities (7,), rad/s; the robot integrates them."""
        chain, velocity = self._joints, _floats(dq_c)
        q = [p + v * STEP_S for p, v in zip(chain.position, velocity, strict=True)]
        return self._joint_step(q, velocity, chain, "joint_motion_generator_", "")

    def target(self, q: Sequence[float] | Array) -> Names:
        """A target (7,) rad to which the robot itself finds the way."""
        limits = self.limits
        for value, lower, upper in zip(_floats(q), limits.q_lower, limits.q_upper, strict=True):
            if not lower - _POSITION <= value <= upper + _POSITION:
                return ("joint_motion_generator_position_limits_violation",)
        return _NONE

    def cartesian_joints(self, q_c: Sequence[float] | Array) -> Names:
        """The joints (7,) rad that inverse kinematics finds for a commanded pose or twist. Jerk is
        no condition here."""
        chain, q = self._ik, _floats(q_c)
        velocity = [(a - b) / STEP_S for a, b in zip(q, chain.position, strict=True)]
        return self._joint_step(q, velocity, chain, "cartesian_motion_generator_", "joint_")

    def _joint_step(
        self, q: list[float], velocity: list[float], chain: _Chain, prefix: str, part: str
    ) -> Names:
        limits = self.limits
        last, chain.position = chain.position, q
        acceleration, jerk = chain.advance(velocity)
        at_limit = too_fast = uneven = jerky = False
        for i, (position, v) in enumerate(zip(q, velocity, strict=True)):
            if not limits.q_lower[i] - _POSITION <= position <= limits.q_upper[i] + _POSITION:
                at_limit = True
            # A client knows the bound of where it was.
            low, high = limits.velocity_bounds(i, last[i])
            low -= _VELOCITY if low == -limits.velocity[i] else _LAG
            high += _VELOCITY if high == limits.velocity[i] else _LAG
            if not low <= v <= high:
                too_fast = True
            if not abs(acceleration[i]) <= limits.acceleration[i] + _ACCELERATION:
                uneven = True
            if not abs(jerk[i]) <= limits.jerk[i] + _JERK:
                jerky = True
        if not (at_limit or too_fast or uneven or jerky):
            return _NONE
        names = []
        if at_limit:
            names.append(f"{prefix}{part}position_limits_violation")
        if too_fast:
            names.append(f"{prefix}{part}velocity_limits_violation")
        if uneven:
            names.append(f"{prefix}{part}velocity_discontinuity")
        if jerky and not part:
            names.append(f"{prefix}acceleration_discontinuity")
        return tuple(names)

    # -- Cartesian motion generators -------------------------------------------------------------

    def pose(self, O_T_EE_c: Array, elbow: float | None = None, sign: float | None = None) -> Names:
        """Commanded end-effector pose (4, 4) in the base frame; where the elbow is commanded,
        joint 3 (rad) and the side of joint 4 (1 or -1)."""
        rows = O_T_EE_c.tolist()
        turn = [row[:3] for row in rows[:3]]
        if not _proper(rows, turn):
            return ("cartesian_position_motion_generator_invalid_frame",)
        place = [row[3] for row in rows[:3]]
        chain = self._translation
        rotation = _rotation_vector(turn, self._turn)
        if self._first:
            self._first = False
            shift = _norm([a - b for a, b in zip(place, chain.position, strict=True)])
            if not (shift <= _START and _norm(rotation) <= _START):
                return ("cartesian_position_motion_generator_start_pose_invalid",)
        linear = [(a - b) / STEP_S for a, b in zip(place, chain.position, strict=True)]
        angular = [value / STEP_S for value in rotation]
        chain.position, self._turn = place, turn
        return self._cartesian_step(linear, angular, elbow, sign)

    def twist(
        self,
        O_dP_EE_c: Sequence[float] | Array,
        elbow: float | None = None,
        sign: float | None = None,
    ) -> Names:
        """Commanded end-effector twist (6,), m/s and rad/s in the base frame; elbow as in
        `pose`."""
        twist = _floats(O_dP_EE_c)
        return self._cartesian_step(twist[:3], twist[3:], elbow, sign)

    def _cartesian_step(
        self, linear: list[float], angular: list[float], elbow: float | None, sign: float | None
    ) -> Names:
        limits = self.limits
        parts = [
            (limits.translation, linear, self._translation),
            (limits.rotation, angular, self._rotation),
        ]
        names: list[str] = []
        if sign is not None and sign != self._sign:
            names.append("cartesian_motion_generator_elbow_sign_inconsistent")
        if elbow is not None:
            chain = self._elbow
            if self._first_elbow:
                self._first_elbow = False
                if not abs(elbow - chain.position[0]) <= _START:
                    names.append("cartesian_motion_generator_start_elbow_invalid")
                    return tuple(names)
            rate = [(elbow - chain.position[0]) / STEP_S]
            chain.position = [elbow]
            parts.append((limits.elbow, rate, chain))
            if not limits.q_lower[2] - _POSITION <= elbow <= limits.q_upper[2] + _POSITION:
                names.append("cartesian_motion_generator_elbow_limit_violation")
        too_fast = uneven = jerky = False
        for space, velocity, chain in parts:
            acceleration, jerk = chain.advance(velocity)
            too_fast |= not _norm(velocity) <= space.velocity + _SPACE.velocity
            uneven |= not _norm(acceleration) <= space.acceleration + _SPACE.acceleration
            jerky |= not _norm(jerk) <= space.jerk + _SPACE.jerk
        if too_fast:
            names.append("cartesian_motion_generator_velocity_limits_violation")
        if uneven:
            names.append("cartesian_motion_generator_velocity_discontinuity")
        if jerky:
            names.append("cartesian_motion_generator_acceleration_discontinuity")
        return tuple(names)

    # -- torques and what is measured ------------------------------------------------------------

    def torques(self, tau_d: Sequence[float] | Array) -> Names:
        """Commanded torques (7,), Nm beside gravity."""
        chain, tau, limits = self._torques, _floats(tau_d), self.limits
        uneven = beyond = False
        for i, (value, last) in enumerate(zip(tau, chain.position, strict=True)):
            if not abs(value - last) / STEP_S <= limits.torque_rate[i] + _TORQUE_RATE:
                uneven = True
            if not abs(value) <= limits.torque[i]:
                beyond = True
        chain.position = tau
        if not (uneven or beyond):
            return _NONE
        names = ["controller_torque_discontinuity"] if uneven else []
        return (*names, "tau_j_range_violation") if beyond else tuple(names)

    def measured(
        self,
        q: Sequence[float] | Array,
        dq: Sequence[float] | Array,
        tau_ext: Sequence[float] | Array,
        O_F_ext: Sequence[float] | Array,
        thresholds: tuple[Array, Array],
        *,
        touching_itself: bool = False,
        twist: Sequence[float] | Array | None = None,
    ) -> Names:
        """What the sensors show: joints ``q`` (7,) rad and ``dq`` (7,), external torques
        ``tau_ext`` (7,) Nm and wrench ``O_F_ext`` (6,) against ``thresholds``: torques (4, 7) and
        forces (4, 6) with the rows lower and upper while accelerating, lower and upper at constant
        velocity. ``twist`` (6,) is the end effector's, where it is known."""
        limits = self.limits
        beyond = too_fast = False
        for i, (position, rate) in enumerate(zip(_floats(q), _floats(dq), strict=True)):
            low = limits.q_lower[i] - _MEASURED_POSITION
            if not low <= position <= limits.q_upper[i] + _MEASURED_POSITION:
                beyond = True
            if not abs(rate) <= _MEASURED_VELOCITY * limits.velocity[i]:
                too_fast = True
        row = 1 if self.accelerating else 3
        torque, force = thresholds[0][row].tolist(), thresholds[1][row].tolist()
        pressed = any(not abs(a) <= b for a, b in zip(_floats(tau_ext), torque, strict=True))
        pushed = any(not abs(a) <= b for a, b in zip(_floats(O_F_ext), force, strict=True))
        names = []
        if beyond:
            names.append("joint_position_limits_violation")
        if touching_itself:
            names.append("self_collision_avoidance_violation")
        if too_fast:
            names.append("joint_velocity_violation")
        if twist is not None:
            # Translation alone: the wrist may turn the end effector faster than 2.5 rad/s, and
            # what stops a real one is joint_velocity_violation.
            speed = _norm(_floats(twist)[:3])
            if not speed <= _MEASURED_VELOCITY * limits.translation.velocity:
                names.append("cartesian_velocity_violation")
        if pressed:
            names.append("joint_reflex")
        if pushed:
            names.append("cartesian_reflex")
        return tuple(names) if names else _NONE

    @property
    def accelerating(self) -> bool:
        """Whether the commands of this motion change their velocity now."""
        chains = (self._joints, self._translation, self._rotation)
        return any(abs(a) > _AT_REST for chain in chains for a in chain.acceleration)


def _floats(values: Sequence[float] | Array) -> list[float]:
    return values.tolist() if isinstance(values, np.ndarray) else list(values)


def _norm(values: list[float]) -> float:
    return sqrt(sum([value * value for value in values]))


def _proper(rows: list[list[float]], turn: list[list[float]]) -> bool:
    """Whether rows of a (4, 4) are a rigid transform."""
    if rows[3] != [0.0, 0.0, 0.0, 1.0]:
        return False
    (a, b, c), (d, e, f), (g, h, i) = turn
    products = (
        a * a + b * b + c * c - 1.0,
        d * d + e * e + f * f - 1.0,
        g * g + h * h + i * i - 1.0,
        a * d + b * e + c * f,
        a * g + b * h + c * i,
        d * g + e * h + f * i,
    )
    determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    return max(map(abs, products)) <= _ORTHONORMAL and determinant > 0.0


def _rotation_vector(turn: list[list[float]], last: list[list[float]]) -> list[float]:
    """Rotation (3,) rad in the base frame from ``last`` to ``turn``, both three rows."""
    (a, b, c), (d, e, f), (g, h, i) = turn
    (k, m, n), (o, p, q), (r, s, t) = last
    x = (g * o + h * p + i * q) - (d * r + e * s + f * t)
    y = (a * r + b * s + c * t) - (g * k + h * m + i * n)
    z = (d * k + e * m + f * n) - (a * o + b * p + c * q)
    twice_sine = sqrt(x * x + y * y + z * z)
    twice_cosine = a * k + b * m + c * n + d * o + e * p + f * q + g * r + h * s + i * t - 1.0
    if twice_sine < 1e-12:
        # No turn at all, or half a one, whose axis does not matter: it is far beyond any limit.
        return [0.0, 0.0, 0.0] if twice_cosine > 0.0 else [pi, 0.0, 0.0]
    scale = atan2(twice_sine, twice_cosine) / twice_sine
    return [x * scale, y * scale, z * scale]
