"""Orders of the supervisor to an arm process: arm, disarm, reset, torque, shutdown.

They are carried out between two turns of the loop, which stands still meanwhile: an order that
starts anew from the device's goals waits until the robot has braked.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from robot_stack.errors import DeviceError, SharedMemoryError
from robot_stack.records import OrderKind, orders_path
from robot_stack.shared_memory import Ring
from robot_stack.types import Lifecycle, StopCategory

if TYPE_CHECKING:
    from .arm_process import ArmProcess

__all__ = ["Orders"]


class Orders:
    """Reads ``orders.<robot>`` and does to ``arm`` what it says; ``done`` is the last one's
    number, -1 before the first."""

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
            if kind in (OrderKind.RESET, OrderKind.TORQUE) and not self._stands_for(kind):
                self._next = first + i  # brake first
                return
            self._next = first + i + 1
            try:
                self._carry_out(kind, order)
            except DeviceError as error:
                self._failed(error)
            self.done = int(order["seq"])

    def _stands_for(self, kind: OrderKind) -> bool:
        """Whether the robot stands still, as orders that start anew from its goals need it to."""
        arm = self.arm
        if kind is OrderKind.RESET and arm.lifecycle is Lifecycle.ARMED:
            arm.lifecycle = Lifecycle.DISARMED
        return arm.standing or not arm.connected or not arm.torque.any()

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
            if arm.lifecycle is Lifecycle.ARMED:
                arm.lifecycle = Lifecycle.DISARMED
        elif kind is OrderKind.RESET:
            self._reset()
        elif kind is OrderKind.TORQUE:
            if not arm.connected:
                raise DeviceError("not connected: its torque could not be switched")
            joints = [bool(bit) for bit in order["mask"][: arm.spec.dof]]
            arm.robot.set_torque(joints, bool(order["value"]))
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
