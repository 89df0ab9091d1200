"""The control tables of four X-series servos as data, and the conversions of their units.

Source: the ROBOTIS e-manual pages of XM430-W350, XM540-W270, XL430-W250 and XC430-W150. Addresses
below 64 are EEPROM: kept over power cycles, and writable only while torque is off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from robot_stack.errors import DeviceError

__all__ = [
    "BAUD_CODES",
    "CENTER_TICKS",
    "CURRENT_UNIT_MA",
    "MODELS",
    "RAD_PER_TICK",
    "TICKS_PER_REV",
    "VELOCITY_UNIT_RAD_S",
    "ControlTable",
    "HardwareError",
    "OperatingMode",
    "Register",
    "current_to_ma",
    "model_by_name",
    "rad_to_ticks",
    "ticks_to_rad",
    "velocity_to_rad_s",
]

TICKS_PER_REV = 4096
CENTER_TICKS = 2048
RAD_PER_TICK = 2.0 * np.pi / TICKS_PER_REV
CURRENT_UNIT_MA = 2.69
VELOCITY_UNIT_RAD_S = 0.229 * 2.0 * np.pi / 60.0
EEPROM_END = 64

# Register 8 holds the code; 4.5 Mbaud (7) has no termios constant.
BAUD_CODES: Mapping[int, int] = MappingProxyType(
    {0: 9600, 1: 57600, 2: 115200, 3: 1_000_000, 4: 2_000_000, 5: 3_000_000, 6: 4_000_000}
)


class OperatingMode(IntEnum):
    """Values of register 11."""

    CURRENT = 0
    VELOCITY = 1
    POSITION = 3
    EXTENDED_POSITION = 4
    CURRENT_POSITION = 5
    PWM = 16


class HardwareError(IntFlag):
    """Bits of register 70 (and of 63, which of them switch torque off)."""

    NONE = 0
    INPUT_VOLTAGE = 1
    OVERHEATING = 4
    ENCODER = 8
    ELECTRICAL_SHOCK = 16
    OVERLOAD = 32


@dataclass(frozen=True, slots=True)
class Register:
    """One row of a control table. `unit` is what one count means; limits are in counts.

    `default` is the factory value (EEPROM) or the value after power-up (RAM).
    """

    name: str
    address: int
    size: int
    signed: bool
    unit: str
    writable: bool
    minimum: int
    maximum: int
    default: int

    @property
    def eeprom(self) -> bool:
        """Kept without power; written only while torque is off."""
        return self.address < EEPROM_END

    @property
    def access(self) -> str:
        """`EEPROM r`, `EEPROM rw`, `RAM r` or `RAM rw`."""
        return f"{'EEPROM' if self.eeprom else 'RAM'} {'rw' if self.writable else 'r'}"

    def pack(self, value: int) -> bytes:
        """Counts to the register's bytes, little endian."""
        return int(value).to_bytes(self.size, "little", signed=self.signed and value < 0)

    def unpack(self, data: bytes) -> int:
        """The register's bytes to counts, with its sign."""
        return int.from_bytes(data, "little", signed=self.signed)


@dataclass(frozen=True, slots=True)
class ControlTable:
    """All registers of one servo model, and what its datasheet says about the motor.

    `no_load_rad_s` and `stall_current_ma` are at 12 V (11.1 V for XL430).
    """

    model: str
    number: int
    registers: Mapping[str, Register]
    no_load_rad_s: float
    stall_current_ma: float

    def __getitem__(self, name: str) -> Register:
        try:
            return self.registers[name]
        except KeyError:
            raise DeviceError(
                f"{self.model} has no register {name!r}; it has: {', '.join(self.registers)}"
            ) from None

    @property
    def has_current(self) -> bool:
        """True: 126 is a current in 2.69 mA. False (XL430, XC430): a load in 0.1 %."""
        return "present_current" in self.registers


_INT32 = 2**31 - 1
_GAIN = 16383

# name, address, size, signed, unit, writable, minimum, maximum, default
_Row = tuple[str, int, int, bool, str, bool, int, int, int]


