"""One virtual X-series servo: registers with their rules, modes, errors, watchdog and reboot."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import numpy as np

from hardware.dynamixel.control_table import (
    CENTER_TICKS,
    CURRENT_UNIT_MA,
    RAD_PER_TICK,
    TICKS_PER_REV,
    HardwareError,
    OperatingMode,
    Register,
    model_by_name,
)
from hardware.dynamixel.dynamics import (
    ACCELERATION_AT_LIMIT,
    ACCELERATION_UNIT_TICKS_S2,
    MEMORY_SIZE,
    NEVER,
    UNLIMITED,
    VELOCITY_UNIT_TICKS_S,
    ServoBank,
)
from hardware.dynamixel.memory import ServoMemory, indirect_slot
from hardware.dynamixel.packet import StatusError
from hardware.dynamixel.rules import check_write, covered
from robot_stack.errors import ConfigError

__all__ = ["VirtualServo"]

_POSITION_MODES = (
    OperatingMode.POSITION,
    OperatingMode.EXTENDED_POSITION,
    OperatingMode.CURRENT_POSITION,
)
_HAND_AT_LIMIT = 1.5  # a hand can push this much harder than the servo
_RAM_START = 64
_NS = 1_000_000_000


class VirtualServo(ServoMemory):
    """A servo behind a VirtualBus.

    `model` is one of `control_table.MODELS`; `registers` sets registers by name before power-up
    (its EEPROM as a technician left it). `position_rad` is where the shaft stands. It is silent
    for `boot_s` after a reboot, and trips on overload after `overload_s` at its current limit.
    `external` True leaves the position to a plant outside (a physics engine): that reads
    `target_rad`, `torque_on` and `current_limit_ma`, and answers with `set_measured`.
    Raises ConfigError for an unknown model (DeviceError) or register value out of range.
    """

    def __init__(
        self,
        servo_id: int,
        model: str = "XM430-W350",
        *,
        position_rad: float = 0.0,
        registers: Mapping[str, int] | None = None,
        external: bool = False,
        boot_s: float = 0.25,
        overload_s: float = 0.5,
    ) -> None:
        super().__init__(model_by_name(model))
        self.boot_s = boot_s
        self.overload_s = overload_s
        self._booted_ns = 0
        self._staged: tuple[int, bytes] | None = None
        for register in self.table.registers.values():
            self.store(register, register.default)
        for name, value in {"id": servo_id, "return_delay_time": 0, **(registers or {})}.items():
            register = self.table[name]
            if not register.minimum <= value <= register.maximum:
                raise ConfigError(
                    f"{self.table.model} register {name} = {value}: "
                    f"allowed is {register.minimum}..{register.maximum}"
                )
            self.store(register, value)
        self._configured = dict(registers or {})
        self._effort_per_ma = ACCELERATION_AT_LIMIT / self.rated_ma
        ticks = CENTER_TICKS + position_rad / RAD_PER_TICK
        bank = self.bank
        bank.position[0] = bank.trajectory[0] = ticks
        bank.external[0] = external
        bank.motor_rate[0] = self.table.no_load_rad_s / RAD_PER_TICK
        self._turns = 0
        self._power_up()
        for name in self._configured:  # RAM values that the caller wants survive the first boot
            self.store(self.table[name], self._configured[name])
        if "goal_position" not in self._configured:
            self.store(self.table["goal_position"], self.get("present_position"))
        self._reconfigure()

    # -- where it lives ---------------------------------------------------------------------

    def attach(self, bank: ServoBank, row: int) -> None:
        """Move into row `row` of a bus's bank, which must hold a copy of this servo's state."""
        self.bank = bank
        self.row = row
        self.memory = bank.memory[row]
        self._reconfigure()

    # -- registers, from the far side ---------------------------------------------------------

    def set(self, name: str, value: int) -> None:
        """Set a register as a technician would: no access rules, but all consequences."""
        register = self.table[name]
        self.store(register, value)
        self._after_write(register)
        self._reconfigure()

    @property
    def present(self) -> bool:
        """Whether it is on the chain; False while its cable is out."""
        return bool(self.bank.silent_until_ns[self.row] != NEVER)

    @present.setter
    def present(self, value: bool) -> None:
        self.bank.silent_until_ns[self.row] = self._booted_ns if value else NEVER

    def answers(self, now_ns: int) -> bool:
        """Whether it is on the chain and has booted."""
        return bool(now_ns >= self.bank.silent_until_ns[self.row])

    # -- what a plant outside needs -----------------------------------------------------------

    @property
    def external(self) -> bool:
        """Whether a plant outside moves it."""
        return bool(self.bank.external[self.row])

    @external.setter
    def external(self, value: bool) -> None:
        self.bank.external[self.row] = value
        self.bank.refresh()

    @property
    def rated_ma(self) -> float:
        """The highest current limit of its model (XL430, XC430: the stall current), mA."""
        if self.table.has_current:
            return self.table["current_limit"].maximum * CURRENT_UNIT_MA
        return self.table.stall_current_ma

    @property
    def counts_per_ma(self) -> float:
        """Counts of register 126 for one mA (XL430, XC430: of the load it is taken for)."""
        return self._effort_per_ma * float(self.bank.current_scale[self.row])

    def target_ticks(self) -> float:
        """Where it wants the shaft after profile and mode, ticks; NaN without torque or in a
        mode that has no position goal."""
        if not self.torque_on or self.mode not in _POSITION_MODES:
            return math.nan
        return float(self.bank.trajectory[self.row])

    def target_rad(self) -> float:
        """`target_ticks` in radians on the shaft."""
        return (self.target_ticks() - CENTER_TICKS) * RAD_PER_TICK

    def current_limit_ma(self) -> float:
        """What it may draw now: current limit, or goal current in current-based position mode;
        0 without torque."""
        if not self.torque_on:
            return 0.0
        return float(self.bank.effort_limit[self.row]) / self._effort_per_ma

    def set_measured(
        self, position_rad: float, velocity_rad_s: float = 0.0, current_ma: float = 0.0
    ) -> None:
        """What the plant says of the shaft; only for `external` servos."""
        bank, row = self.bank, self.row
        bank.position[row] = CENTER_TICKS + position_rad / RAD_PER_TICK
        bank.velocity[row] = velocity_rad_s / RAD_PER_TICK
        bank.measured_counts[row] = current_ma * self.counts_per_ma
        bank.publish()

    # -- the outside world --------------------------------------------------------------------

    def hand(self, position_rad: float | None) -> None:
        """An operator's hand holds the shaft at `position_rad`, or lets go (None).

        Without torque the joint is there at once; with torque the hand pushes against it.
        """
        bank, row = self.bank, self.row
        ticks = math.nan if position_rad is None else CENTER_TICKS + position_rad / RAD_PER_TICK
        bank.hand[row] = ticks
        bank.refresh()
        if position_rad is not None and not self.torque_on and not self.external:
            bank.position[row] = ticks
            bank.publish()

    def pull(self, current_ma: float) -> None:
        """A steady outside torque, as the current that would balance it."""
        self.bank.load[self.row] = current_ma * self._effort_per_ma

    def fail(self, errors: HardwareError) -> None:
        """Raise hardware errors; torque goes off where the shutdown register says so."""
        self.memory[70] |= int(errors)
        if int(self.memory[63]) & int(errors):
            self._set_torque(False)

    def reboot(self, now_ns: int) -> None:
        """RAM back to its defaults, torque off, errors gone, silent for `boot_s`."""
        self._power_up()
        self._booted_ns = now_ns + int(self.boot_s * _NS)
        self.present = self.present  # a servo off the chain stays off

    def _power_up(self) -> None:
        for register in self.table.registers.values():
            if register.address >= _RAM_START and not register.name.startswith("indirect_data"):
                self.store(register, register.default)
        self._staged = None
        self._indirect = False
        self._reset_goals()
        # The encoder knows one turn only: further turns are forgotten with the power.
        self._forget_turns()
        self._set_torque(False)
        self.store(self.table["goal_position"], self.get("present_position"))

    def _forget_turns(self) -> None:
        self._turns = int(self.bank.position[self.row] // TICKS_PER_REV)
        self._reconfigure()
        self.bank.publish()

    def _set_torque(self, on: bool) -> None:
        self.memory[64] = on
        self._reconfigure()

    # -- time ---------------------------------------------------------------------------------

    def heard(self, now_ns: int) -> None:
        """An instruction for this servo has come: the bus watchdog starts anew."""
        self.bank.heard_ns[self.row] = now_ns

    @property
    def watched(self) -> bool:
        """Whether a bus watchdog is counting."""
        return 0 < int(self.memory[98]) <= 127

    def check_watchdog(self, now_ns: int) -> None:
        """Stop where it is when nobody spoke for as long as register 98 says."""
        if not self.watched or not self.torque_on:
            return
        if now_ns - int(self.bank.heard_ns[self.row]) > int(self.memory[98]) * 20_000_000:
            self.memory[98] = 0xFF
            bank, row = self.bank, self.row
            bank.goal[row] = bank.position[row]
            bank.goal_rate[row] = 0.0
            bank.goal_effort[row] = 0.0

    def check_overload(self) -> None:
        """Called by the bus while the drive is saturated."""
        if self.bank.saturated_s[self.row] > self.overload_s:
            self.bank.saturated_s[self.row] = 0.0
            self.fail(HardwareError.OVERLOAD)

    def warm(self, dt: float) -> None:
        """Let the winding's heat follow the current (time constant 60 s)."""
        share = abs(float(self.bank.effort[self.row])) / ACCELERATION_AT_LIMIT
        self._heat += (share * share * 45.0 - self._heat) * min(1.0, dt / 60.0)

    # -- instructions ---------------------------------------------------------------------------

    def read(self, address: int, length: int) -> tuple[int, bytes]:
        """(error byte with alert, data); the error for an address that does not exist."""
        if length < 1 or address + length > MEMORY_SIZE:
            return StatusError.DATA_RANGE | self.error_bit, b""
        self._look(address, length)
        return self.error_bit, self.memory[address : address + length].tobytes()

    def write(self, address: int, data: bytes) -> int:
        """Error byte (alert included). All registers are checked before any is written."""
        if self._indirect and indirect_slot(address) is not None:
            return self._write_indirect(address, data)
        return self._write(address, data) | self.error_bit

    def stage(self, address: int, data: bytes) -> int:
        """Keep a write for ACTION (REG_WRITE)."""
        error = check_write(self, address, data)
        if error == StatusError.NONE:
            self._staged = (address, data)
            self.memory[69] = 1
        return error | self.error_bit

    @property
    def staged(self) -> tuple[int, bytes] | None:
        """(address, data) that wait for ACTION."""
        return self._staged

    def action(self) -> int:
        """Do the staged write."""
        if self._staged is None:
            return StatusError.RESULT_FAIL | self.error_bit
        address, data = self._staged
        self._staged = None
        self.memory[69] = 0
        return self.write(address, data)

    def clear(self, parameters: bytes) -> int:
        """CLEAR 01 44 58 4C 22: forget full turns. Fails while the shaft turns."""
        if parameters != b"\x01DXL\x22":
            return StatusError.DATA_RANGE | self.error_bit
        if abs(self.bank.velocity[self.row]) > 10 * VELOCITY_UNIT_TICKS_S:
            return StatusError.RESULT_FAIL | self.error_bit
        self._forget_turns()
        self.store(self.table["goal_position"], self.get("present_position"))
        self._reconfigure()
        return self.error_bit

    def factory_reset(self, option: int, now_ns: int) -> int:
        """FACTORY_RESET FF: everything, 01: all but the id, 02: all but id and baud rate."""
        if option not in (0xFF, 0x01, 0x02):
            return StatusError.DATA_RANGE | self.error_bit
        if self.torque_on:
            return StatusError.ACCESS | self.error_bit
        kept = {0xFF: (), 0x01: ("id",), 0x02: ("id", "baud_rate")}[option]
        for register in self.table.registers.values():
            if register.eeprom and register.writable and register.name not in kept:
                self.store(register, register.default)
        self.reboot(now_ns)
        return StatusError.NONE

    # -- the rules --------------------------------------------------------------------------------

    def _write(self, address: int, data: bytes) -> int:
        error = check_write(self, address, data)
        if error:
            return error
        hit = covered(self.table.number, address, len(data))
        assert not isinstance(hit, StatusError)
        mode = self.memory[11]
        torque = self.memory[64]
        for register in hit:
            start = register.address - address
            piece = data[start : start + register.size]
            self.memory[register.address : register.address + register.size] = np.frombuffer(
                piece, np.uint8
            )
        if len(hit) == 1 and hit[0].name == "goal_position":
            self._new_goal(int.from_bytes(data, "little", signed=True))
            return StatusError.NONE
        for register in hit:
            self._after_write(register)
        if self.memory[11] != mode:
            self._reset_goals()
        if self.memory[64] and not torque and self.memory[11] == OperatingMode.POSITION:
            self._forget_turns()
        self._reconfigure()
        return StatusError.NONE

    def _after_write(self, register: Register) -> None:
        name = register.name
        if name == "goal_position":
            self._new_goal(self.load(register))
        elif name == "bus_watchdog":
            heard = int(self.bank.heard_ns[self.row])
            self.bank.heard_ns[self.row] = max(heard, time.monotonic_ns())
        elif name.startswith("indirect_address"):
            self._indirect = True

    def _write_indirect(self, address: int, data: bytes) -> int:
        slot = indirect_slot(address)
        assert slot is not None
        targets = [self.indirect_target(slot + n) for n in range(len(data))]
        if None in targets:
            return StatusError.DATA_RANGE | self.error_bit
        runs: list[tuple[int, bytearray]] = []
        for target, byte in zip(targets, data, strict=True):
            assert target is not None
            if runs and runs[-1][0] + len(runs[-1][1]) == target:
                runs[-1][1].append(byte)
            else:
                runs.append((target, bytearray((byte,))))
        for start, run in runs:
            error = check_write(self, start, bytes(run))
            if error:
                return error | self.error_bit
        for start, run in runs:
            self._write(start, bytes(run))
        return self.error_bit

    def _reset_goals(self) -> None:
        """After a mode switch: goal current, PWM and profiles return to their defaults."""
        table = self.table
        if table.has_current:
            self.store(table["goal_current"], self.load(table["current_limit"]))
        self.store(table["goal_pwm"], self.load(table["pwm_limit"]))
        for name in ("goal_velocity", "profile_velocity", "profile_acceleration"):
            self.store(table[name], 0)

    def _new_goal(self, value: int) -> None:
        bank, row = self.bank, self.row
        bank.goal[row] = value - bank.offset[row]
        if self.memory[10] & 4 and bank.profiled[row]:
            self._time_profile()

    def _time_profile(self) -> None:
        """Drive mode bit 2: profile registers are milliseconds of the whole move and its ramp."""
        bank, row = self.bank, self.row
        total = self.load(self.table["profile_velocity"]) / 1000.0
        ramp = self.load(self.table["profile_acceleration"]) / 1000.0
        distance = abs(float(bank.goal[row] - bank.trajectory[row]))
        if total <= 0.0:
            return
        ramp = min(ramp, total / 2)
        rate = max(distance / (total - ramp), 1.0)
        bank.max_rate[row] = rate
        bank.max_acceleration[row] = rate / ramp if ramp > 0 else UNLIMITED

    def _reconfigure(self) -> None:
        """Carry the registers that shape the motion into this row's vectors."""
        bank, row, load, table = self.bank, self.row, self.load, self.table
        mode = self.mode
        if bool(bank.active[row]) != self.torque_on:
            bank.saturated_s[row] = 0.0
        bank.active[row] = self.torque_on
        if not self.torque_on:
            bank.effort[row] = 0.0
        bank.position_mode[row] = mode in _POSITION_MODES
        bank.rate_mode[row] = mode in (OperatingMode.VELOCITY, OperatingMode.PWM)
        bank.offset[row] = load(table["homing_offset"]) - self._turns * TICKS_PER_REV
        p_gain = load(table["position_p_gain"])
        stiffness = 3600.0 * p_gain / 800.0
        bank.stiffness[row] = stiffness
        bank.damping[row] = 2.0 * math.sqrt(stiffness) if stiffness else _HAND_AT_LIMIT
        rate = load(table["profile_velocity"]) * VELOCITY_UNIT_TICKS_S
        acceleration = load(table["profile_acceleration"]) * ACCELERATION_UNIT_TICKS_S2
        bank.profiled[row] = 1.0 if rate else 0.0
        if not self.memory[10] & 4:
            bank.max_rate[row] = rate or UNLIMITED
            bank.max_acceleration[row] = acceleration if rate and acceleration else UNLIMITED
        per_ma = self._effort_per_ma
        pwm_share = load(table["pwm_limit"]) / 885.0
        if table.has_current:
            limit = load(table["current_limit"]) * CURRENT_UNIT_MA * per_ma
            drive = limit
            if mode == OperatingMode.CURRENT_POSITION:
                goal_ma = abs(load(table["goal_current"])) * CURRENT_UNIT_MA
                drive = min(limit, goal_ma * per_ma)
            bank.goal_effort[row] = load(table["goal_current"]) * CURRENT_UNIT_MA * per_ma
            bank.current_scale[row] = 1.0 / (per_ma * CURRENT_UNIT_MA)
        else:
            limit = drive = ACCELERATION_AT_LIMIT * pwm_share
            bank.current_scale[row] = 1000.0 / ACCELERATION_AT_LIMIT
        bank.effort_limit[row] = drive
        bank.overload_effort[row] = bank.overload_threshold(limit)
        bank.hand_limit[row] = _HAND_AT_LIMIT * ACCELERATION_AT_LIMIT
        if mode == OperatingMode.PWM:
            goal_pwm = load(table["goal_pwm"]) / 885.0
            bank.goal_rate[row] = goal_pwm * bank.motor_rate[row]
        else:
            bank.goal_rate[row] = load(table["goal_velocity"]) * VELOCITY_UNIT_TICKS_S
        if not self.watchdog_tripped:
            bank.goal[row] = load(table["goal_position"]) - bank.offset[row]
            if self.memory[10] & 4 and rate:
                self._time_profile()
        else:
            bank.goal_rate[row] = bank.goal_effort[row] = 0.0
        bank.refresh()
