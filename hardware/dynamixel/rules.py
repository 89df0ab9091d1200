"""What a virtual servo allows to be written, and with which error it refuses."""

from __future__ import annotations

from functools import lru_cache

from hardware.dynamixel.control_table import MODELS, OperatingMode, Register
from hardware.dynamixel.dynamics import MEMORY_SIZE
from hardware.dynamixel.memory import ServoMemory
from hardware.dynamixel.packet import StatusError

__all__ = ["check_write", "covered"]

_GOALS = frozenset({"goal_position", "goal_velocity", "goal_current", "goal_pwm"})
_LIMITED_BY = {
    "goal_current": "current_limit",
    "goal_velocity": "velocity_limit",
    "goal_pwm": "pwm_limit",
}


@lru_cache(maxsize=4096)
def covered(model: int, address: int, length: int) -> tuple[Register, ...] | StatusError:
    """The registers that a write of `length` bytes at `address` hits, or why it may not."""
    table = MODELS[model]
    end = address + length
    if length < 1 or end > MEMORY_SIZE:
        return StatusError.DATA_RANGE
    hit = [
        register
        for register in table.registers.values()
        if register.address < end and register.address + register.size > address
    ]
    if not hit or not all(register.writable for register in hit):
        return StatusError.ACCESS
    if hit[0].address < address or hit[-1].address + hit[-1].size > end:
        return StatusError.DATA_LENGTH
    return tuple(hit)


def check_write(servo: ServoMemory, address: int, data: bytes) -> int:
    """StatusError.NONE if `servo` would take `data` at `address`, else its error; all registers
    are looked at before any is written."""
    hit = covered(servo.table.number, address, len(data))
    if isinstance(hit, StatusError):
        return hit
    for register in hit:
        start = register.address - address
        value = register.unpack(data[start : start + register.size])
        if register.eeprom and servo.memory[64]:
            return StatusError.ACCESS
        if servo.memory[98] == 0xFF and register.name in _GOALS:
            # The e-manual calls the goals read-only then, and the answer a range error.
            return StatusError.DATA_RANGE
        if not register.minimum <= value <= register.maximum:
            return StatusError.DATA_RANGE
        error = _check_limit(servo, register, value)
        if error:
            return error
    return StatusError.NONE


def _check_limit(servo: ServoMemory, register: Register, value: int) -> int:
    name = register.name
    if name == "goal_position":
        if servo.memory[11] == OperatingMode.POSITION:
            memory = servo.memory
            low = int.from_bytes(memory[52:56].tobytes(), "little")
            high = int.from_bytes(memory[48:52].tobytes(), "little")
            if not low <= value <= high:
                return StatusError.DATA_LIMIT
    elif name in _LIMITED_BY and abs(value) > servo.load(servo.table[_LIMITED_BY[name]]):
        return StatusError.DATA_LIMIT
    elif name == "operating_mode":
        modes = set(OperatingMode)
        if not servo.table.has_current:
            modes -= {OperatingMode.CURRENT, OperatingMode.CURRENT_POSITION}
        if value not in modes:
            return StatusError.DATA_RANGE
    elif name == "torque_enable" and value and servo.memory[70] & servo.memory[63]:
        return StatusError.RESULT_FAIL  # shut down: only a reboot helps
    return StatusError.NONE