def _rows(
    number: int,
    *,
    velocity_limit: int,
    voltage: tuple[int, int],
    temperature: int,
    current_limit: int | None,
    external_ports: bool = False,
) -> list[_Row]:
    low, high = voltage
    mode_max = 16
    rows: list[_Row] = [
        ("model_number", 0, 2, False, "", False, 0, 65535, number),
        ("model_information", 2, 4, False, "", False, 0, 2**32 - 1, 0),
        ("firmware_version", 6, 1, False, "", False, 0, 255, 47),
        ("id", 7, 1, False, "", True, 0, 252, 1),
        ("baud_rate", 8, 1, False, "code", True, 0, 7, 1),
        ("return_delay_time", 9, 1, False, "2 us", True, 0, 254, 250),
        ("drive_mode", 10, 1, False, "bits", True, 0, 13, 0),
        ("operating_mode", 11, 1, False, "", True, 0, mode_max, 3),
        ("secondary_id", 12, 1, False, "", True, 0, 255, 255),
        ("protocol_type", 13, 1, False, "", True, 1, 2, 2),
        ("homing_offset", 20, 4, True, "tick", True, -1_044_479, 1_044_479, 0),
        ("moving_threshold", 24, 4, False, "0.229 rpm", True, 0, 1023, 10),
        ("temperature_limit", 31, 1, False, "degC", True, 0, 100, temperature),
        ("max_voltage_limit", 32, 2, False, "0.1 V", True, low, high, high),
        ("min_voltage_limit", 34, 2, False, "0.1 V", True, low, high, low),
        ("pwm_limit", 36, 2, False, "0.113 %", True, 0, 885, 885),
        ("velocity_limit", 44, 4, False, "0.229 rpm", True, 0, 1023, velocity_limit),
        ("max_position_limit", 48, 4, False, "tick", True, 0, 4095, 4095),
        ("min_position_limit", 52, 4, False, "tick", True, 0, 4095, 0),
        ("shutdown", 63, 1, False, "bits", True, 0, 63, 52),
        ("torque_enable", 64, 1, False, "bool", True, 0, 1, 0),
        ("led", 65, 1, False, "bool", True, 0, 1, 0),
        ("status_return_level", 68, 1, False, "", True, 0, 2, 2),
        ("registered_instruction", 69, 1, False, "bool", False, 0, 1, 0),
        ("hardware_error_status", 70, 1, False, "bits", False, 0, 255, 0),
        ("velocity_i_gain", 76, 2, False, "", True, 0, _GAIN, 1920),
        ("velocity_p_gain", 78, 2, False, "", True, 0, _GAIN, 100),
        ("position_d_gain", 80, 2, False, "", True, 0, _GAIN, 0),
        ("position_i_gain", 82, 2, False, "", True, 0, _GAIN, 0),
        ("position_p_gain", 84, 2, False, "", True, 0, _GAIN, 800),
        ("feedforward_2nd_gain", 88, 2, False, "", True, 0, _GAIN, 0),
        ("feedforward_1st_gain", 90, 2, False, "", True, 0, _GAIN, 0),
        ("bus_watchdog", 98, 1, True, "20 ms", True, 0, 127, 0),
        ("goal_pwm", 100, 2, True, "0.113 %", True, -885, 885, 885),
        ("goal_velocity", 104, 4, True, "0.229 rpm", True, -1023, 1023, 0),
        ("profile_acceleration", 108, 4, False, "214.577 rev/min^2", True, 0, 32767, 0),
        ("profile_velocity", 112, 4, False, "0.229 rpm", True, 0, 32767, 0),
        ("goal_position", 116, 4, True, "tick", True, -1_048_575, 1_048_575, 0),
        ("realtime_tick", 120, 2, False, "ms", False, 0, 32767, 0),
        ("moving", 122, 1, False, "bool", False, 0, 1, 0),
        ("moving_status", 123, 1, False, "bits", False, 0, 255, 0),
        ("present_pwm", 124, 2, True, "0.113 %", False, -885, 885, 0),
        ("present_velocity", 128, 4, True, "0.229 rpm", False, -_INT32, _INT32, 0),
        ("present_position", 132, 4, True, "tick", False, -_INT32, _INT32, 0),
        ("velocity_trajectory", 136, 4, True, "0.229 rpm", False, -_INT32, _INT32, 0),
        ("position_trajectory", 140, 4, True, "tick", False, -_INT32, _INT32, 0),
        ("present_input_voltage", 144, 2, False, "0.1 V", False, 0, 65535, 120),
        ("present_temperature", 146, 1, False, "degC", False, 0, 255, 30),
    ]
    if current_limit is None:
        rows += [("present_load", 126, 2, True, "0.1 %", False, -1000, 1000, 0)]
    else:
        top = current_limit
        rows += [
            ("current_limit", 38, 2, False, "2.69 mA", True, 0, top, top),
            ("goal_current", 102, 2, True, "2.69 mA", True, -top, top, top),
            ("present_current", 126, 2, True, "2.69 mA", False, -32768, 32767, 0),
        ]
    if external_ports:
        for n in (1, 2, 3):
            rows.append((f"external_port_mode_{n}", 55 + n, 1, False, "", True, 0, 3, 0))
            rows.append((f"external_port_data_{n}", 150 + 2 * n, 2, False, "", True, 0, 4095, 0))
    for n in range(1, 57):
        address = 168 + 2 * (n - 1) if n <= 28 else 578 + 2 * (n - 29)
        data = 224 + (n - 1) if n <= 28 else 634 + (n - 29)
        rows.append((f"indirect_address_{n}", address, 2, False, "address", True, 64, 661, data))
        rows.append((f"indirect_data_{n}", data, 1, False, "", True, 0, 255, 0))
    return sorted(rows, key=lambda row: row[1])


