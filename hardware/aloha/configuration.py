"""What a station file says of one ALOHA arm, and the calibration file that belongs to it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from hardware.aloha.gripper import Gripper, GripperCalibration
from hardware.aloha.rig import (
    BAUD,
    GRIPPERS,
    JOINTS,
    PID,
    ArmModel,
    JointLimits,
    Servo,
    arm_model,
    build_spec,
)
from hardware.dynamixel.control_table import MODELS, TICKS_PER_REV, model_by_name
from robot_stack.config import RobotConfig, Station, parse, within
from robot_stack.errors import ConfigError
from robot_stack.shared_memory import runtime_dir
from robot_stack.spec import RobotSpec

__all__ = [
    "AlohaArmConfig",
    "ArmCalibration",
    "Gains",
    "calibration_path",
    "load_calibration",
    "save_calibration",
    "serial_port",
]

VIRTUAL = "virtual:"
# A horn is mounted on one of 8 screw holes or turned by a few teeth of its spline; half a turn
# is always a mistake of reading.
LARGEST_OFFSET = TICKS_PER_REV // 2 - 1


@dataclass(frozen=True)
class Gains:
    """Position gains of one joint's servos, in counts of registers 84, 82 and 80."""

    p: int = within(0, 16383, default=PID[0])
    i: int = within(0, 16383, default=PID[1])
    d: int = within(0, 16383, default=PID[2])


@dataclass(frozen=True)
class ArmCalibration:
    """What `robot-stack calibrate` measured on this arm. ``offsets``: ticks that a joint at 0 rad
    reads above 2048, by joint name."""

    gripper: GripperCalibration | None = None
    offsets: dict[str, int] = field(default_factory=dict)
    robot: str = ""
    calibrated: str = ""

    def __post_init__(self) -> None:
        for name, ticks in self.offsets.items():
            if name not in JOINTS[:-1]:
                raise ValueError(
                    f"offsets: no joint {name!r} (joints: {', '.join(JOINTS[:-1])}; the gripper "
                    "has readings of its own)"
                )
            if abs(ticks) > LARGEST_OFFSET:
                raise ValueError(
                    f"offsets.{name}: {ticks} ticks is over half a turn ({LARGEST_OFFSET})"
                )


