"""Orders of the supervisor to an arm process: arm, disarm, reset, torque, shutdown.

They are carried out between two turns of the loop, which stands still meanwhile: an order that
starts anew from the device's goals waits until the robot has braked. One that has waited longer
than its asker does is not carried out any more, and none that takes motion away waits behind it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from robot_stack.errors import DeviceError, SharedMemoryError
from robot_stack.records import OrderKind, orders_path
from robot_stack.shared_memory import Ring
from robot_stack.spec import RobotSpec
from robot_stack.types import Lifecycle, StopCategory

if TYPE_CHECKING:
    from .arm_process import ArmProcess

__all__ = ["Orders", "at_rest"]

REST_TOLERANCE = 0.2  # rad from the sleep pose at which torque may be taken away


def at_rest(spec: RobotSpec, q: NDArray[np.float64]) -> bool:
    """Whether all arm joints (not grippers) of ``q`` (dof,) are at the sleep pose, where a robot
    that falls without torque lies; false where a joint is unknown (NaN)."""
    return all(
        abs(q[i] - spec.sleep[i]) < REST_TOLERANCE
        for i, joint in enumerate(spec.joints)
        if joint.unit != "fraction"
    )


class Orders:
    """Reads ``orders.<robot>`` and does to ``arm`` what it says; ``done`` is the number of the
    last one that was carried out or had expired, -1 before the first."""

    def __init__(self, arm: ArmProcess) -> None:
        self.arm = arm
        self.done = -1
        self._ring: Ring | None = None
        self._next = 0

    def take(self) -> None:
        """Carry out what has come; a device that fails at one is a fault."""
        try:
            if self._ring is None:
                path = orders_path(self.arm.station.station, self.arm.name)
                if not path.exists():
                    return
                self._ring = Ring(path)
                self._next = self._ring.count  # what a predecessor was told is not ours
            elif self._ring.closed and self._ring.reopen():
                self._next = 0
            if self._ring.count == self._next:
                return
            first, orders = self._ring.since(self._next)
        except SharedMemoryError:
            return
        for i, order in enumerate(orders):
            kind = OrderKind(int(order["kind"]))
            expired = self._expired(kind, order)
            waits = kind in (OrderKind.RESET, OrderKind.TORQUE) and not expired
            if waits and not self._stands_for(kind):
                self._next = first + i  # brake first
                self._brake_for(orders[i + 1 :])
                return
            self._next = first + i + 1
            if not expired:
                try:
                    self._carry_out(kind, order)
                except DeviceError as error:
                    self._failed(error)
            self.done = int(order["seq"])

    def _expired(self, kind: OrderKind, order: Any) -> bool:
        """Whether its asker has been told that it was not carried out. DISARM is never too late."""
        if kind is OrderKind.DISARM or time.monotonic_ns() <= int(order["expires_t_ns"]):
            return False
        text = f"{self.arm.name}: the order {kind.name} came too late and is not carried out"
        print(text, file=sys.stderr, flush=True)
        return True

    def _brake_for(self, orders: Iterable[Any]) -> None:
        """Orders behind one that waits: what they take from the robot's motion, they take now."""
        for order in orders:
            if OrderKind(int(order["kind"])) not in (OrderKind.ARM, OrderKind.TORQUE):
                self._disarm()

    def _stands_for(self, kind: OrderKind) -> bool:
        """Whether the robot stands still, as orders that start anew from its goals need it to."""
        arm = self.arm
        if kind is OrderKind.RESET:
            self._disarm()
        return arm.standing or not arm.connected or not arm.torque.any()

    def _disarm(self) -> None:
        if self.arm.lifecycle is Lifecycle.ARMED:
            self.arm.lifecycle = Lifecycle.DISARMED

    def _failed(self, error: DeviceError) -> None:
        """Half an order may have been carried out: latch, stop, and hold what the device holds."""
        arm = self.arm
        arm.lifecycle, arm.fault = Lifecycle.FAULT, str(error)
        arm.stop.set(int(StopCategory.HOLD) + 1, f"{arm.name}: {error}")
        print(f"{arm.name}: fault: {error}", file=sys.stderr, flush=True)
        if arm.connected:
            arm.torque = arm.robot.torque()
            arm.rebase()

    def _carry_out(self, kind: OrderKind, order: Any) -> None:
        arm = self.arm
        if kind is OrderKind.ARM:
            if arm.lifecycle is Lifecycle.DISARMED and arm.connected:
                arm.buffer.clear()
                arm.lifecycle = Lifecycle.ARMED
        elif kind is OrderKind.DISARM:
            self._disarm()
        elif kind is OrderKind.RESET:
            self._reset()
        elif kind is OrderKind.TORQUE:
            if not arm.connected:
                raise DeviceError("not connected: its torque could not be switched")
            on = bool(order["value"])
            if not on and arm.config.falls and not at_rest(arm.spec, arm.state.q):
                return  # it was at rest when somebody asked; whoever did sees that it keeps torque
            joints = [bool(bit) for bit in order["mask"][: arm.spec.dof]]
            arm.robot.set_torque(joints, on)
            arm.torque = arm.robot.torque()
            arm.state = arm.robot.read(0.1)
            arm.rebase()
        elif kind is OrderKind.SHUTDOWN:
            arm.ended = True

    def _reset(self) -> None:
        """Clear a latched stop or fault where the device can; never moves, never drops."""
        arm = self.arm
        if not arm.connected:
            return
        if arm.robot.faults() is not None:
            arm.robot.recover()
        arm.state = arm.robot.read(0.1)
        arm.torque = arm.robot.torque()
        arm.sent = np.asarray(arm.robot.held(), dtype=np.float64)
        arm.hold_here()
        arm.buffer.clear()
        if arm.lifecycle in (Lifecycle.FAULT, Lifecycle.STOPPED):
            arm.lifecycle = Lifecycle.DISARMED
            arm.fault = ""
