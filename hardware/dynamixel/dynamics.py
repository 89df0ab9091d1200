"""The motion of all virtual servos of one bus, as vectors: profiles, control modes, overload.

A model, not a datasheet: a position servo is a critically damped second-order follower whose
bandwidth grows with the square root of its P gain, whose torque is limited by its current limit,
and whose current is in proportion to the acceleration and the load that it works against.
Positions are in ticks on the shaft (2048 = 0 rad), before homing offset and turn counting.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hardware.dynamixel.control_table import RAD_PER_TICK, TICKS_PER_REV

__all__ = ["MEMORY_SIZE", "ServoBank"]

MEMORY_SIZE = 662  # the last register, Indirect Data 56, is at 661
VELOCITY_UNIT_TICKS_S = 0.229 * TICKS_PER_REV / 60.0
ACCELERATION_UNIT_TICKS_S2 = 214.577 * TICKS_PER_REV / 3600.0
ACCELERATION_AT_LIMIT = 80.0 / RAD_PER_TICK  # ticks/s^2 with all of the current limit
UNLIMITED = 1e12
NEVER = int(np.iinfo(np.int64).max)

_MAX_SUBSTEP_S = 0.004  # above it the explicit integration of a stiff servo is not stable
_FRICTION_HZ = 20.0  # how fast a joint without torque comes to rest
_HAND_STIFFNESS = 3000.0  # 1/s^2, a hand that pushes against torque
_HAND_DAMPING = 110.0  # 1/s
_VELOCITY_GAIN_HZ = 60.0
_OVERLOAD_MARGIN = 0.98
_STALL_TICKS_S = 130.0  # 0.2 rad/s

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


class ServoBank:
    """State of `n` servos: register memory uint8 (n, 662) and float64 (n,) vectors.

    VirtualServo writes the parameters of its row; `step` moves all rows at once and writes the
    present current, velocity and position registers.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.memory = np.zeros((n, MEMORY_SIZE), dtype=np.uint8)
        self.position = np.full(n, 2048.0)  # ticks
        self.velocity = np.zeros(n)  # ticks/s
        self.effort = np.zeros(n)  # drive, as the acceleration it gives, ticks/s^2
        self.trajectory = np.full(n, 2048.0)  # ticks, the goal after the profile
        self.trajectory_velocity = np.zeros(n)
        self.goal = np.full(n, 2048.0)  # ticks
        self.goal_rate = np.zeros(n)  # ticks/s, velocity and PWM modes
        self.goal_effort = np.zeros(n)  # ticks/s^2, current mode
        self.offset = np.zeros(n)  # register = shaft + offset
        self.load = np.zeros(n)  # ticks/s^2, what the outside pulls with
        self.hand = np.full(n, np.nan)  # ticks, where a hand holds the joint
        self.active = np.zeros(n, dtype=np.bool_)  # torque on
        self.external = np.zeros(n, dtype=np.bool_)  # somebody else moves it
        self.position_mode = np.ones(n, dtype=np.bool_)
        self.rate_mode = np.zeros(n, dtype=np.bool_)
        self.max_rate = np.full(n, UNLIMITED)  # profile velocity
        self.max_acceleration = np.full(n, UNLIMITED)
        self.profiled = np.zeros(n)  # 1.0 where a profile shapes the motion
        self.stiffness = np.full(n, 3600.0)  # 1/s^2
        self.damping = np.full(n, 120.0)  # 1/s
        self.effort_limit = np.full(n, UNLIMITED)
        self.overload_effort = np.full(n, UNLIMITED)
        self.hand_limit = np.full(n, UNLIMITED)
        self.motor_rate = np.full(n, UNLIMITED)  # no-load speed, ticks/s
        self.current_scale = np.ones(n)  # effort to counts of register 126
        self.saturated_s = np.zeros(n)
        self.measured_counts = np.zeros(n)  # register 126 of external servos
        self.heard_ns = np.zeros(n, dtype=np.int64)  # last instruction
        self.silent_until_ns = np.zeros(n, dtype=np.int64)  # booting, or NEVER while off the chain
        self._views()

    def _views(self) -> None:
        self.goal_position = self.memory[:, 116:120].view("<i4")[:, 0]
        self.max_position = self.memory[:, 48:52].view("<i4")[:, 0]
        self.min_position = self.memory[:, 52:56].view("<i4")[:, 0]
        self._present_current = self.memory[:, 126:128].view("<i2")[:, 0]
        self._present_velocity = self.memory[:, 128:132].view("<i4")[:, 0]
        self._present_position = self.memory[:, 132:136].view("<i4")[:, 0]

    @classmethod
    def joined(cls, banks: list[ServoBank]) -> ServoBank:
        """One bank with the rows of all; the originals are left behind, unused."""
        whole = cls(sum(bank.n for bank in banks))
        for name, value in vars(whole).items():
            if isinstance(value, np.ndarray) and value.base is None:
                setattr(whole, name, np.concatenate([getattr(bank, name) for bank in banks]))
        whole._views()
        whole.refresh()
        return whole

    def refresh(self) -> None:
        """After a parameter, mode or torque change: decide what `step` may leave out."""
        self._all_position = bool(self.position_mode.all())
        self._any_profile = bool((self.profiled > 0).any())
        self._any_hand = bool((~np.isnan(self.hand)).any())
        self._all_active = bool(self.active.all())
        self._any_external = bool(self.external.any())
        self._all_external = bool(self.external.all())

    def step(self, dt: float) -> npt.NDArray[np.intp]:
        """Advance by `dt` seconds. Returns the rows that have just been seconds in saturation
        (`saturated_s` holds how long), for the servo to judge as overload."""
        substeps = max(1, int(np.ceil(dt / _MAX_SUBSTEP_S)))
        for _ in range(substeps):
            self._profile(dt / substeps)
            if not self._all_external:
                self._move(dt / substeps)
        self.publish()
        if self._any_external:
            hot = np.abs(self.measured_counts) * self.external
            effort = np.where(self.external, hot / self.current_scale, np.abs(self.effort))
        else:
            effort = np.abs(self.effort)
        # Stalled, not accelerating: a motor that turns is cooled by turning.
        stalled = np.abs(self.velocity) < _STALL_TICKS_S
        saturated = (effort >= self.overload_effort) & self.active & stalled
        self.saturated_s += dt
        self.saturated_s *= saturated
        return np.flatnonzero(saturated)

    def _profile(self, dt: float) -> None:
        if self._any_profile:
            error = self.goal - self.trajectory
            distance = np.abs(error)
            rate = np.sqrt(2.0 * self.max_acceleration * distance)
            np.minimum(rate, self.max_rate, out=rate)
            rate = np.copysign(rate, error)
            change = self.max_acceleration * dt
            np.minimum(rate, self.trajectory_velocity + change, out=rate)
            np.maximum(rate, self.trajectory_velocity - change, out=rate)
            reach = distance / dt
            np.minimum(rate, reach, out=rate)
            np.maximum(rate, -reach, out=rate)
            self.trajectory += rate * dt
            # Without a profile the goal jumps, and its derivative must not kick the controller.
            self.trajectory_velocity = rate * self.profiled
        else:
            self.trajectory[:] = self.goal
            self.trajectory_velocity[:] = 0.0
        if not self._all_active:
            off = ~self.active
            np.copyto(self.trajectory, self.position, where=off)
            np.copyto(self.trajectory_velocity, 0.0, where=off)

    def _move(self, dt: float) -> None:
        before = (self.position.copy(), self.velocity.copy()) if self._any_external else None
        effort = self.stiffness * (self.trajectory - self.position)
        effort += self.damping * (self.trajectory_velocity - self.velocity)
        if not self._all_position:
            rate = _VELOCITY_GAIN_HZ * (self.goal_rate - self.velocity)
            other = np.where(self.rate_mode, rate, self.goal_effort)
            effort = np.where(self.position_mode, effort, other)
        np.minimum(effort, self.effort_limit, out=effort)
        np.maximum(effort, -self.effort_limit, out=effort)
        pull = self.load
        held = None
        if self._any_hand:
            held = ~np.isnan(self.hand)
            push = _HAND_STIFFNESS * (self.hand - self.position) - _HAND_DAMPING * self.velocity
            push = np.clip(push, -self.hand_limit, self.hand_limit)
            pull = pull + np.where(held & self.active, push, 0.0)
        if not self._all_active:
            effort *= self.active
            pull = np.where(self.active, pull, -_FRICTION_HZ * self.velocity)
        self.effort = effort
        self.velocity += (effort + pull) * dt
        np.minimum(self.velocity, self.motor_rate, out=self.velocity)
        np.maximum(self.velocity, -self.motor_rate, out=self.velocity)
        self.position += self.velocity * dt
        if held is not None:
            free = held & ~self.active
            # A joint without torque goes where the hand is: the operator is the stronger.
            np.copyto(self.velocity, 0.0, where=free)
            np.copyto(self.position, self.hand, where=free)
        if before is not None:
            np.copyto(self.position, before[0], where=self.external)
            np.copyto(self.velocity, before[1], where=self.external)

    def publish(self) -> None:
        """Write the present current (load), velocity and position registers."""
        self._present_position[:] = np.rint(self.position + self.offset)
        self._present_velocity[:] = np.rint(self.velocity * (1.0 / VELOCITY_UNIT_TICKS_S))
        if self._any_external:
            internal = self.effort * self.current_scale
            counts = np.where(self.external, self.measured_counts, internal)
        else:
            counts = self.effort * self.current_scale
        self._present_current[:] = np.rint(counts)

    def overload_threshold(self, effort_limit: float) -> float:
        """The effort from which a drive counts as saturated, given its hardware limit."""
        return effort_limit * _OVERLOAD_MARGIN
