"""The register memory of a virtual servo, and the registers that are filled in when looked at."""

from __future__ import annotations

import time

import numpy as np

from hardware.dynamixel.control_table import BAUD_CODES, ControlTable, OperatingMode, Register
from hardware.dynamixel.dynamics import ACCELERATION_AT_LIMIT, VELOCITY_UNIT_TICKS_S, ServoBank
from hardware.dynamixel.packet import StatusError

__all__ = ["ServoMemory", "indirect_slot"]

_PRESENT = (120, 147)  # registers that are filled in when somebody looks


class ServoMemory:
    """Registers of one servo as a row of its bus's bank."""

    def __init__(self, table: ControlTable) -> None:
        self.table = table
        self.bank = ServoBank(1)
        self.row = 0
        self.memory = self.bank.memory[0]
        self._indirect = False
        self._heat = 0.0

    def get(self, name: str) -> int:
        """Counts of a register, without going over the bus."""
        register = self.table[name]
        self._look(register.address, register.size)
        return self.load(register)

    def load(self, register: Register) -> int:
        start = register.address
        return register.unpack(self.memory[start : start + register.size].tobytes())

    def store(self, register: Register, value: int) -> None:
        start = register.address
        self.memory[start : start + register.size] = np.frombuffer(register.pack(value), np.uint8)

    @property
    def servo_id(self) -> int:
        """Its id on the bus."""
        return int(self.memory[7])

    @property
    def secondary_id(self) -> int | None:
        """The id whose instructions it follows silently, None when unused (253 and up)."""
        value = int(self.memory[12])
        return value if value <= 252 else None

    @property
    def return_delay_s(self) -> float:
        """Pause before it answers."""
        return float(self.memory[9]) * 2e-6

    @property
    def status_return_level(self) -> int:
        """0: answers a ping only; 1: reads too; 2: everything."""
        return int(self.memory[68])

    @property
    def error_bit(self) -> int:
        """0x80 while the hardware error register is not zero."""
        return StatusError.ALERT if self.memory[70] else 0

    @property
    def torque_on(self) -> bool:
        """Whether it drives."""
        return bool(self.memory[64])

    @property
    def watchdog_tripped(self) -> bool:
        """Whether the bus watchdog ran out (register 98 reads -1)."""
        return bool(self.memory[98] == 0xFF)

    @property
    def mode(self) -> OperatingMode:
        """Its operating mode."""
        return OperatingMode(int(self.memory[11]))

    def _look(self, address: int, length: int) -> None:
        """Fill in the registers that exist only when somebody reads them."""
        end = address + length
        if address < _PRESENT[1] and end > _PRESENT[0] and not 126 <= address < end <= 136:
            self._fill_present()
        if self._indirect:
            slot = indirect_slot(address)
            if slot is not None:
                self._fill_present()
                for n in range(length):
                    target = self.indirect_target(slot + n)
                    if target is not None:
                        self.memory[address + n] = self.memory[target]

    def _fill_present(self) -> None:
        bank, row, table = self.bank, self.row, self.table
        velocity = float(bank.velocity[row]) / VELOCITY_UNIT_TICKS_S
        share = float(bank.effort[row]) / ACCELERATION_AT_LIMIT
        goal_error = abs(float(bank.goal[row] - bank.position[row]))
        moving = abs(velocity) > self.load(table["moving_threshold"])
        profile = abs(float(bank.trajectory_velocity[row])) > 0.0
        arrived = goal_error < 20.0
        self.store(table["realtime_tick"], (time.monotonic_ns() // 1_000_000) % 32768)
        self.store(table["moving"], int(moving))
        self.store(table["moving_status"], int(arrived) | int(profile) << 1)
        pwm = np.clip(share + float(bank.velocity[row] / bank.motor_rate[row]), -1.0, 1.0)
        self.store(table["present_pwm"], round(885 * float(pwm)) if self.torque_on else 0)
        rate = float(bank.trajectory_velocity[row]) / VELOCITY_UNIT_TICKS_S
        self.store(table["velocity_trajectory"], round(rate))
        shaft = float(bank.trajectory[row] + bank.offset[row])
        self.store(table["position_trajectory"], round(shaft))
        if self.memory[144:146].any():
            self.store(table["present_input_voltage"], round(120 - 6 * min(1.0, abs(share))))
        self.store(table["present_temperature"], round(30 + self._heat))

    def indirect_target(self, slot: int) -> int | None:
        if slot >= 56:
            return None
        start = 168 + 2 * slot if slot < 28 else 578 + 2 * (slot - 28)
        return int(self.memory[start]) | int(self.memory[start + 1]) << 8

    @property
    def baud(self) -> int:
        """What it listens at, bits per second; 0 for a code that no client can set."""
        return BAUD_CODES.get(int(self.memory[8]), 0)


def indirect_slot(address: int) -> int | None:
    if 224 <= address < 252:
        return address - 224
    if 634 <= address < 662:
        return address - 634 + 28
    return None