def _table(
    model: str, number: int, no_load_rpm: float, stall_ma: float, rows: list[_Row]
) -> ControlTable:
    registers = MappingProxyType({row[0]: Register(*row) for row in rows})
    return ControlTable(model, number, registers, no_load_rpm * 2 * np.pi / 60, stall_ma)


MODELS: Mapping[int, ControlTable] = MappingProxyType(
    {
        1020: _table(
            "XM430-W350", 1020, 46.0, 2300.0,
            _rows(1020, velocity_limit=200, voltage=(95, 160), temperature=80, current_limit=1193),
        ),
        1120: _table(
            "XM540-W270", 1120, 30.0, 4400.0,
            _rows(
                1120, velocity_limit=128, voltage=(95, 160), temperature=80, current_limit=2047,
                external_ports=True,
            ),
        ),
        1060: _table(
            "XL430-W250", 1060, 57.0, 1300.0,
            _rows(1060, velocity_limit=265, voltage=(60, 140), temperature=72, current_limit=None),
        ),
        1070: _table(
            "XC430-W150", 1070, 106.0, 1400.0,
            _rows(1070, velocity_limit=460, voltage=(60, 160), temperature=80, current_limit=None),
        ),
    }
)  # fmt: skip


def model_by_name(name: str) -> ControlTable:
    """The control table of `XM430-W350`, `XM540-W270`, `XL430-W250` or `XC430-W150`.

    Raises DeviceError for another name.
    """
    for table in MODELS.values():
        if table.model == name:
            return table
    known = ", ".join(table.model for table in MODELS.values())
    raise DeviceError(f"servo model {name!r} has no control table here; known are: {known}")


def ticks_to_rad(ticks: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Position counts to radians (2048 is 0, 4096 a turn): float64 of the same shape."""
    return (np.asarray(ticks, dtype=np.float64) - CENTER_TICKS) * RAD_PER_TICK


def rad_to_ticks(rad: npt.ArrayLike) -> npt.NDArray[np.int32]:
    """Radians to the nearest position count; an array of the same shape (0-d for a scalar)."""
    return np.rint(np.asarray(rad) / RAD_PER_TICK + CENTER_TICKS).astype(np.int32)


def velocity_to_rad_s(counts: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Velocity counts (0.229 rpm) to rad/s."""
    return np.asarray(counts, dtype=np.float64) * VELOCITY_UNIT_RAD_S


def current_to_ma(counts: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Current counts (2.69 mA) to mA. Not for XL430 and XC430, whose 126 is a load."""
    return np.asarray(counts, dtype=np.float64) * CURRENT_UNIT_MA
