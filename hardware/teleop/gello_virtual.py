"""A virtual GELLO: the servos of a leader on a virtual bus, for stations without one, and tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hardware.dynamixel.control import ControlClient
from hardware.teleop.gello_config import GelloCalibration, GelloConfig

__all__ = ["bus_description", "move"]

MODEL = "XL430-W250"  # speaks like the XL330 of real rigs, as far as it is read here


def bus_description(
    name: str,
    config: GelloConfig,
    calibration: GelloCalibration,
    joints: Sequence[float],
    opening: float = 1.0,
    *,
    link: Path | None = None,
    usb_latency_s: float = 0.001,
) -> dict[str, Any]:
    """The leader as ``hardware.dynamixel.process.build`` wants it, standing like the robot at
    ``joints`` (n,) in rad, its trigger at ``opening`` (fraction)."""
    angles = [float(angle) for angle in calibration.angles(joints)]
    if config.gripper_id is not None:
        angles.append(calibration.trigger(opening))
    description: dict[str, Any] = {
        "name": name,
        "servos": [
            {"id": servo, "model": MODEL, "position_rad": angle}
            for servo, angle in zip(config.servos, angles, strict=True)
        ],
        "baud": config.baud,
        "usb_latency_s": usb_latency_s,
    }
    if link is not None:
        description["link"] = str(link)
    return description


def move(
    control: ControlClient,
    name: str,
    config: GelloConfig,
    calibration: GelloCalibration,
    joints: Sequence[float],
    opening: float,
) -> None:
    """Hands put the leader where the robot would stand at ``joints`` and ``opening``."""
    for servo, angle in zip(config.ids, calibration.angles(joints), strict=True):
        control.call("hand", name, servo_id=servo, position_rad=float(angle))
    if config.gripper_id is not None:
        angle = calibration.trigger(opening)
        control.call("hand", name, servo_id=config.gripper_id, position_rad=angle)
