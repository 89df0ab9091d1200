"""What a station file says of a GELLO leader, and the calibration file that belongs to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray

from hardware.dynamixel.control_table import BAUD_CODES
from robot_stack.config import Station, TeleopConfig, parse, within
from robot_stack.errors import ConfigError
from robot_stack.shared_memory import runtime_dir

__all__ = [
    "DeadmanConfig",
    "GelloCalibration",
    "GelloConfig",
    "calibration_path",
    "gello_config",
    "load_calibration",
    "save_calibration",
]

Array = NDArray[np.float64]

VIRTUAL = "virtual:"
LEAST_STROKE = 0.1  # rad between a trigger's ends


@dataclass(frozen=True)
class GelloCalibration:
    """How a rig's servos stand to the robot's joints; angles in rad of a servo's own shaft.

    signs     of each joint, 1 or -1: whether servo and joint turn the same way
    offsets   of each joint: what the servo reads where the robot's joint is at 0
    open, closed   what the trigger's servo reads let go, and squeezed
    """

    signs: tuple[int, ...]
    offsets: tuple[float, ...]
    open: float | None = None
    closed: float | None = None
    calibrated: str = ""

    def __post_init__(self) -> None:
        if len(self.signs) != len(self.offsets):
            raise ValueError(
                f"{len(self.signs)} signs and {len(self.offsets)} offsets: one a joint"
            )
        for sign in self.signs:
            if sign not in (1, -1):
                raise ValueError(f"signs: {sign} is neither 1 nor -1")
        if (self.open is None) != (self.closed is None):
            raise ValueError("open and closed are the trigger's two ends: give both or neither")
        if self.open is not None and abs(self.open - (self.closed or 0.0)) < LEAST_STROKE:
            raise ValueError(f"open and closed are the same end of the trigger ({self.open:g} rad)")

    def joints(self, angles: Array) -> Array:
        """The robot's joints (n,) where the servos read ``angles`` (n,), up to whole turns."""
        return np.asarray(np.array(self.signs) * (angles - np.array(self.offsets)))

    def angles(self, joints: Sequence[float] | Array) -> Array:
        """What the servos read (n,) where the leader stands like the robot at ``joints`` (n,)."""
        return np.asarray(np.array(self.signs) * np.asarray(joints) + np.array(self.offsets))

    def fraction(self, angle: float) -> float:
        """How far the gripper is to be open, 0..1, where the trigger's servo reads ``angle``."""
        assert self.open is not None
        assert self.closed is not None
        middle = 0.5 * (self.open + self.closed)
        near = middle + math.remainder(angle - middle, 2 * math.pi)
        return min(1.0, max(0.0, (near - self.closed) / (self.open - self.closed)))

    def trigger(self, fraction: float) -> float:
        """What the trigger's servo reads for an opening of ``fraction``."""
        assert self.open is not None
        assert self.closed is not None
        return self.closed + fraction * (self.open - self.closed)


@dataclass(frozen=True)
class DeadmanConfig:
    """A pedal or button that must be held for the robot to follow."""

    device: str
    key: str


