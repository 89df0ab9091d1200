"""Brings single servos of an arm back under torque where they stand, while all others hold."""

from __future__ import annotations

import time

from hardware.aloha import registers
from hardware.aloha.configuration import AlohaArmConfig
from hardware.aloha.faults import TRIPPED, FaultWatch, describe
from hardware.aloha.rig import Servo
from hardware.dynamixel.bus import DynamixelBus
from hardware.dynamixel.control_table import TICKS_PER_REV, HardwareError, OperatingMode
from robot_stack.errors import DeviceError

__all__ = ["Mender"]

# Torque on starts at the nearest goal inside the position limits; farther than this it would jump.
OUTSIDE_TICKS = 60
BOOT_S = 3.0


class Mender:
    """Works on the bus of one arm, and keeps its ``FaultWatch`` up to date."""

    def __init__(self, config: AlohaArmConfig, bus: DynamixelBus, watch: FaultWatch) -> None:
        self._config = config
        self._bus = bus
        self._watch = watch

    def within(self, servo: Servo, ticks: int) -> int:
        """``ticks`` as a goal that the servo accepts; DeviceError when that is too far away."""
        if registers.mode(self._config, servo) is OperatingMode.CURRENT_POSITION:
            return ticks  # this mode counts on over many turns
        turned = ticks % TICKS_PER_REV
        goal = min(max(turned, servo.min_ticks), servo.max_ticks)
        if abs(goal - turned) > OUTSIDE_TICKS:
            raise DeviceError(
                f"{servo} on {self._bus.port_name} stands at {turned}, {abs(goal - turned)} counts "
                f"outside its limits {servo.min_ticks}..{servo.max_ticks}: move the joint inside "
                "by hand, then switch torque on"
            )
        return goal

    def goal_to_present(self, servo: Servo) -> int:
        """Make the present position the servo's goal, verified; the goal in ticks."""
        goal = self.within(servo, self._bus.read(servo.id, "present_position"))
        self._bus.write_verified(servo.id, "goal_position", goal)
        return goal

    def mend(self, servo: Servo) -> int | None:
        """Clear the servo's latched fault; its goal in ticks if that changed.

        It gets torque back if it had it. DeviceError when it is silent, fails again at once, or
        would have to be rebooted while a shadow that obeys the same packet holds the arm.
        """
        bus, watch = self._bus, self._watch
        if not bus.is_alive(servo.id):
            raise DeviceError(
                f"{servo} on {bus.port_name} does not answer: check its cable and power, then "
                "reset again"
            )
        joint = self._config.arm.of_joint(servo.joint)
        hold = servo.id in watch.lost or any(watch.torque[s.id] for s in joint)
        goal = None
        error = bus.hardware_error(servo.id)
        if error:
            goal = self._reboot(servo, error, hold=hold)
        elif bus.read(servo.id, "bus_watchdog") == TRIPPED:
            bus.write_verified(servo.id, "bus_watchdog", 0)
            if hold:
                goal = self.goal_to_present(servo)
        else:
            self._restore(bus, servo.id)
            if hold:
                goal = self.goal_to_present(servo)
                bus.write_verified(servo.id, "torque_enable", 1)
                watch.torque[servo.id] = True
        watch.lost.discard(servo.id)
        watch.clear(servo.id)
        return goal

    def _reboot(self, servo: Servo, error: HardwareError, *, hold: bool) -> int | None:
        bus = self._bus
        shadows = [s for s in self._config.arm.servos if s.shadow_of == servo.id]
        if any(bus.read(shadow.id, "torque_enable") for shadow in shadows):
            raise DeviceError(
                f"{servo} on {bus.port_name}: {describe(error)}. Only a reboot clears it, and "
                f"{shadows[0]}, which holds the arm now, would reboot with it: support the arm, "
                "switch the joint's torque off, and reset again"
            )
        if hold:
            bus.recover(servo.id, self._restore)
            self._watch.torque[servo.id] = True
            return bus.read(servo.id, "goal_position")
        bus.reboot(servo.id)
        deadline = time.monotonic() + BOOT_S
        while not bus.is_alive(servo.id):
            if time.monotonic() > deadline:
                raise DeviceError(f"{servo} did not come back from its reboot: check its power")
            time.sleep(0.02)
        self._restore(bus, servo.id)
        return None

    def _restore(self, bus: DynamixelBus, servo_id: int) -> None:
        """Registers of a servo that has lost its RAM."""
        servo = next(servo for servo in self._config.arm.servos if servo.id == servo_id)
        wanted = registers.mode(self._config, servo)
        bus.write_verified(servo_id, "operating_mode", int(wanted))
        if wanted is OperatingMode.CURRENT_POSITION:
            registers.apply_grip_limit(bus, self._config, servo)
        registers.apply_ram(bus, servo_id, registers.ram(self._config, servo))
