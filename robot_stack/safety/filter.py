"""The SafetyFilter: the one place through which every joint target goes on its way to a driver.

Per joint and step it picks the velocity v that brings it nearest to what was asked, among those
with |v| <= velocity limit, |v - last v| <= acceleration limit * dt, and from which it can still
stop: before the position limit, and at the target.

Stopping is guaranteed in discrete time, for any later dt. Let d be what is left to the stopping
point. A step v is allowed when v * dt + v^2 / (2 a) <= d. Then in the next step, of any length h,
v' = v - a h (or 0) is allowed too, since v^2 / (2 a) - v'^2 / (2 a) = h (v + v') / 2 >= v' h. So
braking at the acceleration limit always stays within d, and no step needs more than that limit.

A target that moves is approached in its own frame, so that catching up ends at the target's
velocity and not in a lag behind it. Its velocity is the smaller of its last two (0 if they differ
in sign): a target that has jumped or stopped, or is faster than the robot, counts as standing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robot_stack.safety.limits import Clearance
from robot_stack.spec import RobotSpec
from robot_stack.types import Difference

__all__ = ["FilterResult", "SafetyFilter"]

Array = NDArray[np.float64]

# Velocities are differences of positions divided by a small dt: rounding alone makes 1e-12 rad/s.
SLACK = 1e-10
DT_SHORTEST, DT_LONGEST = 0.2, 5.0
# At 3 rad/s, 15 cm at the fingertips.
WAY_S = 0.05

POSITION = int(Difference.POSITION)
VELOCITY = int(Difference.VELOCITY)
ACCELERATION = int(Difference.ACCELERATION)
WORKSPACE = int(Difference.WORKSPACE)
INVALID = int(Difference.INVALID)
REENGAGE = int(Difference.REENGAGE)
COLLISION = int(Difference.COLLISION)


@dataclass(frozen=True, slots=True)
class FilterResult:
    """What to send (dof,), why it is not what was asked, and where the robot would come to rest.

    ``rest`` (dof,) is the pose after braking from here as hard as allowed. Arms of one cell show
    each other this pose, not ``sent``: two arms that rush at each other must both leave room for
    the other's braking distance.
    """

    sent: Array
    difference: Difference
    rest: Array


@dataclass(frozen=True, slots=True)
class _Joint:
    lower: float
    upper: float
    velocity: float
    acceleration: float
    max_step: float
    at_once: float
    """The velocity that can be stopped within any one step: acceleration * the shortest dt."""

    def clip(self, value: float) -> float:
        return min(max(value, self.lower), self.upper)

    def allowed(self, distance: float, dt: float) -> float:
        """The fastest this step may be for a stop within ``distance`` (module docstring)."""
        if distance <= 0.0:
            return 0.0
        if distance <= self.at_once * dt:
            return distance / dt
        return 2.0 * distance / (dt + math.sqrt(dt * dt + 2.0 * distance / self.acceleration))

    def brake(self, position: float, velocity: float, dt: float) -> float:
        """The next position when stopping as hard as allowed."""
        change = self.acceleration * dt
        if abs(velocity) <= change + SLACK:
            return position
        return self._bounded(position, position + (velocity - math.copysign(change, velocity)) * dt)

    def follow(
        self,
        position: float,
        velocity: float,
        target: float,
        *,
        drift: float,
        locked: bool,
        dt: float,
        fastest: float,
    ) -> float:
        """The next position towards ``target`` (inside the limits), which moves at ``drift``.

        ``locked``: the target was met in the last step, so it is the target's own motion that is
        judged here, and it passes unchanged when it keeps to the limits.
        """
        gap = target - position
        change = self.acceleration * dt
        low = max(-fastest, -self.allowed(position - self.lower, dt))
        high = min(fastest, self.allowed(self.upper - position, dt))
        exact = gap / dt
        if (
            (locked or -self.at_once <= exact - drift <= self.at_once)
            and -change - SLACK <= exact - velocity <= change + SLACK
            and low - SLACK <= exact <= high + SLACK
        ):
            return target
        ahead = gap - drift * dt
        wanted = drift + math.copysign(self.allowed(abs(ahead), dt), ahead)
        wanted = min(max(wanted, low), high)
        wanted = min(max(wanted, velocity - change), velocity + change)
        return self._bounded(position, position + wanted * dt)

    def _bounded(self, position: float, following: float) -> float:
        """Takes away what rounding put beyond a limit; outside, never farther out."""
        if following > self.upper:
            return min(following, max(position, self.upper))
        if following < self.lower:
            return max(following, min(position, self.lower))
        return following


class SafetyFilter:
    """Turns any stream of joint targets into one that the robot can and may follow.

    Limits come from ``spec`` and count from what was last *sent*; ``dt_s`` is the nominal period.
    The ``dt_s`` of a step is clamped to [0.2, 5] times nominal: after a longer pause the motion
    continues as if the pause had been 5 periods; do not step more often than 5 times nominal.

    Refused targets brake to a stop within the limits and hold: ``None`` (a controlled stop),
    INVALID (wrong shape, NaN, infinite), and REENGAGE. A jump is judged on targets clipped to the
    position limits, per joint against ``max_step``: while engaged against the previous target
    (not against what was sent, which lags behind a target faster than the limits); when engaging,
    that is at first and after each refusal, against what was last sent. A target that runs more
    than ``max_step`` away while the guard or the workspace blocks the robot is refused likewise,
    so that the robot does not chase it when the way is free again. REENGAGE lasts until a target
    comes within ``max_step`` of what was last sent, in all joints at once.

    Outside the position limits the robot moves only inwards. Feasible streams pass bit for bit;
    near a position limit feasible means room to stop in continuous time (see the module).
    """

    def __init__(self, spec: RobotSpec, dt_s: float, *, workspace: Clearance | None = None) -> None:
        if not (dt_s > 0 and math.isfinite(dt_s)):
            raise ValueError(f"dt_s is {dt_s}; the nominal period must be positive seconds")
        self._shortest = DT_SHORTEST * dt_s
        self._longest = DT_LONGEST * dt_s
        self._joints = tuple(
            _Joint(
                joint.lower,
                joint.upper,
                joint.velocity,
                joint.acceleration,
                joint.max_step,
                joint.acceleration * self._shortest,
            )
            for joint in spec.joints
        )
        self._dof = spec.dof
        self._workspace = workspace
        self._position: list[float] | None = None
        self._velocity = [0.0] * self._dof
        self._engaged = False
        self._asked = [0.0] * self._dof
        self._asked_velocity = [0.0] * self._dof

    def reset(self, position: Array) -> None:
        """The robot stands still and holds ``position`` (dof,), inside the limits or not."""
        held = np.asarray(position, dtype=np.float64)
        if held.shape != (self._dof,) or not np.isfinite(held).all():
            raise ValueError(f"held position must be {self._dof} finite values, not {position!r}")
        self._position = held.tolist()
        self._velocity = [0.0] * self._dof
        self._engaged = False

    def place(self, position: Array) -> None:
        """Joints that the robot has stopped by itself stand at ``position`` (dof,); NaN: it has
        not."""
        held = self._held()
        for i, value in enumerate(position.tolist()):
            if not math.isnan(value):
                held[i], self._velocity[i] = value, 0.0

    @property
    def position(self) -> Array:
        """What was last sent, (dof,)."""
        return np.array(self._held())

    @property
    def velocity(self) -> Array:
        """The velocity of what was last sent, (dof,), per second."""
        return np.array(self._velocity)

    @property
    def engaged(self) -> bool:
        """Whether the last target was followed (rather than refused)."""
        return self._engaged

    def step(
        self,
        target: Array | None,
        dt_s: float,
        *,
        speed_scale: float = 1.0,
        guard: Clearance | None = None,
    ) -> FilterResult:
        """The next position to send, ``dt_s`` after the last.

        ``speed_scale`` in [0, 1] scales the velocity limits of this step. ``guard`` is asked how
        much of the step is free of collision: at the next pose and at some on the way to rest,
        where it is asked last; when braking anyway, only there.
        """
        position, velocity = self._held(), self._velocity
        dt = min(max(self._shortest, dt_s), self._longest)  # NaN counts as the shortest
        brake = [
            joint.brake(p, v, dt)
            for joint, p, v in zip(self._joints, position, velocity, strict=True)
        ]
        asked, reasons = self._accept(target)
        if asked is None:
            following = brake
            if guard is not None:
                guard(np.array(position), np.array(self._rest(brake, dt)))
        else:
            scale = speed_scale if 0.0 <= speed_scale <= 1.0 else float(speed_scale > 1.0)
            following = self._follow(asked, dt, scale)
            reasons |= self._why(asked, following, dt, scale)
            following, blocked = self._cleared(brake, following, dt, guard)
            if blocked:
                reasons |= blocked
                if self._too_far(asked, following):
                    reasons |= REENGAGE
                    self._engaged = False
        rest = self._rest(following, dt)
        self._velocity = [(new - old) / dt for new, old in zip(following, position, strict=True)]
        self._position = following
        return FilterResult(np.array(following), Difference(reasons), np.array(rest))

    def _held(self) -> list[float]:
        if self._position is None:
            raise RuntimeError("SafetyFilter: call reset(position) with what the robot holds first")
        return self._position

    def _accept(self, target: Array | None) -> tuple[list[float] | None, int]:
        """The target clipped to the position limits, or None when it is refused; and why."""
        engaged, self._engaged = self._engaged, False
        if target is None:
            return None, 0
        if target.shape != (self._dof,):
            return None, INVALID
        values: list[float] = target.tolist()
        if not math.isfinite(sum(values)):
            return None, INVALID
        asked = [joint.clip(value) for joint, value in zip(self._joints, values, strict=True)]
        if not engaged:
            # Where the robot stands outside its limits, clipped: it must be able to come back.
            held = self._held()
            self._asked = [joint.clip(p) for joint, p in zip(self._joints, held, strict=True)]
            self._asked_velocity = [0.0] * self._dof
        if self._too_far(asked, self._asked):
            return None, REENGAGE
        self._engaged = True
        return asked, 0 if asked == values else POSITION

    def _too_far(self, asked: list[float], reference: list[float]) -> bool:
        return any(
            abs(a - r) > joint.max_step
            for joint, a, r in zip(self._joints, asked, reference, strict=True)
        )

    def _follow(self, asked: list[float], dt: float, scale: float) -> list[float]:
        """The next positions towards ``asked``, within the limits of every joint."""
        following = []
        velocities = []
        for joint, p, v, target, last, last_velocity in zip(
            self._joints,
            self._held(),
            self._velocity,
            asked,
            self._asked,
            self._asked_velocity,
            strict=True,
        ):
            now = (target - last) / dt
            fastest = joint.velocity * scale
            drift = 0.0
            if now * last_velocity > 0.0 and abs(now) <= fastest:
                drift = now if abs(now) < abs(last_velocity) else last_velocity
            following.append(
                joint.follow(p, v, target, drift=drift, locked=p == last, dt=dt, fastest=fastest)
            )
            velocities.append(now)
        self._asked = asked
        self._asked_velocity = velocities
        return following

    def _why(self, asked: list[float], following: list[float], dt: float, scale: float) -> int:
        """Which limits kept the joints from what was asked (inside the position limits)."""
        reasons = 0
        for joint, p, a, f in zip(self._joints, self._held(), asked, following, strict=True):
            if a != f:
                full_speed = abs(f - p) >= (joint.velocity * scale - SLACK) * dt
                reasons |= VELOCITY if full_speed else ACCELERATION
        return reasons

    def _cleared(
        self, brake: list[float], following: list[float], dt: float, guard: Clearance | None
    ) -> tuple[list[float], int]:
        """As much of the step as is free; the rest of it is braking. Both keep to the limits, and
        the limits of a step are intervals, so what lies between keeps to them too."""
        free, reasons = 1.0, 0
        if guard is None and self._workspace is None:
            return following, reasons
        held = np.array(self._held())
        way = self._way_to_rest(following, dt)
        for clearance, reason in ((guard, COLLISION), (self._workspace, WORKSPACE)):
            if clearance is None:
                continue
            for pose in way:
                fraction = clearance(held, pose)
                if not fraction >= 1.0:
                    free = min(free, max(0.0, fraction))  # NaN is not free
                    reasons |= reason
        if not reasons:
            return following, 0
        return [b + free * (f - b) for b, f in zip(brake, following, strict=True)], reasons

    def _braking(self, following: list[float], dt: float) -> list[tuple[float, float, float]]:
        """(position, velocity, seconds until it stands) of each joint once it is at ``following``
        and brakes."""
        braking = []
        for joint, p, f in zip(self._joints, self._held(), following, strict=True):
            velocity = (f - p) / dt
            at_once = -joint.at_once <= velocity <= joint.at_once
            braking.append((f, velocity, 0.0 if at_once else abs(velocity) / joint.acceleration))
        return braking

    def _rest(self, following: list[float], dt: float) -> list[float]:
        """Where the robot stops when it goes to ``following`` and then brakes."""
        return [f + 0.5 * velocity * stop_s for f, velocity, stop_s in self._braking(following, dt)]

    def _way_to_rest(self, following: list[float], dt: float) -> list[Array]:
        """``following`` and poses while braking from there, ``WAY_S`` apart, the last at rest.

        Joints stop one after the other, so the way there is not straight.
        """
        braking = self._braking(following, dt)
        longest = max(stop_s for _, _, stop_s in braking)
        way = [np.array(following)]
        count = math.ceil(longest / WAY_S)
        for i in range(1, count + 1):
            t = longest * i / count
            pose = []
            for f, velocity, stop_s in braking:
                s = min(t, stop_s)
                pose.append(f + velocity * s * (1.0 - 0.5 * s / stop_s) if stop_s else f)
            way.append(np.array(pose))
        return way