@dataclass(frozen=True)
class GelloConfig:
    """``teleop.options`` of driver ``gello``.

    port         /dev/serial/by-id/..., or ``virtual:<name>`` for a port of the station's world
    robot        which arm of the group; not needed where there is one
    ids          servos of the joints, from the base on; as many as the robot has joints
    gripper_id   servo of the trigger; null: the rig has none, and the gripper stays
    baud         of the servos: 57600 as they come, which affords 30 readings a second; 1000000
                 affords all that is asked
    calibration  inline; otherwise calibration/gello_ROBOT.yaml beside the station file, which
                 `robot-stack gello STATION` writes
    clutch       absolute: the robot stands as the leader does, and engages when it is brought to
                 it; relative: it makes the leader's motions, from where each of them was
    align_rad, align_gripper   how near (each joint; of the trigger's way) counts as brought to it
    catch_up_rad_s   how fast what was still missing then is made up for
    deadman      a pedal that must be held, ``{device: ..., key: KEY_B}``; none: following goes on
    max_age_s    a servo that has been silent for so long ends the following
    """

    port: str
    robot: str = ""
    ids: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7)
    gripper_id: int | None = within(0, 252, default=8)
    baud: int = 57600
    calibration: GelloCalibration | None = None
    clutch: Literal["absolute", "relative"] = "absolute"
    align_rad: float = within(0.01, 0.8, "rad", default=0.15)
    align_gripper: float = within(0.02, 1.0, default=0.2)
    catch_up_rad_s: float = within(0.05, 2.0, "rad/s", default=0.5)
    deadman: DeadmanConfig | None = None
    max_age_s: float = within(0.02, 1.0, "s", default=0.15)

    def __post_init__(self) -> None:
        if self.baud not in BAUD_CODES.values():
            raise ValueError(f"baud: {self.baud} is none of {sorted(BAUD_CODES.values())}")
        ids = [*self.ids, *([] if self.gripper_id is None else [self.gripper_id])]
        if not self.ids or len(set(ids)) != len(ids):
            raise ValueError(f"ids: each servo has an id of its own, not {ids}")

    @property
    def servos(self) -> tuple[int, ...]:
        """All ids, the trigger's last."""
        return (*self.ids, *(() if self.gripper_id is None else (self.gripper_id,)))

    def path(self, station: str) -> Path:
        """The serial port; ``virtual:<name>`` is a link in the station's runtime directory."""
        if self.port.startswith(VIRTUAL):
            return runtime_dir(station) / "tty" / self.port.removeprefix(VIRTUAL)
        return Path(self.port)


def gello_config(config: TeleopConfig) -> GelloConfig:
    """The options of a station's GELLO; ConfigError when its calibration does not fit them."""
    options = parse(GelloConfig, config.options, "teleop.options")
    if options.calibration is not None:
        _check(options, options.calibration, "teleop.options.calibration")
    return options


def _check(options: GelloConfig, calibration: GelloCalibration, where: str) -> None:
    if len(calibration.signs) != len(options.ids):
        raise ConfigError(
            f"{where}: signs and offsets of {len(calibration.signs)} joints, and ids of "
            f"{len(options.ids)} servos"
        )
    if options.gripper_id is not None and calibration.open is None:
        raise ConfigError(
            f"{where}: open and closed of the trigger are missing; measure them, or set "
            "gripper_id: null"
        )


def calibration_path(station_file: str | Path, robot: str) -> Path:
    """``calibration/gello_<robot>.yaml`` beside the station file."""
    return Path(station_file).parent / "calibration" / f"gello_{robot}.yaml"


def load_calibration(options: GelloConfig, station: Station, robot: str) -> GelloCalibration:
    """The rig's calibration: inline or from its file. ConfigError says how to get one."""
    if options.calibration is not None:
        return options.calibration
    path = calibration_path(station.path, robot)
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(
            f"the GELLO of {robot} is not calibrated ({path} does not exist): measure it with "
            f"`robot-stack gello {station.path}`"
        ) from None
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not a readable calibration file: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a calibration file is a mapping of keys, this one is not")
    calibration = parse(GelloCalibration, values, str(path))
    _check(options, calibration, str(path))
    return calibration


def save_calibration(path: Path, calibration: GelloCalibration) -> None:
    """Write a calibration file in one step; an earlier one is kept as ``....yaml.before``."""
    values: dict[str, Any] = {
        "calibrated": calibration.calibrated,
        "signs": list(calibration.signs),
        "offsets": [round(offset, 5) for offset in calibration.offsets],
    }
    if calibration.open is not None and calibration.closed is not None:
        values |= {"open": round(calibration.open, 5), "closed": round(calibration.closed, 5)}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = (
        "# Written by `robot-stack gello`. Angles in rad of the servos' own shafts: offsets are\n"
        "# what they read where the robot's joint is at 0; open and closed the trigger's ends.\n"
    ) + yaml.safe_dump(values, sort_keys=False)
    fresh = path.with_suffix(".yaml.new")
    fresh.write_text(text)
    if path.exists():
        path.replace(path.with_suffix(".yaml.before"))
    fresh.replace(path)
