"""What the registers of an ALOHA arm's servos must hold, and how to check and mend it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hardware.aloha.configuration import AlohaArmConfig, Gains
from hardware.aloha.rig import GRIPPER, JOINTS, RETURN_DELAY, VELOCITY_LIMIT, ArmModel, Servo
from hardware.dynamixel.bus import DynamixelBus
from hardware.dynamixel.control_table import BAUD_CODES, OperatingMode
from robot_stack.errors import BusError, DeviceError

__all__ = [
    "Mismatch",
    "apply_grip_limit",
    "apply_ram",
    "check_eeprom",
    "check_models",
    "eeprom",
    "mend_eeprom",
    "mode",
    "ram",
    "read_all",
]

NO_SHADOW = 255
READ_S = 0.3
REVERSE, TORQUE_BY_GOAL = 1, 8  # bits of register 10
# Bit 2 of register 10 (time-based profiles) means nothing while the profile registers are 0.
DRIVE_BITS = REVERSE | TORQUE_BY_GOAL


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A register that does not hold what the rig needs."""

    servo: Servo
    register: str
    found: int
    wanted: int

    def __str__(self) -> str:
        return f"{self.servo}: {self.register} is {self.found}, must be {self.wanted}"


def eeprom(arm: ArmModel, servo: Servo, baud: int) -> dict[str, int]:
    """EEPROM registers of one servo by name, without operating mode and a gripper's current limit
    (those depend on the arm's role, and connecting sets them)."""
    code = next(code for code, speed in BAUD_CODES.items() if speed == baud)
    return {
        "id": servo.id,
        "baud_rate": code,
        "return_delay_time": RETURN_DELAY,
        "drive_mode": REVERSE if servo.reverse else 0,
        "secondary_id": NO_SHADOW if servo.shadow_of is None else servo.shadow_of,
        "velocity_limit": VELOCITY_LIMIT,
        "min_position_limit": servo.min_ticks,
        "max_position_limit": servo.max_ticks,
    }


def mode(config: AlohaArmConfig, servo: Servo) -> OperatingMode:
    """Arm joints hold positions; a follower's gripper does so within a current."""
    if servo.joint == GRIPPER and config.role == "follower":
        return OperatingMode.CURRENT_POSITION
    return OperatingMode.POSITION


def ram(config: AlohaArmConfig, servo: Servo) -> dict[str, int]:
    """RAM registers of one servo, lost at every restart of it. No profile: the SafetyFilter
    shapes the motion, and a profile on top of it would lag behind."""
    gains = config.gains.get(JOINTS[servo.joint], Gains())
    return {
        "profile_velocity": 0,
        "profile_acceleration": 0,
        "position_p_gain": gains.p,
        "position_i_gain": gains.i,
        "position_d_gain": gains.d,
    }


def _holds(register: str, found: int, wanted: int) -> bool:
    if register == "drive_mode":
        return found & DRIVE_BITS == wanted & DRIVE_BITS
    if register == "secondary_id" and wanted == NO_SHADOW:
        return found >= 253  # 253 to 255 all switch it off
    return found == wanted


def read_all(bus: DynamixelBus, register: str) -> dict[int, int]:
    """One register of every servo of the bus; BusError names those that did not answer."""
    found = bus.sync_read(register, deadline_s=READ_S)
    silent = [servo_id for servo_id in bus.ids if servo_id not in found]
    if silent:
        raise BusError(
            f"servos {silent} on {bus.port_name} stopped answering: check their cable and power"
        )
    return found


def check_models(bus: DynamixelBus, config: AlohaArmConfig) -> list[str]:
    """Complaints about servos of another model than the arm has, in words."""
    complaints = []
    for servo in config.arm.servos:
        wanted = config.servo_model(servo)
        found = bus.found[servo.id]
        if found.model != wanted:
            complaints.append(f"{servo} is {found.model}, must be {wanted}")
    return complaints


def check_eeprom(bus: DynamixelBus, config: AlohaArmConfig) -> list[Mismatch]:
    """Registers of all servos that differ from the rig's; reads only."""
    wanted = {servo: eeprom(config.arm, servo, config.baud) for servo in config.arm.servos}
    mismatches = []
    for register in next(iter(wanted.values())):
        found = read_all(bus, register)
        for servo, values in wanted.items():
            if not _holds(register, found[servo.id], values[register]):
                mismatches.append(Mismatch(servo, register, found[servo.id], values[register]))
    return mismatches


def mend_eeprom(bus: DynamixelBus, mismatches: list[Mismatch]) -> None:
    """Write what differs and read it back. DeviceError names a servo that is under torque: its
    arm must be supported and its torque switched off first; nothing is written then."""
    holding = [
        servo.id
        for servo in {m.servo.id: m.servo for m in mismatches}.values()
        if bus.read(servo.id, "torque_enable")
    ]
    if holding:
        raise DeviceError(
            f"servos {holding} on {bus.port_name} are under torque and EEPROM is then read-only: "
            "lower the arm to its rest, switch torque off (`robot-stack shutdown`, then the arm's "
            "power), and try again"
        )
    for mismatch in mismatches:
        value = mismatch.wanted
        if mismatch.register == "drive_mode":
            value |= mismatch.found & ~DRIVE_BITS
        bus.write_verified(mismatch.servo.id, mismatch.register, value)


def apply_ram(bus: DynamixelBus, servo_id: int, values: Mapping[str, int]) -> None:
    """Write RAM registers and read them back; those that hold their value are left alone."""
    for register, value in values.items():
        bus.write_verified(servo_id, register, value)


def apply_grip_limit(bus: DynamixelBus, config: AlohaArmConfig, servo: Servo) -> None:
    """Bound the current of a follower's gripper: register 38 (EEPROM) with its torque off, and
    102, what it grips with; both are read back.

    DeviceError when the servo holds torque with another limit.
    """
    found = bus.read(servo.id, "current_limit")
    if found != config.current_limit and bus.read(servo.id, "torque_enable"):
        raise DeviceError(
            f"{servo} on {bus.port_name} holds with current_limit {found}, the station says "
            f"{config.current_limit}: open the hand, switch its torque off, and connect again"
        )
    bus.write_verified(servo.id, "current_limit", config.current_limit)
    bus.write_verified(servo.id, "goal_current", config.grip)