@dataclass(frozen=True)
class AlohaArmConfig:
    """Options of driver ``aloha``.

    port             /dev/serial/by-id/..., or ``virtual:<name>`` for a port of the station's world
    grippers         the published rig whose gripper numbers hold until the arm is calibrated
    calibration      inline calibration; otherwise calibration/<robot>.yaml beside the station file
    current_limit    of a follower's gripper, 2.69 mA a count: 200 is 0.54 A
    grip_current     what it grips with, at most that; null: all of it
    bus_watchdog_ms  servos stop and hold when nobody has spoken to them for this long
    fast_read        fast sync reads; null tries them once at connect
    gripper_state    what a gripper is observed as, a fraction of joint angle or of finger position;
                     null is ALOHA's convention: finger for a follower, joint for a leader
    servo_models     servos that were replaced by another model, by servo name
    """

    role: Literal["leader", "follower"]
    model: Literal["vx300s", "wx250s"]
    port: str
    baud: int = BAUD
    grippers: Literal["stanford", "interbotix"] = "stanford"
    calibration: ArmCalibration | None = None
    current_limit: int = within(50, 300, "counts of 2.69 mA", default=200)
    grip_current: int | None = within(20, 300, "counts of 2.69 mA", default=None)
    bus_watchdog_ms: int = within(100, 2540, "ms", default=500)
    gains: dict[str, Gains] = field(default_factory=dict)
    limits: dict[str, JointLimits] = field(default_factory=dict)
    servo_models: dict[str, str] = field(default_factory=dict)
    fast_read: bool | None = None
    gripper_state: Literal["joint", "finger"] | None = None

    def __post_init__(self) -> None:
        known = {table.model for table in MODELS.values()}
        servos = {servo.name for servo in self.arm.servos}
        for name, model in self.servo_models.items():
            if name not in servos:
                raise ValueError(f"servo_models: no servo {name!r} (servos: {sorted(servos)})")
            if model not in known:
                raise ValueError(f"servo_models.{name}: {model!r} is not one of {sorted(known)}")
        gripper = self.servo_model(self.arm.masters[-1])
        if self.role == "follower" and not model_by_name(gripper).has_current:
            raise ValueError(
                f"servo_models: the gripper is an {gripper}, which cannot limit its current; a "
                "follower needs an XM430-W350 there"
            )
        if self.grip_current is not None and self.grip_current > self.current_limit:
            raise ValueError(
                f"grip_current: {self.grip_current} is more than current_limit allows, "
                f"{self.current_limit}"
            )
        for name in self.gains:
            if name not in JOINTS:
                raise ValueError(f"gains: no joint {name!r} (joints: {', '.join(JOINTS)})")

    @property
    def arm(self) -> ArmModel:
        """The arm's table."""
        return arm_model(self.model)

    def servo_model(self, servo: Servo) -> str:
        """The model of a servo on this rig."""
        return self.servo_models.get(servo.name, servo.model)

    @property
    def grip(self) -> int:
        """The goal current of a follower's gripper, in counts of 2.69 mA."""
        return self.current_limit if self.grip_current is None else self.grip_current

    @property
    def offsets(self) -> dict[str, int]:
        """Calibration offsets in ticks, by joint; joints without one are missing."""
        return self.calibration.offsets if self.calibration else {}

    @property
    def gripper(self) -> Gripper:
        """The calibrated gripper, or the published rig's."""
        measured = self.calibration.gripper if self.calibration else None
        return Gripper(self.arm.linkage, measured or GRIPPERS[self.grippers][self.model])

    @property
    def spec(self) -> RobotSpec:
        """The arm as commands see it. ConfigError when ``limits`` do not fit the arm."""
        return build_spec(self.arm, self.offsets, self.limits)

    @classmethod
    def from_station(cls, config: RobotConfig, station: Station) -> AlohaArmConfig:
        """The options of one robot of a station, with its port and calibration file resolved."""
        where = f"robots.{config.name}.options"
        values = dict(config.options)
        options = parse(cls, config.options, where)
        values = {name: getattr(options, name) for name in cls.__dataclass_fields__}
        values["port"] = str(serial_port(options.port, station.station))
        if options.calibration is None and station.path:
            path = calibration_path(station.path, config.name)
            if path.exists():
                values["calibration"] = load_calibration(path)
        return cls(**values)


def serial_port(port: str, station: str) -> Path:
    """Where a port of the station file is found: ``virtual:<name>`` is a link that the station's
    world process makes in the runtime directory, anything else a path of its own."""
    if port.startswith(VIRTUAL):
        return runtime_dir(station) / "tty" / port.removeprefix(VIRTUAL)
    return Path(port)


def calibration_path(station_file: str | Path, robot: str) -> Path:
    """``calibration/<robot>.yaml`` beside the station file."""
    return Path(station_file).parent / "calibration" / f"{robot}.yaml"


def load_calibration(path: Path) -> ArmCalibration:
    """Read a calibration file; ConfigError names file and key."""
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not a readable calibration file: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a calibration file is a mapping of keys, this one is not")
    return parse(ArmCalibration, values, str(path))


def save_calibration(path: Path, calibration: ArmCalibration) -> None:
    """Write a calibration file in one step; an earlier one is kept as ``<robot>.yaml.before``."""
    values: dict[str, Any] = {"robot": calibration.robot, "calibrated": calibration.calibrated}
    gripper = calibration.gripper
    if gripper is not None:
        numbers = {name: getattr(gripper, name) for name in gripper.__dataclass_fields__}
        values["gripper"] = {
            name: round(number, 5)
            for name, number in numbers.items()
            if number is not None and math.isfinite(number)
        }
    values["offsets"] = dict(calibration.offsets)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = (
        "# Written by `robot-stack calibrate`. Gripper in rad (joint) and m (finger); offsets in\n"
        "# servo ticks: what the joint at 0 rad reads above 2048.\n"
    ) + yaml.safe_dump(values, sort_keys=False)
    fresh = path.with_suffix(".yaml.new")
    fresh.write_text(text)
    if path.exists():
        path.replace(path.with_suffix(".yaml.before"))
    fresh.replace(path)
