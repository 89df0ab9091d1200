"""A person's hand on an arm of virtual servos: it moves joints from the far side of their bus."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardware.dynamixel.control_table import CENTER_TICKS, RAD_PER_TICK
from hardware.dynamixel.virtual import VirtualBus

__all__ = ["ServoHand"]

Array = NDArray[np.float64]

# A hand follows where it is wanted with the lag and the top speed of an unhurried person.
HAND_LAG_S = 0.03
HAND_SPEED_RAD_S = 3.0


class ServoHand:
    """Holds some of the joints (n,) of one arm, angles in rad of the servos' shafts.

    ``joint_of_row`` tells the joint of each servo of the bus, ``rows`` (n,) the servo that stands
    for each joint; ``lower`` and ``upper`` (n,) are the joints' own ends. A joint without torque
    goes where the hand is; a joint under torque is pushed against. A joint that comes under torque
    is taken out of the hand: the station drives it now.
    """

    def __init__(
        self,
        bus: VirtualBus,
        joint_of_row: NDArray[np.int_],
        rows: NDArray[np.int_],
        lower: Array,
        upper: Array,
    ) -> None:
        self.bus = bus
        self._joint_of_row, self._rows = joint_of_row, rows
        self._lower, self._upper = lower, upper
        self._target = np.full(len(rows), np.nan)  # rad, NaN where the hand does not hold
        self._at = np.full(len(rows), np.nan)
        self._active = np.zeros(len(rows), dtype=np.bool_)

    def positions(self) -> Array:
        """Where the joints are (n,)."""
        return np.asarray(self.bus.positions_rad()[self._rows])

    def active(self) -> NDArray[np.bool_]:
        """Which joints are under torque (n,)."""
        return np.asarray(self.bus.bank.active[self._rows])

    def want(self, target: Array, *, at_once: bool = False) -> None:
        """Bring joints to ``target`` (n,), NaN for those that it leaves alone: at human speed, or
        ``at_once``."""
        held = ~np.isnan(target)
        target = np.clip(target, self._lower, self._upper)
        fresh = held & np.isnan(self._at)
        self._at[fresh] = self.positions()[fresh]
        self._target[held] = target[held]
        if at_once:
            self._at[held] = target[held]

    def held(self) -> bool:
        """Whether the hand holds any joint."""
        return not bool(np.isnan(self._target).all())

    def release(self) -> None:
        """Let go: the joints stay where they are, or go where their servos drive them."""
        self._target[:] = np.nan
        self._at[:] = np.nan
        self._push()

    def step(self, dt: float) -> None:
        """Move on by ``dt`` seconds."""
        held = ~np.isnan(self._target)
        active = self.active()
        taken = held & active & ~self._active
        self._active = active
        if taken.any():
            self._target[taken] = self._at[taken] = np.nan
            self._push()
        if not held.any():
            return
        way = (self._target - self._at) * min(1.0, dt / HAND_LAG_S)
        self._at += np.clip(way, -HAND_SPEED_RAD_S * dt, HAND_SPEED_RAD_S * dt)
        self._push()

    def _push(self) -> None:
        # All rows at once: VirtualBus.hand would look the bank over nine times a step.
        bank = self.bus.bank
        bank.hand[:] = self._at[self._joint_of_row] / RAD_PER_TICK + CENTER_TICKS
        bank.refresh()
