"""A servo's way back from a shutdown, in steps that fit between the turns of a control loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from robot_stack.errors import BusError, DeviceError

if TYPE_CHECKING:
    from hardware.dynamixel.bus import DynamixelBus

__all__ = ["Recovery"]

_NS = 1_000_000_000


class Recovery:
    """A servo's way back from a shutdown, one short exchange a `poll`."""

    _PING_EVERY_NS = 20_000_000

    def __init__(
        self,
        bus: DynamixelBus,
        servo_id: int,
        restore: Callable[[DynamixelBus, int], None],
        timeout_s: float,
    ) -> None:
        self.servo_id = servo_id
        self.stage: Literal["off", "boot", "restore", "hold", "done"] = "off"
        self._bus = bus
        self._restore = restore
        self._timeout_s = timeout_s
        self._end_ns = 0
        self._next_ping_ns = 0

    def poll(self) -> bool:
        """Do the next step; True when the servo holds again.

        Raises BusError if it does not come back, DeviceError if it fails again at once; the servo
        is then read (and missed) as before.
        """
        bus, servo_id = self._bus, self.servo_id
        try:
            if self.stage == "off":
                bus.leave_out(servo_id, True)
                bus.write(servo_id, "torque_enable", 0)
                bus.reboot(servo_id)
                now = time.monotonic_ns()
                self._end_ns = now + int(self._timeout_s * _NS)
                self._next_ping_ns = now + self._PING_EVERY_NS
                self.stage = "boot"
            elif self.stage == "boot":
                self._poll_boot()
            elif self.stage == "restore":
                self._restore(bus, servo_id)
                self.stage = "hold"
            elif self.stage == "hold":
                bus.write(servo_id, "goal_position", bus.read(servo_id, "present_position"))
                bus.write(servo_id, "torque_enable", 1)
                bus.leave_out(servo_id, False)
                self.stage = "done"
        except BaseException:
            bus.leave_out(servo_id, False)
            raise
        return self.stage == "done"

    def _poll_boot(self) -> None:
        bus, servo_id = self._bus, self.servo_id
        now = time.monotonic_ns()
        if now < self._next_ping_ns:
            return
        self._next_ping_ns = now + self._PING_EVERY_NS
        if bus.is_alive(servo_id):
            error = bus.hardware_error(servo_id)
            if error:
                raise DeviceError(
                    f"servo {servo_id} on {bus.port_name} reports {error!r} again right after a "
                    "reboot: relieve the joint, check voltage and temperature, then recover"
                )
            self.stage = "restore"
        elif now > self._end_ns:
            raise BusError(
                f"servo {servo_id} on {bus.port_name} did not come back within "
                f"{self._timeout_s:.1f} s of its reboot: check its power"
            )

    def wait(self) -> None:
        """Sleep until the next `poll` has something to do."""
        if self.stage == "boot":
            time.sleep(max(0.0, (self._next_ping_ns - time.monotonic_ns()) / _NS))
